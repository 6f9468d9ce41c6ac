//! Leader election on one Lease, by the rules of client-go's leader election: participants in Go and these share one Lease, in
//! both directions.
//!
//! [`LeaderLease`] is complete in itself: it uses nothing of the [store](crate::KubernetesStore), no session and no slot. What the rules
//! are stands in `rules`, which is pure; `run` carries them out.

mod lease;
mod options;
mod rules;
mod run;

use std::fmt;
use std::sync::Arc;

use kube::{Api, Client};
use rendez_core::{ErrorKind, FencingToken, StoreError, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::options::LeaderLeaseOptions;
use self::rules::Rules;
use self::run::{Command, Deadline, Driver, Place};
use crate::clock::boot_now;
use crate::connect;
use crate::options::KubernetesOptions;

/// Requests of handles that wait for the driver.
const COMMANDS_MAX: usize = 16;

/// What is known of an election at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LeaderState {
    /// Who leads, as was last observed.
    pub leader: Option<Leader>,
    /// This participant's own leadership.
    pub leading: Option<Leading>,
    /// Why the last request did not succeed; nothing after one that did.
    pub trouble: Option<String>,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The identity that stands in the Lease.
    pub identity: String,
    /// Until when this is believed if nothing more is heard: a moment on this machine's boot-time clock.
    pub until: Timestamp,
}

/// One participant's leadership, as far as it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leading {
    /// The fencing token of this tenure: `leaseTransitions` of the Lease. See [`LeaderLease::token`].
    pub token: FencingToken,
    /// It ends here if no renewal succeeds: a moment on this machine's boot-time clock.
    pub deadline: Timestamp,
}

/// A participant in an election on a Lease. Clones are handles of the same participant.
///
/// It takes part from the start until [`stop`](Self::stop), or until the last handle is dropped; then it gives the Lease back, if the
/// runtime is still there to do so. A process that dies gives nothing back: others wait for the lease duration.
///
/// ```no_run
/// # async fn example(client: kube::Client) -> Result<(), rendez_core::StoreError> {
/// use rendez_kubernetes::{LeaderLease, LeaderLeaseOptions};
/// let identity = LeaderLeaseOptions::unique_identity("pod-7f3c");
/// let election = LeaderLease::start(client, LeaderLeaseOptions::new("my-namespace", "my-controller", identity))?;
/// loop {
///     let token = election.wait_for_leadership().await?;
///     while election.is_leader() {
///         // A piece of work, which shows the token to whatever it writes to.
///         # let _ = token; break;
///     }
///     # break;
/// }
/// election.stop().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LeaderLease {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<LeaderState>,
    deadline: Arc<Deadline>,
    options: Arc<LeaderLeaseOptions>,
}

impl fmt::Debug for LeaderLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderLease")
            .field("options", &self.options)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

