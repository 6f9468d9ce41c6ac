//! The scripts: one for each request, all with the same beginning.

use std::sync::LazyLock;

use redis::{Cmd, Script};

const PRELUDE: &str = include_str!("scripts/prelude.lua");
const SLOTS: &str = include_str!("scripts/slots.lua");

/// A script with its digest.
pub(crate) struct Request {
    pub(crate) name: &'static str,
    script: LazyLock<Script>,
    code: fn() -> String,
}

macro_rules! requests {
    ($($name:ident = $file:literal with $($part:expr),+;)*) => {
        $(pub(crate) static $name: Request = {
            fn code() -> String {
                [$($part,)+ include_str!(concat!("scripts/", $file, ".lua"))].join("\n")
            }
            Request { name: $file, script: LazyLock::new(|| Script::new(&code())), code }
        };)*
    };
}

requests! {
    OPEN = "open" with PRELUDE;
    HEARTBEAT = "heartbeat" with PRELUDE;
    CLOSE = "close" with PRELUDE;
    CHANGE = "change" with PRELUDE, SLOTS;
    SNAPSHOT = "snapshot" with PRELUDE;
    ADMINISTER = "administer" with PRELUDE, SLOTS;
}

impl Request {
    /// Runs the script by its digest.
    pub(crate) fn by_digest(&self, keys: &[String], arguments: &[Vec<u8>]) -> Cmd {
        command("EVALSHA", self.script.get_hash().as_bytes(), keys, arguments)
    }

    /// Runs the script by its text, after which the server knows its digest.
    pub(crate) fn by_text(&self, keys: &[String], arguments: &[Vec<u8>]) -> Cmd {
        command("EVAL", (self.code)().as_bytes(), keys, arguments)
    }
}

fn command(verb: &str, script: &[u8], keys: &[String], arguments: &[Vec<u8>]) -> Cmd {
    let mut command = redis::cmd(verb);
    command.arg(script).arg(keys.len()).arg(keys);
    for argument in arguments {
        command.arg(argument.as_slice());
    }
    command
}
