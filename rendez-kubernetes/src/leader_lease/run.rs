//! The driver: carries out what the rules say, tells them what has become of it, and publishes what follows. It decides
//! nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::TryStreamExt as _;
use kube::Api;
use kube::api::{DynamicObject, PostParams, WatchEvent, WatchParams};
use rendez_core::{ErrorKind, StoreError, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::lease::Observed;
use super::rules::{Failure, Rules, Step, Wrote};
use super::{LeaderState, Leading};
use crate::clock::boot_now;
use crate::errors::{Stage, Wrong, sort, timed_out};
use crate::options::fatal;

/// The longest sleep: tokio's clock stands still while the system is suspended, the deadlines' does not.
const WAKE_MAX: Duration = Duration::from_millis(500);

/// The shortest sleep; tokio's timers are no finer.
const WAKE_MIN: Duration = Duration::from_millis(1);

/// News of the watch that wait for the driver; the watch itself waits beyond that.
const NEWS_MAX: usize = 16;

/// How long a watch may take to begin.
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server keeps one watch open.
const WATCH_SECONDS: u32 = 290;

/// How long to wait before a watch that broke is begun again: at first, and at most.
const WATCH_PAUSE_MIN: Duration = Duration::from_millis(50);
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The same where it is not permitted. The right may be given later.
const WATCH_PAUSE_FORBIDDEN: Duration = Duration::from_secs(60);

/// What handles ask of the driver.
pub(super) enum Command {
    Resign(oneshot::Sender<Result<(), StoreError>>),
    Stop(oneshot::Sender<Result<(), StoreError>>),
}

/// The deadline of this participant's leadership, for whoever asks without a lock: nanoseconds of the boot-time clock, zero
/// while it does not lead.
#[derive(Debug, Default)]
pub(super) struct Deadline(AtomicU64);

impl Deadline {
    pub(super) fn is_ahead(&self) -> bool {
        boot_now() < Timestamp::from_nanos(self.0.load(Ordering::Acquire))
    }

    fn set(&self, deadline: Timestamp) {
        self.0.store(deadline.as_nanos(), Ordering::Release);
    }
}

/// Where the driver reads and writes.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) api: Api<DynamicObject>,
    pub(super) name: String,
    /// For messages.
    pub(super) server: String,
    pub(super) timeout: Duration,
}

impl Place {
    async fn read(self) -> Answer {
        let answer = tokio::time::timeout(self.timeout, self.api.get_opt(&self.name)).await;
        let error = match answer {
            Ok(Ok(None)) => return Answer::Read(None),
            Ok(Ok(Some(object))) => match Observed::new(object) {
                Some(seen) => return Answer::Read(Some(Box::new(seen))),
                None => fatal("a Lease came that has no uid or no version: is it a Kubernetes API server?"),
            },
            Ok(Err(error)) => sort(error, Stage::Reading, &self.server).unexpected(),
            Err(_) => timed_out(Stage::Reading, &self.server, self.timeout),
        };
        Answer::ReadFailed(failure(&error))
    }

    async fn write(self, object: DynamicObject) -> Answer {
        let how = PostParams::default();
        let write = async {
            match object.metadata.uid {
                Some(_) => self.api.replace(&self.name, &how, &object).await,
                None => self.api.create(&how, &object).await,
            }
        };
        Answer::Wrote(match tokio::time::timeout(self.timeout, write).await {
            // A Lease without uid or version may stand there all the same.
            Ok(Ok(object)) => Observed::new(object).map_or_else(
                || Wrote::Unknown("a Lease came back that has no uid or no version".to_owned()),
                |seen| Wrote::Done(Box::new(seen)),
            ),
            Ok(Err(error)) => match sort(error, Stage::Writing, &self.server) {
                Wrong::Conflict | Wrong::NotFound => Wrote::Conflict,
                Wrong::Gone(error) | Wrong::Other(error) => match error.kind() {
                    ErrorKind::Ambiguous => Wrote::Unknown(error.message().to_owned()),
                    _ => Wrote::Failed(failure(&error)),
                },
            },
            Err(_) => Wrote::Unknown(timed_out(Stage::Writing, &self.server, self.timeout).message().to_owned()),
        })
    }
}

