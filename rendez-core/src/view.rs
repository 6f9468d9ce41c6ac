//! One reader's picture of a cluster: the records as last seen, and the plan that follows from them.
//!
//! Nodes and operators' tools build the same view from the same records. It judges nothing by itself and sends
//! nothing; a view that is older than the store is normal, and everything that is done because of it is a
//! compare-and-set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::placement::{NodeSpec, Planner, Policy, Runs, WorkloadSpec};
use crate::records::{
    ClusterSettings, DynamicWorkloads, NodeInfo, NodeWish, Record, RecordKey, SessionRecord, SlotRecord, Stance,
    Versioned, WorkloadRecord,
};
use crate::store::{Change, Held, Stamp};
use crate::{Generation, NodeId, Revision, SessionId, Slot, StoreTime, Timestamp, UNITS_MAX, WorkloadName};

/// One reader's picture of a cluster.
#[derive(Debug)]
pub struct ClusterView {
    stamp: Option<(Stamp, Timestamp)>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    slots: BTreeMap<Slot, SlotRecord>,
    /// What the reader learned about slots from its own requests, where that is newer than `slots`.
    newer: BTreeMap<Slot, SlotRecord>,
    records: BTreeMap<RecordKey, Versioned>,
    held: BTreeMap<SessionId, BTreeSet<Slot>>,
    /// Slots with an offer or a refusal: what the plan makes of them depends on the time.
    timed: BTreeSet<Slot>,
    /// Pairs that are left out of the plan: refused by record, or passed over by the reader.
    excluded: BTreeMap<Slot, BTreeSet<NodeId>>,
    passed_over: BTreeMap<Slot, BTreeMap<NodeId, Timestamp>>,
    node_specs: BTreeMap<NodeId, NodeSpec>,
    workload_specs: BTreeMap<WorkloadName, WorkloadSpec>,
    /// What one node says of itself, newer than its session's record.
    own: Option<Arc<NodeInfo>>,
    membership_changed_at: Timestamp,
    nodes_changed: bool,
    planner: Planner,
}

impl Default for ClusterView {
    fn default() -> Self {
        Self {
            stamp: None,
            sessions: BTreeMap::new(),
            slots: BTreeMap::new(),
            newer: BTreeMap::new(),
            records: BTreeMap::new(),
            held: BTreeMap::new(),
            timed: BTreeSet::new(),
            excluded: BTreeMap::new(),
            passed_over: BTreeMap::new(),
            node_specs: BTreeMap::new(),
            workload_specs: BTreeMap::new(),
            own: None,
            membership_changed_at: Timestamp::ZERO,
            nodes_changed: false,
            planner: Planner::new(Default::default(), Default::default()),
        }
    }
}

impl ClusterView {
    /// A view of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A view of all pages of a snapshot, read at this time.
    #[must_use]
    pub fn from_snapshot(now: Timestamp, stamp: Stamp, items: Vec<Change>) -> Self {
        let mut view = Self::new();
        view.restart(now, stamp, items);
        view
    }

    /// Forgets all records and takes those of a snapshot; `stamp` is that of its first page.
    pub fn restart(&mut self, now: Timestamp, stamp: Stamp, items: Vec<Change>) {
        let own = self.own.take();
        let membership = self.membership_changed_at;
        *self = Self { own, membership_changed_at: membership, ..Self::default() };
        self.stamp = Some((stamp, now));
        for change in items {
            self.put(now, change);
        }
        self.settle(now);
    }

    /// A view of the same at this time, which can be changed to see what would follow.
    #[must_use]
    pub fn fork(&self, now: Timestamp) -> Self {
        let mut fork = Self { stamp: self.stamp.clone(), passed_over: self.passed_over.clone(), ..Self::default() };
        for (key, record) in &self.records {
            fork.put(now, Change::Record(key.clone(), Some(record.clone())));
        }
        for (id, record) in &self.sessions {
            let mut record = record.clone();
            if let Some(own) = self.own.as_ref().filter(|own| own.node == record.info.node) {
                record.info = own.clone();
            }
            fork.put(now, Change::Session(*id, Some(record)));
        }
        for slot in self.slots.keys().chain(self.newer.keys()) {
            fork.put(now, Change::Slot(slot.clone(), self.slot(slot).cloned()));
        }
        fork.membership_changed_at = self.membership_changed_at;
        fork.settle(now);
        fork
    }

