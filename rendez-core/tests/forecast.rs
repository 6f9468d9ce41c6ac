//! Forecasts and explanations, on small clusters that are written down in full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rendez_core::explanation::{ExplainError, Explanation, explain};
use rendez_core::forecast::{Forecast, ForecastError, Joining, StepCause, Supposition, predict};
use rendez_core::placement::{Cause, LoadFactor, Obstacle, Policy, Reason};
use rendez_core::stabilizer::HeldBack;
use rendez_core::status::Why;
use rendez_core::{
    Change, ClusterSettings, ClusterView, Declared, EngineConfig, FencingToken, Generation, Holder, Incarnation,
    NodeId, NodeInfo, NodeWish, Offer, OperationId, Record, RecordKey, Refused, Revision, SessionId, SessionRecord,
    Slot, SlotRecord, Stabilizers, Stamp, StoreTime, Timestamp, Versioned, WorkloadName, WorkloadRecord, ZoneName,
};

const NOW: Timestamp = Timestamp::from_nanos(1_000_000);
const TTL: Duration = Duration::from_secs(10);
/// The store's clock at that time.
const STORE_NOW: StoreTime = StoreTime::from_micros(1_000_000_000_000);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn name(workload: &str) -> WorkloadName {
    WorkloadName::new(workload).unwrap()
}

fn slot(text: &str) -> Slot {
    text.parse().unwrap()
}

fn ago(seconds: u64) -> StoreTime {
    StoreTime::from_micros(STORE_NOW.as_micros() - seconds * 1_000_000)
}

fn rules() -> Stabilizers {
    EngineConfig::for_ttl(TTL).stabilizers
}

/// A cluster's records.
#[derive(Debug, Default, Clone)]
struct Cluster {
    sessions: BTreeMap<NodeId, (SessionId, SessionRecord)>,
    slots: BTreeMap<Slot, SlotRecord>,
    records: BTreeMap<RecordKey, Record>,
    /// Units and weight of a node that has not joined yet.
    outside: Option<(u32, u32)>,
}

impl Cluster {
    /// Nodes that declare the workload `inbox`, and hold nothing.
    fn of(nodes: &[&str], units: u32) -> Self {
        let mut cluster = Self::default();
        cluster.records.insert(RecordKey::Settings, Record::Settings(settings()));
        for node in nodes {
            cluster.add(node, units, |_| {});
        }
        cluster
    }

    /// The same, where every slot has been at its place for long.
    fn at_rest(nodes: &[&str], units: u32) -> Self {
        let mut cluster = Self::of(nodes, units);
        cluster.come_to_rest();
        cluster
    }

    fn add(&mut self, id: &str, units: u32, tell: impl FnOnce(&mut NodeInfo)) {
        let mut info = NodeInfo::new(node(id), settings());
        info.workloads.insert(name("inbox"), Declared::new(units));
        tell(&mut info);
        let session = SessionId::from_bits(1000 + self.sessions.len() as u128);
        let record = SessionRecord {
            incarnation: Incarnation::from_bits(1),
            opened_at: ago(5000),
            ttl: TTL,
            info: Arc::new(info),
            revision: Revision(1),
        };
        self.sessions.insert(node(id), (session, record));
    }

    fn tell(&mut self, id: &str, tell: impl FnOnce(&mut NodeInfo)) {
        tell(Arc::make_mut(&mut self.sessions.get_mut(&node(id)).unwrap().1.info));
    }

    fn wish(&mut self, id: &str, wish: impl FnOnce(&mut NodeWish)) {
        let mut record = NodeWish::default();
        wish(&mut record);
        self.records.insert(RecordKey::Node(node(id)), Record::Node(record));
    }

    fn workload(&mut self, workload: WorkloadRecord) {
        self.records.insert(RecordKey::Workload(name("inbox")), Record::Workload(workload));
    }

