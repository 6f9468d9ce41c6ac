//! Names: whatever they hold, they come back as they were, mean nothing, and never meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rendez_core::{
    ClusterName, Declared, NAME_BYTES_MAX, NodeId, OpenRequest, Record, RecordKey, Slot, WorkloadName, WorkloadRecord,
};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, View, opened};

cases! { "names";
    hostile_names_come_back_as_they_were,
    random_names_come_back_as_they_were,
    names_that_look_alike_do_not_meet,
    clusters_do_not_meet,
    what_looks_like_a_command_is_a_name,
}

/// Separators, quotes, escapes, globs, paths, other alphabets, and the longest.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        " ",
        ".",
        "..",
        "/",
        "//",
        "a/b",
        "a/1",
        "/1",
        "1/",
        "a:b",
        "a b",
        "a  b",
        " a",
        "a ",
        "*",
        "?",
        "[a-z]",
        "{x}",
        "}{",
        "{",
        "}",
        "{{x}}",
        "a{x}b",
        "%",
        "%2F",
        "%%",
        "%s%n",
        "\\",
        "\\n",
        "\\0",
        "\"",
        "'",
        "`",
        "''",
        "\"\"",
        "$",
        "$1",
        "${x}",
        "$(x)",
        "#",
        "&",
        "&&",
        "|",
        ";",
        "--",
        "-",
        "_",
        "__",
        "~",
        "^",
        "=",
        "+",
        "@",
        "!",
        "<>",
        "<x>",
        "null",
        "None",
        "true",
        "0",
        "-1",
        "1e9",
        "NaN",
        "A",
        "a",
        "\u{e9}",
        "e\u{301}",
        "\u{1f980}",
        "\u{202e}abc",
        "\u{200b}",
        "\u{feff}",
        "\u{a0}",
        "\u{10ffff}",
        "\u{fffd}",
        "\u{2028}",
        "ß",
        "SS",
        "İ",
        "i",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push("x".repeat(NAME_BYTES_MAX));
    names.push("\u{1f980}".repeat(NAME_BYTES_MAX / 4));
    names.push("/".repeat(NAME_BYTES_MAX));
    names.push("%".repeat(NAME_BYTES_MAX));
    names
}

fn random(count: usize) -> Vec<String> {
    let mut names = BTreeSet::new();
    while names.len() < count {
        let length = fastrand::usize(1..40);
        let name: String = std::iter::repeat_with(|| match fastrand::u8(0..4) {
            0 => fastrand::char(' '..='~'),
            1 => fastrand::choice(['/', ':', '*', '?', '{', '}', '[', '%', '\\', '"', '\'', '.', '-', ' '])
                .unwrap_or('/'),
            2 => fastrand::char('\u{a1}'..='\u{2ff}'),
            _ => fastrand::char('\u{1000}'..='\u{10ffff}'),
        })
        .take(length)
        .collect();
        if NodeId::new(&name).is_ok() {
            names.insert(name);
        }
    }
    names.into_iter().collect()
}

/// Uses each name for everything that has one, and reads all of them back.
async fn round_trip(stage: &Stage, names: &[String]) -> Outcome {
    let first = stage.open(&names[0]).await?;
    let (mut nodes, mut slots, mut keys) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let (stamp, mut told) = stage.snapshot(None).await?;
    for (unit, name) in (0..).zip(names) {
        let node = NodeId::new(name).map_err(Failure::new)?;
        let workload = WorkloadName::new(name).map_err(Failure::new)?;
        let session = if unit == 0 {
            first
        } else {
            let mut info = stage.info(name)?;
            info.zone = Some(name.parse().map_err(Failure::new)?);
            info.labels.insert(name.clone(), name.clone());
            info.workloads.insert(workload.clone(), Declared::new(3));
            let request = OpenRequest { info: Arc::new(info), ..stage.open_request(name)? };
            let session = opened(&stage.try_open(&request).await?)?;
            ensure_eq!(stage.beat(session).await?.held.count, 0, "what node {name:?} holds at first");
            session
        };
        let slot = Slot::new(workload.clone(), unit % 3);
        let token = stage.acquire(session, &slot, NONE).await?;
        nodes.insert(session, node.clone());
        slots.insert(slot.clone(), (session, token));
        for (key, record) in [
            (RecordKey::Workload(workload), Record::Workload(WorkloadRecord::new(unit))),
            (RecordKey::Node(node.clone()), Record::Node(Default::default())),
            (RecordKey::Pin(slot), Record::Pin(node.clone())),
        ] {
            ensure!(stage.put(key.clone(), Some(record), Some(Default::default())).await?, "{key:?} exists already");
            keys.insert(key);
        }
    }
    keys.insert(RecordKey::Settings);
    let view = stage.view().await?;
    let read: BTreeMap<_, _> = view.sessions.iter().map(|(id, record)| (*id, record.info.node.clone())).collect();
    ensure_eq!(read, nodes, "the nodes");
    let read: BTreeMap<_, _> =
        view.slots.iter().map(|(slot, record)| (slot.clone(), (record.holder.clone(), record.token))).collect();
    for (slot, (session, token)) in &slots {
        let holder = Some(rendez_core::Holder { session: *session, node: nodes[session].clone() });
        ensure_eq!(read.get(slot), Some(&(holder, *token)), "slot {slot}");
    }
    ensure_eq!(read.len(), slots.len(), "how many slots there are");
    ensure_eq!(view.records.keys().cloned().collect::<BTreeSet<_>>(), keys, "the operators' records");
    stage.sync(first, &stamp, 512, &mut told).await?;
    ensure_eq!(told, view, "what the changes tell, and what is");
    Ok(())
}

