//! A participant as client-go's leader election has it (`tools/leaderelection` with a `LeaseLock`, as of 1.32): written from what that does, step
//! for step, so that both kinds can be tried on one Lease.
//!
//! It is as careless as the original where that is: a Lease with its own identity is its own, and a record is timed from when
//! the answer to a write came.
#![allow(dead_code, unreachable_pub)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rendez_core::Timestamp;
use rendez_kubernetes::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use rendez_kubernetes::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use rendez_kubernetes::k8s_openapi::jiff;
use rendez_kubernetes::kube::api::{ObjectMeta, PostParams};
use rendez_kubernetes::kube::{Api, Error};
use rendez_testkit::clock;
use tokio::sync::watch;

/// `JitterFactor`.
const JITTER: f64 = 1.2;

/// The three times of a `LeaderElectionConfig`.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

/// `LeaderElectionRecord`.
#[derive(Debug, Clone, PartialEq, Default)]
struct Record {
    holder: String,
    seconds: i32,
    transitions: i32,
    acquired: Option<MicroTime>,
    renewed: Option<MicroTime>,
}

impl Record {
    fn of(spec: &LeaseSpec) -> Self {
        Self {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            seconds: spec.lease_duration_seconds.unwrap_or(0),
            transitions: spec.lease_transitions.unwrap_or(0),
            acquired: spec.acquire_time.clone(),
            renewed: spec.renew_time.clone(),
        }
    }

    fn to_spec(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(self.seconds),
            lease_transitions: Some(self.transitions),
            acquire_time: self.acquired.clone(),
            renew_time: self.renewed.clone(),
            ..LeaseSpec::default()
        }
    }
}

fn now() -> Option<MicroTime> {
    let micros = jiff::Timestamp::now().as_microsecond();
    jiff::Timestamp::from_microsecond(micros).ok().map(MicroTime)
}

/// What such a participant says of itself.
#[derive(Debug, Default)]
pub struct Told {
    /// Between `OnStartedLeading` and `OnStoppedLeading`: its transitions, and when the last write that succeeded was sent.
    leading: Mutex<Option<(u64, Timestamp)>>,
    released: AtomicBool,
}

impl Told {
    /// Its transitions while it leads, and while nobody else may yet: its callbacks may come late on a machine that stands still,
    /// and it does not look at the clock.
    pub fn token(&self, lease_duration: Duration) -> Option<u64> {
        let leading = *self.leading.lock().unwrap();
        leading.filter(|(_, sent)| clock::now() < *sent + lease_duration).map(|(token, _)| token)
    }

    /// When its last write that succeeded was sent, if it leads under this token.
    pub fn sent(&self, token: u64) -> Option<Timestamp> {
        self.leading.lock().unwrap().filter(|(own, _)| *own == token).map(|(_, sent)| sent)
    }

    pub fn has_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }
}

/// `LeaderElector`.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    times: Times,
    /// `LeaseLock.lease`.
    lease: Option<Lease>,
    observed: Record,
    observed_raw: Option<Record>,
    observed_at: Option<Instant>,
    told: Arc<Told>,
}

impl Elector {
    pub fn new(api: Api<Lease>, name: &str, identity: &str, times: Times) -> (Self, Arc<Told>) {
        let told = Arc::new(Told::default());
        let elector = Self {
            api,
            name: name.to_owned(),
            identity: identity.to_owned(),
            times,
            lease: None,
            observed: Record::default(),
            observed_raw: None,
            observed_at: None,
            told: Arc::clone(&told),
        };
        (elector, told)
    }

    /// `Run`, again and again as programs do it, until it is cancelled; then with `ReleaseOnCancel`.
    pub async fn run(mut self, mut cancelled: watch::Receiver<bool>) {
        loop {
            let done = tokio::select! {
                _ = cancelled.wait_for(|cancelled| *cancelled) => true,
                () = self.acquire_and_renew() => false,
            };
            *self.told.leading.lock().unwrap() = None;
            if done {
                if self.is_leader() {
                    self.release().await;
                }
                return;
            }
        }
    }

