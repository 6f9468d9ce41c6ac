//! What this process knows of one cluster, and the files that make it last. Everything here happens under the lock.
//!
//! `snapshot.json` is the whole state at one moment; `journal-N.jsonl` has one line for each request since that has changed
//! something. A process keeps the state in memory and reads what others have added before it answers. A request has
//! happened when its line has its end; a line without one is what a killed writer left, and is cut off. Whatever else is
//! wrong with a file is damage: it is told, and nothing is guessed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rendez_core::{
    AdminOutcome, AdminRequest, Call, Capabilities, ChangeKind, ClusterName, ErrorKind, Known, Reply, SnapshotRequest,
    StoreError, StoreModel, StoreTime,
};

use crate::clock::{Clock, Epoch};
use crate::encode::{self, Bad, Head, Line};
use crate::errors::{Failure, at};
use crate::files::{identity, remove, reserve, sync, sync_content, sync_folder};
use crate::keys;

/// How much disk space is set aside behind the journal's end, so that sessions can be extended when the disk is full. At
/// least half of it is there when the last request was let through that needs room: about 3800 heartbeats.
const RESERVE_BYTES: u64 = 1 << 20;

/// No head of a snapshot is longer: names are short.
const HEAD_BYTES_MAX: usize = 4096;

/// One request, as the store gets it.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Call(Call),
    Admin(AdminRequest),
    /// Nothing but that the folder exists, to watch it.
    Watch,
}

impl Request {
    /// Whether it may need room for good. What lets go does not: it must work when the disk is full.
    fn grows(&self) -> bool {
        match self {
            Self::Call(Call::Open(_)) | Self::Admin(_) => true,
            Self::Call(Call::Change(request)) => request.changes.iter().any(|change| match &change.kind {
                ChangeKind::Acquire { .. }
                | ChangeKind::Offer { .. }
                | ChangeKind::Transfer { .. }
                | ChangeKind::SaveCheckpoint { .. }
                | ChangeKind::Readopt => true,
                ChangeKind::Release { .. }
                | ChangeKind::Withdraw { .. }
                | ChangeKind::Accept { .. }
                | ChangeKind::Refuse { .. } => false,
            }),
            Self::Call(Call::Heartbeat(_) | Call::Snapshot(_) | Call::Close(_)) | Self::Watch => false,
        }
    }
}

/// Its answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Call(Reply),
    Admin(AdminOutcome),
    Watch,
}

/// One cluster's data.
pub(crate) struct State {
    folder: PathBuf,
    cluster: ClusterName,
    clock: Arc<dyn Clock>,
    capabilities: Capabilities,
    journal_bytes_max: u64,
    /// Nothing until the files were read, and after every failure: then they are read again.
    replica: Option<Replica>,
    /// The lines of requests that were answered by the model and are not written yet.
    pending: String,
    /// Whether one of them must outlive the host.
    durable: bool,
}

/// The state in memory and the files that it was read from.
struct Replica {
    model: StoreModel,
    /// The name of the data.
    data: u64,
    epoch: Option<Epoch>,
    /// The last moment that was seen.
    at: StoreTime,
    /// The number of the next line.
    next: u64,
    /// Kept open, so that its identity stays its own.
    snapshot: File,
    journal: File,
    number: u64,
    /// Up to where the journal was read.
    end: u64,
    /// Up to where disk space was set aside.
    reserved: u64,
    /// How long the journal may become.
    fold_at: u64,
    /// The tail of the journal was cut off, and the host was started anew since it was written.
    cut_after_boot: bool,
    hints: File,
    hints_told: u64,
}

