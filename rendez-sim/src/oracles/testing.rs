//! Traces for the tests of the checkers.

use rendez_core::{FencingToken, OperationId, SessionId};

use super::Oracle;
use crate::trace::{By, Fact, Lease, SessionEnd, SlotNo};

pub(super) const S: u64 = 1_000_000_000;
pub(super) const SLOT: SlotNo = SlotNo(0);

pub(super) fn token(number: u64) -> FencingToken {
    FencingToken::new(number)
}

pub(super) fn session(number: u128) -> SessionId {
    SessionId::from_bits(number)
}

/// A lease of a token by a session (0: of nobody), granted by an operation of the token's number.
pub(super) fn lease(number: u64, holder: u128) -> Lease {
    Lease {
        token: token(number),
        holder: (holder > 0).then(|| session(holder)),
        granted_by: (number > 0).then(|| OperationId::from_bits(number.into())),
    }
}

pub(super) fn opens(number: u128) -> Fact {
    Fact::Opens { node: number as usize, session: session(number), ends: 1000 * S }
}

pub(super) fn closes(number: u128) -> Fact {
    Fact::Closes { session: session(number), why: SessionEnd::Expired, by: None }
}

/// A change by a session that names the token that it should.
pub(super) fn changes(by: By, who: u128, before: Lease, after: Lease) -> Fact {
    let holds = after.holder.map(|holder| (holder.bits() as usize, 1));
    Fact::Changes {
        slot: SLOT,
        by,
        session: Some(session(who)),
        named: before.token,
        before,
        after,
        holds,
        moved: false,
    }
}

/// The first acquisition of the slot, and others like it.
pub(super) fn acquires(who: u128, before: Lease, number: u64) -> Fact {
    changes(By::Acquire, who, before, lease(number, who))
}

pub(super) fn starts(node: u128, number: u64) -> Fact {
    let session = Some(session(node));
    Fact::Starts { node: node as usize, slot: SLOT, token: token(number), deadline: 900 * S, session }
}

pub(super) fn ends(node: u128, number: u64) -> Fact {
    Fact::Ends { node: node as usize, slot: SLOT, token: token(number), told: true }
}

/// Shows facts to a checker, one a second; what it says of the first that it does not like.
pub(super) fn judge(mut oracle: impl Oracle, facts: &[Fact]) -> Result<(), String> {
    facts.iter().enumerate().try_for_each(|(second, fact)| oracle.see((1 + second as u64) * S, fact))
}

/// Good traces pass, and bad ones fail at their last fact and not before.
pub(super) fn check<O: Oracle>(make: impl Fn() -> O, good: &[&[Fact]], bad: &[(&[Fact], &str)]) {
    for facts in good {
        assert_eq!(judge(make(), facts), Ok(()), "{facts:?}");
    }
    for (facts, words) in bad {
        assert_eq!(judge(make(), &facts[..facts.len() - 1]), Ok(()), "{facts:?}");
        let said = judge(make(), facts).expect_err("the last fact breaks the promise");
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    }
}
