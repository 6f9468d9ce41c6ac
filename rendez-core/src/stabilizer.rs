//! The rules that hold voluntary moves back, each with a reason that can be shown.
//!
//! Pure: facts in, a reason or nothing out. They are asked about voluntary moves only; the taking of an orphan, a
//! drain, a shutdown and a pin never come here.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{NodeId, Stabilizers};

/// Why a voluntary move waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HeldBack {
    /// Shedding is switched off.
    SheddingOff,
    /// Nodes were started with settings that differ from the cluster's.
    SettingsDiffer {
        /// One of them.
        node: NodeId,
    },
    /// The giver or the receiver says that it is not well.
    Unhealthy {
        /// Which.
        node: NodeId,
    },
    /// A node has come, gone or changed lately.
    Settling {
        /// How much longer.
        remaining: Duration,
    },
    /// The slot has moved lately.
    Cooldown {
        /// How much longer.
        remaining: Duration,
    },
    /// The runner has not run for long.
    RuntimeMin {
        /// How much longer.
        remaining: Duration,
    },
    /// The receiver is full with what it holds.
    NoRoom {
        /// Which node that is.
        node: NodeId,
    },
    /// Another node has just refused the slot. What need not move waits for it: if the next in rank took it now, it would
    /// move once more when the refusal has ended.
    Refused {
        /// Which node that is.
        node: NodeId,
        /// How much longer.
        remaining: Duration,
    },
    /// The node would fall below its minimum.
    SlotsMin,
    /// The node has offered enough in this heartbeat interval.
    ShedBudget,
    /// Enough moves are under way in the cluster.
    MoveBudget,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SheddingOff => f.write_str("shedding is switched off"),
            Self::SettingsDiffer { node } => write!(f, "{node} was started with other settings than the cluster's"),
            Self::Unhealthy { node } => write!(f, "{node} is not healthy"),
            Self::Settling { remaining } => write!(f, "nodes came or went lately: {remaining:.1?} to go"),
            Self::Cooldown { remaining } => write!(f, "it moved lately: {remaining:.1?} to go"),
            Self::RuntimeMin { remaining } => write!(f, "its runner started lately: {remaining:.1?} to go"),
            Self::NoRoom { node } => write!(f, "{node} is full with what it holds"),
            Self::Refused { node, remaining } => write!(f, "{node} has just refused it: {remaining:.1?} to go"),
            Self::SlotsMin => f.write_str("its holder would fall below its minimum of slots"),
            Self::ShedBudget => f.write_str("its holder has offered enough for now"),
            Self::MoveBudget => f.write_str("enough moves are under way in the cluster"),
        }
    }
}

/// What the rules look at, for one slot that could move.
#[derive(Debug, Clone)]
pub struct MoveFacts<'a> {
    /// A node whose settings differ, if any.
    pub settings_differ: Option<&'a NodeId>,
    /// The giver or the receiver, if one of them is not well.
    pub unhealthy: Option<&'a NodeId>,
    /// The receiver, if it has no room now.
    pub full: Option<&'a NodeId>,
    /// A node that has refused the slot for a moment, and for how much longer.
    pub refused: Option<(NodeId, Duration)>,
    /// Since the last change of membership.
    pub since_membership: Duration,
    /// Since the slot last moved voluntarily, if it ever did.
    pub since_move: Option<Duration>,
    /// Since its runner was started.
    pub runtime: Duration,
    /// How many slots the node would have after the move, with all others that are under way.
    pub slots_after: u32,
    /// How many the node has offered in this heartbeat interval.
    pub offered: u32,
    /// How many voluntary moves are under way in the cluster.
    pub under_way: u32,
    /// How many may be.
    pub move_budget: u32,
}

/// The first rule that holds the move back, if any.
///
/// ```
/// use std::time::Duration;
/// use rendez_core::stabilizer::{hold_back, HeldBack, MoveFacts};
/// let rules = rendez_core::EngineConfig::for_ttl(Duration::from_secs(10)).stabilizers;
/// let long = Duration::from_secs(3600);
/// let facts = MoveFacts {
///     settings_differ: None, unhealthy: None, full: None, refused: None, since_membership: long, since_move: Some(Duration::from_secs(15)),
///     runtime: long, slots_after: 3, offered: 0, under_way: 0, move_budget: 64,
/// };
/// assert_eq!(hold_back(&rules, &facts), Some(HeldBack::Cooldown { remaining: Duration::from_secs(45) }));
/// ```
#[must_use]
pub fn hold_back(rules: &Stabilizers, facts: &MoveFacts<'_>) -> Option<HeldBack> {
    judged(rules, facts).into_iter().flatten().next()
}

