//! Two owners of one slot write a file through a fence, and what the fence costs.
//!
//! `cargo run --release -p rendez-file --example file-fence [FOLDER]`; without a folder it makes one for temporary files.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use rendez_core::FencingToken;
use rendez_file::{Fence, FenceError};
use rendez_testkit::measure::beside;

const WRITES: usize = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let own = tempfile::tempdir()?;
    let folder = std::env::args().nth(1).map_or_else(|| own.path().to_owned(), PathBuf::from);

    // In a runner the token is `ctx.token()`.
    let (before, after) = (FencingToken::new(1), FencingToken::new(2));
    let fence = Fence::at(folder.join("inbox-3.fence"));
    let log = folder.join("inbox-3.log");
    let append = |line: &str| -> io::Result<File> {
        let mut file = OpenOptions::new().append(true).create(true).open(&log)?;
        writeln!(file, "{line}")?;
        Ok(file)
    };
    fence.write(before, || append("anna"))?;
    fence.write(after, || append("ben, after anna was paused"))?;
    match fence.write(before, || append("anna, who has just woken up")) {
        Err(FenceError::Stale(stale)) => println!("anna's late write is refused: {stale}"),
        other => return Err(format!("{other:?}").into()),
    }
    print!("what was written:\n{}", std::fs::read_to_string(&log)?);

    let (mut plain, mut fenced) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        let begun = Instant::now();
        append("x")?;
        plain.push(begun.elapsed());
        let begun = Instant::now();
        fence.write(after, || append("x"))?;
        fenced.push(begun.elapsed());
    }
    println!("{}", beside(("opening and appending", &plain), ("through the fence", &fenced)));
    Ok(())
}
