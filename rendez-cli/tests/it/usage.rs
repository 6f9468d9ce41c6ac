//! What the command line refuses, with which exit code, and that it gives no secret away.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn rendez(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rendez")).args(args).output().unwrap()
}

fn refused(args: &[&str], code: i32) -> String {
    let output = rendez(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(!error.contains("hunter2"), "{args:?}: {error}");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    assert!(!error.trim().is_empty(), "{args:?} says nothing");
    error
}

/// A port where nobody listens.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn workloads_that_cannot_be_are_refused() {
    for (workload, what) in [
        ("x=0", "1 to 1000000"),
        ("x=-1", "1 to 1000000"),
        ("x=99999999999", "1 to 1000000"),
        ("x", "NAME=UNITS"),
        ("=3", "empty"),
        ("x=", "1 to 1000000"),
    ] {
        let args = ["agent", "--store", "redis://127.0.0.1:1", "--cluster", "c", "--workload", workload];
        let error = refused(&args, 2);
        assert!(error.contains(what), "{workload}: {error}");
    }
    let twice = ["agent", "--store", "redis://127.0.0.1:1", "--cluster", "c", "--workload", "x=1", "--workload", "x=2"];
    assert!(refused(&twice, 2).contains("twice"));
}

#[test]
fn what_cannot_work_is_refused_before_the_store_is_touched() {
    let agent = |more: &[&str]| {
        let mut args = vec!["agent", "--store", "redis://127.0.0.1:1", "--cluster", "c"];
        args.extend(more);
        refused(&args, 2)
    };
    assert!(agent(&[]).contains("--workload"));
    assert!(agent(&["--workload", "x=1", "--session-ttl", "ten"]).contains("ten"));
    assert!(agent(&["--workload", "x=1", "--stop-budget", "1h"]).contains("session_ttl"));
    assert!(agent(&["--workload", "x=1", "--weight", "0"]).contains("weight"));
    assert!(agent(&["--workload", "x=1", "--label", "nothing"]).contains("KEY=VALUE"));
    assert!(agent(&["--workload", "x=1", "--node", "a\nb"]).contains("control character"));
    assert!(agent(&["--workload", "x=1", "--", "/no/such/program"]).contains("/no/such/program"));
    refused(&["agent", "--cluster", "c", "--workload", "x=1"], 2);
    refused(&["agent", "--store", "redis://127.0.0.1:1", "--workload", "x=1"], 2);
    refused(&[], 2);
    refused(&["nonsense"], 2);
}

#[test]
fn changes_that_cannot_be_are_refused_with_what_would_be_right() {
    for (change, what) in [
        ("--weight=a", "NODE=WEIGHT"),
        ("--weight=a=0", "1 or more"),
        ("--joins=a:wieght=2", "weight=2"),
        ("--capacity=a=0", "none"),
        ("--units=inbox=many", "0 to 1000000"),
        ("--policy=best", "balanced, rendezvous, ring"),
        ("--policy=ring:0", "use 1 to 1024 virtual nodes"),
        ("--load-factor=1", "1000 to 100000"),
        ("--goes=", "empty"),
    ] {
        let error = refused(&["predict", "--store", "redis://127.0.0.1:1", "--cluster", "c", change], 2);
        assert!(error.contains(what), "{change}: {error}");
    }
    let error = refused(&["explain", "--store", "redis://127.0.0.1:1", "--cluster", "c", "inbox/x"], 2);
    assert!(error.contains("is no unit"), "{error}");
    refused(&["explain", "--store", "redis://127.0.0.1:1", "--cluster", "c"], 2);
    assert!(refused(&["predict", "--store", "memory:", "--cluster", "c"], 2).contains("inside one agent"));
}

#[test]
fn a_store_that_cannot_be_is_refused_without_its_password() {
    for url in ["http://u:hunter2@127.0.0.1", "hunter2", "redis:/hunter2", ""] {
        refused(&["agent", "--store", url, "--cluster", "c", "--workload", "x=1"], 2);
        refused(&["status", "--store", url, "--cluster", "c"], 2);
    }
    for url in ["redis://u:hunter2@127.0.0.1:99999", "redis://u:hunter2@/0"] {
        refused(&["status", "--store", url, "--cluster", "c", "--connect-timeout", "1s"], 3);
    }
    refused(&["status", "--store-file", "/no/such/file", "--cluster", "c"], 2);
}

#[test]
fn a_store_that_does_not_answer_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [closed_port(), silent.local_addr().unwrap().port()] {
        let url = format!("redis://u:hunter2@127.0.0.1:{port}");
        for command in [["agent", "--workload=x=1"].as_slice(), ["status"].as_slice()] {
            let mut args = command.to_vec();
            args.extend(["--store", &url, "--cluster", "c", "--connect-timeout", "1s"]);
            let begin = Instant::now();
            refused(&args, 3);
            assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
        }
    }
}

#[test]
fn help_names_the_commands_for_people_and_not_the_helpers() {
    let output = rendez(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for command in ["agent", "status", "predict", "explain", "ring", "demo"] {
        assert!(text.contains(command), "{text}");
    }
    for helper in ["guardian", "keeper", "exec-child"] {
        assert!(!text.contains(helper), "{text}");
    }
}

#[test]
fn flags_count_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rendez.toml");
    let text = |ttl: &str| {
        format!("cluster = 'c'\nstore = 'redis://u:hunter2@127.0.0.1:1'\nsession_ttl = '{ttl}'\n[workloads]\nx = 1\n")
    };
    std::fs::write(&file, text("6s")).unwrap();
    let agent = |environment: &[(&str, &str)], more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
        command.args(["agent", "--config", file.to_str().unwrap(), "--connect-timeout", "300ms"]);
        let output = command.args(more).envs(environment.iter().copied()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!error.contains("hunter2"), "{error}");
        (output.status.code().unwrap(), error)
    };
    // All that is wrong is that nobody listens there.
    let (code, said) = agent(&[], &[]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = agent(&[("RENDEZ_CONFIG_SESSION_TTL", "1ns")], &[]);
    assert!(code == 2 && said.contains("RENDEZ_CONFIG_SESSION_TTL"), "{said}");
    let (code, said) = agent(&[("RENDEZ_CONFIG_STOP_BUDGET", "1h")], &["--stop-budget", "1s"]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = agent(&[("RENDEZ_CONFIG_NONSENSE", "1")], &[]);
    assert!(code == 2 && said.contains("no such key"), "{said}");
    std::fs::write(&file, text("never")).unwrap();
    let (code, said) = agent(&[], &[]);
    assert!(code == 2 && said.contains("rendez.toml, line 3"), "{said}");
    std::fs::write(&file, text("6s") + "[store_options]\npasword = 'hunter2'\n").unwrap();
    let (code, said) = agent(&[], &[]);
    assert!(code == 2 && said.contains("pasword"), "{said}");
}
