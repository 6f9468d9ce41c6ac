//! What nodes do about wishes, workloads and the end of others, each rule in a world in which nothing else happens.

use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, Command, Declared, EngineConfig, NodeId, NodeWish, Record, RecordKey, Slot,
    WorkloadName, WorkloadRecord,
};

use rendez_sim::{Scenario, World};

/// A world that has come to rest, with nothing moving.
fn at_rest(scenario: Scenario) -> World {
    let mut world = World::new(scenario, false);
    world.run_for(120);
    world
}

fn node(index: usize) -> NodeId {
    NodeId::new(format!("n{index}")).unwrap()
}

fn slot(text: &str) -> Slot {
    text.parse().unwrap()
}

fn put(key: RecordKey, record: Option<Record>) -> AdminRequest {
    AdminRequest::Put { key, record, expect: None }
}

fn wish(index: usize, wish: NodeWish) -> AdminRequest {
    put(RecordKey::Node(node(index)), Some(Record::Node(wish)))
}

fn workload(name: &str, record: Option<WorkloadRecord>) -> AdminRequest {
    put(RecordKey::Workload(WorkloadName::new(name).unwrap()), record.map(Record::Workload))
}

#[test]
fn nodes_that_start_one_after_another_share_the_work_at_once() {
    let mut world = World::new(Scenario { nodes: 5, ..Scenario::default() }, false);
    world.start_apart(Duration::from_millis(150));
    world.run_until_so("all run", |world| world.shares().iter().sum::<usize>() == 12);
    let shares = world.shares();
    assert!(shares.iter().all(|share| (2..=3).contains(share)), "{shares:?}");
    world.run_for(120);
    assert_eq!((world.moves(), world.shares()), (0, shares));
}

#[test]
fn a_cluster_that_starts_waits_for_more_nodes_no_longer_than_a_heartbeat_interval() {
    let mut world = World::new(Scenario { nodes: 40, ..Scenario::default() }, false);
    world.start_apart(Duration::from_millis(200));
    let took = world.run_until_so("all run", |world| world.shares().iter().sum::<usize>() == 12);
    let timing = EngineConfig::for_ttl(Duration::from_secs(10)).timing;
    let bound = timing.heartbeat_interval + Duration::from_secs(1);
    assert!((timing.heartbeat_interval..bound).contains(&took), "{took:?}");
}

#[test]
fn a_drained_node_hands_everything_over_and_takes_its_share_again_when_it_may() {
    let mut world = at_rest(Scenario::default());
    let moves = world.moves();
    let mut drain = NodeWish::default();
    drain.drain = true;
    world.administer(&wish(0, drain));
    world.run_until_so("n0 runs nothing", |world| world.shares() == [0, 6, 6]);
    assert_eq!(world.moves() - moves, 4);
    world.administer(&put(RecordKey::Node(node(0)), None));
    world.run_until_so("the shares are even", |world| world.shares() == [4, 4, 4]);
    assert_eq!(world.moves() - moves, 8);
}

#[test]
fn a_program_can_drain_its_own_node_and_change_its_mind() {
    let mut world = at_rest(Scenario::default());
    world.command(1, Command::Drain(true));
    world.run_until_so("n1 runs nothing", |world| world.shares() == [6, 0, 6]);
    world.command(1, Command::Drain(false));
    world.run_until_so("the shares are even", |world| world.shares() == [4, 4, 4]);
}

#[test]
fn a_cordoned_node_keeps_what_it_holds_and_takes_nothing_new() {
    let mut world = at_rest(Scenario::default());
    let mut cordon = NodeWish::default();
    cordon.cordon = true;
    world.administer(&wish(0, cordon));
    world.run_for(30);
    world.kill(1);
    world.run_until_so("n2 takes over", |world| world.shares() == [4, 0, 8]);
}

#[test]
fn an_operators_weight_counts_instead_of_the_nodes_own() {
    let mut world = at_rest(Scenario::default());
    let mut heavy = NodeWish::default();
    heavy.weight = Some(2);
    world.administer(&wish(2, heavy));
    world.run_until_so("n2 has half", |world| world.shares() == [3, 3, 6]);
}

#[test]
fn a_pinned_slot_goes_to_its_node_at_once_and_stays() {
    let mut world = at_rest(Scenario::default());
    let slot = slot("w0/5");
    let (before, _) = world.runs(&slot).unwrap();
    let target = (before + 1) % 3;
    world.administer(&put(RecordKey::Pin(slot.clone()), Some(Record::Pin(node(target)))));
    let took = world.run_until_so("it runs where it is pinned", |world| {
        world.runs(&slot).is_some_and(|(index, _)| index == target)
    });
    assert!(
        took < EngineConfig::for_ttl(Duration::from_secs(10)).stabilizers.cooldown,
        "a pin waits for no stabilizer"
    );
    world.run_for(100);
    assert_eq!(world.runs(&slot).unwrap().0, target);
}

