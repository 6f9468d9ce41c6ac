//! The runs of the demonstration: told as they begin, judged at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rendez::{FencingToken, NodeId, Slot};

/// All runs so far; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Arc<Mutex<Vec<Run>>>);

#[derive(Debug, Clone)]
struct Run {
    slot: Slot,
    token: FencingToken,
    node: NodeId,
    begin: Instant,
    end: Option<Instant>,
}

/// A run that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    runs: Runs,
    at: usize,
}

/// What the runs prove.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) runs: usize,
    /// One sentence for each promise that was broken.
    pub(crate) broken: Vec<String>,
    pub(crate) longest_gap: Option<(Slot, Duration)>,
}

impl Runs {
    /// Notes and tells the beginning of a run.
    pub(crate) fn begin(&self, slot: &Slot, token: FencingToken, node: &NodeId) -> Running {
        let mut runs = self.locked();
        let begin = Instant::now();
        match runs.iter().rfind(|run| run.slot == *slot) {
            Some(Run { node: before, end: Some(end), .. }) => {
                println!("  {node} runs {slot}, {} after {before} has stopped", millis(begin - *end));
            }
            Some(Run { node: before, end: None, .. }) => println!("  {node} runs {slot} WHILE {before} STILL DOES"),
            None => println!("  {node} runs {slot}"),
        }
        runs.push(Run { slot: slot.clone(), token, node: node.clone(), begin, end: None });
        Running { runs: self.clone(), at: runs.len() - 1 }
    }

    /// The slots that run now, by node.
    pub(crate) fn running(&self) -> BTreeMap<String, Vec<Slot>> {
        let mut running: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
        for run in self.locked().iter().filter(|run| run.end.is_none()) {
            running.entry(run.node.to_string()).or_default().push(run.slot.clone());
        }
        running.values_mut().for_each(|slots| slots.sort());
        running
    }

    /// How long nothing has begun or ended.
    pub(crate) fn calm_for(&self) -> Duration {
        let last = self.locked().iter().flat_map(|run| [Some(run.begin), run.end]).flatten().max();
        last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// Judges all runs, which have ended by now.
    pub(crate) fn judge(&self) -> Verdict {
        let runs = self.locked();
        let mut by_slot: BTreeMap<&Slot, Vec<&Run>> = BTreeMap::new();
        for run in runs.iter() {
            by_slot.entry(&run.slot).or_default().push(run);
        }
        let mut broken = Vec::new();
        let mut longest_gap: Option<(Slot, Duration)> = None;
        for (slot, runs) in &mut by_slot {
            runs.sort_by_key(|run| run.begin);
            for pair in runs.windows(2) {
                let (one, next) = (pair[0], pair[1]);
                match one.end {
                    Some(end) if end <= next.begin => {
                        let gap = next.begin - end;
                        if longest_gap.as_ref().is_none_or(|(_, longest)| gap > *longest) {
                            longest_gap = Some(((*slot).clone(), gap));
                        }
                    }
                    Some(_) | None => broken.push(format!("{slot} ran on {} and on {} at once", one.node, next.node)),
                }
                if next.token <= one.token {
                    broken.push(format!("the token of {slot} did not rise: {} after {}", next.token, one.token));
                }
            }
        }
        Verdict { runs: runs.len(), broken, longest_gap }
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(run) = self.runs.locked().get_mut(self.at) {
            run.end = Some(Instant::now());
        }
    }
}

fn millis(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) { format!("{duration:.1?}") } else { format!("{} ms", duration.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(runs: &Runs, token: u64, node: &str) -> Running {
        runs.begin(&"a/0".parse().unwrap(), FencingToken::new(token), &NodeId::new(node).unwrap())
    }

    #[test]
    fn runs_one_after_another_are_fine() {
        let runs = Runs::default();
        drop(begin(&runs, 1, "x"));
        drop(begin(&runs, 2, "y"));
        let verdict = runs.judge();
        assert!(verdict.broken.is_empty() && verdict.longest_gap.is_some(), "{verdict:?}");
    }

    #[test]
    fn an_overlap_and_a_token_that_does_not_rise_are_found() {
        let runs = Runs::default();
        let one = begin(&runs, 2, "x");
        drop(begin(&runs, 2, "y"));
        drop(one);
        assert_eq!(runs.judge().broken.len(), 2);
    }
}