    fn give(&mut self, held: &Slot, id: &NodeId) {
        let session = self.sessions.get(id).map_or(SessionId::from_bits(7), |(session, _)| *session);
        let record = SlotRecord {
            token: FencingToken::new(41),
            granted_by: OperationId::from_bits(1),
            holder: Some(Holder { session, node: id.clone() }),
            taken_at: ago(4000),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision(2),
        };
        self.slots.insert(held.clone(), record);
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut SlotRecord)) {
        change(self.slots.get_mut(&slot(id)).unwrap());
    }

    /// Gives every slot to the node that should own it.
    fn come_to_rest(&mut self) {
        let owners: Vec<(Slot, Option<NodeId>)> =
            self.view().planner().assignments().map(|(slot, node)| (slot, node.cloned())).collect();
        for (slot, owner) in owners {
            if let Some(owner) = owner {
                self.give(&slot, &owner);
            }
        }
    }

    fn view(&self) -> ClusterView {
        let sessions = self.sessions.values().map(|(id, record)| Change::Session(*id, Some(record.clone())));
        let slots = self.slots.iter().map(|(slot, record)| Change::Slot(slot.clone(), Some(record.clone())));
        let records = self.records.iter().map(|(key, record)| {
            Change::Record(key.clone(), Some(Versioned { record: record.clone(), revision: Revision(3) }))
        });
        let stamp = Stamp {
            generation: Generation::from_bits(1),
            revision: Revision(9),
            now: STORE_NOW,
            token: FencingToken::new(41),
            quiet: Duration::ZERO,
        };
        ClusterView::from_snapshot(NOW, stamp, sessions.chain(slots).chain(records).collect())
    }

    fn predict(&self, suppositions: &[Supposition]) -> Forecast {
        predict(&self.view(), NOW, suppositions).unwrap()
    }

    fn explain(&self, text: &str) -> Explanation {
        explain(&mut self.view(), NOW, &slot(text), &rules()).unwrap()
    }

    /// The first node goes, and the one that waits outside comes.
    fn go_and_join(&mut self) {
        self.sessions.remove(&node("n0"));
        let (units, weight) = self.outside.take().unwrap();
        self.add("x", units, |info| info.weight = weight);
        self.sessions.get_mut(&node("x")).unwrap().0 = SessionId::from_bits(5);
    }

    /// What nodes would do now: take orphans, and only when there are none hand slots over.
    fn moves(&self) -> Vec<(Slot, NodeId)> {
        let mut view = self.view();
        let mut orphans: Vec<(Slot, NodeId)> = Vec::new();
        let mut moves = Vec::new();
        for id in self.sessions.keys() {
            orphans.extend(view.planner().wanted_by(id).into_iter().map(|slot| (slot, id.clone())));
            moves.extend(view.planner().leaving(id).into_iter().map(|planned| (planned.slot, planned.to)));
        }
        if orphans.is_empty() { moves } else { orphans }
    }

    fn holders(&self) -> BTreeMap<Slot, NodeId> {
        let holders = self.slots.iter().map(|(slot, it)| (slot.clone(), it.holder.as_ref().unwrap().node.clone()));
        holders.collect()
    }

    /// What a node holds.
    fn held_by(&self, id: &str) -> Vec<Slot> {
        let held = self.slots.iter().filter(|(_, record)| record.holder.as_ref().unwrap().node == node(id));
        held.map(|(slot, _)| slot.clone()).collect()
    }
}

fn settings() -> ClusterSettings {
    ClusterSettings::new(TTL)
}

fn goes(id: &str) -> Supposition {
    Supposition::Goes(node(id))
}

fn joins(id: &str) -> Supposition {
    Supposition::Joins(Joining::new(node(id)))
}

fn counts(forecast: &Forecast) -> Vec<(&str, Option<u32>, Option<u32>)> {
    forecast.nodes.iter().map(|it| (it.node.as_str(), it.before, it.after)).collect()
}

