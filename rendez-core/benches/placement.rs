//! What planning costs, next to what it costs to score every pair anew with a hash of the joined names and a
//! floating-point logarithm, in the same run.
//!
//! `cargo bench -p rendez-core --bench placement` measures at full size; with `-- --small`, or under
//! `cargo test`, a small world shows that it runs. `-- --only TEXT` measures the lines whose title has the text.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Policy, Runs, VirtualNodes, WorkloadSpec};
use rendez_core::{NodeId, Slot, WorkloadName};
use xxhash_rust::xxh64::xxh64;

struct Size {
    slots: u32,
    nodes: u32,
    samples: usize,
}

struct Setting {
    title: &'static str,
    policy: Policy,
    workloads: u32,
    weight: fn(u32) -> u32,
    /// By node and workload.
    runs: fn(u32, u32) -> Option<Runs>,
}

fn main() {
    let small = std::env::args().any(|arg| arg == "--small") || !std::env::args().any(|arg| arg == "--bench");
    let size = if small {
        Size { slots: 2_000, nodes: 50, samples: 1 }
    } else {
        Size { slots: 100_000, nodes: 1000, samples: 7 }
    };
    let only = std::env::args().skip_while(|arg| arg != "--only").nth(1);
    println!("{} slots x {} nodes; best of {} samples", size.slots, size.nodes, size.samples);
    // First, while nothing that was freed can be used again.
    memory(&size);
    let naive = naive_ns_a_pair(&size);
    let naive_plan = Duration::from_nanos((naive * f64::from(size.slots) * f64::from(size.nodes)) as u64);
    println!("every pair anew: {naive:.2} ns a pair, {naive_plan:?} a plan, whatever changed\n");
    println!(
        "{:34} {:>11} {:>9} {:>8}   {:>11} {:>9} {:>11} {:>9} {:>11} {:>11}",
        "", "full plan", "ns/pair", "ratio", "join", "ratio", "leave", "ratio", "weight +5%", "one holder"
    );
    let usual = Setting {
        title: "balanced, equal weights",
        policy: Policy::Balanced,
        workloads: 1,
        weight: |_| 100,
        runs: |_, _| Some(Runs::ALL),
    };
    let different = |i| 1000 + i;
    let many = VirtualNodes::new(256).expect("it is permitted");
    for setting in [
        Setting { title: "rendezvous, equal weights", policy: Policy::Rendezvous, ..usual },
        Setting { title: "rendezvous, all weights different", policy: Policy::Rendezvous, weight: different, ..usual },
        Setting { ..usual },
        Setting { title: "balanced, all weights different", weight: different, ..usual },
        Setting { title: "balanced, 20 workloads", workloads: 20, ..usual },
        Setting {
            title: "balanced, 20 workloads, caps",
            workloads: 20,
            runs: |node, _| Some(Runs { units: u32::MAX, cap: (node % 3 == 0).then_some(4), ..Runs::ALL }),
            ..usual
        },
        Setting {
            title: "balanced, 20 workloads, not all",
            workloads: 20,
            runs: |node, workload| (!(node + workload).is_multiple_of(4)).then_some(Runs::ALL),
            ..usual
        },
        Setting { title: "balanced, 500 workloads", workloads: 500, ..usual },
        Setting {
            title: "ring, 8 virtual nodes",
            policy: Policy::Ring(VirtualNodes::default()),
            weight: |_| 1,
            ..usual
        },
        Setting { title: "ring, 256 virtual nodes", policy: Policy::Ring(many), weight: |_| 1, ..usual },
    ]
    .into_iter()
    .filter(|setting| only.as_ref().is_none_or(|only| setting.title.contains(only.as_str())))
    {
        measure(&size, &setting, naive, naive_plan);
    }
}

fn measure(size: &Size, setting: &Setting, naive: f64, naive_plan: Duration) {
    let pairs = f64::from(size.slots) * f64::from(size.nodes);
    let samples = size.samples.min(3);
    let full = (0..samples).map(|_| {
        let mut planner = world(size, setting);
        timed(|| settle(&mut planner))
    });
    let full = full.min().unwrap_or_default();
    let mut planner = world(size, setting);
    hold_all(&mut planner);
    let (extra, spec) = (node_id(size.nodes), spec(setting, size.nodes));
    let (mut join, mut leave, mut heavier, mut holder) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..size.samples {
        let spec = spec.clone();
        join.push(timed(|| {
            planner.set_node(&extra, spec);
            settle(&mut planner);
        }));
        hold_all(&mut planner);
        leave.push(timed(|| {
            planner.remove_node(&extra);
            settle(&mut planner);
        }));
        hold_all(&mut planner);
        let first = node_id(0);
        let usual = self::spec(setting, 0);
        let more = NodeSpec { weight: usual.weight + usual.weight.div_ceil(20), ..usual.clone() };
        heavier.push(timed(|| {
            planner.set_node(&first, more);
            settle(&mut planner);
        }));
        planner.set_node(&first, usual);
        settle(&mut planner);
        let slot = Slot::new(workload(0), 0);
        holder.push(timed(|| {
            planner.set_holder(&slot, None);
            settle(&mut planner);
        }));
        hold_all(&mut planner);
    }
    let best = |samples: Vec<Duration>| samples.into_iter().min().unwrap_or_default();
    let (join, leave, heavier, holder) = (best(join), best(leave), best(heavier), best(holder));
    let a_pair = full.as_nanos() as f64 / pairs;
    let ratio = |time: Duration| naive_plan.as_secs_f64() / time.as_secs_f64();
    println!(
        "{:34} {:>11} {:>9.2} {:>7.0}x   {:>11} {:>8.0}x {:>11} {:>8.0}x {:>11} {:>11}",
        setting.title,
        show(full),
        a_pair,
        naive / a_pair,
        show(join),
        ratio(join),
        show(leave),
        ratio(leave),
        show(heavier),
        show(holder),
    );
}

