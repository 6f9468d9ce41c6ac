//! The mutants: plausible mistakes of a store, one each.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::*;

use crate::store::{Cluster, Mutant};

/// No mistake at all.
pub(crate) const FAITHFUL: Mutant = Mutant {
    name: "faithful",
    open: |cluster, now, request| cluster.model.open(now, &request),
    heartbeat: |cluster, now, request| cluster.model.heartbeat(now, &request),
    close: |cluster, now, request| cluster.model.close(now, &request),
    change: |cluster, now, request| cluster.model.change(now, &request),
    snapshot: |cluster, now, request| cluster.model.snapshot(now, &request),
    administer: |cluster, now, request| cluster.model.administer(now, &request),
    cluster: str::to_owned,
    tells: |_| true,
    has_watch: true,
    halves: false,
    lies_in_a_stall: false,
    lags: false,
    restart: StoreModel::restart,
    capabilities: |_| {},
};

const LONG: Duration = Duration::from_secs(3600);

fn fresh() -> OperationId {
    OperationId::from_bits(fastrand::u128(1..))
}

fn token_of(cluster: &Cluster, slot: &Slot) -> FencingToken {
    cluster.model.slot(slot).map_or(FencingToken::NONE, |record| record.token)
}

/// Changes the request's changes before they are made.
fn with_changes(
    cluster: &mut Cluster,
    now: StoreTime,
    mut request: ChangeRequest,
    mut with: impl FnMut(&mut Cluster, &mut SlotChange),
) -> Result<ChangeReply, StoreError> {
    request.changes.iter_mut().for_each(|change| with(cluster, change));
    cluster.model.change(now, &request)
}

/// Whatever token such a change names counts as the right one.
fn any_token(
    cluster: &mut Cluster,
    now: StoreTime,
    request: ChangeRequest,
    of: fn(&ChangeKind) -> bool,
) -> Result<ChangeReply, StoreError> {
    with_changes(cluster, now, request, |cluster, change| {
        if of(&change.kind) && change.token != FencingToken::NONE {
            change.token = token_of(cluster, &change.slot);
        }
    })
}

/// Makes each change on behalf of whichever session this chooses.
fn on_behalf(
    cluster: &mut Cluster,
    now: StoreTime,
    request: &ChangeRequest,
    of: fn(&Cluster, &SlotChange) -> Option<SessionId>,
) -> Result<ChangeReply, StoreError> {
    let mut reply = cluster.model.change(now, &ChangeRequest { changes: Vec::new(), ..request.clone() })?;
    cluster.model.capabilities().check_change(request)?;
    if request.changes.iter().all(|change| of(cluster, change).is_none()) {
        return cluster.model.change(now, request);
    }
    for change in &request.changes {
        let session = of(cluster, change).filter(|session| cluster.model.is_alive(now, *session));
        let one = ChangeRequest {
            session: session.unwrap_or(request.session),
            changes: vec![change.clone()],
            known: request.known.clone(),
        };
        let done = cluster.model.change(now, &one)?;
        reply = ChangeReply { outcomes: [reply.outcomes, done.outcomes].concat(), ..done };
    }
    Ok(reply)
}

fn holder(cluster: &Cluster, change: &SlotChange) -> Option<SessionId> {
    cluster.model.slot(&change.slot)?.holder.as_ref().map(|holder| holder.session)
}

/// Answers that refused changes were done.
fn as_done(mut reply: ChangeReply, of: impl Fn(usize, Conflict) -> bool) -> ChangeReply {
    for (place, outcome) in reply.outcomes.iter_mut().enumerate() {
        if let ChangeOutcome::Refused(conflict, record) = outcome
            && of(place, *conflict)
        {
            *outcome = ChangeOutcome::Done(record.clone());
        }
    }
    reply
}

fn with_sync(mut beat: Beat, with: impl FnOnce(&mut Vec<Change>, &mut bool)) -> Beat {
    if let Sync::Changes { changes, more, .. } = &mut beat.sync {
        with(changes, more);
    }
    beat
}