    async fn acquire_and_renew(&mut self) {
        let Times { renew_deadline, retry_period, .. } = self.times;
        while !self.try_acquire_or_renew().await {
            tokio::time::sleep(retry_period.mul_f64(1.0 + fastrand::f64() * JITTER)).await;
        }
        loop {
            let renewed = tokio::time::timeout(renew_deadline, async {
                while !self.try_acquire_or_renew().await {
                    tokio::time::sleep(retry_period).await;
                }
            });
            if renewed.await.is_err() {
                return;
            }
            tokio::time::sleep(retry_period).await;
        }
    }

    fn is_leader(&self) -> bool {
        self.observed.holder == self.identity
    }

    fn is_valid(&self, now: Instant) -> bool {
        let lasts = Duration::from_secs(u64::try_from(self.observed.seconds).unwrap_or(0));
        self.observed_at.is_some_and(|at| at + lasts > now)
    }

    fn observe(&mut self, record: Record) {
        self.observed = record;
        self.observed_at = Some(Instant::now());
    }

    fn leads(&self, sent: Timestamp) {
        let token = u64::try_from(self.observed.transitions).unwrap();
        *self.told.leading.lock().unwrap() = Some((token, sent));
    }

    async fn update(&mut self, record: &Record) -> Result<(), Error> {
        let mut lease = self.lease.clone().unwrap();
        lease.spec = Some(record.to_spec());
        self.lease = Some(self.api.replace(&self.name, &PostParams::default(), &lease).await?);
        Ok(())
    }

    async fn try_acquire_or_renew(&mut self) -> bool {
        let begun = Instant::now();
        let seconds = i32::try_from(self.times.lease_duration.as_secs()).unwrap();
        let mut record =
            Record { holder: self.identity.clone(), seconds, transitions: 0, acquired: now(), renewed: now() };
        // 1. The leader writes over what it knows.
        if self.is_leader() && self.is_valid(begun) {
            record.acquired = self.observed.acquired.clone();
            record.transitions = self.observed.transitions;
            let sent = clock::now();
            if self.update(&record).await.is_ok() {
                self.observe(record);
                self.leads(sent);
                return true;
            }
        }
        // 2. Get, or create.
        let old = match self.api.get_opt(&self.name).await {
            Err(_) => return false,
            Ok(Some(lease)) => {
                let old = Record::of(lease.spec.as_ref().unwrap_or(&LeaseSpec::default()));
                self.lease = Some(lease);
                old
            }
            Ok(None) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(record.to_spec()) };
                let sent = clock::now();
                let Ok(made) = self.api.create(&PostParams::default(), &lease).await else { return false };
                self.lease = Some(made);
                self.observe(record);
                self.leads(sent);
                return true;
            }
        };
        // 3. A change begins a new wait.
        if self.observed_raw.as_ref() != Some(&old) {
            self.observe(old.clone());
            self.observed_raw = Some(old.clone());
        }
        if !old.holder.is_empty() && self.is_valid(begun) && !self.is_leader() {
            return false;
        }
        // 4. Take it, or go on.
        if self.is_leader() {
            record.acquired = old.acquired;
            record.transitions = old.transitions;
        } else {
            record.transitions = old.transitions + 1;
        }
        let sent = clock::now();
        if self.update(&record).await.is_err() {
            return false;
        }
        self.observe(record);
        self.leads(sent);
        true
    }

    async fn release(&mut self) {
        let Ok(lease) = self.api.get(&self.name).await else { return };
        let transitions = Record::of(lease.spec.as_ref().unwrap()).transitions;
        self.lease = Some(lease);
        let record = Record { holder: String::new(), seconds: 1, transitions, acquired: now(), renewed: now() };
        if self.update(&record).await.is_ok() {
            self.told.released.store(true, Ordering::Release);
            self.observe(record);
        }
    }
}
