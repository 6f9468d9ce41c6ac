//! The faults: what each is called and what happens. How a server comes to its own stands with each store.

use std::fmt;
use std::str::FromStr;

/// A list of faults, with names and what happens.
macro_rules! faults {
    ($(#[$about_all:meta])* $list:ident: $($fault:ident, $name:literal, $about:literal;)*) => {
        $(#[$about_all])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $list {
            $(#[doc = $about] $fault,)*
        }

        impl $list {
            const ALL: &[Self] = &[$(Self::$fault,)*];

            const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$fault => $name,)*
                }
            }

            const fn about(self) -> &'static str {
                match self {
                    $(Self::$fault => $about,)*
                }
            }
        }
    };
}

faults! {
    /// What can happen to the processes of a node.
    NodeFault:
    AgentKilled, "agent-killed", "an agent is killed, and started again";
    HostLost, "host-lost", "all processes of a node are killed at one moment, and started again";
    AgentFrozen, "agent-frozen", "an agent stands still for longer than its session, and wakes up";
    HostFrozen, "host-frozen", "all processes of a node stand still for longer than its session, and wake up in any order";
    SlowStop, "slow-stop", "a node leaves whose children take long to stop, or never do; it comes back";
}

faults! {
    /// What can happen on the way from nodes to the store; it leads through a proxy then.
    NetworkFault:
    Cut, "cut", "one node's connections are closed and new ones refused";
    Silent, "silent", "one node's connections are silent, new ones too; what was sent arrives in the end";
    RequestsLost, "requests-lost", "nothing that one node sends arrives; what is sent to it does";
    RepliesLost, "replies-lost", "what one node sends arrives; nothing that is sent to it does";
    ReplyLost, "reply-lost", "a few single replies are lost, each with its connection, again and again";
    Latency, "latency", "every byte takes 20 to 120 ms more, each way";
    Trickle, "trickle", "bytes pass one by one";
    HalfOpen, "half-open", "all open connections are silently gone; new ones are good";
    Reset, "reset", "all connections are closed, again and again; new ones are good";
}

faults! {
    /// What can happen to the store's server, or to what it keeps its data on.
    ServerFault:
    Stalled, "stalled", "the server stands still";
    Restarted, "restarted", "the server is killed, and started again with its data";
    Emptied, "emptied", "the server comes back without its data";
    EmptiedHeld, "emptied-held", "the same with cold_start_hold of a session TTL + 1 s";
    Failover, "failover", "the server that leads is killed, and another one takes its place";
    FailoverLossy, "failover-lossy", "the same, and the other one lacks the last writes";
    OldPrimary, "old-primary", "the server that leads stands still, is replaced, and wakes up";
    Full, "full", "no room is left on the server's disk or in its memory";
    ReadOnly, "read-only", "the server refuses all writes";
    Evicting, "evicting", "the server is set to throw data away, and does";
    ClockForward, "clock-forward", "the server's clock steps forward by 2 to 60 s, and back again later";
    ClockBack, "clock-back", "the server's clock steps back by 2 to 30 s, and stays there";
    ConnectionsKilled, "connections-killed", "the server kills all connections, again and again";
    Credentials, "credentials", "the user's rights are revoked and the connections killed; then they are given back";
    Certificate, "certificate", "the server comes back with a certificate that has expired; then with a good one";
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// To the processes of a node.
    Node(NodeFault),
    /// On the way to the store.
    Network(NetworkFault),
    /// To the store's server.
    Server(ServerFault),
}

impl Fault {
    /// All of them, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let nodes = NodeFault::ALL.iter().copied().map(Self::Node);
        let network = NetworkFault::ALL.iter().copied().map(Self::Network);
        nodes.chain(network).chain(ServerFault::ALL.iter().copied().map(Self::Server))
    }

    /// Its name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Node(fault) => fault.as_str(),
            Self::Network(fault) => fault.as_str(),
            Self::Server(fault) => fault.as_str(),
        }
    }

    /// What happens.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Node(fault) => fault.about(),
            Self::Network(fault) => fault.about(),
            Self::Server(fault) => fault.about(),
        }
    }

    /// The server's fault, if it is one.
    pub(crate) const fn of_server(self) -> Option<ServerFault> {
        match self {
            Self::Node(_) | Self::Network(_) => None,
            Self::Server(fault) => Some(fault),
        }
    }

    /// Whether it can come several times in one run.
    pub(crate) fn comes_again(self) -> bool {
        use ServerFault::{Credentials, Emptied, EmptiedHeld, ReadOnly, Restarted, Stalled};
        let again = [Stalled, Restarted, Emptied, EmptiedHeld, ReadOnly, Credentials];
        match self {
            Self::Node(_) => false,
            Self::Network(_) => true,
            Self::Server(fault) => again.contains(&fault),
        }
    }

    /// Whether, on every store, nobody who comes while it lasts is let in: the store says so at the first connection, and the agent ends.
    pub(crate) fn refuses_newcomers(self) -> bool {
        use ServerFault::{Certificate, Credentials, Evicting};
        [Evicting, Credentials, Certificate].into_iter().any(|fault| self == Self::Server(fault))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::all().find(|fault| fault.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(Self::as_str).collect();
            format!("there is no fault {name:?}: use {}", names.join(", "))
        })
    }
}
