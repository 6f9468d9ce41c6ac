//! How the store behaves. Nothing here opens a file.

use std::path::PathBuf;
use std::time::Duration;

use rendez_core::{ErrorKind, StoreError};

/// How the file store behaves. The defaults suit a folder on a disk of the host.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FileOptions {
    /// How long a request may take before it is given up, or its outcome counts as unknown; default 500 ms.
    pub operation_timeout: Duration,
    /// How long the journal may become before it is folded into the snapshot, in bytes; default 1 MiB. A snapshot that
    /// is larger is what counts.
    pub journal_bytes_max: u64,
    /// Use the folder although it is on a network file system; default no. Locks and renames must work there as they do
    /// on a disk of the host, and all processes must still be on one host.
    pub allow_network_file_system: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            operation_timeout: Duration::from_millis(500),
            journal_bytes_max: 1 << 20,
            allow_network_file_system: false,
        }
    }
}

const KEYS: &str = "operation_timeout, journal_bytes_max, allow_network_file_system";

/// The shortest journal: below that the snapshot would be written all the time.
const JOURNAL_BYTES_MIN: u64 = 1024;

impl FileOptions {
    /// Sets an option from text: durations like `250ms`, numbers, `true` and `false`.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an unknown key or a value that cannot be; nothing is changed then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let wrong = |wanted: &str| fatal(format!("the option {key} of the file store cannot be that: write {wanted}"));
        match key {
            "operation_timeout" => {
                let duration = value.parse::<jiff::SignedDuration>().ok();
                let duration = duration.and_then(|duration| Duration::try_from(duration).ok());
                let duration = duration.filter(|duration| !duration.is_zero());
                self.operation_timeout = duration.ok_or_else(|| wrong("a time, for example 500ms"))?;
            }
            "journal_bytes_max" => {
                let bytes = value.parse().ok().filter(|bytes| *bytes >= JOURNAL_BYTES_MIN);
                self.journal_bytes_max =
                    bytes.ok_or_else(|| wrong(&format!("a number of bytes, {JOURNAL_BYTES_MIN} or more")))?;
            }
            "allow_network_file_system" => {
                self.allow_network_file_system = value.parse().map_err(|_| wrong("true or false"))?;
            }
            _ => return Err(fatal(format!("the file store has no option {key:?}: it has {KEYS}"))),
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.operation_timeout.is_zero() {
            return Err(fatal("the operation_timeout of the file store must not be zero"));
        }
        if self.journal_bytes_max < JOURNAL_BYTES_MIN {
            return Err(fatal(format!(
                "a journal_bytes_max of {} is too small: use {JOURNAL_BYTES_MIN} or more",
                self.journal_bytes_max
            )));
        }
        Ok(())
    }
}

pub(crate) fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

/// The folder that a URL names. The path is taken as it is: nothing in it is decoded.
pub(crate) fn parse_url(url: &str) -> Result<PathBuf, StoreError> {
    let wrong = || fatal(format!("{url:?} names no folder: write file:PATH, for example file:/var/lib/rendez"));
    let path = url.strip_prefix("file:").ok_or_else(wrong)?;
    let path = match path.strip_prefix("//") {
        Some(behind) if behind.starts_with('/') => behind,
        Some(_) => {
            return Err(fatal(format!(
                "{url:?} names another host: the file store is for the processes of one; write file:PATH or file:///PATH"
            )));
        }
        None => path,
    };
    if path.is_empty() { Err(wrong()) } else { Ok(PathBuf::from(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_from_text_and_nonsense_is_refused_without_being_repeated() {
        let mut options = FileOptions::default();
        options.set("operation_timeout", "250ms").unwrap();
        options.set("journal_bytes_max", "4096").unwrap();
        options.set("allow_network_file_system", "true").unwrap();
        assert_eq!(options.operation_timeout, Duration::from_millis(250));
        assert!(options.journal_bytes_max == 4096 && options.allow_network_file_system);
        for (key, value) in [
            ("operation_timeout", "s3cret"),
            ("operation_timeout", "0s"),
            ("journal_bytes_max", "12"),
            ("allow_network_file_system", "s3cret"),
            ("what", "s3cret"),
        ] {
            let error = options.set(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal);
            assert!(error.message().contains(key) && !error.message().contains("s3cret"), "{error}");
        }
        assert!(options.set("what", "").unwrap_err().message().contains("journal_bytes_max"));
    }

    #[test]
    fn a_url_names_a_folder_of_this_host() {
        for (url, path) in [("file:a b", "a b"), ("file:/x/%20", "/x/%20"), ("file:///x", "/x"), ("file:.", ".")] {
            assert_eq!(parse_url(url).unwrap(), PathBuf::from(path));
        }
        for url in ["file:", "file://", "file://host/x", "/x", "redis://x"] {
            assert_eq!(parse_url(url).unwrap_err().kind(), ErrorKind::Fatal, "{url}");
        }
    }
}
