//! The role of `manifests/rbac.yaml`: tests give a user just what that gives.

use rendez_testkit::servers::Verb;

/// The manifest that the documentation tells operators to apply.
const MANIFEST: &str = include_str!("../../manifests/rbac.yaml");

/// The verbs of the manifest's one rule; its resource must be Leases and nothing else.
pub(crate) fn verbs() -> Result<Vec<Verb>, String> {
    let field = |name: &str| {
        let lines: Vec<&str> =
            MANIFEST.lines().filter_map(|line| line.trim_start_matches("- ").trim().strip_prefix(name)).collect();
        match lines[..] {
            [one] => {
                Ok(one.trim().trim_matches(['[', ']']).split(", ").map(|it| it.trim_matches('"')).collect::<Vec<_>>())
            }
            _ => Err(format!("the manifest must have one {name}, it has {}", lines.len())),
        }
    };
    if field("resources:")? != ["leases"] || field("apiGroups:")? != ["coordination.k8s.io"] {
        return Err("the manifest gives rights to something else than Leases".to_owned());
    }
    let words = field("verbs:")?;
    words.into_iter().map(|word| Verb::parse(word).ok_or_else(|| format!("{word} is no verb"))).collect()
}
