//! The child of supervisors in tests: writes run records and dies, or refuses to, as it is told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rendez_core::{FencingToken, NodeId, Slot, Timestamp};
use rendez_testkit::clock;
use rendez_testkit::records::{Record, RecordKind, RecordWriter};
use rendez_testkit::sink;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

const USAGE: &str = "\
usage: RENDEZ_SLOT=.. RENDEZ_TOKEN=.. RENDEZ_NODE=.. rendez-probe FILE [OPTION...]

Appends run records to FILE until SIGTERM.

  --alive-ms N        time between alive records (20)
  --stop-ms N         goes on for so long after SIGTERM (0)
  --ignore-term       goes on for ever after SIGTERM
  --exit-after-ms N   ends by itself
  --exit-code N       the exit code of an end (0)
  --fork              a descendant writes alive records under the same slot and token, and ignores SIGTERM
  --fork-detached     the same, in a session and process group of its own
  --sink HOST:PORT    writes to this token-checking sink whenever it writes to FILE
  --max-life-ms N     ends in any case (120000): nothing of a failed test may run for ever
";

type Fault = Box<dyn std::error::Error>;

struct Options {
    file: PathBuf,
    alive: Duration,
    stop: Duration,
    ignore_term: bool,
    exit_after: Option<Duration>,
    exit_code: u8,
    fork: Option<&'static str>,
    sink: Option<String>,
    max_life: Duration,
    /// Only for the descendants that `--fork` makes.
    descendant: bool,
    detach: bool,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.peek().is_none_or(|word| word == "--help") {
        print!("{USAGE}");
        return ExitCode::from(2);
    }
    let options = match options(words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("rendez-probe: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::from(options.exit_code),
        Err(error) => {
            eprintln!("rendez-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, Fault> {
    let mut options = Options {
        file: words.next().ok_or("no file")?.into(),
        alive: Duration::from_millis(20),
        stop: Duration::ZERO,
        ignore_term: false,
        exit_after: None,
        exit_code: 0,
        fork: None,
        sink: None,
        max_life: Duration::from_secs(120),
        descendant: false,
        detach: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        let millis = |text: String| text.parse().map(Duration::from_millis);
        match word.as_str() {
            "--alive-ms" => options.alive = millis(value()?)?,
            "--stop-ms" => options.stop = millis(value()?)?,
            "--ignore-term" => options.ignore_term = true,
            "--exit-after-ms" => options.exit_after = Some(millis(value()?)?),
            "--exit-code" => options.exit_code = value()?.parse()?,
            "--fork" => options.fork = Some("--descendant"),
            "--fork-detached" => options.fork = Some("--detached-descendant"),
            "--sink" => options.sink = Some(value()?),
            "--max-life-ms" => options.max_life = millis(value()?)?,
            "--descendant" => options.descendant = true,
            "--detached-descendant" => (options.descendant, options.detach) = (true, true),
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), Fault> {
    // First of all, so that a signal after the first record finds its handler.
    let mut signals = Signals::new([SIGTERM])?;
    if options.detach {
        rustix::process::setsid()?;
    }
    let mut probe = Probe::open(options)?;
    if !options.descendant {
        probe.write(RecordKind::Begin)?;
    }
    if let Some(how) = options.fork {
        let mut descendant = Command::new(std::env::current_exe()?);
        descendant.arg(&options.file).args([how, "--ignore-term"]);
        descendant.args(["--alive-ms", &options.alive.as_millis().to_string()]);
        descendant.args(["--max-life-ms", &options.max_life.as_millis().to_string()]);
        descendant.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    }
    let (asked, wishes) = mpsc::channel();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if asked.send(signal).is_err() {
                return;
            }
        }
    });
    let start = clock::now();
    let mut end = start + options.exit_after.unwrap_or(options.max_life).min(options.max_life);
    let mut asked = false;
    let mut alive = start + options.alive;
    loop {
        match wishes.recv_timeout(end.min(alive).since(clock::now())) {
            Ok(_) if !asked && !options.ignore_term => {
                asked = true;
                end = end.min(clock::now() + options.stop);
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("the signal thread is gone".into()),
        }
        let now = clock::now();
        if now >= end {
            return if options.descendant { Ok(()) } else { probe.write(RecordKind::End) };
        }
        if now >= alive {
            probe.write(RecordKind::Alive)?;
            alive = now + options.alive;
        }
    }
}

struct Probe {
    writer: RecordWriter,
    sink: Option<BufReader<TcpStream>>,
    record: Record,
}

impl Probe {
    fn open(options: &Options) -> Result<Self, Fault> {
        let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
        let slot: Slot = variable("RENDEZ_SLOT")?.parse()?;
        let token = FencingToken::new(variable("RENDEZ_TOKEN")?.parse()?);
        let node = NodeId::new(variable("RENDEZ_NODE")?)?;
        let sink = match &options.sink {
            Some(addr) => Some(BufReader::new(TcpStream::connect(addr)?)),
            None => None,
        };
        let writer = RecordWriter::open(&options.file)?;
        let pid = std::process::id();
        Ok(Self {
            writer,
            sink,
            record: Record { kind: RecordKind::Begin, slot, token, node, pid, at: Timestamp::ZERO },
        })
    }

    fn write(&mut self, kind: RecordKind) -> Result<(), Fault> {
        self.record.kind = kind;
        self.record.at = clock::now();
        self.writer.write(&self.record)?;
        if let Some(sink) = &mut self.sink {
            let line = sink::request(&self.record.slot, self.record.token, &self.record.pid.to_string());
            sink.get_mut().write_all(line.as_bytes())?;
            // Refusals stand in the sink's log; a runner that goes on in spite of one is just what tests want.
            sink.read_line(&mut String::new())?;
        }
        Ok(())
    }
}
