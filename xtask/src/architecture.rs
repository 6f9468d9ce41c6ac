//! What may depend on what.
//!
//! The core stays pure, features do not leak from one store to another, and one cryptographic provider is enough.
//! Crates that do not exist yet are not checked; a crate that exists is, from its first commit on.

use std::collections::BTreeSet;

use crate::{Failure, run, source};

/// Crates that bring a runtime, a clock, randomness, input or output. None of them may be below the core.
const IMPURE: &[&str] = &[
    "async-std",
    "chrono",
    "fastrand",
    "futures-timer",
    "getrandom",
    "jiff",
    "libc",
    "mio",
    "nix",
    "quanta",
    "rand",
    "rand_core",
    "redis",
    "reqwest",
    "rustix",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-util",
    "uuid",
    "windows-sys",
];

/// The feature of the crate `rendez` for each store, with the crates that it and only it may bring.
const STORES: &[(&str, &[&str])] = &[
    ("redis", &["rendez-redis", "redis"]),
    ("etcd", &["rendez-etcd", "etcd-client"]),
    ("postgres", &["rendez-postgres", "tokio-postgres", "deadpool-postgres"]),
    ("kubernetes", &["rendez-kubernetes", "kube", "k8s-openapi"]),
    ("nats", &["rendez-nats", "async-nats"]),
    ("file", &["rendez-file"]),
];

/// Crates that make a build need C tools, or a second cryptographic provider.
const HEAVY: &[&str] = &["aws-lc-rs", "aws-lc-sys", "cmake", "native-tls", "openssl", "openssl-sys"];

/// Runs all checks and reports everything that is wrong, not only the first.
pub(crate) fn check() -> Result<(), Failure> {
    eprintln!("+ architecture");
    let members = packages(&tree(&["--workspace", "--depth", "0", "--edges", "normal"])?);
    let mut wrong = Vec::new();
    if members.contains("rendez-core") {
        let below = packages(&tree(&["--package", "rendez-core", "--edges", "normal", "--all-features"])?);
        wrong.extend(refused("rendez-core", &below, IMPURE));
        wrong.extend(source::check_folder(&run::root().join("rendez-core/src"))?);
    }
    if members.contains("rendez") {
        let below = packages(&tree(&["--package", "rendez", "--edges", "normal"])?);
        wrong.extend(refused("rendez with default features", &below, &store_crates(None)));
        for (feature, crates) in STORES {
            // The first of its crates is ours: from when it exists, the feature must exist too.
            if crates.first().is_some_and(|own| members.contains(*own)) {
                let alone = ["--package", "rendez", "--edges", "normal", "--no-default-features", "--features"];
                let below = packages(&tree(&[&alone[..], &[feature]].concat())?);
                wrong.extend(refused(&format!("rendez with feature {feature}"), &below, &store_crates(Some(feature))));
            }
        }
    }
    if members.contains("rendez-router") {
        let below = packages(&tree(&["--package", "rendez-router", "--edges", "normal"])?);
        wrong.extend(refused("rendez-router with default features", &below, &store_crates(None)));
    }
    let all = packages(&tree(&["--workspace", "--all-features", "--edges", "normal,build,dev"])?);
    wrong.extend(refused("the workspace", &all, HEAVY));
    if wrong.is_empty() { Ok(()) } else { Err(Failure(format!("architecture:\n  {}", wrong.join("\n  ")))) }
}

/// The crates of all stores but one.
fn store_crates(but: Option<&str>) -> Vec<&'static str> {
    STORES.iter().filter(|(feature, _)| Some(*feature) != but).flat_map(|(_, crates)| *crates).copied().collect()
}

fn tree(arguments: &[&str]) -> Result<String, Failure> {
    let common = ["tree", "--prefix", "none", "--target", "all", "--format", "{p}"];
    run::output(&mut run::cargo(&[&common[..], arguments].concat()))
}

/// The names of the packages in what `cargo tree` printed.
fn packages(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn refused(what: &str, below: &BTreeSet<String>, refused: &[&str]) -> Vec<String> {
    let found = refused.iter().filter(|name| below.contains(**name));
    found.map(|name| format!("{what} must not depend on {name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "rendez v0.1.0 (/somewhere/rendez)\nredis v1.8.1\nserde_derive v1.0.229 (proc-macro)\n\
                        tokio v1.54.1\nserde v1.0.229 (*)\n";

    #[test]
    fn names_are_read_from_the_tree() {
        let names: Vec<String> = packages(TREE).into_iter().collect();
        assert_eq!(names, ["redis", "rendez", "serde", "serde_derive", "tokio"]);
    }

    #[test]
    fn a_refused_crate_below_is_named() {
        assert_eq!(
            refused("rendez-core", &packages(TREE), IMPURE),
            ["rendez-core must not depend on redis", "rendez-core must not depend on tokio"]
        );
        assert!(refused("rendez-core", &packages("rendez-core v0.1.0 (/x)\nbytes v1.12.1\n"), IMPURE).is_empty());
        assert_eq!(refused("the workspace", &packages("openssl-sys v0.9\nopenssl-probe v0.2\n"), HEAVY).len(), 1);
    }

    #[test]
    fn a_store_may_bring_its_own_client_and_no_other() {
        let below = packages("rendez v0.1.0\nrendez-redis v0.1.0\nredis v1.8.1\netcd-client v0.21.1\n");
        assert_eq!(
            refused("rendez with feature redis", &below, &store_crates(Some("redis"))),
            ["rendez with feature redis must not depend on etcd-client"]
        );
        assert_eq!(refused("rendez", &below, &store_crates(None)).len(), 3);
    }
}
