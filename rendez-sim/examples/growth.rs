//! How rendez grows with nodes and slots: what a plan, a heartbeat, a start and a takeover cost, and the shape of each curve.
//!
//! `growth` measures everything and prints tables; `growth placement` and `growth worlds` measure one part; `growth worlds
//! NODES,NODES SLOTS,SLOTS SECONDS` other sizes, with another limit for each world. A world runs in a process of its own,
//! which is ended when its time is over. Times of engines are processor time of the thread, everything with "virtual" in its
//! name is the world's time; memory is the difference of the process's resident memory, divided by the nodes.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Policy, Runs, WorkloadSpec};
use rendez_core::{Change, Known, NodeId, Slot, SnapshotRequest, StoreTime, WorkloadName};
use rendez_sim::{Scenario, World};

const NODES: [u32; 5] = [10, 50, 200, 1000, 2000];
const SLOTS: [u32; 5] = [100, 1000, 10_000, 100_000, 1_000_000];

/// For one world, in seconds.
const WORLD_SECONDS_MAX: u64 = 60;

/// Every node has a copy of every record: more copies in all do not fit into this machine's memory beside other work.
const COPIES_MAX: u64 = 4_500_000;

/// Until when all slots must run, and until when moves must have ended, in seconds of the world's time.
const RUNS_WITHIN_S: f64 = 120.0;
const RESTS_WITHIN_S: u64 = 100;

/// Longer than the stabilizers hold a first move back.
const HELD_BACK_S: u64 = 14;

const SECOND: u64 = 1_000_000_000;

/// How often a world is looked at.
const STEP: u64 = 10_000_000;

const USAGE: &str = "usage: growth | growth placement | growth worlds [NODES,NODES SLOTS,SLOTS SECONDS]";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            placement();
            worlds(&NODES, &SLOTS, WORLD_SECONDS_MAX);
        }
        ["placement"] => placement(),
        ["worlds"] => worlds(&NODES, &SLOTS, WORLD_SECONDS_MAX),
        ["worlds", nodes, slots, seconds] => worlds(&numbers(nodes), &numbers(slots), u64::from(number(seconds))),
        // What `worlds` starts for each world.
        ["world", nodes, slots, seconds] => match world(number(nodes), number(slots), u64::from(number(seconds))) {
            Ok(figures) => println!("{}", figures.to_line()),
            Err(why) => println!("{why}"),
        },
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}

fn number(word: &str) -> u32 {
    word.parse().expect(USAGE)
}

fn numbers(words: &str) -> Vec<u32> {
    words.split(',').map(number).collect()
}

// --- the planner alone ---

fn placement() {
    println!("the planner alone: policy balanced, one workload, equal weights; best of 3, in ms of processor time\n");
    println!("{:>6} {:>9} {:>12} {:>12} {:>12}", "nodes", "slots", "from scratch", "one join", "one leave");
    let mut curves = [("a plan from scratch", Vec::new()), ("one join", Vec::new()), ("one leave", Vec::new())];
    for nodes in NODES {
        for slots in SLOTS {
            let times = plan(nodes, slots);
            let ms = times.map(|time| time.as_secs_f64() * 1e3);
            println!("{nodes:>6} {slots:>9} {:>12.3} {:>12.3} {:>12.3}", ms[0], ms[1], ms[2]);
            for ((_, points), ms) in curves.iter_mut().zip(ms) {
                points.push(Point { nodes, slots, value: ms });
            }
        }
    }
    print_shapes(&curves);
}

