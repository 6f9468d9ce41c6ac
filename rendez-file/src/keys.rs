//! The names of files and folders. Nothing but names belongs here.

use std::path::{Path, PathBuf};

use rendez_core::ClusterName;

/// The layout that this release reads and writes.
pub(crate) const LAYOUT: u32 = 1;

/// What the folder of a layout begins with; its number follows.
pub(crate) const LAYOUT_PREFIX: &str = "rendez-";

pub(crate) const LOCK: &str = "lock";
pub(crate) const SNAPSHOT: &str = "snapshot.json";
pub(crate) const SNAPSHOT_NEW: &str = "snapshot.new";
pub(crate) const HINTS: &str = "hints";
const JOURNAL_PREFIX: &str = "journal-";
const JOURNAL_SUFFIX: &str = ".jsonl";

/// The longest part of a cluster's name in one folder's name; file systems permit 255 bytes.
const PART_BYTES_MAX: usize = 200;

pub(crate) fn journal(number: u64) -> String {
    format!("{JOURNAL_PREFIX}{number}{JOURNAL_SUFFIX}")
}

/// The number of a journal's name.
pub(crate) fn parse_journal(name: &str) -> Option<u64> {
    name.strip_prefix(JOURNAL_PREFIX)?.strip_suffix(JOURNAL_SUFFIX)?.parse().ok()
}

/// The folder of all clusters.
pub(crate) fn layout_folder(root: &Path) -> PathBuf {
    root.join(format!("{LAYOUT_PREFIX}{LAYOUT}"))
}

/// The cluster's folder. A long name is cut into nested ones: each but the last ends with a `+`, which stands in no name.
pub(crate) fn cluster_folder(root: &Path, cluster: &ClusterName) -> PathBuf {
    let escaped = escape(cluster.as_str());
    let mut folder = layout_folder(root);
    let mut rest = escaped.as_str();
    while rest.len() > PART_BYTES_MAX {
        // All of it is ASCII.
        let (part, behind) = rest.split_at(PART_BYTES_MAX);
        folder.push(format!("{part}+"));
        rest = behind;
    }
    folder.push(rest);
    folder
}

/// Lower-case letters, digits, `_`, `-` and inner dots stay; an upper-case letter becomes `^` and the small one, since some
/// file systems do not tell them apart; every other byte becomes `%` and two hexadecimal digits.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => escaped.push(char::from(byte)),
            b'.' if at > 0 => escaped.push('.'),
            b'A'..=b'Z' => {
                escaped.push('^');
                escaped.push(char::from(byte.to_ascii_lowercase()));
            }
            _ => escaped.push_str(&format!("%{byte:02x}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        "[^\\p{Cc}]{1,100}".prop_filter("a name's bound", |name| name.len() <= 200)
    }

    #[test]
    fn readable_names_stay_readable_and_others_are_inert() {
        let folder = |name: &str| cluster_folder(Path::new("/x"), &ClusterName::new(name).unwrap());
        assert_eq!(folder("my-cluster_1.eu"), Path::new("/x/rendez-1/my-cluster_1.eu"));
        assert_eq!(folder(".."), Path::new("/x/rendez-1/%2e."));
        assert_eq!(folder("../a/B"), Path::new("/x/rendez-1/%2e.%2fa%2f^b"));
        let long = "é".repeat(100);
        assert_eq!(folder(&long).components().count(), folder("a").components().count() + 2);
        assert_eq!(parse_journal(&journal(7)), Some(7));
        assert_eq!(parse_journal("journal-x.jsonl"), None);
    }

    proptest! {
        #[test]
        fn different_clusters_share_no_folder_nor_stand_in_each_others(a in name(), b in name()) {
            let folder = |name: &str| cluster_folder(Path::new("/x"), &ClusterName::new(name).unwrap());
            let (one, two) = (folder(&a), folder(&b));
            prop_assert_eq!(one == two, a == b);
            prop_assert!(one.components().all(|part| part.as_os_str().len() <= 255));
            prop_assert!(one.starts_with("/x/rendez-1") && !one.to_string_lossy().chars().any(char::is_uppercase));
        }
    }
}