impl LeaderLease {
    /// Takes part, with a client of your own; the task runs in the runtime that this is called in. Nothing is sent before this returns, and no
    /// trouble with the server ends it: see [`LeaderState::trouble`].
    ///
    /// Let the client not retry by itself (`Config::default_retry`), and set no read timeout: how long a request may take is
    /// counted here.
    ///
    /// # Errors
    /// [`Fatal`](ErrorKind::Fatal) for [options](LeaderLeaseOptions::check) that cannot work.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(client: Client, options: LeaderLeaseOptions) -> Result<Self, StoreError> {
        Self::start_at(client, "the given client's address", options)
    }

    /// Makes a client, and takes part: with the kubeconfig file that the access names, or as `kubectl` finds one, or in a pod with
    /// its service account. Nothing is sent before this returns. Of the access only the file, the context and the connect timeout count.
    ///
    /// # Errors
    /// [`Fatal`](ErrorKind::Fatal) for options or an access that cannot work. No message holds a credential.
    pub async fn connect(access: &KubernetesOptions, options: LeaderLeaseOptions) -> Result<Self, StoreError> {
        options.check()?;
        access.check()?;
        let (client, host) = connect::client(access).await?;
        Self::start_at(client, &host, options)
    }

    fn start_at(client: Client, host: &str, options: LeaderLeaseOptions) -> Result<Self, StoreError> {
        options.check()?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (state, told) = watch::channel(LeaderState::default());
        let deadline = Arc::new(Deadline::default());
        let place = Place {
            api: Api::namespaced_with(client, &options.namespace, &lease::resource()),
            name: options.name.clone(),
            server: format!("{host}, namespace {}", options.namespace),
            timeout: options.request_timeout(),
        };
        let rules = Rules::new(options.clone(), fastrand::u64(..));
        let driver = Driver { rules, place, commands, deadline: Arc::clone(&deadline), state };
        tokio::spawn(driver.run());
        Ok(Self { commands: sender, state: told, deadline, options: Arc::new(options) })
    }

    /// Whether this participant leads at this moment: an atomic load and a reading of the clock, no lock, no I/O.
    ///
    /// Never true at or after the deadline: the moment before the last renewal that succeeded was sent + the
    /// [renew deadline](LeaderLeaseOptions::renew_deadline), on a clock that goes on while the system is suspended, also if the
    /// process was frozen and has not done anything since. Ask before each side effect. The process can be paused between this call and the
    /// effect; only a sink that compares [`token`](Self::token)s closes that gap.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.deadline.is_ahead()
    }

    /// The fencing token of the present tenure, while this participant leads.
    ///
    /// It is `leaseTransitions` of the Lease, never 0, and higher with each tenure of participants of this library. It rises with each change of holder
    /// by Go participants, too, but one of those that takes its own expired Lease again does not raise it. A Lease that is
    /// deleted and made again goes on above what the participant that makes it has seen; if none is left that has seen it, from 1. So this is best effort: see
    /// `docs/stores/kubernetes.md`.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        let leading = self.state.borrow().leading?;
        (self.is_leader() && boot_now() < leading.deadline).then_some(leading.token)
    }

    /// Who leads, as far as is known here: this participant's own identity only while [`is_leader`](Self::is_leader), another's for as long as it
    /// may believe so itself.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        let state = self.state.borrow();
        let leader = state.leader.as_ref()?;
        let believed = boot_now() < leader.until && (state.leading.is_none() || self.is_leader());
        believed.then(|| leader.identity.clone())
    }

    /// What the options say that this participant is called.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.options.identity
    }

    /// Waits until this participant leads; answers the tenure's token, at once if it leads already. Cancelling it changes nothing.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost) when it takes part no more. One that may not lead waits until then.
    pub async fn wait_for_leadership(&self) -> Result<FencingToken, StoreError> {
        let mut state = self.state.clone();
        loop {
            state.mark_unchanged();
            if let Some(token) = self.token() {
                return Ok(token);
            }
            state
                .changed()
                .await
                .map_err(|_| StoreError::new(ErrorKind::Lost, "this participant takes part no more: start another"))?;
        }
    }

    /// Waits until this participant does not lead, at once if it does not. Cancelling it changes nothing.
    ///
    /// This is a convenience for work that is to be interrupted. It may wake late, on a busy runtime or after a suspend;
    /// [`is_leader`](Self::is_leader) is never late.
    pub async fn wait_for_loss(&self) {
        let mut state = self.state.clone();
        while self.is_leader() {
            // Where the driver is gone, the deadline comes all the same.
            let left = state.borrow_and_update().leading.map_or(Timestamp::ZERO, |it| it.deadline).since(boot_now());
            tokio::select! {
                changed = state.changed() => if changed.is_err() { tokio::time::sleep(left).await },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// The state and each change of it, the latest only. It changes with each renewal, which moves deadlines.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<LeaderState> {
        self.state.clone()
    }

    /// Gives up leading, if this participant does, and stands back until another has led, or for one lease duration. Whoever watches the
    /// Lease takes it within milliseconds. **End your work first**: from here on another may lead.
    ///
    /// [`is_leader`](Self::is_leader) is false when the request is sent. Cancelling this does not cancel what was begun.
    ///
    /// # Errors
    /// [`Ambiguous`](ErrorKind::Ambiguous) if the release was not confirmed within the renew deadline. This participant does
    /// not lead in any case; the Lease may name it until it expires.
    pub async fn resign(&self) -> Result<(), StoreError> {
        self.ask(Command::Resign).await
    }

    /// Gives up leading, if this participant does, and takes part no more, through no handle. **End your work first.** Stopping again
    /// changes nothing. Cancelling this does not cancel what was begun.
    ///
    /// # Errors
    /// As [`resign`](Self::resign).
    pub async fn stop(&self) -> Result<(), StoreError> {
        self.ask(Command::Stop).await
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Command,
    ) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            // It has stopped already.
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}