#[test]
fn when_a_node_goes_the_others_take_its_slots_and_nothing_else_moves() {
    let cluster = Cluster::at_rest(&["a", "b", "c"], 12);
    let forecast = cluster.predict(&[goes("b")]);
    let gone = cluster.held_by("b");
    assert_eq!(forecast.steps.iter().map(|step| step.slot.clone()).collect::<Vec<_>>().len(), 4);
    for step in &forecast.steps {
        assert!(gone.contains(&step.slot) && !step.anyway, "{step:?}");
        assert_eq!((step.from.as_ref(), &step.why), (Some(&node("b")), &StepCause::TakenOver));
    }
    assert_eq!(counts(&forecast), [("a", Some(4), Some(6)), ("b", Some(4), None), ("c", Some(4), Some(6))]);
    let totals = forecast.totals;
    assert_eq!((totals.slots, totals.stay, totals.moves, totals.voluntary, totals.unplaced), (12, 8, 4, 0, 0));
}

#[test]
fn a_node_that_joins_is_given_its_share_voluntarily() {
    let cluster = Cluster::at_rest(&["a", "b", "c"], 12);
    let forecast = cluster.predict(&[joins("d")]);
    assert_eq!(forecast.steps.len(), 3);
    assert!(forecast.steps.iter().all(|step| step.to == Some(node("d")) && step.why == StepCause::Voluntary));
    assert_eq!(forecast.totals.voluntary, 3);
    assert_eq!(forecast.nodes[3].band.map(|band| (band.low, band.high)), Some((3, 3)));
    let mut heavy = Joining::new(node("d"));
    heavy.weight = 3;
    heavy.capacity = Some(5);
    let forecast = cluster.predict(&[Supposition::Joins(heavy)]);
    assert_eq!(counts(&forecast)[3], ("d", None, Some(5)));
}

#[test]
fn a_node_that_joins_runs_what_any_node_runs() {
    let mut cluster = Cluster::at_rest(&["a"], 4);
    cluster.add("b", 6, |info| {
        info.workloads.insert(name("feed"), Declared::new(3).with_cap(2));
    });
    cluster.come_to_rest();
    let forecast = cluster.predict(&[goes("a"), goes("b"), joins("c")]);
    let after: Vec<_> = forecast.steps.iter().filter(|step| step.to == Some(node("c"))).collect();
    assert_eq!(after.len(), 8, "{forecast:?}");
    assert_eq!(forecast.unplaced.len(), 1);
    assert_eq!(forecast.unplaced[0].reason, Reason::AllFull);
}

#[test]
fn each_kind_of_step_is_told_apart() {
    let cluster = Cluster::at_rest(&["a", "b"], 6);
    let drained = cluster.predict(&[Supposition::Drain(node("a"))]);
    assert!(drained.steps.iter().all(|step| step.why == StepCause::Forced(Cause::Leaving)));
    assert_eq!(counts(&drained), [("a", Some(3), Some(0)), ("b", Some(3), Some(6))]);

    assert_eq!(cluster.predict(&[Supposition::Cordon(node("a"))]).steps, []);
    let cordoned = cluster.predict(&[Supposition::Cordon(node("a")), Supposition::Units(name("inbox"), 8)]);
    let steps: Vec<_> = cordoned.steps.iter().map(|step| (step.slot.unit, step.to.clone(), &step.why)).collect();
    assert_eq!(steps, [(6, Some(node("b")), &StepCause::Taken), (7, Some(node("b")), &StepCause::Taken)]);

    let fewer = cluster.predict(&[Supposition::Units(name("inbox"), 2)]);
    let let_go = fewer.steps.iter().filter(|step| step.why == StepCause::LetGo(Reason::NoSuchSlot));
    assert_eq!(let_go.map(|step| step.slot.unit).collect::<Vec<_>>(), [2, 3, 4, 5], "{fewer:?}");
    let mut fewer = fewer.nodes.iter().map(|node| node.after.unwrap()).collect::<Vec<_>>();
    fewer.sort_unstable();
    assert_eq!(fewer, [1, 1]);

    let one = |id| Supposition::Capacity(node(id), Some(1));
    let lowered = cluster.predict(&[one("a")]);
    assert!(lowered.steps.iter().all(|step| step.why == StepCause::Forced(Cause::Cap)), "{lowered:?}");
    assert_eq!(counts(&lowered), [("a", Some(3), Some(1)), ("b", Some(3), Some(5))]);
    let full = cluster.predict(&[one("a"), one("b")]);
    assert!(full.steps.iter().all(|step| step.why == StepCause::LetGo(Reason::AllFull)), "{full:?}");
    assert_eq!((full.steps.len(), full.totals.unplaced, full.totals.stay), (4, 4, 2));

    let heavier = cluster.predict(&[Supposition::Weight(node("a"), 2)]);
    assert!(heavier.steps.iter().all(|step| step.why == StepCause::Voluntary && step.to == Some(node("a"))));
    assert_eq!(heavier.nodes[0].after, Some(4));

    let last = cluster.predict(&[goes("a"), goes("b")]);
    assert!(last.steps.iter().all(|step| step.why == StepCause::Orphaned(Reason::NoSuchSlot)), "{last:?}");
    assert_eq!(last.steps.len(), 6);
}