#[test]
fn a_paused_workload_stops_and_goes_on_with_higher_tokens() {
    let mut world = at_rest(Scenario::default());
    let (_, before) = world.runs(&slot("w0/0")).unwrap();
    let mut paused = WorkloadRecord::new(12);
    paused.paused = true;
    world.administer(&workload("w0", Some(paused)));
    world.run_until_so("nothing runs", |world| world.shares() == [0, 0, 0]);
    let reason = world.status(0).slots[0].why.as_ref().map(ToString::to_string);
    assert_eq!(reason.as_deref(), Some("the workload is paused"));
    world.administer(&workload("w0", None));
    world.run_until_so("all run", |world| world.shares().iter().sum::<usize>() == 12);
    assert!(world.runs(&slot("w0/0")).unwrap().1 > before);
}

#[test]
fn a_dynamic_workload_comes_grows_shrinks_and_goes() {
    let mut world = at_rest(Scenario { workloads: vec![], ..Scenario::default() });
    for units in [5, 9, 2] {
        world.administer(&workload("feed", Some(WorkloadRecord::new(units))));
        world.run_until_so("as many run as there are", |world| world.shares().iter().sum::<usize>() == units as usize);
    }
    assert!(world.runs(&slot("feed/1")).is_some() && world.runs(&slot("feed/2")).is_none());
    world.administer(&workload("feed", None));
    world.run_until_so("none runs", |world| world.shares() == [0, 0, 0]);
}

#[test]
fn a_forced_release_ends_the_runner_and_its_token_only() {
    let mut world = at_rest(Scenario::default());
    let slot = slot("w0/7");
    let (_, token) = world.runs(&slot).unwrap();
    let old = AdminRequest::ForceRelease { slot: slot.clone(), token: rendez_core::FencingToken::new(1), now: false };
    assert!(matches!(world.administer(&old), AdminOutcome::Refused(_)));
    let force = AdminRequest::ForceRelease { slot: slot.clone(), token, now: false };
    assert!(matches!(world.administer(&force), AdminOutcome::Done(_)));
    world.run_until_so("it runs under a higher token", |world| world.runs(&slot).is_some_and(|(_, now)| now > token));
    assert_eq!(world.shares().iter().sum::<usize>(), 12);
}

#[test]
fn a_cap_that_is_lowered_sheds_also_where_nobody_else_has_room() {
    let mut world = at_rest(Scenario::default());
    for index in 0..3 {
        world.command(index, Command::SetCapacity(Some(3)));
    }
    world.run_until_so("each node keeps its cap", |world| world.shares() == [3, 3, 3]);
    world.run_for(60);
    assert_eq!(world.shares(), [3, 3, 3]);
    let orphan = world.status(0).slots.into_iter().find(|slot| slot.holder.is_none()).unwrap();
    assert_eq!(orphan.why.unwrap().to_string(), "every node that could run it is at its cap");
    world.command(1, Command::SetCapacity(None));
    world.run_until_so("the rest runs again", |world| world.shares() == [3, 6, 3]);
}

#[test]
fn what_a_node_cannot_run_any_more_ends_there_also_where_nobody_else_can() {
    let mut world = at_rest(Scenario { nodes: 1, ..Scenario::default() });
    let eight = [(WorkloadName::new("w0").unwrap(), Declared::new(8))];
    world.command(0, Command::SetWorkloads(eight.into_iter().collect()));
    world.run_until_so("eight run", |world| world.shares() == [8]);
}

#[test]
fn a_killed_node_is_taken_over_within_the_bound_and_at_once_if_its_session_is_closed() {
    let timing = EngineConfig::for_ttl(Duration::from_secs(10)).timing;
    let mut world = at_rest(Scenario::default());
    world.kill(0);
    let took = world.run_until_so("the others run all", |world| world.shares() == [0, 6, 6]);
    assert!(took <= timing.takeover_max(Duration::ZERO), "{took:?}");

    let mut world = at_rest(Scenario::default());
    world.kill(0);
    world.close_session_of(0);
    let took = world.run_until_so("the others run all", |world| world.shares() == [0, 6, 6]);
    assert!(took <= Duration::from_millis(100), "{took:?}");
}

/// Sessions end when they were seen unchanged for their TTL, and not by the store's clock.
fn observed(nodes: usize) -> World {
    at_rest(Scenario { nodes, faults: "observed-expiry".parse().unwrap(), ..Scenario::default() })
}

