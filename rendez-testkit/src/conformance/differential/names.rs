//! What each side calls things, and its answers in words that both share.
//!
//! Nothing is sent or judged here.

use std::collections::BTreeSet;

use rendez_core::*;

use super::Comparison;

/// What one side has called things so far, in the order of their first appearance.
#[derive(Default)]
pub(super) struct Names {
    pub(super) sessions: Vec<SessionId>,
    pub(super) generations: Vec<Generation>,
    /// Each with its slot: those of two slots have nothing to do with each other.
    pub(super) tokens: Vec<(Slot, FencingToken)>,
}

/// The words whose content each side chooses, each with what stands instead of it.
const CHOSEN: [&str; 6] = ["SessionId(", "Generation(", "FencingToken(", "Revision(", "StoreTime(", "digest: "];

impl Names {
    /// A debug text, of this slot if of any, with all names replaced by their numbers.
    fn plain(&mut self, slot: Option<&Slot>, text: &str, comparison: Comparison) -> String {
        let mut plain = String::new();
        let mut rest = text;
        while let Some((found, word)) = CHOSEN.iter().filter_map(|word| Some((rest.find(word)?, *word))).min() {
            let open = found + word.len();
            plain.push_str(&rest[..open]);
            let end = rest[open..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - open);
            let content = &rest[open..open + end];
            let number = match word {
                "SessionId(" => content.parse().ok().map(|id| at(&mut self.sessions, id)),
                "Generation(" => content.parse().ok().map(|id| at(&mut self.generations, id)),
                "FencingToken(" => slot.zip(content.parse().ok()).map(|(slot, token)| {
                    let number = at(&mut self.tokens, (slot.clone(), FencingToken::new(token)));
                    // Nothing else is needed to see which are equal; where they must be the same, the token stays.
                    if comparison == Comparison::Exactly { content.parse().unwrap_or(number) } else { number }
                }),
                _ => None,
            };
            match number {
                Some(number) => plain += &number.to_string(),
                None if comparison == Comparison::Exactly => plain += content,
                None => plain.push('_'),
            }
            rest = &rest[open + end..];
        }
        plain + rest
    }

    /// Records in an order that both sides share: sessions by when they were opened.
    pub(super) fn items<'a>(&mut self, items: impl IntoIterator<Item = &'a Change>, comparison: Comparison) -> String {
        let mut all: Vec<(u8, usize, String, &Change)> = items
            .into_iter()
            .map(|item| match item {
                Change::Session(id, _) => (0, at(&mut self.sessions, *id), String::new(), item),
                Change::Slot(slot, _) => (1, 0, slot.to_string(), item),
                Change::Record(key, _) => (2, 0, format!("{key:?}"), item),
            })
            .collect();
        all.sort_by(|one, other| (one.0, one.1, &one.2).cmp(&(other.0, other.1, &other.2)));
        let mut texts: Vec<String> = Vec::new();
        for (.., item) in all {
            let slot = if let Change::Slot(slot, _) = item { Some(slot) } else { None };
            texts.push(self.plain(slot, &format!("{item:?}"), comparison));
        }
        if comparison == Comparison::Freely {
            // A record may come twice.
            texts.dedup();
        }
        texts.join("\n")
    }
}

/// The number of an item, which is noted if it is new.
pub(super) fn at<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    if let Some(place) = list.iter().position(|known| *known == item) {
        return place;
    }
    list.push(item);
    list.len() - 1
}

/// An answer of either side.
pub(super) enum Answer {
    Opening(Opening),
    Beat(Beat),
    /// With the slots that were to be changed.
    Changed(Vec<Slot>, ChangeReply),
    /// All pages in one.
    Page(SnapshotPage),
    Closed,
    Administered(AdminOutcome),
}

impl Answer {
    pub(super) fn changed(request: &ChangeRequest, reply: ChangeReply) -> Self {
        Self::Changed(request.changes.iter().map(|change| change.slot.clone()).collect(), reply)
    }

    pub(super) fn stamp(&self) -> Option<&Stamp> {
        match self {
            Self::Opening(Opening::Opened { stamp, .. } | Opening::InUse { stamp, .. }) => Some(stamp),
            Self::Beat(beat) => Some(&beat.stamp),
            Self::Changed(_, reply) => Some(&reply.stamp),
            Self::Page(page) => Some(&page.stamp),
            Self::Closed => None,
            Self::Administered(AdminOutcome::Done(stamp) | AdminOutcome::Refused(stamp)) => Some(stamp),
        }
    }

    /// The answer in words. Freely, times that count down are left out, for both sides see them at moments of their
    /// own, and so is what has changed: each side may tell it in steps of its own.
    pub(super) fn text(&self, names: &mut Names, comparison: Comparison, capabilities: &Capabilities) -> String {
        let exactly = comparison == Comparison::Exactly;
        let stamp = match self.stamp() {
            Some(stamp) if exactly => format!("{stamp:?}"),
            Some(stamp) => format!("{:?} quiet: {}", stamp.generation, !stamp.quiet.is_zero()),
            None => String::new(),
        };
        let mut text = names.plain(None, &stamp, comparison) + "\n";
        text += &match self {
            Self::Opening(Opening::Opened { session, ttl, settings, .. }) => {
                names.plain(None, &format!("opened {session:?} {ttl:?} {settings:?}"), comparison)
            }
            Self::Opening(Opening::InUse { session, incarnation, remaining, .. }) => {
                let remaining = exactly.then_some(remaining);
                names.plain(None, &format!("in use {session:?} {incarnation:?} {remaining:?}"), comparison)
            }
            Self::Beat(Beat { ttl, held, sync, due, .. }) if exactly => {
                names.plain(None, &format!("{ttl:?} {held:?} {sync:?} {due:?}"), comparison)
            }
            Self::Beat(Beat { ttl, held, due, .. }) => {
                // When each of them ends is a matter of the side's own clock.
                let due: BTreeSet<usize> = due.iter().map(|due| at(&mut names.sessions, due.session)).collect();
                let due = capabilities.due.then_some(due);
                names.plain(None, &format!("{ttl:?} {held:?} {due:?}"), comparison)
            }
            Self::Changed(slots, reply) => {
                let outcomes = slots.iter().zip(&reply.outcomes);
                let outcomes = outcomes.map(|(slot, it)| names.plain(Some(slot), &format!("{it:?}"), comparison));
                let outcomes: Vec<String> = outcomes.collect();
                format!("{} {}", reply.outcomes.len(), outcomes.join("\n"))
            }
            Self::Page(page) => names.items(&page.items, comparison),
            Self::Closed => "closed".to_owned(),
            Self::Administered(AdminOutcome::Done(_)) => "done".to_owned(),
            Self::Administered(AdminOutcome::Refused(_)) => "refused".to_owned(),
        };
        text
    }
}