#[test]
fn rules_and_settings_can_be_tried_out() {
    let mut cluster = Cluster::of(&[], 6);
    for (id, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
        cluster.add(id, 6, |info| info.zone = Some(ZoneName::new(zone).unwrap()));
    }
    let mut workload = WorkloadRecord::new(0);
    workload.zones.insert(ZoneName::new("z1").unwrap());
    cluster.workload(workload);
    cluster.come_to_rest();
    assert_eq!(cluster.held_by("c"), []);
    let moved = cluster.predict(&[Supposition::Zone(node("a"), ZoneName::new("z2").unwrap())]);
    assert!(moved.steps.iter().all(|step| step.why == StepCause::Forced(Cause::Rule)), "{moved:?}");
    assert_eq!(counts(&moved), [("a", Some(3), Some(0)), ("b", Some(3), Some(6)), ("c", Some(0), Some(0))]);

    let cluster = Cluster::at_rest(&["a", "b", "c", "d", "e"], 100);
    let by_score = cluster.predict(&[Supposition::Policy(Policy::Rendezvous)]);
    assert!(by_score.totals.voluntary > 0 && by_score.settings_differ.is_empty());
    assert!(by_score.nodes.iter().any(|node| node.after != Some(20)), "{:?}", by_score.nodes);
    let wide = Supposition::LoadFactor(LoadFactor::from_permille(2000).unwrap());
    let patient = cluster.predict(&[wide, Supposition::Weight(node("a"), 2)]);
    let exact = cluster.predict(&[Supposition::Weight(node("a"), 2)]);
    assert!(patient.totals.moves < exact.totals.moves, "{:?} {:?}", patient.totals, exact.totals);
}

#[test]
fn what_would_happen_anyway_is_marked_and_offers_that_stand_are_under_way() {
    let mut cluster = Cluster::at_rest(&["a", "b"], 6);
    cluster.add("c", 6, |_| {});
    let expected = cluster.predict(&[]);
    assert_eq!((expected.totals.moves, expected.totals.anyway), (2, 2));
    let offered = expected.steps[0].slot.clone();
    let (to, _) = cluster.sessions[&node("c")];
    cluster.change(&offered.to_string(), |record| {
        record.offer = Some(Offer {
            id: OperationId::from_bits(3),
            to,
            expires_at: STORE_NOW + TTL,
            giver_total: 3,
            giver_of_workload: 3,
            forced: false,
            ready: true,
        });
    });
    let with = cluster.predict(&[Supposition::Units(name("inbox"), 7)]);
    assert_eq!(with.steps[0].why, StepCause::UnderWay { forced: false }, "{with:?}");
    assert!(with.steps[0].anyway && with.steps[0].slot == offered);
    assert_eq!(with.totals.voluntary, with.totals.moves - 1);
    // To a node that goes nothing is under way.
    let without = cluster.predict(&[goes("c")]);
    assert_eq!(without.steps, []);
    let offer = cluster.explain(&offered.to_string()).offer.unwrap();
    assert!(offer.to == node("c") && offer.ready && offer.expires_at == STORE_NOW + TTL);
}

