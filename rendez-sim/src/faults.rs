//! What may go wrong in a world: named faults, and sets of them.
//!
//! A fault that is not in a world's set draws no dice there, so that new faults do not change old seeds.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Something that may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Fault {
    /// Processes are killed and started again.
    Crashes,
    /// Processes are frozen, for short and for long.
    Pauses,
    /// Requests and replies are lost, delayed and doubled.
    Messages,
    /// The store does not answer for a while, up to several TTLs.
    Outages,
    /// The store loses its data, or restarts.
    Losses,
    /// Runners fail, stop slowly, ignore their stop.
    Runners,
    /// Nodes shut down and come back.
    Shutdowns,
    /// Watch hints are dropped.
    Hints,
    /// Clocks run fast and slow, within the bound.
    Clocks,
    /// Operators cordon, drain and weigh nodes, pin slots, pause workloads and force leases from their holders.
    Wishes,
    /// Programs change what their nodes are and can run, and do not always get ready for an offer.
    Programs,
    /// Offers end soon: before the runner has ended, or before the answer has come.
    ShortOffers,
    /// The store fails over to a replica that lacks the last writes.
    Failovers,
    /// Answers that are under way while the store fails over or restarts arrive late.
    LateReplies,
    /// The store's log of changes lacks some of them; only the digest of what is held tells.
    ForgetfulLog,
    /// Requests of a node reach the store and no answer comes back, or no request arrives, for a while.
    OneWayCuts,
    /// The store notices the end of sessions late.
    LateExpiry,
    /// The store takes few changes at once and gives few records a page.
    SmallPages,
    /// One node after the other is shut down and started again.
    RollingUpdates,
    /// A node comes and goes every few seconds.
    Flapping,
    /// Two processes have one node's id.
    Twins,
    /// Nodes are started with different settings.
    MixedSettings,
    /// Nodes are in zones, and workloads are bound to some of them for a while.
    Zones,
    /// A store that is away refuses at once, instead of leaving requests unanswered.
    Refusals,
    /// Clocks stop during a suspend, or jump: more than what is assumed of them.
    ClockJumps,
    /// Sessions do not end by the store's clock: whoever has seen one unchanged for its TTL ends it.
    ObservedExpiry,
    /// Nodes of a release whose version of the protocol nobody knows are started.
    MixedVersions,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::Crashes,
        Self::Pauses,
        Self::Messages,
        Self::Outages,
        Self::Losses,
        Self::Runners,
        Self::Shutdowns,
        Self::Hints,
        Self::Clocks,
        Self::Wishes,
        Self::Programs,
        Self::ShortOffers,
        Self::Failovers,
        Self::LateReplies,
        Self::ForgetfulLog,
        Self::OneWayCuts,
        Self::LateExpiry,
        Self::SmallPages,
        Self::RollingUpdates,
        Self::Flapping,
        Self::Twins,
        Self::MixedSettings,
        Self::Zones,
        Self::Refusals,
        Self::ClockJumps,
        Self::ObservedExpiry,
        Self::MixedVersions,
    ];

    /// Its name in scenario files and summaries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crashes => "crashes",
            Self::Pauses => "pauses",
            Self::Messages => "messages",
            Self::Outages => "outages",
            Self::Losses => "losses",
            Self::Runners => "runners",
            Self::Shutdowns => "shutdowns",
            Self::Hints => "hints",
            Self::Clocks => "clocks",
            Self::Wishes => "wishes",
            Self::Programs => "programs",
            Self::ShortOffers => "short-offers",
            Self::Failovers => "failovers",
            Self::LateReplies => "late-replies",
            Self::ForgetfulLog => "forgetful-log",
            Self::OneWayCuts => "one-way-cuts",
            Self::LateExpiry => "late-expiry",
            Self::SmallPages => "small-pages",
            Self::RollingUpdates => "rolling-updates",
            Self::Flapping => "flapping",
            Self::Twins => "twins",
            Self::MixedSettings => "mixed-settings",
            Self::Zones => "zones",
            Self::Refusals => "refusals",
            Self::ClockJumps => "clock-jumps",
            Self::ObservedExpiry => "observed-expiry",
            Self::MixedVersions => "mixed-versions",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("there is no fault {text:?}: use some of {}", names.join(" "))
        })
    }
}

/// A set of faults.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Faults(u32);

impl Faults {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether this one is among them.
    #[must_use]
    pub const fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u8) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds one.
    pub fn add(&mut self, fault: Fault) {
        self.0 |= 1 << fault as u8;
    }

    /// Adds one, if so.
    pub fn add_if(&mut self, so: bool, fault: Fault) {
        if so {
            self.add(fault);
        }
    }

    /// The same without one.
    #[must_use]
    pub const fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u8))
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |fault| self.has(*fault))
    }
}

impl FromIterator<Fault> for Faults {
    fn from_iter<I: IntoIterator<Item = Fault>>(faults: I) -> Self {
        let mut set = Self::NONE;
        faults.into_iter().for_each(|fault| set.add(fault));
        set
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Fault::name).collect();
        f.write_str(&names.join(" "))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_whitespace().map(str::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_and_read_by_name() {
        let set: Faults = "twins crashes".parse().unwrap();
        assert_eq!(set.to_string(), "crashes twins");
        assert!(set.has(Fault::Twins) && !set.has(Fault::Pauses));
        assert_eq!(set.without(Fault::Twins).to_string(), "crashes");
        assert_eq!(Fault::ALL.into_iter().collect::<Faults>().iter().count(), Fault::ALL.len());
        assert!("crashes bugs".parse::<Faults>().unwrap_err().contains("\"bugs\""));
    }

    #[test]
    fn every_fault_has_its_place_in_the_list() {
        for (at, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, at, "{fault}");
        }
    }
}
