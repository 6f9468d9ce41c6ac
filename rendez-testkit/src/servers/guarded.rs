//! A child process that cannot outlive this one.
//!
//! Dropping the handle kills it, also while a test panics. If this process is itself killed, nothing of ours runs
//! any more, and the kernel's parent-death signal follows a *thread*, which a runtime may end at any time. So a
//! small shell waits on a pipe whose other end only this process holds: when that end closes without a word, the
//! shell kills the server.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::ServerError;
use crate::processes;

/// `exec` keeps the process id, so `$$` in the watching subshell is the server's. The subshell is forked twice: it
/// is nobody's child, and the server sees no stranger when it waits for its own. `read` succeeds only if this
/// process says that the server is dead already and that its id may belong to somebody else.
///
/// The server is stopped before its children are killed: it can start no other, and their ids stay theirs until it
/// is gone too. `farewell` is run when all are dead.
const WATCHED: &str = r#"
exec 3<&0 </dev/null
folder=$1
farewell=$2
shift 2
( ( trap '' HUP INT TERM
    read -r _ <&3 || {
        kill -STOP $$
        for status in /proc/[0-9]*/status; do
            while read -r key value; do
                if [ "$key $value" = "PPid: $$" ]; then
                    child=${status#/proc/}
                    kill -9 "${child%/status}"
                fi
            done <"$status"
        done
        kill -9 $$
        eval "$farewell"
        rm -rf -- "$folder"
    }
  ) >/dev/null 2>&1 & )
exec "$@" 3<&-
"#;

/// How long a child may take to stand still once it was told to.
const STOP_BOUND: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// The file in a server's folder that holds what it printed.
pub(super) const LOG: &str = "log";

/// A running server process, killed at the latest with this process.
#[derive(Debug)]
pub struct GuardedProcess {
    child: Child,
    watch: Option<ChildStdin>,
}

impl GuardedProcess {
    /// Starts a command with a folder of its own; what it prints is appended to the file `log` in there.
    ///
    /// The folder must be a throw-away: should this process be killed, so that nobody can clean up, it is removed
    /// with all that is in it. Otherwise it is left alone. Program, arguments, environment and folder of `command` are used; its standard streams are not.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the log cannot be written or no process started. A program that does not exist
    /// ends at once instead, with the reason in the log.
    pub fn spawn(command: &Command, folder: &Path) -> Result<Self, ServerError> {
        Self::spawn_with_farewell(command, folder, "")
    }

    /// The same, with a line of shell for what dead processes leave outside of `$folder`. It is run before the
    /// folder is removed, and only if this process has been killed.
    pub(super) fn spawn_with_farewell(command: &Command, folder: &Path, farewell: &str) -> Result<Self, ServerError> {
        let log = folder.join(LOG);
        let name = command.get_program().to_string_lossy().into_owned();
        let out = OpenOptions::new().create(true).append(true).open(&log);
        let out = out.map_err(ServerError::io(format!("open {}", log.display())))?;
        let err = out.try_clone().map_err(ServerError::io(format!("open {}", log.display())))?;
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", WATCHED, "watched"])
            .arg(folder)
            .arg(farewell)
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        shell.stdin(Stdio::piped()).stdout(out).stderr(err);
        let mut child = shell.spawn().map_err(ServerError::io(format!("start {name}")))?;
        let watch = child.stdin.take();
        Ok(Self { child, watch })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, or `None` while it lives.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the operating system does not say.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>, ServerError> {
        self.child.try_wait().map_err(ServerError::io("wait for a server"))
    }

    /// Stops the process and its children (SIGSTOP) and returns when they stand still.
    ///
    /// # Errors
    /// [`ServerError::Io`] if it has ended.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        self.signal(Signal::STOP)?;
        let pid = Pid::from_child(&self.child);
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waited = waitid(WaitId::Pid(pid), options).map_err(std::io::Error::from);
        waited.map_err(ServerError::io("wait for a server to stop"))?;
        let children = self.children();
        self.signal_children(Signal::STOP);
        let start = Instant::now();
        while let Some(child) = children.iter().find(|child| processes::moves(**child)) {
            if start.elapsed() > STOP_BOUND {
                return Err(ServerError::Timeout {
                    condition: format!("process {child} to stop"),
                    waited: start.elapsed(),
                    seen: "it runs".to_owned(),
                });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Lets a stopped process and its children go on (SIGCONT).
    ///
    /// # Errors
    /// [`ServerError::Io`] if it has ended.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        // The children first: as long as their parent stands, it cannot reap one, and their ids stay theirs.
        self.signal_children(Signal::CONT);
        self.signal(Signal::CONT)
    }

    /// Asks the process to end (SIGTERM); does not wait.
    ///
    /// # Errors
    /// [`ServerError::Io`] if it has ended.
    pub fn terminate(&mut self) -> Result<(), ServerError> {
        self.signal(Signal::TERM)
    }

    /// Kills the process and its children (SIGKILL) and returns when they are gone. Does nothing if it has ended.
    pub fn kill(&mut self) {
        let mut children = Vec::new();
        if self.stop().is_ok() {
            children = self.children();
            self.signal_children(Signal::KILL);
        }
        // Errors mean that it is gone, which is what was wanted.
        let _ = self.child.kill();
        // Dismissed before the process is reaped: until then no other process can have its id.
        if let Some(mut watch) = self.watch.take() {
            let _ = watch.write_all(b"gone\n");
        }
        let _ = self.child.wait();
        // What they share with each other must be free for the one that is started next.
        let start = Instant::now();
        while children.iter().any(|child| processes::runs(*child)) && start.elapsed() < STOP_BOUND {
            std::thread::sleep(POLL);
        }
    }

    fn signal_children(&self, signal: Signal) {
        for child in self.children() {
            // An error means that it has ended.
            let _ = processes::signal(child, signal);
        }
    }

    /// All that the process has started and that was not left to another parent; none where nobody can tell.
    fn children(&self) -> Vec<i32> {
        processes::descendants_of(Pid::from_child(&self.child).as_raw_nonzero().get()).unwrap_or_default()
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<(), ServerError> {
        // A reaped child's id may belong to somebody else.
        if let Some(status) = self.exit_status()? {
            return Err(ServerError::Config(format!("cannot send {signal:?}: the server has ended with {status}")));
        }
        let sent = kill_process(Pid::from_child(&self.child), signal).map_err(std::io::Error::from);
        sent.map_err(ServerError::io(format!("send {signal:?}")))
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
