//! The command of a slot: its arguments with the placeholders filled in, its environment.

use std::path::Path;

use rendez::{ClusterName, FencingToken, NodeId, Slot};

/// A command line with placeholders: `{slot}`, `{workload}`, `{unit}`, `{token}`, `{node}`, `{cluster}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<String>);

/// What the placeholders stand for.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeId,
    pub(crate) slot: Slot,
    pub(crate) token: FencingToken,
}

impl Template {
    /// Takes a command line, unless its program cannot be found.
    pub(crate) fn new(command: Vec<String>) -> Result<Self, String> {
        let Some(program) = command.first() else { return Err("there is no command".to_owned()) };
        if !program.contains('{') && !can_be_found(program) {
            return Err(format!("there is no program {program:?}"));
        }
        Ok(Self(command))
    }

    pub(crate) fn fill(&self, values: &Values) -> Vec<String> {
        self.0.iter().map(|argument| values.fill(argument)).collect()
    }
}

impl Values {
    /// Filled in once: what a value holds is not looked at again. Other braces stay as they are.
    fn fill(&self, argument: &str) -> String {
        let names = self.named();
        let mut filled = String::new();
        let mut rest = argument;
        while let Some(at) = rest.find('{') {
            filled.push_str(&rest[..at]);
            rest = &rest[at..];
            let hit = names.iter().find_map(|(name, value)| {
                let behind = rest[1..].strip_prefix(name)?.strip_prefix('}')?;
                Some((value, behind))
            });
            match hit {
                Some((value, behind)) => {
                    filled.push_str(value);
                    rest = behind;
                }
                None => {
                    filled.push('{');
                    rest = &rest[1..];
                }
            }
        }
        filled + rest
    }

    /// What a child finds in its environment, besides its deadline file.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        self.named().into_iter().map(|(name, value)| (format!("RENDEZ_{}", name.to_uppercase()), value)).collect()
    }

    fn named(&self) -> [(&'static str, String); 6] {
        [
            ("cluster", self.cluster.to_string()),
            ("node", self.node.to_string()),
            ("workload", self.slot.workload.to_string()),
            ("unit", self.slot.unit.to_string()),
            ("slot", self.slot.to_string()),
            ("token", self.token.to_string()),
        ]
    }
}

fn can_be_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            cluster: ClusterName::new("{unit}").unwrap(),
            node: NodeId::new("n").unwrap(),
            slot: "a/b/3".parse().unwrap(),
            token: FencingToken::new(17),
        }
    }

    #[test]
    fn placeholders_are_filled_in_once_and_other_braces_stay() {
        let values = values();
        assert_eq!(values.fill("{slot}:{workload}:{unit}:{token}:{node}"), "a/b/3:a/b:3:17:n");
        assert_eq!(values.fill("{cluster}"), "{unit}");
        assert_eq!(values.fill("{}{x}{{unit}}{unit"), "{}{x}{3}{unit");
    }

    #[test]
    fn the_environment_has_all_of_it() {
        let environment = values().environment();
        assert!(environment.contains(&("RENDEZ_SLOT".to_owned(), "a/b/3".to_owned())));
        assert!(environment.contains(&("RENDEZ_TOKEN".to_owned(), "17".to_owned())));
        assert_eq!(environment.len(), 6);
    }

    #[test]
    fn a_program_that_is_not_there_is_refused() {
        assert!(Template::new(vec!["sh".to_owned()]).is_ok());
        assert!(Template::new(vec!["/no/such".to_owned()]).is_err());
        assert!(Template::new(vec!["no-such-program-anywhere".to_owned()]).is_err());
    }
}