    /// Takes changes as if a store had told them, to see what would follow.
    pub(crate) fn suppose(&mut self, now: Timestamp, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.put(now, change);
        }
        self.settle(now);
    }

    /// Takes in changes, in their order. Returns the slots that they touch.
    pub fn apply(&mut self, now: Timestamp, stamp: Stamp, changes: Vec<Change>) -> BTreeSet<Slot> {
        self.stamp = Some((stamp, now));
        let touched = changes.into_iter().flat_map(|change| self.put(now, change)).collect();
        self.settle(now);
        touched
    }

    /// Takes in what a request of the reader's own has made of a slot.
    pub fn learn(&mut self, now: Timestamp, slot: &Slot, record: SlotRecord) {
        if self.slot(slot).is_none_or(|known| known.revision < record.revision) {
            self.newer.insert(slot.clone(), record);
            self.place(now, slot);
        }
    }

    /// Says what the reader's own node tells about itself, before the others know it.
    pub fn set_own(&mut self, now: Timestamp, info: Arc<NodeInfo>) {
        self.own = Some(info);
        self.nodes_changed = true;
        self.settle(now);
    }

    /// Brings what depends on the time up to date: offers and refusals that have ended, nodes that were passed over.
    pub fn tick(&mut self, now: Timestamp) {
        for slot in self.timed.clone() {
            self.place(now, &slot);
        }
        let over: Vec<Slot> = self
            .passed_over
            .iter_mut()
            .filter_map(|(slot, nodes)| {
                let before = nodes.len();
                nodes.retain(|_, until| *until > now);
                (nodes.len() != before).then(|| slot.clone())
            })
            .collect();
        self.passed_over.retain(|_, nodes| !nodes.is_empty());
        for slot in over {
            self.place(now, &slot);
        }
    }

    /// Leaves a node out of the plan for a slot until then: it did not take it in time.
    pub fn pass_over(&mut self, now: Timestamp, slot: &Slot, node: &NodeId, until: Timestamp) {
        self.passed_over.entry(slot.clone()).or_default().insert(node.clone(), until);
        self.place(now, slot);
    }

    /// A live node that is left out of the plan for a slot for `within` at most, and for how much longer: it has refused an
    /// offer, or left it lying. Who let a slot go because its runner fails is left out for longer, and not meant.
    #[must_use]
    pub fn refused_lately(&self, now: Timestamp, slot: &Slot, within: Duration) -> Option<(NodeId, Duration)> {
        let store_now = self.store_now(now);
        let record = self.slot(slot)?;
        let holder = record.holder.as_ref().map(|holder| &holder.node);
        let refusals = record.refusals.iter().map(|refused| (&refused.node, refused.until.since(store_now)));
        let passed_over = self.passed_over.get(slot).into_iter().flatten();
        let passed_over = passed_over.map(|(node, until)| (node, until.since(now)));
        let lately = refusals.chain(passed_over).filter(|(node, remaining)| {
            !remaining.is_zero() && *remaining <= within && holder != Some(*node) && self.session_of(node).is_some()
        });
        lately.max_by_key(|(_, remaining)| *remaining).map(|(node, remaining)| (node.clone(), remaining))
    }

    /// The generation of the records, if there are any.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.stamp.as_ref().map(|(stamp, _)| stamp.generation)
    }

    /// The revision that the view has reached.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.stamp.as_ref().map(|(stamp, _)| stamp.revision)
    }

    /// The store's clock at this time, as far as the reader can know.
    #[must_use]
    pub fn store_now(&self, now: Timestamp) -> StoreTime {
        self.stamp.as_ref().map_or_else(StoreTime::default, |(stamp, at)| stamp.now + now.since(*at))
    }

    /// When a node last came, went or changed what it may be given, as far as the reader saw it.
    #[must_use]
    pub fn membership_changed_at(&self) -> Timestamp {
        self.membership_changed_at
    }

    /// The live sessions.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &SessionRecord)> {
        self.sessions.iter().map(|(id, record)| (*id, record))
    }

    /// A live session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&SessionRecord> {
        self.sessions.get(&id)
    }

    /// The live session of a node.
    #[must_use]
    pub fn session_of(&self, node: &NodeId) -> Option<SessionId> {
        self.sessions.iter().find(|(_, record)| record.info.node == *node).map(|(id, _)| *id)
    }

    /// A slot's record, the newest that is known.
    #[must_use]
    pub fn slot(&self, slot: &Slot) -> Option<&SlotRecord> {
        self.newer.get(slot).or_else(|| self.slots.get(slot))
    }

    /// A slot's record as of the view's revision: without what only the reader's own requests have told.
    #[must_use]
    pub fn slot_as_synced(&self, slot: &Slot) -> Option<&SlotRecord> {
        self.slots.get(slot)
    }

    /// The slots that a session holds as of the view's revision.
    pub fn held_by(&self, session: SessionId) -> impl Iterator<Item = &Slot> {
        self.held.get(&session).into_iter().flatten()
    }

    /// Count and digest of what a session holds as of the view's revision.
    #[must_use]
    pub fn digest_of(&self, session: SessionId) -> Held {
        let mut held = Held::default();
        for slot in self.held_by(session) {
            held.add(slot, self.slots[slot].token);
        }
        held
    }

    /// An operator's record.
    #[must_use]
    pub fn record(&self, key: &RecordKey) -> Option<&Versioned> {
        self.records.get(key)
    }

    /// The cluster's settings, if they are known.
    #[must_use]
    pub fn settings(&self) -> Option<&ClusterSettings> {
        match &self.records.get(&RecordKey::Settings)?.record {
            Record::Settings(settings) => Some(settings),
            Record::Workload(_) | Record::Node(_) | Record::Pin(_) => None,
        }
    }

    /// The nodes that were started with other settings than the cluster's.
    #[must_use]
    pub fn settings_differ(&self) -> Vec<NodeId> {
        let Some(settings) = self.settings() else { return Vec::new() };
        let differs = self.sessions.values().filter(|record| record.info.settings != *settings);
        differs.map(|record| record.info.node.clone()).collect()
    }

    /// The slots with an offer that stands, and its giver and receiver.
    pub fn offers(&self, now: Timestamp) -> impl Iterator<Item = (&Slot, &SlotRecord)> {
        self.timed.iter().filter_map(move |slot| {
            let record = self.slot(slot)?;
            self.standing_offer(now, record).map(|_| (slot, record))
        })
    }

    /// The workloads that exist, as live nodes declare them and operators' records say.
    pub fn workloads(&self) -> impl Iterator<Item = (&WorkloadName, &WorkloadSpec)> {
        self.workload_specs.iter()
    }

    /// Every slot that exists or is known from a record, in order.
    #[must_use]
    pub fn known_slots(&self) -> BTreeSet<Slot> {
        let existing = self
            .workload_specs
            .iter()
            .flat_map(|(name, spec)| (0..spec.units.min(UNITS_MAX)).map(|unit| Slot::new(name.clone(), unit)));
        existing.chain(self.slots.keys().cloned()).chain(self.newer.keys().cloned()).collect()
    }

    /// The plan.
    pub fn planner(&mut self) -> &mut Planner {
        &mut self.planner
    }

    /// The node that holds a slot, if its session lives.
    #[must_use]
    pub fn holder(&self, slot: &Slot) -> Option<&NodeId> {
        let holder = self.slot(slot)?.holder.as_ref()?;
        self.sessions.contains_key(&holder.session).then_some(&holder.node)
    }

    /// Whether only an answer to a request of the reader's own has told who holds a slot, of a session that the view does
    /// not show: one that has come after the view's revision. Whether it lives, the next heartbeat tells.
    #[must_use]
    pub(crate) fn holder_is_newer(&self, slot: &Slot) -> bool {
        let Some(record) = self.newer.get(slot) else { return false };
        let holder = record.holder.as_ref();
        let unknown = holder.is_some_and(|holder| !self.sessions.contains_key(&holder.session));
        unknown && self.revision() < Some(record.revision)
    }

    /// What an operator wants of a node.
    #[must_use]
    pub fn wish(&self, node: &NodeId) -> NodeWish {
        match self.records.get(&RecordKey::Node(node.clone())).map(|versioned| &versioned.record) {
            Some(Record::Node(wish)) => wish.clone(),
            Some(Record::Settings(_) | Record::Workload(_) | Record::Pin(_)) | None => NodeWish::default(),
        }
    }

    /// Whether a live node can run a slot: it runs the unit, is in the workload's zones and has its labels.
    #[must_use]
    pub fn may_run(&self, node: &NodeId, slot: &Slot) -> bool {
        let specs = self.node_specs.get(node).zip(self.workload_specs.get(&slot.workload));
        specs.is_some_and(|(node, workload)| {
            let runs = node.runs.get(&slot.workload).is_some_and(|runs| slot.unit < runs.units);
            let zone =
                workload.zones.is_empty() || node.zone.as_ref().is_some_and(|zone| workload.zones.contains(zone));
            runs && zone && workload.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        })
    }

    /// The most units of a workload that a node may hold, if there is a limit.
    #[must_use]
    pub fn cap(&self, node: &NodeId, workload: &WorkloadName) -> Option<u32> {
        let own = self.node_specs.get(node)?.runs.get(workload)?.cap;
        let rule = self.workload_specs.get(workload)?.cap_per_node;
        own.into_iter().chain(rule).min()
    }

    /// The offer of a slot's record, if it stands: giver and receiver live, and its time is not over.
    pub(crate) fn standing_offer<'a>(&self, now: Timestamp, record: &'a SlotRecord) -> Option<&'a crate::Offer> {
        let offer = record.offer.as_ref()?;
        let giver_lives = record.holder.as_ref().is_some_and(|holder| self.sessions.contains_key(&holder.session));
        let stands = giver_lives && offer.expires_at > self.store_now(now) && self.sessions.contains_key(&offer.to);
        stands.then_some(offer)
    }

    fn put(&mut self, now: Timestamp, change: Change) -> Vec<Slot> {
        match change {
            Change::Session(id, record) => {
                let old = match record {
                    Some(record) => self.sessions.insert(id, record),
                    None => self.sessions.remove(&id),
                };
                let new = self.sessions.get(&id);
                if old.as_ref().map(|record| &record.info) != new.map(|record| &record.info) {
                    self.membership_changed_at = now;
                    self.nodes_changed = true;
                }
                if old.is_some() == new.is_some() {
                    return Vec::new();
                }
                let mut touched: Vec<Slot> = self.held_by(id).cloned().collect();
                let offered_to = |slot: &&Slot| {
                    let offer = self.slot(slot).and_then(|record| record.offer.as_ref());
                    offer.is_some_and(|offer| offer.to == id)
                };
                touched.extend(self.timed.iter().filter(offered_to).cloned());
                // What was learned of a slot may be all that says who holds it: the log need not tell every change.
                let learned = self.newer.iter().filter(|(_, record)| record.is_held_by(id));
                touched.extend(learned.map(|(slot, _)| slot.clone()));
                for slot in &touched {
                    self.place(now, slot);
                }
                touched
            }
            Change::Slot(slot, record) => {
                if let Some(old) = self.slots.get(&slot).and_then(|old| old.holder.clone()) {
                    let slots = self.held.entry(old.session).or_default();
                    slots.remove(&slot);
                    if slots.is_empty() {
                        self.held.remove(&old.session);
                    }
                }
                match record {
                    Some(record) => {
                        if let Some(holder) = &record.holder {
                            self.held.entry(holder.session).or_default().insert(slot.clone());
                        }
                        if self.newer.get(&slot).is_some_and(|newer| newer.revision <= record.revision) {
                            self.newer.remove(&slot);
                        }
                        self.slots.insert(slot.clone(), record);
                    }
                    None => {
                        self.slots.remove(&slot);
                        self.newer.remove(&slot);
                    }
                }
                self.place(now, &slot);
                vec![slot]
            }
            Change::Record(key, record) => {
                if let RecordKey::Pin(slot) = &key {
                    let node = record.as_ref().and_then(|versioned| match &versioned.record {
                        Record::Pin(node) => Some(node.clone()),
                        Record::Settings(_) | Record::Workload(_) | Record::Node(_) => None,
                    });
                    self.planner.set_pin(slot, node.as_ref());
                }
                if matches!(key, RecordKey::Node(_)) {
                    self.membership_changed_at = now;
                }
                self.nodes_changed = true;
                match record {
                    Some(record) => self.records.insert(key, record),
                    None => self.records.remove(&key),
                };
                Vec::new()
            }
        }
    }

    /// Tells the planner who holds a slot (an offer that stands counts as done) and who has refused it.
    fn place(&mut self, now: Timestamp, slot: &Slot) {
        let store_now = self.store_now(now);
        let record = self.slot(slot);
        let holder = record.and_then(|record| match self.standing_offer(now, record) {
            Some(offer) => Some(self.sessions[&offer.to].info.node.clone()),
            None => self.holder(slot).cloned(),
        });
        let refusals = record.map(|record| record.refusals.as_slice()).unwrap_or_default();
        let mut excluded: BTreeSet<NodeId> =
            refusals.iter().filter(|refused| refused.until > store_now).map(|refused| refused.node.clone()).collect();
        let timed = !excluded.is_empty() || record.is_some_and(|record| record.offer.is_some());
        excluded.extend(self.passed_over.get(slot).into_iter().flat_map(|nodes| nodes.keys().cloned()));
        if timed {
            self.timed.insert(slot.clone());
        } else {
            self.timed.remove(slot);
        }
        self.planner.set_holder(slot, holder.as_ref());
        let before = self.excluded.remove(slot).unwrap_or_default();
        for node in before.difference(&excluded) {
            self.planner.exclude(slot, node, false);
        }
        for node in excluded.difference(&before) {
            self.planner.exclude(slot, node, true);
        }
        if !excluded.is_empty() {
            self.excluded.insert(slot.clone(), excluded);
        }
    }

    /// Tells the planner what has changed about nodes and workloads.
    fn settle(&mut self, now: Timestamp) {
        self.tick(now);
        if !std::mem::take(&mut self.nodes_changed) {
            return;
        }
        if let Some(settings) = self.settings().cloned() {
            self.planner.set_policy(settings.policy, settings.load_factor);
        }
        let workloads = self.derive_workloads();
        for name in self.workload_specs.keys().filter(|name| !workloads.contains_key(*name)) {
            self.planner.remove_workload(name);
        }
        for (name, spec) in &workloads {
            if self.workload_specs.get(name) != Some(spec) {
                self.planner.set_workload(name, spec.clone());
            }
        }
        self.workload_specs = workloads;
        let nodes = self.derive_nodes();
        for name in self.node_specs.keys().filter(|name| !nodes.contains_key(*name)) {
            self.planner.remove_node(name);
        }
        for (name, spec) in &nodes {
            if self.node_specs.get(name) != Some(spec) {
                self.planner.set_node(name, spec.clone());
            }
        }
        self.node_specs = nodes;
    }

    fn infos(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.sessions.values().map(|record| match &self.own {
            Some(own) if own.node == record.info.node => own,
            Some(_) | None => &record.info,
        })
    }

    fn derive_workloads(&self) -> BTreeMap<WorkloadName, WorkloadSpec> {
        let mut declared: BTreeMap<WorkloadName, (u32, Option<Policy>)> = BTreeMap::new();
        for info in self.infos() {
            for (name, workload) in &info.workloads {
                let (units, policy) = declared.entry(name.clone()).or_default();
                *units = (*units).max(workload.units);
                *policy = (*policy).max(workload.policy);
            }
        }
        let mut specs: BTreeMap<WorkloadName, WorkloadSpec> = BTreeMap::new();
        for (key, versioned) in &self.records {
            if let (RecordKey::Workload(name), Record::Workload(record)) = (key, &versioned.record) {
                specs.insert(name.clone(), workload_spec(record));
            }
        }
        for (name, (units, policy)) in declared {
            let spec = specs.entry(name).or_default();
            spec.units = units;
            spec.policy = spec.policy.or(policy);
        }
        specs
    }

    fn derive_nodes(&self) -> BTreeMap<NodeId, NodeSpec> {
        let mut specs = BTreeMap::new();
        for info in self.infos() {
            let wish = self.wish(&info.node);
            let leaving = wish.drain || info.stance == Stance::Draining;
            let mut runs: BTreeMap<WorkloadName, Runs> = BTreeMap::new();
            for name in self.workload_specs.keys() {
                let dynamic = match &info.dynamic {
                    DynamicWorkloads::None => false,
                    DynamicWorkloads::All => self.records.contains_key(&RecordKey::Workload(name.clone())),
                    DynamicWorkloads::Only(names) => names.contains(name),
                };
                if let Some(declared) = info.workloads.get(name) {
                    runs.insert(
                        name.clone(),
                        Runs { units: declared.units, cap: declared.cap, priority: declared.priority },
                    );
                } else if dynamic {
                    runs.insert(name.clone(), Runs::ALL);
                }
            }
            let spec = NodeSpec {
                weight: wish.weight.unwrap_or(info.weight).max(1),
                zone: info.zone.clone(),
                capacity: info.capacity,
                accepts: info.stance == Stance::Active && info.healthy && !wish.cordon && !leaving,
                leaving,
                runs,
                labels: info.labels.clone(),
            };
            specs.insert(info.node.clone(), spec);
        }
        specs
    }
}

fn workload_spec(record: &WorkloadRecord) -> WorkloadSpec {
    WorkloadSpec {
        units: record.units,
        paused: record.paused,
        cap_per_node: record.cap_per_node,
        zones: record.zones.clone(),
        labels: record.labels.clone(),
        policy: record.policy,
    }
}