/// L1 as such a store declares it.
fn observed_takeover_max(world: &World) -> Duration {
    let timing = EngineConfig::for_ttl(Duration::from_secs(10)).timing;
    let lateness = world.store().capabilities().expiry_lateness_max;
    assert!(lateness >= timing.heartbeat_interval && lateness < timing.session_ttl / 3, "{lateness:?}");
    timing.takeover_max(lateness)
}

#[test]
fn a_session_that_others_see_unchanged_ends_within_the_bound_and_not_early() {
    let mut world = observed(3);
    world.kill(0);
    let took = world.run_until_so("the others run all", |world| world.shares() == [0, 6, 6]);
    assert!(took >= Duration::from_secs(10) - Duration::from_secs(3), "{took:?} after the last heartbeat, or less");
    assert!(took <= observed_takeover_max(&world), "{took:?}");
}

#[test]
fn a_session_that_nobody_looks_at_never_ends_and_who_comes_back_counts_from_then() {
    let mut world = observed(2);
    world.kill(0);
    world.kill(1);
    world.run_for(300);
    assert_eq!(world.store().sessions().count(), 2);
    world.start_again(1);
    let took = world.run_until_so("the one that came back runs all", |world| world.shares() == [0, 12]);
    assert!(took >= Duration::from_secs(10), "its own session of before must have been seen for a TTL, not {took:?}");
    assert!(took <= observed_takeover_max(&world), "{took:?}");
    assert_eq!(world.store().sessions().count(), 1);
}

#[test]
fn at_rest_a_node_sends_one_heartbeat_an_interval_and_nothing_else() {
    let mut world = at_rest(Scenario { workloads: vec![40, 7], ..Scenario::default() });
    let before = world.calls();
    world.run_for(200);
    let after = world.calls();
    let sent = |kind| after.get(kind).copied().unwrap_or(0) - before.get(kind).copied().unwrap_or(0);
    assert_eq!([sent("open"), sent("change"), sent("snapshot"), sent("close")], [0; 4]);
    assert!((297..=303).contains(&sent("heartbeat")), "{} heartbeats of 3 nodes in 100 intervals", sent("heartbeat"));
}

#[test]
fn after_an_outage_everybody_finds_its_own_again_and_nothing_moves() {
    let mut world = at_rest(Scenario::default());
    let moves = world.moves();
    let before: Vec<_> = (0..12).map(|unit| world.runs(&slot(&format!("w0/{unit}"))).unwrap()).collect();
    world.store_away(40);
    world.run_for(39);
    assert_eq!(world.shares(), [0, 0, 0], "every runner has ended by its deadline");
    world.run_for(1);
    let calls = world.calls();
    let took = world.run_until_so("all run again", |world| world.shares() == [4, 4, 4]);
    assert!(took <= Duration::from_secs(4), "within two heartbeat intervals, not {took:?}");
    let sent: u64 = ["open", "heartbeat", "change", "snapshot"]
        .map(|kind| world.calls().get(kind).copied().unwrap_or(0) - calls.get(kind).copied().unwrap_or(0))
        .iter()
        .sum();
    assert!(sent <= 3 * (8 + 4), "{sent} calls");
    for (unit, (index, token)) in before.into_iter().enumerate() {
        let (now, higher) = world.runs(&slot(&format!("w0/{unit}"))).unwrap();
        assert!(now == index && higher > token, "w0/{unit} ran on n{index} and now runs on n{now}");
    }
    assert_eq!(world.moves(), moves);
}

#[test]
fn a_rolling_update_moves_a_slot_about_once() {
    let mut world = at_rest(Scenario { nodes: 4, ..Scenario::default() });
    let moves = world.moves();
    for index in 0..4 {
        world.command(index, Command::Shutdown);
        world.run_until_so("it has handed over", |world| world.shares()[index] == 0);
        world.run_for(15);
    }
    world.run_for(150);
    assert_eq!(world.shares(), [3, 3, 3, 3]);
    let moved = world.moves() - moves;
    assert!(moved <= 30, "12 slots made {moved} moves while 4 nodes were replaced");
}

#[test]
fn a_world_that_nobody_judges_goes_the_same_way() {
    let lived = |mut world: World| {
        world.run_for(60);
        world.kill(1);
        world.run_for(60);
        (world.calls(), world.counts(), world.shares(), world.traffic(), world.store().revision())
    };
    for seed in [1, 2, 3] {
        let scenario = Scenario { seed, nodes: 5, workloads: vec![40, 7], ..Scenario::default() };
        let judged = lived(World::new(scenario.clone(), false));
        assert_eq!(lived(World::unjudged(scenario)), judged);
        assert!(judged.3.sync_records > 0 && judged.2.iter().sum::<usize>() == 47, "{judged:?}");
    }
}