#[test]
fn nothing_is_supposed_of_what_is_not_there() {
    let cluster = Cluster::at_rest(&["a", "b"], 6);
    let wrong = |supposition: Supposition| predict(&cluster.view(), NOW, &[supposition]).unwrap_err().to_string();
    for supposition in [goes("x"), Supposition::Weight(node("x"), 2), Supposition::Drain(node("x"))] {
        assert_eq!(wrong(supposition), "no node x is alive; alive: a, b");
    }
    assert!(wrong(joins("a")).contains("a is alive already"));
    assert_eq!(wrong(Supposition::Units(name("feed"), 2)), "there is no workload feed; there are: inbox");
    let nobody = ClusterView::new();
    assert_eq!(predict(&nobody, NOW, &[joins("a")]), Err(ForecastError::NobodyToFollow { node: node("a") }));
    let policy = Supposition::Policy(Policy::Rendezvous);
    assert_eq!(predict(&nobody, NOW, &[policy]), Err(ForecastError::NoSettings));
    assert_eq!(predict(&nobody, NOW, &[]).unwrap().steps, []);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// All nodes act at once on what they see, again and again: it ends as was said.
    #[test]
    fn nodes_that_act_at_once_come_to_what_was_predicted(change in changes()) {
        let (mut cluster, forecast) = change;
        let mut expected = cluster.holders();
        for step in &forecast.steps {
            expected.insert(step.slot.clone(), step.to.clone().unwrap());
        }
        cluster.go_and_join();
        for _ in 0..1000 {
            let moves = cluster.moves();
            if moves.is_empty() {
                break;
            }
            for (slot, to) in moves {
                cluster.give(&slot, &to);
            }
        }
        prop_assert_eq!(cluster.holders(), expected);
        prop_assert_eq!(forecast.stuck, []);
    }

    /// Nodes make moves one at a time, in an order that nobody rules. Then a slot may find another place that is as good
    /// as the one that was said; but everybody comes to have what was said to be its part.
    #[test]
    fn nodes_that_act_one_after_the_other_come_to_the_predicted_parts(
        change in changes(),
        order: Vec<proptest::sample::Index>,
    ) {
        let (mut cluster, forecast) = change;
        cluster.go_and_join();
        let mut order = order.into_iter().cycle();
        let mut made = 0;
        for _ in 0..1000 {
            let mut moves = cluster.moves();
            if moves.is_empty() {
                break;
            }
            let at = order.next().map_or(0, |index| index.index(moves.len()));
            let (slot, to) = moves.swap_remove(at);
            cluster.give(&slot, &to);
            made += 1;
        }
        prop_assert!(made < 1000, "it never ends");
        for node in forecast.nodes.iter().filter(|node| node.after.is_some()) {
            let band = node.band.unwrap();
            let count = cluster.held_by(node.node.as_str()).len() as u32;
            prop_assert!((band.low..=band.high).contains(&count), "{} has {count}, not {band:?}", node.node);
            prop_assert!((band.low..=band.high).contains(&node.after.unwrap()), "{node:?}");
        }
    }
}

/// A cluster at rest, and what is predicted if its first node goes and another comes.
fn changes() -> impl Strategy<Value = (Cluster, Forecast)> {
    (1..20u32, proptest::collection::vec(1..4u32, 1..5), 1..4u32).prop_map(|(units, weights, weight)| {
        let mut cluster = Cluster::of(&[], units);
        for (at, weight) in weights.iter().enumerate() {
            cluster.add(&format!("n{at}"), units, |info| info.weight = *weight);
        }
        cluster.come_to_rest();
        let mut joining = Joining::new(node("x"));
        joining.weight = weight;
        let forecast = cluster.predict(&[goes("n0"), Supposition::Joins(joining)]);
        // It waits outside until it joins.
        cluster.outside = Some((units, weight));
        (cluster, forecast)
    })
}

