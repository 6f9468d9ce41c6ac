//! The example `leader`, as its first lines say: three instances, one of which leads.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the tests wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all instances have said, in the order in which it was heard.
type Heard = Arc<Mutex<Vec<String>>>;

struct Instances {
    folder: tempfile::TempDir,
    running: BTreeMap<String, Child>,
    heard: Heard,
}

impl Instances {
    fn start(count: u32) -> Self {
        let mut all = Self { folder: tempfile::tempdir().unwrap(), running: BTreeMap::new(), heard: Heard::default() };
        for number in 1..=count {
            all.add(&format!("instance-{number}"));
        }
        all
    }

    fn add(&mut self, id: &str) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leader"))
            .env("INSTANCE_ID", id)
            .env("STORE", format!("file:{}", self.folder.path().join("store").display()))
            .env("SESSION_TTL_MS", "3000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, heard) = (BufReader::new(child.stdout.take().unwrap()).lines(), self.heard.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        self.running.insert(id.to_owned(), child);
    }

    fn signal(&self, id: &str, name: &str) {
        let pid = self.running[id].id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits for the next leader but so many, and says who it is and its token.
    fn leader(&self, before: usize) -> (String, u64) {
        let begin = Instant::now();
        loop {
            let heard = self.heard();
            let begun = heard.iter().filter_map(|line| line.split_once(" begins to lead under token "));
            if let Some((id, token)) = begun.skip(before).last() {
                return (id.to_owned(), token.parse().unwrap());
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for leader {before}: {heard:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn one_of_three_leads_and_is_followed_when_it_is_killed_or_goes() {
    let mut all = Instances::start(3);
    let (first, first_token) = all.leader(0);
    all.running.get_mut(&first).unwrap().kill().unwrap();
    let (second, second_token) = all.leader(1);
    assert!(second != first && second_token > first_token, "{:?}", all.heard());
    all.signal(&second, "INT");
    let (third, third_token) = all.leader(2);
    assert!(third != second && third != first && third_token > second_token, "{:?}", all.heard());
    let begin = Instant::now();
    let ended = loop {
        if let Some(ended) = all.running.get_mut(&second).unwrap().try_wait().unwrap() {
            break ended;
        }
        assert!(begin.elapsed() < PATIENCE, "{second} does not end: {:?}", all.heard());
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_leader_that_was_frozen_does_not_lead_when_it_wakes() {
    let all = Instances::start(2);
    let (first, token) = all.leader(0);
    all.signal(&first, "STOP");
    let (second, later) = all.leader(1);
    assert!(second != first && later > token, "{:?}", all.heard());
    let before = all.heard().len();
    all.signal(&first, "CONT");
    let begin = Instant::now();
    while !all.heard().contains(&format!("{first} leads no more")) {
        assert!(begin.elapsed() < PATIENCE, "{:?}", all.heard());
        std::thread::sleep(Duration::from_millis(10));
    }
    // It may have been frozen after it had looked; never does it look again and go on.
    let old = format!("{first} works under token {token}");
    let after = all.heard()[before..].iter().filter(|line| **line == old).count();
    assert!(after <= 1, "{:?}", all.heard());
}