fn show(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// Makes the planner work the plan out.
fn settle(planner: &mut Planner) {
    black_box(planner.desired(&Slot::new(workload(0), 0)));
}

/// Lets every desired owner hold its slots.
fn hold_all(planner: &mut Planner) {
    let owners: Vec<_> = planner.assignments().map(|(slot, node)| (slot, node.cloned())).collect();
    for (slot, node) in owners {
        planner.set_holder(&slot, node.as_ref());
    }
    settle(planner);
}

fn world(size: &Size, setting: &Setting) -> Planner {
    let mut planner = Planner::new(setting.policy, LoadFactor::EXACT);
    for index in 0..setting.workloads {
        let units = size.slots / setting.workloads;
        planner.set_workload(&workload(index), WorkloadSpec { units, ..WorkloadSpec::default() });
    }
    for index in 0..size.nodes {
        planner.set_node(&node_id(index), spec(setting, index));
    }
    planner
}

fn spec(setting: &Setting, index: u32) -> NodeSpec {
    let runs = (0..setting.workloads).filter_map(|other| Some((workload(other), (setting.runs)(index, other)?)));
    let runs = runs.collect();
    NodeSpec { weight: (setting.weight)(index), runs, ..NodeSpec::default() }
}

fn workload(index: u32) -> WorkloadName {
    WorkloadName::new(format!("workload-{index}")).expect("a plain name")
}

fn node_id(index: u32) -> NodeId {
    NodeId::new(format!("node-{index:04}")).expect("a plain name")
}

/// How long this takes. Where other processes compete for the machine, long work is measured by the time that
/// this process ran; short work by the clock, and the best of the samples counts.
fn timed(work: impl FnOnce()) -> Duration {
    let (start, before) = (Instant::now(), time_on_cpu());
    work();
    let elapsed = start.elapsed();
    match (before, time_on_cpu()) {
        (Some(before), Some(after)) if elapsed > Duration::from_millis(100) => elapsed.min(after - before),
        _ => elapsed,
    }
}

/// How long this thread has been running, where the system says so; exact to a few milliseconds.
fn time_on_cpu() -> Option<Duration> {
    let status = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    status.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The way of a system that keeps nothing: for each pair a hash of the joined names, and a weighted logarithm.
fn naive_ns_a_pair(size: &Size) -> f64 {
    let nodes: Vec<_> = (0..size.nodes).map(|index| (format!("node-{index:04}"), 1.0f64)).collect();
    let slots = size.slots.min(2000);
    let work = || {
        for unit in 0..slots {
            let key = format!("workload-0:{unit}");
            let mut best: Option<(f64, &str)> = None;
            for (node, weight) in &nodes {
                let hash = xxh64(format!("{key}::{node}").as_bytes(), 0);
                let u = (hash as f64 + 0.5) / 18_446_744_073_709_551_616.0;
                let score = weight / -u.ln();
                if best.is_none_or(|(most, id)| score > most || (score == most && node.as_str() < id)) {
                    best = Some((score, node));
                }
            }
            black_box(best);
        }
    };
    timed(work).as_nanos() as f64 / (f64::from(slots) * f64::from(size.nodes))
}

/// What a planner with all slots held adds to the process, a slot.
fn memory(size: &Size) {
    let setting =
        Setting { title: "", policy: Policy::Balanced, workloads: 1, weight: |_| 100, runs: |_, _| Some(Runs::ALL) };
    let more = Size { slots: size.slots * 10, nodes: size.nodes.min(100), samples: 1 };
    let Some(before) = resident("VmRSS:") else { return };
    let mut planner = world(&more, &setting);
    settle(&mut planner);
    let nodes: Vec<_> = (0..more.nodes).map(node_id).collect();
    let owners = planner.assignments().map(|(_, node)| node.and_then(|node| nodes.binary_search(node).ok()));
    let owners: Vec<_> = owners.map(|at| at.map_or(u32::MAX, |at| at as u32)).collect();
    for (unit, owner) in (0..).zip(&owners) {
        planner.set_holder(&Slot::new(workload(0), unit), nodes.get(*owner as usize));
    }
    drop(owners);
    settle(&mut planner);
    let (Some(after), Some(peak)) = (resident("VmRSS:"), resident("VmHWM:")) else { return };
    let slots = f64::from(more.slots);
    let a_slot = |bytes: f64| (bytes - before) / slots;
    println!(
        "memory: {:.1} bytes a slot at {slots} slots, all held; {:.1} at its highest",
        a_slot(after),
        a_slot(peak)
    );
    drop(planner);
}

/// A line of this process's status, in bytes; Linux only.
fn resident(line: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|text| text.starts_with(line))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}
