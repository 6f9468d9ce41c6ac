//! Whether a server can hold leases.

use redis::InfoDict;
use rendez_core::{ErrorKind, StoreError};

use crate::options::fatal;

/// The parts of `INFO` that are looked at.
pub(super) const SECTIONS: [&str; 3] = ["server", "memory", "replication"];

/// The oldest version with all that the scripts use.
const VERSION_MIN: (u32, u32) = (6, 2);

pub(super) fn warn_unknown(name: &str) {
    tracing::warn!(
        server = name,
        "the user may not run INFO: version, eviction policy and role are not checked, and a failover is not noticed \
         by the server's replication id"
    );
}

/// Looks at the version, the role, and that the server does not evict leases.
pub(super) fn check(info: &str, name: &str) -> Result<(), StoreError> {
    let info = InfoDict::new(info);
    let Some(version) = info.get::<String>("redis_version") else {
        return Err(fatal(format!("the server at {name} names no redis_version: Redis 6.2 or newer is wanted")));
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if number < VERSION_MIN {
        return Err(fatal(format!("Redis at {name} is version {version}: 6.2 or newer is wanted")));
    }
    match info.get::<String>("maxmemory_policy").as_deref() {
        // The volatile policies never evict a key without a TTL, and ours have none.
        Some("noeviction") => {}
        Some(policy) if policy.starts_with("volatile-") => {}
        Some(policy) => {
            return Err(fatal(format!(
                "Redis at {name} has maxmemory-policy {policy} and may evict leases: set it to noeviction"
            )));
        }
        None => tracing::warn!(server = name, "the server does not tell its maxmemory-policy: it must be noeviction"),
    }
    match info.get::<String>("role").as_deref() {
        Some("master") | None => Ok(()),
        Some(_) => Err(StoreError::new(
            ErrorKind::Transient,
            format!("Redis at {name} is a replica: connect to the primary, or through Sentinel"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, policy: &str, role: &str) -> String {
        format!("# Server\r\nredis_version:{version}\r\nmaxmemory_policy:{policy}\r\nrole:{role}\r\n")
    }

    #[test]
    fn old_versions_evicting_policies_and_replicas_do_not_fit() {
        for (version, policy, role) in [("6.2.0", "noeviction", "master"), ("7.2.4", "volatile-lru", "master")] {
            check(&info(version, policy, role), "it").unwrap();
        }
        for (version, policy, role, kind, word) in [
            ("6.0.16", "noeviction", "master", ErrorKind::Fatal, "6.2 or newer"),
            ("5.0.9", "noeviction", "master", ErrorKind::Fatal, "6.2 or newer"),
            ("7.0.15", "allkeys-lru", "master", ErrorKind::Fatal, "set it to noeviction"),
            ("7.0.15", "noeviction", "slave", ErrorKind::Transient, "replica"),
        ] {
            let error = check(&info(version, policy, role), "it").unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.message().contains(word), "{error}");
        }
        assert_eq!(check("", "it").unwrap_err().kind(), ErrorKind::Fatal);
    }
}
