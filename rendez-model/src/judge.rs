//! What one change of a slot may do, said once more and without the rules that decide it.
//!
//! Nothing here may call those rules: a judge who asks the accused finds no fault.

use crate::state::{Broken, Change, How, Kind, NODES_MAX, SLOTS_MAX, Store};

/// What a change has broken that made this store of the one before. Notes how a grant came about.
pub(crate) fn judge(
    before: &Store,
    after: &mut Store,
    runs: &[[u8; SLOTS_MAX]; NODES_MAX],
    change: Change,
) -> Option<Broken> {
    let at = usize::from(change.slot);
    let (was, is) = (before.slots[at], after.slots[at]);
    if was == is {
        return None;
    }
    let again = match change.kind {
        Kind::Acquire(operation) | Kind::Transfer(operation, _) => was.granted_by == Some(operation),
        Kind::Release | Kind::Offer(..) | Kind::Withdraw(_) | Kind::Accept(_) | Kind::Refuse(_) => false,
    };
    if again {
        return Some(Broken::GrantedTwice);
    }
    if change.token != was.token || !before.is_alive(change.session) {
        return Some(Broken::StaleTookEffect);
    }
    let granted =
        is.token != was.token || is.granted_by != was.granted_by || (is.holder != was.holder && is.holder.is_some());
    if granted && is.token <= was.token || is.token < was.token {
        return Some(Broken::TokenNotRaised);
    }
    if granted && is.holder.is_none_or(|holder| !before.is_alive(holder)) {
        return Some(Broken::GrantedToTheDead);
    }
    let owner = was.holder.filter(|holder| before.is_alive(*holder));
    let given = match change.kind {
        Kind::Release | Kind::Transfer(..) => owner == Some(change.session),
        Kind::Acquire(_) | Kind::Offer(..) | Kind::Withdraw(_) | Kind::Accept(_) | Kind::Refuse(_) => false,
    };
    if owner.is_some() && is.holder != owner && !given {
        return Some(Broken::Stolen);
    }
    if given && runs[usize::from(change.session.node)][at] != 0 {
        return Some(Broken::GivenBackWhileRunning);
    }
    if granted {
        after.slots[at].how = match was.holder {
            None => How::Free,
            Some(holder) if holder == change.session && is.holder == Some(holder) => How::Anew,
            Some(_) if given => How::Handoff,
            Some(_) => How::Expiry,
        };
    }
    None
}