impl State {
    pub(crate) fn new(
        folder: PathBuf,
        cluster: ClusterName,
        clock: Arc<dyn Clock>,
        capabilities: Capabilities,
        journal_bytes_max: u64,
    ) -> Self {
        Self {
            folder,
            cluster,
            clock,
            capabilities,
            journal_bytes_max,
            replica: None,
            pending: String::new(),
            durable: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    // --- before a request: what others have done ---

    /// Brings the state in memory up to what the files say. On a failure nothing has happened.
    pub(crate) fn follow(&mut self) -> Result<(), Failure> {
        self.pending.clear();
        self.durable = false;
        let followed = self.try_follow();
        if followed.is_err() {
            self.replica = None;
        }
        followed
    }

    fn try_follow(&mut self) -> Result<(), Failure> {
        let path = self.path(keys::SNAPSHOT);
        let there = match fs::metadata(&path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::io("cannot look at", &path, error)),
        };
        let mut replica = match (self.replica.take(), there) {
            (known, None) => {
                if known.is_some() {
                    tracing::warn!(folder = %self.folder.display(), "the cluster's data was removed");
                }
                self.create()?
            }
            (Some(replica), Some(there)) => {
                let ours = replica.snapshot.metadata().map_err(at("cannot look at", &path))?;
                if identity(&ours) == identity(&there) { replica } else { self.go_on(replica)? }
            }
            (None, Some(_)) => self.load()?,
        };
        let journal = self.path(&keys::journal(replica.number));
        replica.catch_up(&journal, self.clock.boot())?;
        self.replica = Some(replica);
        self.enter_boot()
    }

    /// A cluster without data.
    fn create(&self) -> Result<Replica, Failure> {
        for entry in fs::read_dir(&self.folder).map_err(at("cannot read", &self.folder))? {
            let entry = entry.map_err(at("cannot read", &self.folder))?;
            let is_journal = entry.file_name().to_str().and_then(keys::parse_journal).is_some();
            // An empty one is what a process left that was killed here.
            if is_journal && entry.metadata().map_err(at("cannot read", &self.folder))?.len() > 0 {
                return Err(Failure::damaged(&self.path(keys::SNAPSHOT), "it is missing, and a journal is there"));
            }
        }
        let head = Head {
            layout: keys::LAYOUT,
            cluster: self.cluster.as_str().to_owned(),
            data: fastrand::u64(..),
            journal: 1,
            next: 1,
            at: StoreTime::default(),
            clock: None,
        };
        let model = self.empty();
        let written = self.write_snapshot(&head, &model)?;
        Ok(self.replica(head, model, written))
    }

    /// The state of a snapshot whose journal is not read yet.
    fn replica(&self, head: Head, model: StoreModel, written: Written) -> Replica {
        let Written { snapshot, snapshot_bytes, journal, hints } = written;
        Replica {
            model,
            data: head.data,
            epoch: head.clock,
            at: head.at,
            next: head.next,
            snapshot,
            journal,
            number: head.journal,
            end: 0,
            reserved: 0,
            fold_at: self.journal_bytes_max.max(snapshot_bytes),
            cut_after_boot: false,
            hints,
            hints_told: 0,
        }
    }

    fn empty(&self) -> StoreModel {
        StoreModel::new(fastrand::u64(..), self.capabilities.clone()).recording()
    }

    /// Another process has folded the journal. Who has followed it to its end knows what the snapshot says, and goes on
    /// with the next journal; anybody else reads the snapshot.
    fn go_on(&self, mut replica: Replica) -> Result<Replica, Failure> {
        let path = self.path(keys::SNAPSHOT);
        let snapshot = File::open(&path).map_err(at("cannot open", &path))?;
        let mut text = vec![0; HEAD_BYTES_MAX];
        let length = read_up_to(&snapshot, &mut text).map_err(at("cannot read", &path))?;
        let Ok((head, _)) = encode::parse_head(&text[..length], keys::LAYOUT) else { return self.load() };
        if head.data != replica.data || head.journal != replica.number + 1 {
            return self.load();
        }
        let old = self.path(&keys::journal(replica.number));
        // Its name may be gone; its content is not, as long as it is open.
        if replica.read_lines(&old, self.clock.boot()).is_err() || replica.next != head.next {
            return self.load();
        }
        let snapshot_bytes = snapshot.metadata().map_err(at("cannot look at", &path))?.len();
        let journal = self.open_journal(head.journal)?;
        let written = Written { snapshot, snapshot_bytes, journal, hints: self.open_hints()? };
        Ok(self.replica(head, replica.model, written))
    }

    /// Reads the snapshot and opens its journal, whose lines are not read yet.
    fn load(&self) -> Result<Replica, Failure> {
        let path = self.path(keys::SNAPSHOT);
        let mut snapshot = File::open(&path).map_err(at("cannot open", &path))?;
        let mut text = Vec::new();
        snapshot.read_to_end(&mut text).map_err(at("cannot read", &path))?;
        let read = encode::parse_head(&text, keys::LAYOUT)
            .and_then(|(head, end)| Ok((encode::parse_state(&text[end..], &head)?, head)));
        let (state, head) = match read {
            Ok(read) => read,
            Err(Bad::Layout(layout)) => {
                let what = format!(
                    "the file store: {} has layout {layout}, this release knows layout {}: use a release that knows it",
                    path.display(),
                    keys::LAYOUT
                );
                return Err(Failure::new(ErrorKind::Fatal, what));
            }
            Err(bad @ (Bad::Checksum | Bad::Content(_))) => return Err(Failure::damaged(&path, bad)),
        };
        if head.cluster != self.cluster.as_str() {
            return Err(Failure::damaged(&path, format!("it is of the cluster {:?}", head.cluster)));
        }
        let journal = self.open_journal(head.journal)?;
        self.sweep(head.journal)?;
        let mut model = self.empty();
        model.apply(state);
        let written = Written { snapshot, snapshot_bytes: text.len() as u64, journal, hints: self.open_hints()? };
        Ok(self.replica(head, model, written))
    }

    fn open_journal(&self, number: u64) -> Result<File, Failure> {
        let path = self.path(&keys::journal(number));
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::damaged(&path, "it is missing")),
            other => other.map_err(at("cannot open", &path)),
        }
    }

    /// Removes what a process left that was killed while it wrote a snapshot.
    fn sweep(&self, current: u64) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.folder).map_err(at("cannot read", &self.folder))? {
            let entry = entry.map_err(at("cannot read", &self.folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let old = keys::parse_journal(name).is_some_and(|number| number != current);
            if old || name == keys::SNAPSHOT_NEW {
                remove(&entry.path()).map_err(at("cannot remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    fn open_hints(&self) -> Result<File, Failure> {
        let path = self.path(keys::HINTS);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        file.map_err(at("cannot open", &path))
    }

    /// If the host was started anew, no process of before lives: all sessions have ended, and the store's time goes on
    /// from the wall clock.
    fn enter_boot(&mut self) -> Result<(), Failure> {
        let Some(replica) = &mut self.replica else { return Ok(()) };
        if replica.epoch.as_ref().is_some_and(|epoch| epoch.boot == self.clock.boot()) {
            return Ok(());
        }
        let epoch = Epoch::begin(&*self.clock, replica.at);
        let now = epoch.now(&*self.clock, replica.at);
        replica.model.end_sessions();
        if std::mem::take(&mut replica.cut_after_boot) {
            // A disk that has lost what was not synced may have lost more than it should.
            replica.model.restart();
            let look = SnapshotRequest { known: Known::default(), session: None, cursor: None };
            if let Err(error) = replica.model.snapshot(now, &look) {
                tracing::warn!(%error, "a new generation could not be drawn");
            }
        }
        replica.epoch = Some(epoch.clone());
        self.note(now, Some(epoch))
    }

    // --- a request ---

    /// Answers a request from the state in memory. It has happened when [`commit`](Self::commit) says so.
    pub(crate) fn run(&mut self, request: &Request) -> Result<Answer, StoreError> {
        if request.grows() {
            self.make_room()?;
        }
        let Some(replica) = &mut self.replica else { return Err(not_read().into()) };
        let epoch = replica.epoch.as_ref().ok_or_else(not_read)?;
        let now = epoch.now(&*self.clock, replica.at);
        let answer = match request {
            Request::Call(call) => replica.model.call(now, call).map(Answer::Call),
            Request::Admin(request) => replica.model.administer(now, request).map(Answer::Admin),
            Request::Watch => Ok(Answer::Watch),
        };
        // Also a request that was refused may have found a session's end or a lost generation.
        if let Err(failure) = self.note(now, None) {
            self.replica = None;
            return Err(failure.into());
        }
        answer
    }

    /// Notes what the model has changed.
    fn note(&mut self, now: StoreTime, clock: Option<Epoch>) -> Result<(), Failure> {
        let Some(replica) = &mut self.replica else { return Err(not_read()) };
        let effects = replica.model.take_effects();
        if effects.is_empty() && clock.is_none() {
            return Ok(());
        }
        self.durable |= clock.is_some() || !effects.only_extends();
        let line = Line { n: replica.next, at: now, clock, effects };
        replica.at = now;
        replica.next += 1;
        let text = encode::line(&line, replica.number).map_err(not_json)?;
        self.pending.push_str(&text);
        Ok(())
    }

    /// Sees to it that sessions can be extended for a while after this request, even if the disk is full then.
    fn make_room(&mut self) -> Result<(), Failure> {
        let Some(replica) = &mut self.replica else { return Err(not_read()) };
        let end = replica.end + self.pending.len() as u64;
        if replica.reserved >= end + RESERVE_BYTES / 2 {
            return Ok(());
        }
        let path = self.folder.join(keys::journal(replica.number));
        let can = reserve(&replica.journal, end, RESERVE_BYTES).map_err(at("cannot make room behind", &path))?;
        replica.reserved = if can { end + RESERVE_BYTES } else { u64::MAX };
        Ok(())
    }

    // --- after requests: make them last ---

    /// How much waits for being written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Writes what the requests have changed; whoever is told after this may rely on it. On a failure none of them has
    /// happened, or, if it is ambiguous, each may have.
    pub(crate) fn commit(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let Some(mut replica) = self.replica.take() else { return Err(not_read()) };
        let path = self.path(&keys::journal(replica.number));
        if let Err(error) = replica.journal.write_all_at(self.pending.as_bytes(), replica.end) {
            let failure = Failure::io("cannot write", &path, error);
            let cut = replica.journal.set_len(replica.end);
            // What was set aside went with it.
            let _ = reserve(&replica.journal, replica.end, RESERVE_BYTES);
            return Err(if cut.is_ok() { failure } else { failure.or_ambiguous() });
        }
        replica.end += self.pending.len() as u64;
        self.pending.clear();
        if std::mem::take(&mut self.durable) {
            // The extension of a session needs no sync: it is worth nothing once the host is down.
            sync_content(&replica.journal).map_err(|error| Failure::io("cannot sync", &path, error).or_ambiguous())?;
        }
        self.replica = Some(replica);
        Ok(())
    }

    /// Tells watches of what the requests have changed. Only a hint: a failure costs nothing but time.
    pub(crate) fn hint(&mut self) {
        let Some(replica) = &mut self.replica else { return };
        if replica.model.take_hints().is_empty() {
            return;
        }
        replica.hints_told += 1;
        let text = format!("{:020} {:020}\n", replica.next, replica.hints_told);
        if let Err(error) = replica.hints.write_all_at(text.as_bytes(), 0) {
            tracing::debug!(%error, "a hint was not written");
        }
    }

    /// Folds the journal into the snapshot where it has become long.
    pub(crate) fn fold(&mut self) {
        let Some(replica) = &self.replica else { return };
        if replica.end <= replica.fold_at {
            return;
        }
        let head = Head {
            layout: keys::LAYOUT,
            cluster: self.cluster.as_str().to_owned(),
            data: replica.data,
            journal: replica.number + 1,
            next: replica.next,
            at: replica.at,
            clock: replica.epoch.clone(),
        };
        let folded = self.write_snapshot(&head, &replica.model);
        let Some(replica) = &mut self.replica else { return };
        match folded {
            Ok(Written { snapshot, snapshot_bytes, journal, hints }) => {
                let old = self.folder.join(keys::journal(replica.number));
                replica.snapshot = snapshot;
                replica.journal = journal;
                replica.hints = hints;
                replica.number += 1;
                (replica.end, replica.reserved) = (0, 0);
                replica.fold_at = self.journal_bytes_max.max(snapshot_bytes);
                if let Err(error) = remove(&old) {
                    tracing::debug!(%error, "the old journal stays until the folder is read again");
                }
            }
            Err(failure) => {
                // The journal goes on, unless the snapshot is there already: then it is found to be another one.
                replica.fold_at = replica.end.saturating_mul(2);
                let error = StoreError::from(failure);
                tracing::warn!(%error, "the journal cannot be folded into the snapshot and grows on");
            }
        }
    }

    /// Writes a snapshot and an empty journal that goes on from it. The rename is the moment at which both count.
    fn write_snapshot(&self, head: &Head, model: &StoreModel) -> Result<Written, Failure> {
        let (path, new) = (self.path(keys::SNAPSHOT), self.path(keys::SNAPSHOT_NEW));
        let journal_path = self.path(&keys::journal(head.journal));
        let text = encode::snapshot(head, &model.whole()).map_err(not_json)?;
        let write = |path: &Path, text: &[u8]| -> Result<File, Failure> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
            let mut file = file.map_err(at("cannot make", path))?;
            file.write_all(text).map_err(at("cannot write", path))?;
            sync(&file).map_err(at("cannot sync", path))?;
            Ok(file)
        };
        let written = write(&journal_path, b"").and_then(|journal| {
            let snapshot = write(&new, text.as_bytes())?;
            let hints = self.open_hints()?;
            fs::rename(&new, &path).map_err(at("cannot rename", &new))?;
            Ok(Written { snapshot, snapshot_bytes: text.len() as u64, journal, hints })
        });
        if written.is_err() {
            // What cannot be removed now is when the folder is read the next time.
            let _ = remove(&new);
            let _ = remove(&journal_path);
        }
        let written = written?;
        sync_folder(&self.folder).map_err(at("cannot sync", &self.folder))?;
        Ok(written)
    }
}

/// The files of a new snapshot.
struct Written {
    snapshot: File,
    snapshot_bytes: u64,
    journal: File,
    hints: File,
}

/// Cannot be seen: all records are made of what JSON can say.
fn not_json(error: serde_json::Error) -> Failure {
    Failure::new(ErrorKind::Fatal, format!("the file store: a record cannot be written as JSON: {error}"))
}

/// Reads from the beginning until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Cannot be seen: every request follows the files first.
fn not_read() -> Failure {
    Failure::new(ErrorKind::Transient, "the file store: the files were not read")
}

impl Replica {
    /// Reads what others have added to the journal.
    fn catch_up(&mut self, path: &Path, boot: &str) -> Result<(), Failure> {
        let metadata = self.journal.metadata().map_err(at("cannot look at", path))?;
        if metadata.nlink() == 0 {
            return Err(Failure::damaged(path, "it was removed"));
        }
        self.read_lines(path, boot)
    }

    fn read_lines(&mut self, path: &Path, boot: &str) -> Result<(), Failure> {
        let length = self.journal.metadata().map_err(at("cannot look at", path))?.len();
        if length < self.end {
            return Err(Failure::damaged(path, format!("it had {} bytes and now has {length}", self.end)));
        }
        if length == self.end {
            return Ok(());
        }
        let mut text = vec![0; usize::try_from(length - self.end).unwrap_or(usize::MAX)];
        self.journal.read_exact_at(&mut text, self.end).map_err(at("cannot read", path))?;
        let mut rest = &text[..];
        while let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
            match encode::parse_line(&rest[..length], self.number) {
                Ok(line) if line.n == self.next => self.take(line),
                Ok(line) => {
                    let what = format!("at byte {} is line {} where {} is wanted", self.end, line.n, self.next);
                    return Err(Failure::damaged(path, what));
                }
                Err(bad) => {
                    // Only a host that went down can leave a whole line that is wrong, and nothing right behind it.
                    let same_boot = self.epoch.as_ref().is_none_or(|epoch| epoch.boot == boot);
                    if same_boot || self.any_line_in(&rest[length + 1..]) {
                        return Err(Failure::damaged(path, format!("in the line at byte {} {bad}", self.end)));
                    }
                    break;
                }
            }
            rest = &rest[length + 1..];
            self.end += length as u64 + 1;
        }
        if !rest.is_empty() {
            self.cut(path, rest.len(), boot)?;
        }
        Ok(())
    }

    fn take(&mut self, line: Line) {
        self.next += 1;
        self.at = self.at.max(line.at);
        if line.clock.is_some() {
            self.epoch = line.clock;
        }
        self.model.apply(line.effects);
    }

    fn any_line_in(&self, text: &[u8]) -> bool {
        text.split(|byte| *byte == b'\n').any(|line| encode::parse_line(line, self.number).is_ok())
    }

    /// Cuts off what a writer left that did not come to the end of its line: that request has not happened.
    fn cut(&mut self, path: &Path, bytes: usize, boot: &str) -> Result<(), Failure> {
        tracing::warn!(journal = %path.display(), at = self.end, bytes, "an unfinished line is cut off");
        self.journal.set_len(self.end).map_err(at("cannot cut", path))?;
        self.reserved = 0;
        self.cut_after_boot = self.epoch.as_ref().is_some_and(|epoch| epoch.boot != boot);
        Ok(())
    }
}