/// A plan from scratch, a join, a leave.
fn plan(nodes: u32, slots: u32) -> [Duration; 3] {
    let inbox = WorkloadName::new("inbox").expect("a plain name");
    let id = |index: u32| NodeId::new(format!("node-{index:04}")).expect("a plain name");
    let ids: Vec<NodeId> = (0..=nodes).map(id).collect();
    let spec = || NodeSpec { runs: [(inbox.clone(), Runs::ALL)].into(), ..NodeSpec::default() };
    let settle = |planner: &mut Planner| {
        black_box(planner.desired(&Slot::new(inbox.clone(), 0)));
    };
    let hold_all = |planner: &mut Planner| {
        let owners = planner.assignments().map(|(_, node)| node.and_then(|node| ids.binary_search(node).ok()));
        let owners: Vec<Option<usize>> = owners.collect();
        for (unit, owner) in (0..).zip(owners) {
            planner.set_holder(&Slot::new(inbox.clone(), unit), owner.map(|at| &ids[at]));
        }
        settle(planner);
    };
    let mut best = [Duration::MAX; 3];
    for _ in 0..3 {
        let mut planner = Planner::new(Policy::Balanced, LoadFactor::EXACT);
        planner.set_workload(&inbox, WorkloadSpec { units: slots, ..WorkloadSpec::default() });
        for id in &ids[..nodes as usize] {
            planner.set_node(id, spec());
        }
        let (extra, extra_spec) = (&ids[nodes as usize], spec());
        let full = timed(|| settle(&mut planner));
        hold_all(&mut planner);
        let join = timed(|| {
            planner.set_node(extra, extra_spec);
            settle(&mut planner);
        });
        hold_all(&mut planner);
        let leave = timed(|| {
            planner.remove_node(extra);
            settle(&mut planner);
        });
        for (best, time) in best.iter_mut().zip([full, join, leave]) {
            *best = (*best).min(time);
        }
    }
    best
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = processor_time();
    work();
    Duration::from_nanos(processor_time() - begun)
}

/// The time that this thread has been running, in nanoseconds.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

// --- worlds ---

/// What is measured in a world, with the words that the tables have for it.
const COLUMNS: [(&str, &str); 21] = [
    ("all run after a cold start, s virtual", "start s"),
    ("moves after a cold start until nothing moves", "moves"),
    ("nothing moves after a cold start, s virtual", "rest s"),
    ("store calls of a cold start and rest beyond the steady ones, a node", "start calls"),
    ("records told in a cold start until rest, in all", "start rec"),
    ("engine time of a cold start until rest, ms a node", "start ms"),
    ("store calls a second, all nodes", "calls/s"),
    ("records told in a steady minute, in all", "min rec"),
    ("engine time of a steady minute, ms a node", "minute ms"),
    ("sessions in the store", "sessions"),
    ("records of a snapshot", "records"),
    ("pages of a snapshot", "pages"),
    ("bytes of a snapshot as JSON", "JSON bytes"),
    ("records of others in each node's view", "view"),
    ("memory, KiB a node", "KiB/node"),
    ("slots of the node that is killed", "lost"),
    ("all run after one node was killed, s virtual", "takeover s"),
    ("store calls of a takeover beyond the steady ones, in all", "takeover calls"),
    ("records told by syncs after one node's loss, in all", "takeover rec"),
    ("engine time of a takeover, ms a node", "takeover ms"),
    ("this world took, s of processor time", "took s"),
];

/// The columns of the first table.
const FIRST: usize = 9;

struct Figures([f64; COLUMNS.len()]);

impl Figures {
    fn to_line(&self) -> String {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        words.join(" ")
    }

    fn from_line(line: &str) -> Option<Self> {
        let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        Some(Self(numbers.ok()?.try_into().ok()?))
    }
}

/// What has been counted up to a moment.
struct Counts {
    now: u64,
    calls: u64,
    told: u64,
    engines: u64,
}

impl Counts {
    fn of(world: &World) -> Self {
        let traffic = world.traffic();
        Self {
            now: world.now(),
            calls: world.calls().iter().filter(|(kind, _)| **kind != "wake").map(|(_, count)| count).sum(),
            told: traffic.sync_records + traffic.page_records,
            engines: world.engines_took(),
        }
    }

    /// Calls, records, nanoseconds of engines, and seconds of the world, from here to there.
    fn to(&self, later: &Self) -> [f64; 4] {
        [
            (later.calls - self.calls) as f64,
            (later.told - self.told) as f64,
            (later.engines - self.engines) as f64,
            (later.now - self.now) as f64 / SECOND as f64,
        ]
    }
}

