//! The demonstration ends by itself, soon, and well.

use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn the_demonstration_ends_well() {
    let begin = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_rendez")).arg("demo").output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{out}\n{error}", output.status);
    assert!(out.contains("no slot ever ran twice at a time"), "{out}");
    assert!(begin.elapsed() < Duration::from_secs(60), "it took {:?}", begin.elapsed());
}
