//! `rendez elect`: a command that runs only while this node leads.
//!
//! What runs in the election's slot is the command, under a guardian as all children are; how that ended decides the exit
//! code.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rendez::core::placement::Policy;
use rendez::{BoxError, Declared, ELECTION_CLUSTER, ELECTION_TTL, Runner, RunnerFactory, SlotContext, StopReason};
use tokio::sync::Notify;

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::guardian::{ChildEnd, Guardian};
use crate::node::{self, ChildRun, Output, Plan, Template};
use crate::store_url::StoreUrl;

/// Quiet, so that the command's output is all that there is: only what a person should know.
pub(crate) const LOG_FILTER: &str = "warn,rendez::driver::events=off";

/// The exit code where leadership did not come in time or ended before the command did: trying again makes sense
/// (`EX_TEMPFAIL` of `sysexits.h`).
const TRY_AGAIN: u8 = 75;

const EXIT_CODES: &str = "\
Exit codes: the command's own; 128 and the signal's number if a signal ended it; 0 if rendez was told to end, and nothing \
had to be killed; 75 if leadership was lost while the command ran, or did not come in time (--wait). Where the command did \
not run: 1 failure, 2 usage, 3 store, 4 node name in use; and 5 promise broken. What is not the command's own is also said, after \"rendez: \"";

/// Arguments of `rendez elect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ElectArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// This candidate's name, what everybody sees as the leader's; the host's with a random end unless given
    #[arg(long)]
    node: Option<String>,
    /// So long after its last heartbeat a leader that is not heard of any more is followed by another; 15s unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    session_ttl: Option<Duration>,
    /// How long the command may take to end after SIGTERM; three tenths of the session TTL unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    stop_budget: Option<Duration>,
    /// How much this candidate is preferred when nobody leads; 0 unless given
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    priority: u32,
    /// Give up (75) if this candidate does not lead within this time; for ever unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    wait: Option<Duration>,
    /// Stand again when leadership is lost, and run the command anew, instead of giving up
    #[arg(long)]
    stay: bool,
    /// Give up at once if another process has this node's name, instead of waiting for its end
    #[arg(long)]
    no_wait: bool,
    /// The election
    #[arg(value_name = "NAME")]
    name: String,
    /// The command to run while leading; {token}, {node}, {cluster}, {workload} (the election's name) are filled in
    #[arg(last = true, value_name = "COMMAND", required = true)]
    command: Vec<String>,
}

impl ElectArgs {
    fn plan(&self) -> Result<(Plan, Template), Failure> {
        let defaults = format!("cluster = {ELECTION_CLUSTER:?}\nsession_ttl = \"{}s\"", ELECTION_TTL.as_secs());
        let candidate = Declared::new(1).with_policy(Policy::Sticky).with_priority(self.priority);
        let mut config = self.cluster.config_over(&defaults)?.workload(&self.name, candidate);
        if let Some(node) = &self.node {
            config = config.node_id(node);
        }
        if let Some(time) = self.session_ttl {
            config = config.session_ttl(time);
        }
        if let Some(time) = self.stop_budget {
            config = config.stop_budget(time);
        }
        if self.no_wait {
            config = config.give_up_if_in_use(true);
        }
        let config = resolve(&config)?;
        let store = StoreUrl::of(&config)?;
        let command = Template::new(self.command.clone()).map_err(|wrong| Failure::new(Exit::Usage, wrong))?;
        Ok((Plan { config, store }, command))
    }
}

/// Stands, and runs the command while leading.
pub(crate) fn elect(args: ElectArgs) -> Result<ExitCode, Failure> {
    let (plan, command) = args.plan()?;
    let (enough, progress) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Progress::Standing)));
    if let Some(wait) = args.wait {
        give_up_after(wait, progress.clone(), enough.clone());
    }
    let runners = |guardian: &Guardian| -> Arc<dyn RunnerFactory> {
        let (guardian, command) = (guardian.clone(), command.clone());
        Arc::new(Leads {
            run: Arc::new(ChildRun { guardian, command, output: Output::Plain }),
            stay: args.stay,
            enough: enough.clone(),
            progress: progress.clone(),
        })
    };
    let by_signal = node::run(&plan, &runners, &enough)?;
    let progress = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(ExitCode::from(exit_code(&args.name, &progress, by_signal)))
}