/// Measures a world, or says how far it got in so many seconds of processor time.
fn world(nodes: u32, slots: u32, seconds_max: u64) -> Result<Figures, String> {
    let resident_before = resident();
    let within = |doing: &'static str| {
        move |world: &World, moves: u64| {
            if processor_time() < seconds_max * 1_000_000_000 {
                return Ok(());
            }
            let (now, running) = (world.now() as f64 / 1e9, running(world));
            Err(format!(
                "not done after {seconds_max} s of processor time: {doing}, {now:.1} s virtual, {running} slots run, {moves} moves"
            ))
        }
    };
    let scenario = Scenario { nodes: nodes as usize, workloads: vec![slots], ..Scenario::default() };
    let mut world = World::unjudged(scenario);
    world.time_engines(processor_time);
    world.start_together();

    let start = Counts::of(&world);
    let all_run = until(&mut world, RUNS_WITHIN_S, within("starting"), |world| running(world) == u64::from(slots))?;
    let running_at = Counts::of(&world);
    // At rest is a world in which for longer than the stabilizers hold nothing has moved.
    let (mut rests, mut moves) = (world.now(), world.moves());
    let rest_at = |rests: u64| (rests + HELD_BACK_S * SECOND).min(running_at.now + RESTS_WITHIN_S * SECOND);
    while world.now() < rest_at(rests) {
        until(&mut world, 0.1, within("coming to rest"), |_| false)?;
        if world.moves() != moves {
            (rests, moves) = (world.now(), world.moves());
        }
    }

    let steady = Counts::of(&world);
    until(&mut world, 60.0, within("at rest"), |_| false)?;
    let after = Counts::of(&world);
    let view = world.view(0).map_or(0, |view| {
        let known = (0..slots).filter(|unit| view.slot(&slot(*unit)).is_some()).count();
        view.sessions().count() + known
    });
    let memory = (resident() - resident_before) / f64::from(nodes) / 1024.0;
    let sessions = world.store().sessions().count();
    let pages = snapshot_pages(&world);

    let shares = world.shares();
    let victim = (1..shares.len()).max_by_key(|node| shares[*node]).unwrap_or_default();
    let kill = Counts::of(&world);
    world.kill(victim);
    let taken = until(&mut world, RUNS_WITHIN_S, within("taking over"), |world| running(world) == u64::from(slots))?;
    // Everybody hears of it with the next heartbeat.
    until(&mut world, 3.0, within("taking over"), |_| false)?;
    let over = Counts::of(&world);
    if let Some(broken) = world.broken() {
        return Err(broken.to_string());
    }
    let minute = steady.to(&after);
    let a_second = minute.map(|count| count / 60.0);
    let beyond = |of: [f64; 4]| [0, 1, 2].map(|at| of[at] - a_second[at] * of[3]);
    let (starting, taking) = (beyond(start.to(&steady)), beyond(kill.to(&over)));
    let ms_a_node = |nanos: f64| nanos / 1e6 / f64::from(nodes);
    Ok(Figures([
        all_run,
        moves as f64,
        (rests - start.now) as f64 / 1e9,
        starting[0] / f64::from(nodes),
        starting[1],
        ms_a_node(starting[2]),
        a_second[0],
        minute[1],
        ms_a_node(minute[2]),
        sessions as f64,
        pages.records,
        pages.pages,
        pages.bytes,
        view as f64,
        memory,
        shares[victim] as f64,
        taken,
        taking[0],
        taking[1],
        ms_a_node(taking[2]),
        processor_time() as f64 / 1e9,
    ]))
}

struct Pages {
    pages: f64,
    records: f64,
    bytes: f64,
}

/// Reads a snapshot of the store as a fresh node does.
fn snapshot_pages(world: &World) -> Pages {
    let mut store = world.store().clone();
    let known = Known { generation: store.generation(), ..Known::default() };
    let mut all = Pages { pages: 0.0, records: 0.0, bytes: 0.0 };
    let mut cursor = None;
    loop {
        let request = SnapshotRequest { known: known.clone(), session: None, cursor };
        // A time at which no session has ended.
        let page = store.snapshot(StoreTime::from_micros(0), &request).expect("the model answers");
        all.pages += 1.0;
        all.records += page.items.len() as f64;
        all.bytes += page.items.iter().map(json_bytes).sum::<usize>() as f64;
        cursor = page.next;
        if cursor.is_none() {
            return all;
        }
    }
}

/// How long a record and its name are as JSON: about what a store sends.
fn json_bytes(change: &Change) -> usize {
    let (name, record) = match change {
        Change::Session(id, record) => (id.to_string(), serde_json::to_string(record)),
        Change::Slot(slot, record) => (slot.to_string(), serde_json::to_string(record)),
        Change::Record(key, record) => {
            (format!("{key:?}"), serde_json::to_string(&record.as_ref().map(|it| &it.record)))
        }
    };
    name.len() + record.expect("records are JSON").len()
}

fn slot(unit: u32) -> Slot {
    Slot::new(WorkloadName::new("w0").expect("a plain name"), unit)
}

fn running(world: &World) -> u64 {
    world.shares().iter().map(|share| *share as u64).sum()
}