pub(crate) static MUTANTS: &[Mutant] = &[
    // --- acquiring ---
    Mutant {
        name: "forgets a slot's token when it is released",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |cluster, change| {
                let free = cluster.model.slot(&change.slot).is_some_and(|slot| slot.holder.is_none());
                if free && change.token == FencingToken::NONE && matches!(change.kind, ChangeKind::Acquire { .. }) {
                    change.token = token_of(cluster, &change.slot);
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ignores the token that an acquisition names",
        change: |cluster, now, request| {
            any_token(cluster, now, request, |kind| matches!(kind, ChangeKind::Acquire { .. }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "takes a slot from its live holder",
        change: |cluster, now, request| {
            for change in &request.changes {
                if matches!(change.kind, ChangeKind::Acquire { .. })
                    && token_of(cluster, &change.slot) == change.token
                    && let Some(session) = holder(cluster, change)
                    && session != request.session
                {
                    let kind = ChangeKind::Release { checkpoint: None, refuse_for: None };
                    let changes = vec![SlotChange { kind, ..change.clone() }];
                    let _ =
                        cluster.model.change(now, &ChangeRequest { session, changes, known: request.known.clone() });
                }
            }
            cluster.model.change(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "grants anew when an acquisition is repeated",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |cluster, change| {
                if let ChangeKind::Acquire { operation } = &mut change.kind
                    && cluster.model.slot(&change.slot).is_some_and(|slot| slot.granted_by == *operation)
                {
                    *operation = fresh();
                    change.token = token_of(cluster, &change.slot);
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "refuses an acquisition that is repeated",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if let ChangeKind::Acquire { operation } = &mut change.kind {
                    *operation = fresh();
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "grants twice and answers the first",
        change: |cluster, now, request| {
            let reply = cluster.model.change(now, &request)?;
            let mut again = request;
            for change in &mut again.changes {
                change.kind = match &change.kind {
                    ChangeKind::Acquire { .. } => ChangeKind::Acquire { operation: fresh() },
                    kind => kind.clone(),
                };
                change.token = token_of(cluster, &change.slot);
            }
            again.changes.retain(|change| matches!(change.kind, ChangeKind::Acquire { .. }));
            cluster.model.change(now, &again)?;
            Ok(reply)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "answers now and then that what is held was granted",
        change: |cluster, now, request| {
            let reply = cluster.model.change(now, &request)?;
            let before = cluster.count;
            cluster.count += 1;
            Ok(as_done(reply, |place, _| {
                before.is_multiple_of(4) && matches!(request.changes[place].kind, ChangeKind::Acquire { .. })
            }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "keeps the token when one's own slot is acquired again",
        change: |cluster, now, request| {
            let mine: Vec<_> = request
                .changes
                .iter()
                .map(|change| {
                    let mine = holder(cluster, change) == Some(request.session);
                    mine && matches!(change.kind, ChangeKind::Acquire { .. })
                })
                .collect();
            let records: Vec<_> =
                request.changes.iter().map(|change| cluster.model.slot(&change.slot).cloned()).collect();
            let mut kept = request.clone();
            let mut place = 0;
            kept.changes.retain(|_| {
                place += 1;
                !mine[place - 1]
            });
            let reply = cluster.model.change(now, &kept)?;
            let mut made = reply.outcomes.into_iter();
            let outcomes = mine
                .iter()
                .zip(records)
                .filter_map(|(mine, record)| if *mine { Some(ChangeOutcome::Done(record)) } else { made.next() });
            let outcomes = outcomes.collect();
            Ok(ChangeReply { outcomes, ..reply })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets the dead acquire",
        change: |cluster, now, mut request| {
            if !cluster.model.is_alive(now, request.session)
                && let Some((session, ..)) = cluster.model.sessions().next()
            {
                request.session = session;
            }
            cluster.model.change(now, &request)
        },
        ..FAITHFUL
    },
    // --- releasing ---
    Mutant {
        name: "ignores the token that a release names",
        change: |cluster, now, request| {
            any_token(cluster, now, request, |kind| matches!(kind, ChangeKind::Release { .. }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets anybody release",
        change: |cluster, now, request| {
            on_behalf(cluster, now, &request, |cluster, change| match change.kind {
                ChangeKind::Release { .. } => holder(cluster, change),
                _ => None,
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "refuses a release that is repeated",
        change: |cluster, now, request| {
            let free: Vec<_> = request.changes.iter().map(|change| holder(cluster, change).is_none()).collect();
            let mut reply = cluster.model.change(now, &request)?;
            for (place, outcome) in reply.outcomes.iter_mut().enumerate() {
                if let ChangeOutcome::Done(record) = outcome
                    && free[place]
                    && matches!(request.changes[place].kind, ChangeKind::Release { .. })
                {
                    *outcome = ChangeOutcome::Refused(Conflict::NotHolder, record.clone());
                }
            }
            Ok(reply)
        },
        ..FAITHFUL
    },
    // --- handing over ---
    Mutant {
        name: "transfers to dead sessions",
        change: |cluster, now, request| {
            let reply = cluster.model.change(now, &request)?;
            Ok(as_done(reply, |place, conflict| {
                conflict == Conflict::ReceiverGone && matches!(request.changes[place].kind, ChangeKind::Transfer { .. })
            }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "offers to dead sessions",
        change: |cluster, now, request| {
            let reply = cluster.model.change(now, &request)?;
            Ok(as_done(reply, |place, _| matches!(request.changes[place].kind, ChangeKind::Offer { .. })))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "transfers what was not accepted",
        change: |cluster, now, request| {
            for change in &request.changes {
                if let ChangeKind::Transfer { offer, .. } = change.kind
                    && let Some(standing) = cluster.model.slot(&change.slot).and_then(|slot| slot.offer.clone())
                {
                    let changes = vec![SlotChange { kind: ChangeKind::Accept { offer }, ..change.clone() }];
                    let _ = cluster
                        .model
                        .change(now, &ChangeRequest { session: standing.to, changes, known: request.known.clone() });
                }
            }
            cluster.model.change(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ignores the token that a transfer names",
        change: |cluster, now, request| {
            any_token(cluster, now, request, |kind| matches!(kind, ChangeKind::Transfer { .. }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "refuses a transfer that is repeated",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if let ChangeKind::Transfer { operation, .. } = &mut change.kind {
                    *operation = fresh();
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets anybody accept an offer",
        change: |cluster, now, request| {
            on_behalf(cluster, now, &request, |cluster, change| match change.kind {
                ChangeKind::Accept { .. } => {
                    cluster.model.slot(&change.slot)?.offer.as_ref().map(|standing| standing.to)
                }
                _ => None,
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets offers stand for ever",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if let ChangeKind::Offer { expires_in, .. } = &mut change.kind {
                    *expires_in = LONG;
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "takes the acceptance back when an offer is repeated",
        change: |cluster, now, request| {
            for change in &request.changes {
                if let ChangeKind::Offer { operation, .. } = &change.kind {
                    let kind = ChangeKind::Withdraw { offer: *operation };
                    let changes = vec![SlotChange { kind, ..change.clone() }];
                    let one = ChangeRequest { changes, session: request.session, known: request.known.clone() };
                    let _ = cluster.model.change(now, &one);
                }
            }
            cluster.model.change(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "begins a cooldown also for forced transfers",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if let ChangeKind::Offer { forced, .. } = &mut change.kind {
                    *forced = false;
                }
            })
        },
        ..FAITHFUL
    },
    // --- checkpoints ---
    Mutant {
        name: "loses the checkpoint of a transfer",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if let ChangeKind::Transfer { checkpoint, .. } = &mut change.kind {
                    *checkpoint = None;
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ignores the token that a checkpoint names",
        change: |cluster, now, request| {
            any_token(cluster, now, request, |kind| matches!(kind, ChangeKind::SaveCheckpoint { .. }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "shows checkpoints to everybody",
        snapshot: |cluster, now, request| {
            let mut page = cluster.model.snapshot(now, &request)?;
            for item in &mut page.items {
                if let Change::Slot(slot, record) = item {
                    *record = cluster.model.slot(slot).cloned();
                }
            }
            Ok(page)
        },
        ..FAITHFUL
    },
    // --- batches ---
    Mutant {
        name: "gives up a batch at the first conflict",
        change: |cluster, now, request| {
            cluster.model.capabilities().check_change(&request)?;
            let mut outcomes = Vec::new();
            let mut reply = cluster.model.change(now, &ChangeRequest { changes: Vec::new(), ..request.clone() })?;
            let mut failed = None;
            let known = &request.known;
            for change in &request.changes {
                let outcome = match failed {
                    Some(conflict) => ChangeOutcome::Refused(conflict, cluster.model.slot(&change.slot).cloned()),
                    None => {
                        let (known, changes) = (known.clone(), vec![change.clone()]);
                        let one = ChangeRequest { known, session: request.session, changes };
                        reply = cluster.model.change(now, &one)?;
                        reply.outcomes[0].clone()
                    }
                };
                if let ChangeOutcome::Refused(conflict, _) = &outcome {
                    failed = Some(*conflict);
                }
                outcomes.push(outcome);
            }
            Ok(ChangeReply { outcomes, ..reply })
        },
        ..FAITHFUL
    },
    Mutant { name: "makes batches in two halves", halves: true, ..FAITHFUL },
    Mutant {
        name: "makes a part of a batch that is too large",
        change: |cluster, now, mut request| {
            let most = cluster.model.capabilities().changes_max;
            let too_large = request.changes.len() > most;
            request.changes.truncate(most);
            let reply = cluster.model.change(now, &request)?;
            if too_large { Err(StoreError::new(ErrorKind::Fatal, "too large")) } else { Ok(reply) }
        },
        ..FAITHFUL
    },
    // --- sessions ---
    Mutant {
        name: "opens over a live session of another process",
        open: |cluster, now, mut request| {
            let standing = cluster.model.sessions().find(|(_, record, _)| record.info.node == request.info.node);
            if let Some((id, record, _)) = standing {
                (request.incarnation, request.replaces) = (record.incarnation, Some(id));
            }
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "replaces a session without looking at the incarnation",
        open: |cluster, now, mut request| {
            let standing = cluster.model.sessions().find(|(id, ..)| Some(*id) == request.replaces);
            if let Some((_, record, _)) = standing {
                request.incarnation = record.incarnation;
            }
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "refuses an opening that is repeated",
        open: |cluster, now, mut request| {
            request.operation = fresh();
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not extend when an opening is repeated",
        open: |cluster, now, request| {
            let live =
                cluster.model.sessions().any(|(_, record, end)| record.info.node == request.info.node && end > now);
            if live { cluster.model.clone().open(now, &request) } else { cluster.model.open(now, &request) }
        },
        ..FAITHFUL
    },
    Mutant {
        name: "shortens a TTL that is too long instead of refusing it",
        open: |cluster, now, mut request| {
            let capabilities = cluster.model.capabilities();
            request.ttl = request.ttl.clamp(capabilities.ttl_min, capabilities.ttl_max);
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets the settings of every node win",
        open: |cluster, now, request| {
            let record = Record::Settings(request.info.settings.clone());
            let put = AdminRequest::Put { key: RecordKey::Settings, record: Some(record), expect: None };
            cluster.model.administer(now, &put)?;
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ends sessions early",
        open: |cluster, now, mut request| {
            let ttl = request.ttl;
            if ttl < LONG && ttl > Duration::from_millis(500) {
                request.ttl -= Duration::from_millis(400);
            }
            let mut opening = cluster.model.open(now, &request)?;
            if let Opening::Opened { ttl: granted, .. } = &mut opening {
                *granted = ttl;
            }
            Ok(opening)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not end sessions",
        change: |cluster, _, request| cluster.model.change(StoreTime::from_micros(1), &request),
        heartbeat: |cluster, _, request| cluster.model.heartbeat(StoreTime::from_micros(1), &request),
        snapshot: |cluster, _, request| cluster.model.snapshot(StoreTime::from_micros(1), &request),
        open: |cluster, _, request| cluster.model.open(StoreTime::from_micros(1), &request),
        ..FAITHFUL
    },
    Mutant {
        name: "does not extend at a heartbeat",
        heartbeat: |cluster, now, request| {
            if request.info.is_some() {
                return cluster.model.heartbeat(now, &request);
            }
            cluster.model.clone().heartbeat(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "answers a dead session's heartbeat",
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request);
            let other = cluster.model.sessions().next().map(|(id, ..)| id);
            match (beat, other) {
                (Err(error), Some(session)) if error.kind() == ErrorKind::Lost => {
                    cluster.model.heartbeat(now, &HeartbeatRequest { session, info: None, ..request })
                }
                (beat, _) => beat,
            }
        },
        ..FAITHFUL
    },
    Mutant { name: "forgets to close", close: |_, _, _| Ok(()), ..FAITHFUL },
    Mutant {
        name: "closes the node's session, whichever is named",
        close: |cluster, now, mut request| {
            if !cluster.model.is_alive(now, request.session)
                && let Some((session, ..)) = cluster.model.sessions().next()
            {
                request.session = session;
            }
            cluster.model.close(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "keeps to itself what a node tells",
        heartbeat: |cluster, now, request| cluster.model.heartbeat(now, &HeartbeatRequest { info: None, ..request }),
        ..FAITHFUL
    },
    Mutant {
        name: "names the asking session as due",
        heartbeat: |cluster, now, request| {
            let mut beat = cluster.model.heartbeat(now, &request)?;
            if !request.due_within.is_zero() {
                beat.due.push(Due { session: request.session, remaining: beat.ttl });
            }
            Ok(beat)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not name who is due",
        heartbeat: |cluster, now, request| {
            cluster.model.heartbeat(now, &HeartbeatRequest { due_within: Duration::ZERO, ..request })
        },
        ..FAITHFUL
    },
    // --- counts and reading ---
    Mutant {
        name: "does not keep the digest up",
        heartbeat: |cluster, now, request| {
            let mut beat = cluster.model.heartbeat(now, &request)?;
            beat.held.digest = beat.held.count;
            Ok(beat)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "reads from a replica that lags one request behind",
        lags: true,
        snapshot: |cluster, now, request| cluster.before.snapshot(now, &request),
        ..FAITHFUL
    },
    Mutant {
        name: "ends a snapshot after its first page",
        snapshot: |cluster, now, request| {
            let page = cluster.model.snapshot(now, &request)?;
            Ok(SnapshotPage { next: None, ..page })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "begins a snapshot anew for a cursor that it does not know",
        snapshot: |cluster, now, request| {
            let page = cluster.model.snapshot(now, &request);
            page.or_else(|_| cluster.model.snapshot(now, &SnapshotRequest { cursor: None, ..request }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "drops the last change from what it tells",
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request)?;
            Ok(with_sync(beat, |changes, _| drop(changes.pop())))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not tell what was deleted",
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request)?;
            Ok(with_sync(beat, |changes, _| {
                changes.retain(|change| {
                    !matches!(change, Change::Session(_, None) | Change::Slot(_, None) | Change::Record(_, None))
                });
            }))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not say that there are more changes",
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request)?;
            Ok(with_sync(beat, |_, more| *more = false))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "tells the newest change first",
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request)?;
            Ok(with_sync(beat, |changes, _| changes.reverse()))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "numbers changes before they can be read",
        // As with numbers from a sequence: a change of the last request is told by none, and then passed by.
        heartbeat: |cluster, now, request| {
            let beat = cluster.model.heartbeat(now, &request)?;
            cluster.count += 1;
            let hides = cluster.count.is_multiple_of(3);
            Ok(with_sync(beat, |changes, more| {
                if hides && changes.len() > 1 && !*more {
                    changes.remove(0);
                }
            }))
        },
        ..FAITHFUL
    },
    // --- operators ---
    Mutant {
        name: "ignores the revision that an operator expects",
        administer: |cluster, now, request| {
            let request = match request {
                AdminRequest::Put { key, record, .. } => AdminRequest::Put { key, record, expect: None },
                force => force,
            };
            cluster.model.administer(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ignores the token that a forced release names",
        administer: |cluster, now, mut request| {
            if let AdminRequest::ForceRelease { slot, token, .. } = &mut request {
                *token = token_of(cluster, slot);
            }
            cluster.model.administer(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "waits for the holder also where it must not",
        administer: |cluster, now, mut request| {
            if let AdminRequest::ForceRelease { now: at_once, .. } = &mut request {
                *at_once = false;
            }
            cluster.model.administer(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "keeps the slots of a deleted workload",
        administer: |cluster, now, request| match request {
            AdminRequest::Put { key: RecordKey::Workload(_), record: None, .. } => {
                let key = RecordKey::Node("nobody".parse().unwrap());
                cluster.model.administer(now, &AdminRequest::Put { key, record: None, expect: None })
            }
            request => cluster.model.administer(now, &request),
        },
        ..FAITHFUL
    },
    // --- names ---
    Mutant { name: "takes upper and lower case of clusters for the same", cluster: str::to_lowercase, ..FAITHFUL },
    Mutant {
        name: "cuts the names of clusters at a colon",
        cluster: |name| name.split(':').next().unwrap_or_default().to_owned(),
        ..FAITHFUL
    },
    Mutant {
        name: "takes blanks off the names of nodes",
        open: |cluster, now, mut request| {
            if let Ok(node) = NodeId::new(request.info.node.as_str().trim()) {
                Arc::make_mut(&mut request.info).node = node;
            }
            cluster.model.open(now, &request)
        },
        ..FAITHFUL
    },
    // --- losses ---
    Mutant {
        name: "does not hear what the heartbeat of a dead session reports",
        heartbeat: |cluster, now, mut request| {
            if !cluster.model.sessions().any(|(id, ..)| id == request.session) {
                request.known = Known::default();
            }
            cluster.model.heartbeat(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not notice that data were lost",
        heartbeat: |cluster, now, mut request| {
            request.known = Known::default();
            cluster.model.heartbeat(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "ignores the tokens that nodes report",
        heartbeat: |cluster, now, mut request| {
            request.known.token = request.known.token.min(FencingToken::new(0));
            cluster.model.heartbeat(now, &request)
        },
        ..FAITHFUL
    },
    Mutant {
        name: "lets slots be re-adopted at any time",
        change: |cluster, now, request| {
            let reply = cluster.model.change(now, &request)?;
            Ok(as_done(reply, |_, conflict| conflict == Conflict::NotQuiet))
        },
        ..FAITHFUL
    },
    Mutant {
        name: "does not re-adopt",
        change: |cluster, now, request| {
            with_changes(cluster, now, request, |_, change| {
                if change.kind == ChangeKind::Readopt {
                    change.token = FencingToken::NONE;
                }
            })
        },
        ..FAITHFUL
    },
    Mutant {
        name: "re-adopts what was let go",
        change: |cluster, now, request| {
            let free: Vec<bool> = request
                .changes
                .iter()
                .map(|change| cluster.model.slot(&change.slot).is_some_and(|slot| slot.holder.is_none()))
                .collect();
            let reply = cluster.model.change(now, &request)?;
            Ok(as_done(reply, |at, conflict| {
                conflict == Conflict::NotHolder && free[at] && request.changes[at].kind == ChangeKind::Readopt
            }))
        },
        ..FAITHFUL
    },
    Mutant { name: "loses everything at a restart", restart: StoreModel::lose_everything, ..FAITHFUL },
    Mutant { name: "says of what happened in a stall that it did not", lies_in_a_stall: true, ..FAITHFUL },
    // --- the watch and the rest ---
    Mutant { name: "gives no hints", tells: |_| false, ..FAITHFUL },
    Mutant { name: "gives hints to everybody only", tells: |hint| hint == WatchHint::Everyone, ..FAITHFUL },
    Mutant { name: "has no watch and says that it has", has_watch: false, ..FAITHFUL },
    Mutant { name: "has a watch and says that it has none", capabilities: |it| it.watch = false, ..FAITHFUL },
    Mutant {
        name: "repeats tokens after a deletion",
        // A slot of a workload that was deleted begins again where the first one began.
        administer: |cluster, now, request| {
            if matches!(request, AdminRequest::Put { key: RecordKey::Workload(_), record: None, .. }) {
                cluster.count = 1;
            }
            cluster.model.administer(now, &request)
        },
        change: |cluster, now, request| {
            let fresh = |cluster: &Cluster, change: &SlotChange| cluster.model.slot(&change.slot).is_none();
            let fresh: Vec<_> = request.changes.iter().map(|change| fresh(cluster, change)).collect();
            let mut reply = cluster.model.change(now, &request)?;
            for (place, outcome) in reply.outcomes.iter_mut().enumerate() {
                if let ChangeOutcome::Done(Some(record)) = outcome
                    && fresh[place]
                    && cluster.count == 1
                {
                    record.token = FencingToken::new(1);
                }
            }
            Ok(reply)
        },
        ..FAITHFUL
    },
];
