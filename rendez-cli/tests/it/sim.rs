//! `rendez sim`, as people and scripts see it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::processes::signal;

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rendez")).arg("sim").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn many_worlds_end_with_a_summary() {
    let output = sim(&["--first", "1", "--seeds", "40", "--threads", "2"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    for words in ["first seed 1, 40 seeds", "worlds an hour", "pairs of faults: ", "no promise was broken"] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn the_summary_can_be_read_by_programs() {
    let output = sim(&["--first", "7", "--seeds", "20", "--threads", "1", "--kind", "plain", "--json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["seeds"], &summary["first"], &summary["kind"]), (&20.into(), &7.into(), &"plain".into()));
    assert!(summary["faults"]["crashes"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["broken"], serde_json::json!({}));
}

#[test]
fn time_ends_what_seeds_do_not() {
    let output = sim(&["--first", "1", "--seeds", "100000000", "--seconds", "1", "--threads", "1", "--json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    let seeds = summary["seeds"].as_u64().unwrap();
    assert!((1..100_000_000).contains(&seeds), "{seeds}");
}

#[test]
fn an_interrupted_run_tells_what_it_did() {
    let command = &mut Command::new(env!("CARGO_BIN_EXE_rendez"));
    let mut child = command.args(["sim", "--seeds", "100000000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    signal(child.id().try_into().unwrap(), Signal::INT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{first}{rest}");
    assert!(rest.contains("worlds an hour") && rest.contains("no promise was broken"), "{first}{rest}");
}

#[test]
fn one_world_has_one_hash_and_can_be_kept_as_a_file() {
    let hash = |output: &Output| text(&output.stdout).lines().last().unwrap().to_owned();
    let (one, two) = (sim(&["--seed", "5"]), sim(&["--seed", "5"]));
    assert_eq!(hash(&one), hash(&two));
    assert!(hash(&one).contains("hash, twice: "), "{}", hash(&one));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.scenario");
    std::fs::write(&file, &one.stdout).unwrap();
    assert_eq!(hash(&sim(&["--scenario", file.to_str().unwrap()])), hash(&one));
    assert_ne!(hash(&sim(&["--seed", "5", "--kind", "minds"])), hash(&one));
}

#[test]
fn what_happens_in_a_world_can_be_read() {
    let lines = text(&sim(&["--seed", "5", "--trace"]).stdout);
    assert!(lines.contains("== w0/0\n") && lines.contains(" starts w0/0 "), "{}", &lines[..lines.len().min(2000)]);
    let json = text(&sim(&["--seed", "5", "--trace", "--json"]).stdout);
    let facts: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(facts[0]["slots"].as_array().is_some_and(|slots| slots.iter().any(|slot| slot == "w0/0")), "{}", facts[0]);
    assert!(facts[1..].iter().any(|line| line["fact"]["Starts"]["node"].is_number()));
}

/// A clock that jumps, in a world whose judge excuses nothing: two nodes run one slot.
#[test]
fn a_broken_promise_is_told_with_a_way_to_see_it_again_and_a_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.scenario");
    let scenario = "nodes = 2\nworkloads = 1\nfaults = clock-jumps\ntrouble_s = 27\nrate = 300\nstrict = true\n";
    std::fs::write(&file, scenario).unwrap();
    let output = sim(&["--scenario", file.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("S2 broken at ") && said.contains(" runs slot 0 under "), "{said}");
    assert!(said.contains(&format!("rendez sim --scenario {} --trace", file.display())), "{said}");
    assert!(said.contains("a smaller scenario that breaks it"), "{said}");
}

#[test]
fn what_cannot_be_is_refused() {
    for (args, words) in [
        (&["--trace"][..], "--trace needs --seed or --scenario"),
        (&["--kind", "odd"], "plain, minds or swarm"),
        (&["--scenario", "/no/such/file"], "cannot read"),
        (&["--seed", "1", "--seeds", "2"], "cannot be used with"),
    ] {
        let output = sim(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
