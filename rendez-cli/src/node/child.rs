//! A slot's runner that is a child process.

use std::future::pending;

use async_trait::async_trait;
use rendez::{BoxError, Crashed, Runner, RunnerFactory, SlotContext};

use super::command::{Template, Values};
use crate::guardian::{ChildEnd, ChildId, ChildSpec, Guardian};

/// Where the output of a child goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Line by line under the slot's name, together with that of others.
    Marked,
    /// As it is.
    Plain,
}

/// Makes the runners of all slots.
pub(crate) struct Children {
    guardian: Guardian,
    command: Template,
}

impl Children {
    pub(crate) fn new(guardian: Guardian, command: Template) -> Self {
        Self { guardian, command }
    }
}

#[async_trait]
impl RunnerFactory for Children {
    async fn make(&self, _ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        let (guardian, command) = (self.guardian.clone(), self.command.clone());
        Ok(Box::new(Child(ChildRun { guardian, command, output: Output::Marked })))
    }
}

struct Child(ChildRun);

#[async_trait]
impl Runner for Child {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        let (end, told) = self.0.run(&ctx).await?;
        result(end, told)
    }

    fn ends_itself(&self) -> bool {
        true
    }
}

/// One run of a command under a guardian.
pub(crate) struct ChildRun {
    pub(crate) guardian: Guardian,
    pub(crate) command: Template,
    pub(crate) output: Output,
}

impl ChildRun {
    /// Runs the command until nothing of it is left, and says how it ended and whether it was told to.
    pub(crate) async fn run(&self, ctx: &SlotContext) -> Result<(ChildEnd, bool), BoxError> {
        let mut deadlines = ctx.deadline_changes();
        let deadline = *deadlines.borrow_and_update();
        let values = Values {
            cluster: ctx.cluster().clone(),
            node: ctx.node().clone(),
            slot: ctx.slot().clone(),
            token: ctx.token(),
        };
        let (child, mut end) = self.guardian.start_child(ChildSpec {
            name: ctx.slot().to_string(),
            plain: self.output == Output::Plain,
            command: self.command.fill(&values),
            environment: values.environment(),
            deadline,
        })?;
        let _killed_if_dropped = KillOnDrop { guardian: self.guardian.clone(), child };
        let (mut told_to_stop, mut told_to_kill) = (false, false);
        loop {
            tokio::select! {
                biased;
                end = &mut end => match end {
                    Ok(end) => return Ok((end, told_to_stop || told_to_kill)),
                    // Something of it may still run, and nobody can tell: so it keeps its lease until that ends.
                    Err(_) => pending().await,
                },
                () = ctx.aborted(), if !told_to_kill => {
                    told_to_kill = true;
                    self.guardian.kill(child);
                }
                () = ctx.cancelled(), if !told_to_stop => {
                    told_to_stop = true;
                    // The keeper holds the time for the kill itself, in case that this process is frozen by then.
                    self.guardian.stop(child, ctx.abort_at().unwrap_or_else(|| ctx.deadline()));
                }
                Ok(()) = deadlines.changed() => self.guardian.extend(child, *deadlines.borrow_and_update()),
            }
        }
    }
}

struct KillOnDrop {
    guardian: Guardian,
    child: ChildId,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Of no effect on a child that has ended.
        self.guardian.kill(self.child);
    }
}

/// What its end means for the slot. A child that was told to end may do so in any way.
fn result(end: ChildEnd, told: bool) -> Result<(), BoxError> {
    match end {
        ChildEnd::Exited { code: 0 } | ChildEnd::Terminated => Ok(()),
        ChildEnd::Exited { .. } | ChildEnd::Signalled { .. } | ChildEnd::Killed { .. } if told => Ok(()),
        ChildEnd::Exited { code } => Err(format!("its command exited with code {code}").into()),
        ChildEnd::Signalled { signal } => Err(Crashed(format!("its command died by signal {signal}")).into()),
        ChildEnd::Killed { at_deadline: true } => Err("its command was killed at its deadline".into()),
        ChildEnd::Killed { at_deadline: false } => Err("its command was killed".into()),
        ChildEnd::NotStarted { why } => Err(format!("its command was not started: {why}").into()),
        ChildEnd::KeeperDied => Err(Crashed("its keeper was killed, and its command with it".to_owned()).into()),
    }
}