#[test]
fn a_slot_that_is_at_its_place_is_explained_by_its_candidates() {
    let mut cluster = Cluster::at_rest(&["a", "b", "c"], 12);
    cluster.add("drained", 12, |_| {});
    cluster.wish("drained", |wish| wish.drain = true);
    cluster.add("cordoned", 12, |_| {});
    cluster.wish("cordoned", |wish| wish.cordon = true);
    cluster.add("ill", 12, |info| info.healthy = false);
    cluster.add("few", 1, |_| {});
    cluster.add("small", 12, |info| info.capacity = Some(0));
    cluster.add("capped", 12, |info| info.workloads.get_mut(&name("inbox")).unwrap().cap = Some(0));
    cluster.add("other", 12, |info| info.workloads = BTreeMap::new());
    cluster.add("refuses", 12, |_| {});
    for at in 0..12 {
        let until = StoreTime::from_micros(STORE_NOW.as_micros() + 3_000_000);
        cluster.change(&format!("inbox/{at}"), |record| record.refusals.push(Refused { node: node("refuses"), until }));
    }
    let held = cluster.held_by("a").into_iter().find(|slot| slot.unit > 0).unwrap().to_string();
    let told = cluster.explain(&held);
    assert_eq!((told.why, told.waiting), (None, None));
    assert_eq!(told.holder.as_ref().map(|it| (&it.node, it.since)), Some((&node("a"), ago(4000))));
    assert_eq!((told.desired, told.token, told.policy), (Some(node("a")), FencingToken::new(41), Policy::Balanced));
    let against: BTreeMap<&str, Option<String>> =
        told.candidates.iter().map(|it| (it.candidate.node.as_str(), it.against(told.now))).collect();
    for (id, words) in [
        ("b", "the spread would get no better"),
        ("capped", "it may hold 0 of the workload"),
        ("cordoned", "it is cordoned"),
        ("drained", "it is leaving"),
        ("few", "only the units below 1"),
        ("ill", "it is unhealthy"),
        ("other", "it does not run the workload"),
        ("refuses", "it refuses the slot for another 3.0s"),
        ("small", "its capacity is 0"),
    ] {
        let said = against[id].as_deref().unwrap_or("nothing");
        assert!(said.contains(words), "{id}: {said}");
    }
    assert_eq!(against["a"], None);
    assert_eq!(told.candidates.len(), 11);
    let a = told.candidates.iter().find(|it| it.candidate.node == node("a")).unwrap();
    assert_eq!((a.candidate.held.total, a.candidate.planned.of_workload), (4, 4));
    // The node that refuses the slots has a part all the same, and the one that runs few.
    assert_eq!(a.candidate.bands.map(|bands| bands.total.high), Some(3));
}

#[test]
fn zones_labels_and_pins_are_told_apart() {
    let mut cluster = Cluster::of(&[], 4);
    let z1 = || Some(ZoneName::new("z1").unwrap());
    cluster.add("here", 4, |info| {
        info.zone = z1();
        info.labels.insert("gpu".into(), "yes".into());
    });
    cluster.add("plain", 4, |info| info.zone = z1());
    cluster.add("there", 4, |_| {});
    let mut workload = WorkloadRecord::new(0);
    workload.zones.extend(z1());
    workload.labels.insert("gpu".into(), "yes".into());
    cluster.workload(workload);
    cluster.come_to_rest();
    cluster.records.insert(RecordKey::Pin(slot("inbox/0")), Record::Pin(node("plain")));
    let obstacles = |told: &Explanation| -> BTreeMap<String, Option<Obstacle>> {
        let named = told.candidates.iter().map(|it| (it.candidate.node.to_string(), it.candidate.against.clone()));
        named.collect()
    };
    let told = cluster.explain("inbox/1");
    let labels = Obstacle::Labels { missing: vec!["gpu=yes".to_owned()] };
    let expected = [("here", None), ("plain", Some(labels.clone())), ("there", Some(Obstacle::Zone))];
    assert_eq!(obstacles(&told), expected.map(|(id, against)| (id.to_owned(), against)).into());
    let told = cluster.explain("inbox/0");
    assert_eq!(told.pinned_to, Some(node("plain")));
    assert_eq!(obstacles(&told)["here"], Some(Obstacle::PinnedTo { node: node("plain") }));
    assert_eq!(obstacles(&told)["plain"], Some(labels));
    let because = Box::new(Reason::ZoneOrLabels);
    assert_eq!(told.kept, Some(Reason::Pinned { node: node("plain"), because }));
    assert_eq!(told.holder.map(|it| it.node), Some(node("here")));
}