/// Lets time pass until something is so, or this long; returns how long it was, in seconds.
fn until(
    world: &mut World,
    seconds_max: f64,
    within: impl Fn(&World, u64) -> Result<(), String>,
    so: impl Fn(&World) -> bool,
) -> Result<f64, String> {
    let begun = world.now();
    while !so(world) && world.now() < begun + (seconds_max * SECOND as f64) as u64 {
        world.run_until(world.now() + STEP);
        within(world, world.moves())?;
    }
    Ok((world.now() - begun) as f64 / SECOND as f64)
}

/// Resident memory of this process, in bytes; Linux only.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() * 1024.0
}

/// Runs each world in a process of its own, and prints what they measured.
fn worlds(nodes: &[u32], slots: &[u32], seconds_max: u64) {
    println!("\nworlds: all nodes start together, rest, one of them is killed; at most {seconds_max} s for each\n");
    let (mut measured, mut skipped) = (Vec::new(), Vec::new());
    for nodes in nodes {
        for slots in slots {
            let copies = u64::from(*nodes) * u64::from(*slots);
            if copies > COPIES_MAX {
                skipped
                    .push(format!("{nodes} nodes, {slots} slots: {copies} copies of records, more than {COPIES_MAX}"));
                continue;
            }
            match run_apart(*nodes, *slots, Duration::from_secs(seconds_max)) {
                Ok(figures) => {
                    eprintln!("{nodes} nodes, {slots} slots: {:.1} s", figures.0[COLUMNS.len() - 1]);
                    measured.push((*nodes, *slots, figures));
                }
                Err(why) => skipped.push(format!("{nodes} nodes, {slots} slots: {why}")),
            }
        }
    }
    for columns in [0..FIRST, FIRST..COLUMNS.len()] {
        let heads: Vec<String> = columns.clone().map(|at| format!("{:>13}", COLUMNS[at].1)).collect();
        println!("{:>6} {:>9} {}", "nodes", "slots", heads.join(" "));
        for (nodes, slots, figures) in &measured {
            let cells: Vec<String> = columns.clone().map(|at| format!("{:>13}", show(figures.0[at]))).collect();
            println!("{nodes:>6} {slots:>9} {}", cells.join(" "));
        }
        for at in columns {
            println!("  {:<13} {}", COLUMNS[at].1, COLUMNS[at].0);
        }
        println!();
    }
    println!("skipped:");
    skipped.iter().for_each(|why| println!("  {why}"));
    let curves: Vec<(&str, Vec<Point>)> = (0..COLUMNS.len() - 1)
        .map(|at| {
            let points = measured.iter().map(|(nodes, slots, figures)| Point {
                nodes: *nodes,
                slots: *slots,
                value: figures.0[at],
            });
            (COLUMNS[at].0, points.collect())
        })
        .collect();
    print_shapes(&curves);
}

fn show(value: f64) -> String {
    if value.abs() >= 1000.0 || value == value.trunc() { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Measures a world in a process of its own, which is ended after this time.
fn run_apart(nodes: u32, slots: u32, limit: Duration) -> Result<Figures, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut child = Command::new(program)
        .args(["world", &nodes.to_string(), &slots.to_string(), &limit.as_secs().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it could not be started: {error}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(Some(status)) => return Err(format!("it failed: {status}")),
            // It ends by itself in time, unless it hangs or the machine is very busy.
            Ok(None) if begun.elapsed() > limit * 4 => {
                // Errors only say that it has ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("ended after {} s", limit.as_secs() * 4));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(format!("it cannot be waited for: {error}")),
        }
    }
    let mut line = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut line).map_err(|error| format!("its figures cannot be read: {error}"))?;
    }
    Figures::from_line(&line).ok_or_else(|| line.trim().to_owned())
}

// --- shapes ---

/// One measured value.
#[derive(Debug, Clone, Copy)]
struct Point {
    nodes: u32,
    slots: u32,
    value: f64,
}

/// A curve grows with `nodes^a · slots^b`: all points at once by least squares over logarithms, and the ratios between the
/// largest sizes, which show where it goes when what is constant in it no longer counts.
struct Shape {
    fit: (f64, f64),
    end: (Option<f64>, Option<f64>),
}

/// Smaller worlds than this have nodes without slots, and show that more than any growth.
const SLOTS_A_NODE_MIN: u32 = 5;