async fn hostile_names_come_back_as_they_were(stage: Stage) -> Outcome {
    round_trip(&stage, &hostile()).await
}

async fn random_names_come_back_as_they_were(stage: Stage) -> Outcome {
    round_trip(&stage, &random(60)).await
}

async fn names_that_look_alike_do_not_meet(stage: Stage) -> Outcome {
    // Slots whose written forms are made of the same parts, names that differ in case or in how a letter is made.
    let a = stage.open("a").await?;
    let mut slots = Vec::new();
    for name in ["w", "W", "w/1", "w/1/1", "w:1", "w%2F1", "w\\/1", "w 1", "e\u{301}", "\u{e9}", "w.", "w..", "w*"] {
        for unit in [1, 11, 111] {
            slots.push(Slot::new(name.parse().map_err(Failure::new)?, unit));
        }
    }
    for (number, slot) in slots.iter().enumerate() {
        stage.acquire(a, slot, NONE).await?;
        ensure_eq!(stage.beat(a).await?.held.count as usize, number + 1, "what is held with {slot}");
    }
    let View { slots: read, .. } = stage.view().await?;
    ensure_eq!(read.into_keys().collect::<BTreeSet<_>>(), slots.into_iter().collect(), "the slots");
    Ok(())
}

async fn clusters_do_not_meet(stage: Stage) -> Outcome {
    let mut names = Vec::new();
    let base = format!("{:08x}", fastrand::u32(..));
    for name in hostile() {
        if name.len() + base.len() <= NAME_BYTES_MAX {
            // Before and after: neither may end or begin another one's name.
            names.extend([format!("{base}{name}"), format!("{name}{base}")]);
        }
    }
    names.push(base.clone());
    let names: BTreeSet<String> = names.into_iter().collect();
    let mut stages = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let stage = stage.elsewhere(ClusterName::new(name).map_err(Failure::new)?);
        ensure_eq!(stage.view().await?, View::default(), "the cluster {name:?} before anything was written");
        let a = stage.open("a").await?;
        let token = stage.acquire(a, &super::super::stage::slot(number as u32)?, NONE).await?;
        stages.push((stage, a, token));
    }
    for (number, (stage, a, token)) in stages.iter().enumerate() {
        let view = stage.view().await?;
        ensure_eq!(view.sessions.keys().collect::<Vec<_>>(), [a], "the sessions of cluster {:?}", stage.cluster);
        let slots: Vec<_> = view.slots.iter().map(|(slot, record)| (slot.unit as usize, record.token)).collect();
        ensure_eq!(slots, [(number, *token)], "the slots of cluster {:?}", stage.cluster);
        stage.close(*a).await?;
    }
    Ok(())
}

async fn what_looks_like_a_command_is_a_name(stage: Stage) -> Outcome {
    let names = [
        "'; DROP TABLE sessions; --",
        "\"; DROP SCHEMA rendez CASCADE; --",
        "' OR '1'='1",
        "$$; DELETE FROM slots; $$",
        "*) > DEL",
        "FLUSHALL",
        "]] return redis.call('FLUSHALL') --[[",
        "../../etc/passwd",
        "..\\..\\x",
        "a;rm -rf /",
        "`reboot`",
        "{\"holder\":null}",
        "</script>",
        "> foo.* *.>",
        "metadata:\\n  name: x",
    ]
    .map(str::to_owned);
    round_trip(&stage, &names).await
}