#[test]
fn what_holds_a_move_back_is_told_as_far_as_the_store_knows() {
    let mut cluster = Cluster::at_rest(&["a", "b"], 6);
    cluster.add("c", 6, |_| {});
    let moving = cluster.predict(&[]).steps[0].slot.to_string();
    let told = cluster.explain(&moving);
    let free = told.waiting.unwrap();
    assert_eq!((free.to, free.cause, free.held_back, free.not_before), (node("c"), Cause::Policy, vec![], None));
    assert_eq!(told.desired, Some(node("c")));

    cluster.change(&moving, |record| {
        record.moved_at = Some(ago(15));
        record.taken_at = ago(4);
    });
    cluster.sessions.get_mut(&node("c")).unwrap().1.opened_at = ago(1);
    let told = cluster.explain(&moving);
    let held = told.waiting.unwrap();
    let (settling, cooldown, runtime) = (rules().settling, rules().cooldown, rules().runtime_min);
    assert_eq!(
        held.held_back,
        [
            HeldBack::Settling { remaining: settling - Duration::from_secs(1) },
            HeldBack::Cooldown { remaining: cooldown - Duration::from_secs(15) },
            HeldBack::RuntimeMin { remaining: runtime - Duration::from_secs(4) },
        ]
    );
    assert_eq!(held.not_before, Some(STORE_NOW + (cooldown - Duration::from_secs(15))));
    assert!(told.why.unwrap().to_string().contains("nodes came or went lately"));

    let mut other = settings();
    other.move_budget = 0;
    cluster.records.insert(RecordKey::Settings, Record::Settings(other));
    cluster.tell("c", |info| info.settings.move_budget = 0);
    let held = cluster.explain(&moving).waiting.unwrap();
    assert_eq!(held.held_back.first(), Some(&HeldBack::SettingsDiffer { node: node("a") }));
    assert_eq!(held.held_back.last(), Some(&HeldBack::MoveBudget));
    assert_eq!(held.not_before, None);

    cluster.wish("a", |wish| wish.drain = true);
    let drained = cluster.explain(&cluster.held_by("a")[0].to_string()).waiting.unwrap();
    assert_eq!((drained.cause, drained.held_back), (Cause::Leaving, vec![]));
}

#[test]
fn orphans_and_what_is_not_there_are_explained_too() {
    let mut cluster = Cluster::at_rest(&["a", "b"], 6);
    cluster.give(&slot("inbox/3"), &node("dead"));
    let told = cluster.explain("inbox/3");
    assert_eq!((told.holder, told.last_holder), (None, Some(node("dead"))));
    assert_eq!(told.why, Some(Why::Awaited(told.taker.clone().unwrap())));
    assert_eq!(told.taker, told.desired);

    let wrong = |text: &str| explain(&mut cluster.view(), NOW, &slot(text), &rules()).unwrap_err();
    assert_eq!(wrong("inbox/6").to_string(), "there is no slot inbox/6: inbox has the units 0 to 5");
    assert_eq!(wrong("feed/0").to_string(), "there is no workload feed; there are: inbox");
    assert!(matches!(wrong("feed/0"), ExplainError::NoSuchWorkload { .. }));

    let mut paused = WorkloadRecord::new(0);
    paused.paused = true;
    cluster.workload(paused);
    let told = cluster.explain("inbox/3");
    assert_eq!((told.why, told.candidates), (Some(Why::Nobody(Reason::Paused)), vec![]));
}