/// All rules that hold the move back, in the order in which they are asked: when the first lets it go, the next does not
/// yet.
#[must_use]
pub fn all_that_hold_back(rules: &Stabilizers, facts: &MoveFacts<'_>) -> Vec<HeldBack> {
    judged(rules, facts).into_iter().flatten().collect()
}

/// What each rule says, in the order in which they count.
fn judged(rules: &Stabilizers, facts: &MoveFacts<'_>) -> [Option<HeldBack>; 11] {
    let remaining = |rule: Duration, since: Duration| rule.checked_sub(since).filter(|left| !left.is_zero());
    let cooldown = facts.since_move.and_then(|since| remaining(rules.cooldown, since));
    [
        (!rules.shedding).then_some(HeldBack::SheddingOff),
        facts.settings_differ.map(|node| HeldBack::SettingsDiffer { node: node.clone() }),
        facts.unhealthy.map(|node| HeldBack::Unhealthy { node: node.clone() }),
        facts.full.map(|node| HeldBack::NoRoom { node: node.clone() }),
        facts.refused.clone().map(|(node, remaining)| HeldBack::Refused { node, remaining }),
        remaining(rules.settling, facts.since_membership).map(|remaining| HeldBack::Settling { remaining }),
        cooldown.map(|remaining| HeldBack::Cooldown { remaining }),
        remaining(rules.runtime_min, facts.runtime).map(|remaining| HeldBack::RuntimeMin { remaining }),
        (facts.slots_after < rules.slots_min).then_some(HeldBack::SlotsMin),
        (facts.offered >= rules.shed_budget).then_some(HeldBack::ShedBudget),
        (facts.under_way >= facts.move_budget).then_some(HeldBack::MoveBudget),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineConfig;

    const LONG: Duration = Duration::from_secs(100_000);

    fn free() -> MoveFacts<'static> {
        MoveFacts {
            settings_differ: None,
            unhealthy: None,
            full: None,
            refused: None,
            since_membership: LONG,
            since_move: None,
            runtime: LONG,
            slots_after: 10,
            offered: 0,
            under_way: 0,
            move_budget: 64,
        }
    }

    #[test]
    fn each_rule_holds_back_alone_and_says_so() {
        let node = NodeId::new("b").unwrap();
        let mut rules = EngineConfig::for_ttl(Duration::from_secs(10)).stabilizers;
        rules.slots_min = 2;
        assert_eq!(hold_back(&rules, &free()), None);
        let cases: Vec<(&str, MoveFacts<'_>)> = vec![
            ("b was started with other settings", MoveFacts { settings_differ: Some(&node), ..free() }),
            ("b is not healthy", MoveFacts { unhealthy: Some(&node), ..free() }),
            ("b is full with what it holds", MoveFacts { full: Some(&node), ..free() }),
            (
                "b has just refused it: 2.0s",
                MoveFacts { refused: Some((node.clone(), Duration::from_secs(2))), ..free() },
            ),
            ("nodes came or went lately: 3.0s", MoveFacts { since_membership: Duration::from_secs(1), ..free() }),
            ("it moved lately: 1.0s", MoveFacts { since_move: Some(Duration::from_secs(59)), ..free() }),
            ("runner started lately: 10.0s", MoveFacts { runtime: Duration::ZERO, ..free() }),
            ("below its minimum", MoveFacts { slots_after: 1, ..free() }),
            ("offered enough", MoveFacts { offered: 32, ..free() }),
            ("enough moves", MoveFacts { under_way: 64, ..free() }),
        ];
        for (words, facts) in cases {
            let reason = hold_back(&rules, &facts).expect(words).to_string();
            assert!(reason.contains(words), "{reason}");
        }
        rules.shedding = false;
        assert_eq!(hold_back(&rules, &free()), Some(HeldBack::SheddingOff));
    }

    #[test]
    fn all_rules_that_hold_back_are_told_and_the_first_of_them_counts() {
        let rules = EngineConfig::for_ttl(Duration::from_secs(10)).stabilizers;
        let facts = MoveFacts { under_way: 64, since_move: Some(Duration::from_secs(59)), ..free() };
        let cooldown = HeldBack::Cooldown { remaining: Duration::from_secs(1) };
        assert_eq!(all_that_hold_back(&rules, &facts), [cooldown.clone(), HeldBack::MoveBudget]);
        assert_eq!(hold_back(&rules, &facts), Some(cooldown));
        assert_eq!(all_that_hold_back(&rules, &free()), []);
    }

    #[test]
    fn a_rule_ends_when_its_time_has_passed_and_not_before() {
        let rules = EngineConfig::for_ttl(Duration::from_secs(10)).stabilizers;
        let facts = |since| MoveFacts { since_move: Some(since), ..free() };
        assert!(hold_back(&rules, &facts(rules.cooldown - Duration::from_nanos(1))).is_some());
        assert!(hold_back(&rules, &facts(rules.cooldown)).is_none());
    }
}