impl Shape {
    fn of(points: &[Point]) -> Option<Self> {
        let points: Vec<Point> = points
            .iter()
            .filter(|point| point.value > 0.0 && point.slots >= point.nodes * SLOTS_A_NODE_MIN)
            .copied()
            .collect();
        Some(Self {
            fit: fit(&points)?,
            end: (
                exponent_at_end(&points, |point| (point.nodes, point.slots)),
                exponent_at_end(&points, |point| (point.slots, point.nodes)),
            ),
        })
    }

    fn words(&self) -> String {
        let at_end = |end: Option<f64>, fit: f64| end.unwrap_or(fit);
        let (nodes, slots) = (at_end(self.end.0, self.fit.0), at_end(self.end.1, self.fit.1));
        let near =
            |exponent: f64| [-1.0, 0.0, 1.0, 2.0].into_iter().find(|whole: &f64| (exponent - whole).abs() <= 0.2);
        match (near(nodes), near(slots)) {
            (Some(0.0), Some(0.0)) => "constant".into(),
            (Some(1.0), Some(0.0)) => "linear in nodes".into(),
            (Some(0.0), Some(1.0)) => "linear in slots".into(),
            (Some(1.0), Some(1.0)) => "nodes × slots".into(),
            (Some(-1.0), Some(1.0)) => "slots ÷ nodes".into(),
            _ => format!("nodes^{nodes:.1} × slots^{slots:.1}"),
        }
    }
}

/// Least squares of `ln value = c + a·ln nodes + b·ln slots`.
fn fit(points: &[Point]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y, z) =
        (|p: &Point| f64::from(p.nodes).ln(), |p: &Point| f64::from(p.slots).ln(), |p: &Point| p.value.ln());
    let (x_mean, y_mean, z_mean) = (mean(x), mean(y), mean(z));
    let sum = |of: &dyn Fn(f64, f64, f64) -> f64| {
        points.iter().map(|p| of(x(p) - x_mean, y(p) - y_mean, z(p) - z_mean)).sum::<f64>()
    };
    let (xx, yy, xy) = (sum(&|x, _, _| x * x), sum(&|_, y, _| y * y), sum(&|x, y, _| x * y));
    let (xz, yz) = (sum(&|x, _, z| x * z), sum(&|_, y, z| y * z));
    let determinant = xx * yy - xy * xy;
    // Nothing can be said where only one of the two was varied, or both in step.
    (determinant > 1e-9 * xx * yy && count >= 3.0)
        .then(|| ((xz * yy - yz * xy) / determinant, (yz * xx - xz * xy) / determinant))
}

/// The exponent between the two largest sizes that were measured with the same other size: the mean over those, of which
/// the three largest count.
fn exponent_at_end(points: &[Point], sizes: impl Fn(&Point) -> (u32, u32)) -> Option<f64> {
    let mut rows: BTreeMap<u32, Vec<(u32, f64)>> = BTreeMap::new();
    for point in points {
        let (along, other) = sizes(point);
        rows.entry(other).or_default().push((along, point.value));
    }
    let exponents = rows.into_values().rev().filter_map(|mut row| {
        row.sort_by_key(|(size, _)| *size);
        let ((large, much), (small, little)) = (row.pop()?, row.pop()?);
        Some((much / little).ln() / (f64::from(large) / f64::from(small)).ln())
    });
    let exponents: Vec<f64> = exponents.take(3).collect();
    (!exponents.is_empty()).then(|| exponents.iter().sum::<f64>() / exponents.len() as f64)
}

fn print_shapes(curves: &[(&str, Vec<Point>)]) {
    println!(
        "\nshapes: exponents of nodes and slots, of the fit over all sizes with at least {SLOTS_A_NODE_MIN} slots a node, and between"
    );
    println!("the largest sizes; the words go by the latter\n");
    println!("{:<62} {:>13} {:>13}", "", "fit", "at the end");
    let pair = |a: Option<f64>, b: Option<f64>| {
        let text = |exponent: Option<f64>| exponent.map_or_else(|| "-".to_owned(), |it| format!("{it:.2}"));
        format!("{:>6} {:>6}", text(a), text(b))
    };
    for (words, points) in curves {
        match Shape::of(points) {
            Some(shape) => {
                let (fit, end) = (pair(Some(shape.fit.0), Some(shape.fit.1)), pair(shape.end.0, shape.end.1));
                println!("{words:<62} {fit} {end}   {}", shape.words());
            }
            None if points.iter().all(|point| point.value.abs() < 1e-9) => println!("{words:<62} always 0"),
            None => println!("{words:<62} too few sizes"),
        }
    }
    println!();
}
