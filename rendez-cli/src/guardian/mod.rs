//! Child processes that never outlive their leases, whatever happens to the process that supervises them.
//!
//! # Who is who
//!
//! ```text
//! rendez agent            talks to the store; may be frozen or killed at any moment
//! └── rendez guardian     one an agent: deadlines, the end of the agent, crash release
//!     ├── rendez keeper   one a slot: its process tree, its deadline, its output
//!     │   └── COMMAND     its own process group
//!     │       └── ...     whatever it starts
//!     └── rendez keeper
//! ```
//!
//! All of these are the same binary under hidden subcommands. Guardian and keepers have one thread that matters, no
//! async runtime, no store connection and no reason to block; terminals and service managers cannot stop them by
//! signals meant for the agent (own process groups; `SIGTERM`, `SIGINT`, `SIGHUP`, `SIGQUIT` are taken and ignored).
//!
//! # How certainty comes about
//!
//! A keeper is a child subreaper, so everything that its command ever starts stays its descendant, also what forks
//! twice, changes its session or its group, or clears its environment. When `wait` says `ECHILD`, nothing of the slot
//! runs any more, and not before does the keeper say so. One keeper a slot, because a subreaper for all of them could
//! not tell whose orphan it was given: one slot can be stopped for certain while the others go on.
//!
//! Processes are found by walking down from the keeper, checked by start time against reuse of their ids, signalled
//! through pidfds, and looked for again until `ECHILD`.
//!
//! # Who kills when
//!
//! Everybody reads `CLOCK_BOOTTIME`, and looks at it first whenever they wake up. Every new deadline goes from the
//! agent through the guardian to each keeper.
//!
//! | when | who | what |
//! | --- | --- | --- |
//! | told to stop, or `stop_lead` before the deadline | keeper | `SIGTERM` to the group |
//! | told to kill, or `kill_lead` before the deadline | keeper | `SIGKILL` to the whole tree, until `ECHILD` |
//! | half of `kill_lead` before the deadline | guardian | kills the keeper (it may be frozen) and its tree |
//! | the agent is gone (its end of the socket is closed) | guardian | has all keepers kill; then crash release |
//! | the guardian is gone (the same way) | keeper | kills its tree |
//! | the guardian is gone | agent | a subreaper as well: kills what is left, lets go, takes part anew with another guardian |
//! | the guardian has not answered for a session TTL | agent | kills the guardian, as nobody would know of the children |
//! | a keeper is gone | guardian | kills the keeper's orphans, then reports |
//! | a keeper is gone | kernel | parent-death signal: `SIGKILL` to the command itself |
//!
//! So a frozen agent changes nothing for the deadlines; a frozen guardian, or both, neither; one keeper frozen is killed by the
//! guardian. If all are frozen together with the children, and woken late, the first thing that each does is to kill:
//! that is the pause that no lease system can exclude, and for which there are fencing tokens.
//!
//! # Crash release
//!
//! When the agent is gone, and the guardian's own `wait` has said `ECHILD`, it closes the session in the agent's
//! place, so that other nodes take the slots in milliseconds instead of after the session's TTL. It was told store,
//! session and generation over the socket, never in arguments. If `ECHILD` does not come, it says nothing and the TTL
//! decides.
//!
//! # Limits
//!
//! - What a command starts *elsewhere* (through a service manager, a container engine, `ssh`) is not its descendant.
//! - A process that the keeper may not signal (another user's) or that the kernel cannot end (uninterruptible sleep)
//!   is not gone, and its lease is kept and ends with the session.
//! - If agent, guardian *and* a keeper are all killed by `SIGKILL` at once, only the command itself is killed with
//!   them (parent-death signal, which programs with set-user-id bits do not get), and not what it has started.

mod client;
mod clock;
mod crash_release;
mod deadline_file;
mod exec_child;
mod keeper;
mod lines;
mod protocol;
mod run;
mod signals;
mod tree;
mod wire;

pub(crate) use client::{Aftermath, ChildSpec, Guardian, GuardianSetup};
pub(crate) use exec_child::{ExecChild, exec_child};
pub(crate) use keeper::keeper;
pub(crate) use protocol::{ChildEnd, ChildId, HeldSession};
pub(crate) use run::guardian;
