//! What agent, guardian and keepers say to each other: JSON, one message a line, over unix sockets.
//!
//! All ends are the same binary, so there are no versions. Times are nanoseconds of `CLOCK_BOOTTIME`.

use rendez_core::{Generation, SessionId};
use serde::{Deserialize, Serialize};

use crate::store_url::StoreUrl;

/// Names one child process of one agent, for ever.
pub(crate) type ChildId = u64;

/// From the agent to its guardian.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Comes first.
    Hello(Hello),
    /// The session that the agent holds from now on, if any.
    Session(Option<HeldSession>),
    /// Start a child.
    Start(Start),
    /// A child may run until this deadline. An earlier one than before changes nothing.
    Extend { child: ChildId, deadline_ns: u64 },
    /// Tell a child to stop, and kill it at this time.
    Stop { child: ChildId, kill_at_ns: u64 },
    /// Kill a child.
    Kill { child: ChildId },
    /// Answer with a pong.
    Ping,
    /// The agent has closed its session itself: release nothing after its end.
    Bye,
}

/// What stays the same for the guardian's whole life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The store whose session is closed after a crash; no crash release if absent.
    #[serde(default)]
    pub(crate) store: Option<StoreUrl>,
    /// The cluster of the session.
    #[serde(default)]
    pub(crate) cluster: String,
    /// How long before its deadline a child is told to stop.
    pub(crate) stop_lead_ns: u64,
    /// How long before its deadline a child is killed.
    pub(crate) kill_lead_ns: u64,
    /// After this time nothing is left to be released.
    pub(crate) session_ttl_ns: u64,
    /// The cluster's longest session TTL, as the agent knows it.
    pub(crate) session_ttl_max_ns: u64,
}

/// A session that a guardian may have to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldSession {
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
}

/// A child to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) child: ChildId,
    /// What its lines of output are marked with.
    pub(crate) name: String,
    /// They are not marked, but passed on as they are.
    #[serde(default)]
    pub(crate) plain: bool,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// Added to the guardian's own environment.
    #[serde(default)]
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) deadline_ns: u64,
}

/// From the guardian to its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The guardian is there.
    Ready {
        /// Where it keeps deadline files, for whoever cleans up after it.
        folder: std::path::PathBuf,
    },
    /// The answer to a ping.
    Pong,
    /// A child's command was started.
    Started { child: ChildId, pid: u32 },
    /// A child and everything that it has started are gone.
    Ended { child: ChildId, end: ChildEnd },
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChildEnd {
    /// It was never started.
    NotStarted { why: String },
    /// Its command exited by itself, or after it was told to.
    Exited { code: i32 },
    /// Its command died by a signal that its keeper did not send.
    Signalled { signal: i32 },
    /// Its command was told to stop and died by that signal.
    Terminated,
    /// Its command was killed: told to, or at its deadline.
    Killed { at_deadline: bool },
    /// Its keeper died; what it left was killed.
    KeeperDied,
}

/// From the guardian to a keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeeperOrder {
    /// Comes first.
    Run(KeeperRun),
    Extend {
        deadline_ns: u64,
    },
    Stop {
        kill_at_ns: u64,
    },
    Kill,
}

/// What a keeper keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeeperRun {
    pub(crate) start: Start,
    pub(crate) stop_lead_ns: u64,
    pub(crate) kill_lead_ns: u64,
    /// Where the child finds its deadline.
    pub(crate) deadline_file: std::path::PathBuf,
    /// The soft limit of open files that the command shall have.
    pub(crate) open_files: Option<u64>,
}

/// From a keeper to the guardian.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeeperReport {
    Started {
        pid: u32,
    },
    /// Nothing of the child is left.
    Ended {
        end: ChildEnd,
    },
}
