//! S3: a sink that checks tokens never accepts one lower than it has seen. This holds with no assumption.

use std::collections::BTreeMap;

use rendez_core::FencingToken;

use super::Oracle;
use crate::trace::{Fact, SlotNo};

/// S3. A sink that refuses a writer who is not behind would be no use: that is an error as well.
#[derive(Debug, Default)]
pub struct SinksAreFenced {
    seen: BTreeMap<SlotNo, FencingToken>,
}

impl Oracle for SinksAreFenced {
    fn promise(&self) -> &'static str {
        "S3"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        let Fact::Writes { slot, token, accepted } = fact else { return Ok(()) };
        let highest = self.seen.entry(*slot).or_default();
        if (*token >= *highest) != *accepted {
            let did = if *accepted { "accepts" } else { "refuses" };
            return Err(format!("the sink of {slot} {did} {token} after {highest}"));
        }
        *highest = (*highest).max(*token);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn sinks_are_fenced() {
        let writes = |number, accepted| Fact::Writes { slot: SLOT, token: token(number), accepted };
        check(
            SinksAreFenced::default,
            &[&[writes(5, true), writes(5, true), writes(7, true), writes(5, false)]],
            &[
                (&[writes(5, true), writes(7, true), writes(5, true)], "accepts 5 after 7"),
                (&[writes(5, true), writes(6, false)], "refuses 6 after 5"),
            ],
        );
    }
}