fn failure(error: &StoreError) -> Failure {
    Failure {
        fatal: error.kind() == ErrorKind::Fatal,
        retry_after: error.retry_after(),
        message: error.message().to_owned(),
    }
}

enum Answer {
    Read(Option<Box<Observed>>),
    ReadFailed(Failure),
    Wrote(Wrote),
}

type Request = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The driver's task, until it is told to stop or nobody has a handle any more.
pub(super) struct Driver {
    pub(super) rules: Rules,
    pub(super) place: Place,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) deadline: Arc<Deadline>,
    pub(super) state: watch::Sender<LeaderState>,
}

impl Driver {
    pub(super) async fn run(mut self) {
        let (sender, mut news) = mpsc::channel(NEWS_MAX);
        let _watch = AbortOnDrop(tokio::spawn(follow(self.place.clone(), sender)));
        let mut request: Option<Request> = None;
        let mut waiting = Vec::new();
        let mut has_handles = true;
        loop {
            let now = boot_now();
            let mut wake = Timestamp::NEVER;
            if request.is_none() {
                match self.rules.next(now, wall()) {
                    Step::Read => request = Some(Box::pin(self.place.clone().read())),
                    Step::Write(object) => request = Some(Box::pin(self.place.clone().write(*object))),
                    Step::Wait(until) => wake = until,
                    Step::Over => {
                        self.answer(&mut waiting);
                        self.publish(now);
                        return;
                    }
                }
            }
            self.answer(&mut waiting);
            self.publish(now);
            let pause = wake.min(self.rules.changes_at(now)).since(now).clamp(WAKE_MIN, WAKE_MAX);
            tokio::select! {
                biased;
                command = self.commands.recv(), if has_handles => match command {
                    Some(Command::Resign(reply)) => {
                        waiting.push(reply);
                        self.rules.resign(boot_now());
                    }
                    Some(Command::Stop(reply)) => {
                        waiting.push(reply);
                        self.rules.stop(boot_now());
                    }
                    None => {
                        has_handles = false;
                        self.rules.stop(boot_now());
                    }
                },
                answer = async {
                    match &mut request {
                        Some(request) => request.await,
                        None => std::future::pending().await,
                    }
                } => {
                    request = None;
                    let now = boot_now();
                    match answer {
                        Answer::Read(found) => self.rules.read(now, found.map(|found| *found)),
                        Answer::ReadFailed(failure) => self.rules.read_failed(now, failure),
                        Answer::Wrote(outcome) => self.rules.wrote(now, outcome),
                    }
                }
                Some(told) = news.recv() => {
                    let now = boot_now();
                    match told {
                        News::Watching(watching) => self.rules.set_watching(now, watching),
                        News::Seen(seen) => self.rules.heard(now, *seen),
                        News::Gone(seen) => self.rules.heard_of_end(now, &seen.uid, &seen.version),
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Answers who waits for the end of leading.
    fn answer(&mut self, waiting: &mut Vec<oneshot::Sender<Result<(), StoreError>>>) {
        let Some(ended) = self.rules.take_ended() else { return };
        if let Err(why) = &ended {
            tracing::warn!(
                lease = self.place.name,
                why,
                "nobody knows whether the Lease was released: it ends by itself"
            );
        }
        for reply in waiting.drain(..) {
            let ended = ended.clone().map_err(|why| {
                let message = format!(
                    "this participant does not lead any more, but its release was not confirmed ({why}): at the latest \
                     after its duration others take the Lease"
                );
                StoreError::new(ErrorKind::Ambiguous, message)
            });
            // Who has asked may be gone.
            let _ = reply.send(ended);
        }
    }

    fn publish(&self, now: Timestamp) {
        let view = self.rules.view(now);
        let leading = view.tenure.map(|tenure| Leading { token: tenure.token, deadline: tenure.deadline });
        let state = LeaderState { leader: view.leader, leading, trouble: view.trouble };
        // Before anybody hears of it.
        self.deadline.set(leading.map_or(Timestamp::ZERO, |leading| leading.deadline));
        let before = self.state.borrow().clone();
        if before != state {
            self.log(&before, &state);
            self.state.send_replace(state);
        }
    }

    fn log(&self, before: &LeaderState, after: &LeaderState) {
        let lease = &self.place.name;
        match (before.leading, after.leading) {
            (None, Some(leading)) => tracing::info!(lease, token = %leading.token, "this participant leads"),
            (Some(leading), None) => tracing::info!(lease, token = %leading.token, "this participant leads no more"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        let holder = |state: &LeaderState| state.leader.as_ref().map(|leader| leader.identity.clone());
        if holder(before) != holder(after) {
            tracing::debug!(lease, leader = holder(after), "the leader is another");
            if self.rules.is_impersonated() {
                tracing::warn!(
                    lease,
                    "somebody else holds the Lease with this participant's identity: each needs its own"
                );
            }
        }
        if before.trouble.is_none()
            && let Some(trouble) = &after.trouble
        {
            tracing::warn!(lease, trouble, "the Lease cannot be read or written");
        }
    }
}

/// Microseconds since 1970, for people.
fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

// --- the watch, which saves time and is never needed ---

enum News {
    Watching(bool),
    Seen(Box<Observed>),
    Gone(Box<Observed>),
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells what happens to the Lease until nobody listens.
async fn follow(place: Place, news: mpsc::Sender<News>) {
    let mut pause = WATCH_PAUSE_MIN;
    while !news.is_closed() {
        let (begun, ended) = follow_once(&place, &news).await;
        if begun {
            pause = WATCH_PAUSE_MIN;
            let _ = news.send(News::Watching(false)).await;
        }
        match ended {
            // As all watches end. Something in between may end each at once.
            Ok(()) => tokio::time::sleep(WATCH_PAUSE_MIN).await,
            Err(error) if error.kind() == ErrorKind::Fatal => {
                tracing::debug!(lease = place.name, %error, "no watch: the Lease is read now and then");
                tokio::time::sleep(WATCH_PAUSE_FORBIDDEN).await;
            }
            Err(error) => {
                tracing::debug!(lease = place.name, %error, "the watch ended");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(WATCH_PAUSE_MAX);
            }
        }
    }
}

/// Says whether it began at all, and how it ended.
async fn follow_once(place: &Place, news: &mpsc::Sender<News>) -> (bool, Result<(), StoreError>) {
    let failed = |error| sort(error, Stage::Reading, &place.server).unexpected();
    let how = WatchParams::default().fields(&format!("metadata.name={}", place.name)).timeout(WATCH_SECONDS);
    // It begins with what the server remembers. Nothing is asked of its past, so nothing of it can be forgotten.
    let stream = match tokio::time::timeout(WATCH_TIMEOUT, place.api.watch(&how, "0")).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return (false, Err(failed(error))),
        Err(_) => return (false, Err(timed_out(Stage::Reading, &place.server, WATCH_TIMEOUT))),
    };
    let mut stream = std::pin::pin!(stream);
    let mut told = News::Watching(true);
    loop {
        if news.send(told).await.is_err() {
            return (true, Ok(()));
        }
        told = loop {
            let event = match stream.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return (true, Ok(())),
                Err(error) => return (true, Err(failed(error))),
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    if let Some(seen) = Observed::new(object) {
                        break News::Seen(Box::new(seen));
                    }
                }
                WatchEvent::Deleted(object) => {
                    if let Some(seen) = Observed::new(object) {
                        break News::Gone(Box::new(seen));
                    }
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return (true, Err(failed(kube::Error::Api(status)))),
            }
        };
    }
}