/// How far it has come.
#[derive(Debug, Clone)]
enum Progress {
    /// The command has not run yet, or may run again.
    Standing,
    /// Leadership did not come in time.
    TooLate,
    /// The command runs.
    Leading,
    /// The command ended by itself.
    Ended(ChildEnd),
    /// The command was told to end for this reason.
    Stopped(ChildEnd, Option<StopReason>),
}

/// A thread, since there may be no runtime yet; it ends with the process.
fn give_up_after(wait: Duration, progress: Arc<Mutex<Progress>>, enough: Arc<Notify>) {
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*progress, Progress::Standing) {
            *progress = Progress::TooLate;
            enough.notify_one();
        }
    });
}

fn exit_code(name: &str, progress: &Progress, by_signal: bool) -> u8 {
    let (end, lost) = match progress {
        Progress::Standing | Progress::Leading if by_signal => return 0,
        Progress::TooLate => {
            eprintln!("rendez: this node was not elected in {name:?} in time: gave up waiting");
            return TRY_AGAIN;
        }
        Progress::Standing | Progress::Leading => return Exit::Failure as u8,
        Progress::Ended(end) => (end, None),
        Progress::Stopped(end, _) if by_signal => (end, None),
        Progress::Stopped(end, why) => (end, Some(why)),
    };
    if let Some(why) = lost {
        let why = why.as_ref().map_or_else(|| "it ended".to_owned(), ToString::to_string);
        eprintln!("rendez: leadership of {name:?} was lost, and the command ended: {why}");
        return TRY_AGAIN;
    }
    match end {
        ChildEnd::Exited { code } => u8::try_from(*code).unwrap_or(Exit::Failure as u8),
        ChildEnd::Terminated => 0,
        ChildEnd::Signalled { signal } => 128 + u8::try_from(*signal).unwrap_or(0),
        ChildEnd::Killed { .. } | ChildEnd::KeeperDied => 128 + 9,
        ChildEnd::NotStarted { why } => {
            eprintln!("rendez: the command was not started: {why}");
            Exit::Failure as u8
        }
    }
}

/// Makes the runner of the election's slot.
struct Leads {
    run: Arc<ChildRun>,
    stay: bool,
    enough: Arc<Notify>,
    progress: Arc<Mutex<Progress>>,
}

#[async_trait]
impl RunnerFactory for Leads {
    async fn make(&self, _ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        let Self { run, stay, enough, progress } = self;
        Ok(Box::new(Leading { run: run.clone(), stay: *stay, enough: enough.clone(), progress: progress.clone() }))
    }
}

struct Leading {
    run: Arc<ChildRun>,
    stay: bool,
    enough: Arc<Notify>,
    progress: Arc<Mutex<Progress>>,
}

impl Leading {
    /// Goes on to this, unless it is over already; whether it did.
    fn go_on(&self, to: Progress) -> bool {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let over = matches!(*progress, Progress::TooLate | Progress::Ended(_) | Progress::Stopped(..));
        if !over {
            *progress = to;
        }
        !over
    }
}

#[async_trait]
impl Runner for Leading {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        if self.go_on(Progress::Leading) {
            let (end, told) = self.run.run(&ctx).await?;
            let lost = told && ctx.stop_reason() != Some(StopReason::Shutdown);
            if lost && self.stay && self.go_on(Progress::Standing) {
                return Ok(());
            }
            self.go_on(if told { Progress::Stopped(end, ctx.stop_reason()) } else { Progress::Ended(end) });
            self.enough.notify_one();
        }
        // Ended is ended: the slot is held, with nothing in it, until the node lets go of it.
        ctx.cancelled().await;
        Ok(())
    }

    fn ends_itself(&self) -> bool {
        true
    }
}
