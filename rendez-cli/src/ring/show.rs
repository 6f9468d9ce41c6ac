//! `rendez ring show`: a ring, looked at once or again and again. Takes no part in it and changes nothing.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use rendez::{LeaseStore, RingId, read_cluster};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::checked;
use super::picture::{Moved, Picture};
use crate::cluster_args::StoreArgs;
use crate::exit::{Exit, Failure};
use crate::print::print;

/// A request for one page may take this long.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The width of what is no terminal.
const WIDTH: usize = 80;

/// So many lines of what has moved stay to be seen in a terminal.
const MOVES_SHOWN: usize = 8;

/// Arguments of `rendez ring show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The ring
    ring: RingId,
    /// Look once, and end
    #[arg(long)]
    once: bool,
    /// As JSON, for programs; without --once, a line for every change
    #[arg(long)]
    json: bool,
    /// How long to wait between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::duration::parse)]
    interval: Duration,
}

/// Shows it.
pub(super) async fn show(args: &ShowArgs) -> Result<(), Failure> {
    let (url, config) = checked(&args.store, &args.ring, None)?;
    let store = url.connect(config.connect_timeout, PAGE_TIMEOUT).await?;
    let first = look(&*store, &args.ring).await?;
    if args.once {
        return print(args.json, &first, || first.text(width(), colours()));
    }
    let mut screen = Screen::new(args.json, first);
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    // A reader that has seen enough (`| head`) is the end, and no failure.
    let mut seen = screen.begin();
    while seen.is_ok() {
        ticks.tick().await;
        seen = match look(&*store, &args.ring).await {
            Ok(picture) => screen.show(picture),
            // It may come back.
            Err(failure) if matches!(failure.exit, Exit::Store) => screen.trouble(&failure),
            Err(failure) => return Err(failure),
        };
    }
    Ok(())
}

async fn look(store: &dyn LeaseStore, ring: &RingId) -> Result<Picture, Failure> {
    let view = read_cluster(store, ring.cluster(), PAGE_TIMEOUT).await;
    let mut view = view.map_err(|error| Failure::new(Exit::Store, error))?;
    let none = || format!("there is no ring {ring} in this store: `rendez ring join` makes it");
    Picture::of(ring, &mut view).ok_or_else(|| Failure::new(Exit::Failure, none()))
}

/// Where pictures follow each other.
struct Screen {
    json: bool,
    terminal: bool,
    begin: Instant,
    last: Picture,
    moves: VecDeque<String>,
}

/// A change, as JSON.
#[derive(Serialize)]
struct Change<'a> {
    at_ms: u128,
    moved: &'a [Moved],
    picture: &'a Picture,
}

impl Screen {
    fn new(json: bool, first: Picture) -> Self {
        let terminal = io::stdout().is_terminal() && !json;
        Self { json, terminal, begin: Instant::now(), last: first, moves: VecDeque::new() }
    }

    fn begin(&self) -> io::Result<()> {
        if self.json { self.line(&[]) } else { self.draw("") }
    }

    fn show(&mut self, picture: Picture) -> io::Result<()> {
        let moved = picture.moves_since(&self.last);
        let names = |picture: &Picture| picture.nodes.iter().map(|it| it.node.clone()).collect::<Vec<_>>();
        let members_changed = names(&picture) != names(&self.last);
        self.last = picture;
        for text in moved.iter().map(Moved::text) {
            self.moves.push_back(format!("[{:>8.1}s] {text}", self.begin.elapsed().as_secs_f64()));
        }
        if self.json {
            if !moved.is_empty() || members_changed {
                self.line(&moved)?;
            }
        } else if self.terminal {
            self.moves.drain(..self.moves.len().saturating_sub(MOVES_SHOWN));
            self.draw("")?;
        } else {
            let moves: Vec<_> = self.moves.drain(..).collect();
            if members_changed {
                self.draw("")?;
            }
            moves.iter().try_for_each(|text| write(&format!("{text}\n")))?;
        }
        Ok(())
    }

    fn trouble(&self, failure: &Failure) -> io::Result<()> {
        let note = format!("the store is in trouble: {}\n", failure.message);
        if self.terminal {
            return self.draw(&note);
        }
        eprint!("rendez: {note}");
        Ok(())
    }

    /// In a terminal over what was there, elsewhere below it.
    fn draw(&self, note: &str) -> io::Result<()> {
        let mut text = self.last.text(width(), colours());
        if self.terminal {
            text = format!("\u{1b}[H\u{1b}[2J{text}");
            if !self.moves.is_empty() {
                text += "\nwhat moved\n";
                self.moves.iter().for_each(|line| text += &format!("{}\n", cut(line, width())));
            }
        }
        write(&(text + note))
    }

    fn line(&self, moved: &[Moved]) -> io::Result<()> {
        let change = Change { at_ms: self.begin.elapsed().as_millis(), moved, picture: &self.last };
        write(&(serde_json::to_string(&change)? + "\n"))
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Columns of the terminal; it may be made wider or narrower at any time.
fn width() -> usize {
    let out = io::stdout();
    let size = rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col));
    size.filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

/// Whether colours are wanted: in a terminal, unless `NO_COLOR` is set.
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}
