//! Whether a server can hold leases.

use rendez_core::StoreError;

use crate::options::fatal;

/// Refuses servers that are too old, and warns of those that may end all leases too early.
pub(super) fn check(version: &str, alarms: &[String], server: &str) -> Result<(), StoreError> {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let version_parts = (next(), next(), next());
    if version_parts < (3, 4, 0) {
        return Err(fatal(format!("etcd at {server}: version {version} is too old: use 3.4 or newer, best 3.5.12")));
    }
    if has_early_revocation(version_parts) {
        tracing::warn!(
            server,
            version,
            "this etcd can end all leases at once, too early, when a stalled leader comes back: use 3.4.30, 3.5.12 or newer"
        );
    }
    if alarms.iter().any(|alarm| alarm.contains("NOSPACE")) {
        tracing::warn!(server, "etcd's database has reached its quota: sessions live on, nothing new is written");
    }
    Ok(())
}

fn has_early_revocation((major, minor, patch): (u32, u32, u32)) -> bool {
    major == 3 && ((minor == 4 && patch < 30) || (minor == 5 && patch < 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused_and_those_with_the_known_fault_are_known() {
        for version in ["3.3.27", "2.3.8", "", "x"] {
            assert!(check(version, &[], "s").is_err(), "{version}");
        }
        for version in ["3.4.0", "3.5.1", "3.6.0-rc.1", "4.0.0"] {
            check(version, &[], "s").unwrap();
        }
        for (version, faulty) in [((3, 4, 29), true), ((3, 4, 30), false), ((3, 5, 11), true), ((3, 5, 12), false)] {
            assert_eq!(has_early_revocation(version), faulty, "{version:?}");
        }
        assert!(!has_early_revocation((3, 6, 0)));
    }
}
