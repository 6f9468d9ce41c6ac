//! Random histories, sent to the file store and to the model of the contract at the same moments: they must answer the
//! same. Two handles take turns, so that each lives on what the other has written.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use rendez_core::*;
use rendez_file::{FileOptions, FileStore};
use rendez_testkit::conformance::differential::{self, Comparison, Done, World};
use support::{cluster_folder, last_moment, lock, options};

const HISTORIES: u32 = 100;

struct Folder(PathBuf);

impl World for Folder {
    fn restart<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        None
    }

    fn lose_everything<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>> {
        let folder = cluster_folder(&self.0, cluster.as_str());
        Some(Box::pin(async move {
            if folder.exists() {
                // A journal is folded after the answer: what is removed meanwhile may come back in part.
                let _lock = lock(&folder);
                std::fs::remove_dir_all(&folder).unwrap();
            }
        }))
    }

    /// Where the answer does not tell the time, the last line does; without a line nothing has changed.
    fn now<'a>(&'a self, cluster: &'a ClusterName, last: StoreTime) -> Option<Done<'a, StoreTime>> {
        let folder = cluster_folder(&self.0, cluster.as_str());
        Some(Box::pin(async move { last_moment(&folder).map_or(last, |moment| moment.max(last)) }))
    }
}

fn compare(journal_bytes_max: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("store");
    let open = || -> Arc<dyn LeaseStore> {
        let mut options = options();
        options.journal_bytes_max = journal_bytes_max;
        Arc::new(runtime.block_on(FileStore::open(&root, options)).unwrap())
    };
    // It is the model, kept in a journal, so whole answers can be compared.
    differential::run(&runtime, &[open(), open()], HISTORIES, Comparison::Exactly, &Folder(root));
}

#[test]
fn it_answers_as_the_model_does_with_a_journal_that_is_folded_every_few_requests() {
    compare(1024);
}

#[test]
fn it_answers_as_the_model_does_with_a_journal_that_never_is() {
    compare(FileOptions::default().journal_bytes_max);
}
