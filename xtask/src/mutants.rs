//! `cargo xtask mutants`: plants bugs one at a time, and sees that the simulator finds each of them.
//!
//! The bugs stand in `rendez-sim/mutants.txt`, as texts that are replaced in a copy of the sources: the shipped code has
//! no hooks for them. A bug whose text is not in the sources any more, or not once, stops everything before it begins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Failure, run};

const LIST: &str = "rendez-sim/mutants.txt";

/// The crates that are copied.
const CRATES: &[&str] = &["rendez-core", "rendez-sim"];

/// A bug that is not found in this many seeds, from each of so many starts, is missed.
const SEEDS: u64 = 3000;
const STARTS: usize = 5;

/// The sources as they are must be clean for this many seeds.
const CLEAN_SEEDS: u64 = 500;

/// A bug that is planted.
#[derive(Debug, PartialEq, Eq)]
struct Mutant {
    name: String,
    wrong: String,
    file: String,
    old: String,
    new: String,
}

/// Plants the bugs with these names (or all of them) one after the other, and prints how many seeds each took.
/// `--seeds N` and `--starts N` before the names say how long to look.
pub(crate) fn mutants(mut words: &[&str]) -> Result<(), Failure> {
    let (mut seeds, mut starts) = (SEEDS, STARTS);
    while let [option @ ("--seeds" | "--starts"), value, rest @ ..] = words {
        let number: u64 = value.parse().map_err(|_| Failure(format!("{option} {value}: this is no number")))?;
        if *option == "--seeds" {
            seeds = number.max(1);
        } else {
            starts = usize::try_from(number.clamp(1, 100)).unwrap_or(STARTS);
        }
        words = rest;
    }
    let names = words;
    let root = run::root();
    let text = fs::read_to_string(root.join(LIST)).map_err(|error| Failure(format!("{LIST}: {error}")))?;
    let all = parse(&text)?;
    for mutant in &all {
        mutant.planted(&root)?;
    }
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|mutant| mutant.name == **name)) {
        return Err(Failure(format!("there is no mutant {unknown:?} in {LIST}")));
    }
    let copy = Copy::make(&root)?;
    copy.build()?;
    let clean = copy.hunt(CLEAN_SEEDS, 1)?;
    if !clean[0].starts_with("missed") {
        return Err(Failure(format!("the sources as they are break a promise: {}", clean[0])));
    }
    println!("{:<34} {:>6} {:>6}  how", "planted bug", "median", "most");
    let (mut caught, mut missed) = (0, Vec::new());
    for mutant in all.iter().filter(|mutant| names.is_empty() || names.contains(&mutant.name.as_str())) {
        let begun = Instant::now();
        let found = copy.with(mutant, seeds, starts)?;
        let mut after: Vec<u64> = found.iter().filter_map(|line| caught_after(line)).collect();
        after.sort_unstable();
        let hangs = found.iter().any(|line| line == "hangs");
        let how = found.iter().find(|line| caught_after(line).is_some()).map_or("", |line| said(line));
        if after.len() == starts {
            caught += 1;
            println!("{:<34} {:>6} {:>6}  {how}", mutant.name, after[starts / 2], after[starts - 1]);
        } else if hangs {
            caught += 1;
            println!("{:<34} found: a world does not come to its end", mutant.name);
        } else {
            println!("{:<34} found from {} of {starts} starts  {how}", mutant.name, after.len());
            if after.is_empty() {
                missed.push(mutant.name.clone());
            } else {
                caught += 1;
            }
        }
        eprintln!("  {} ({:.0?})", mutant.wrong, begun.elapsed());
    }
    println!("{caught} caught, {} missed", missed.len());
    if missed.is_empty() { Ok(()) } else { Err(Failure(format!("missed: {}", missed.join(", ")))) }
}

/// `caught 17 1000016 S2 broken at …`: after how many seeds.
fn caught_after(line: &str) -> Option<u64> {
    line.strip_prefix("caught ")?.split(' ').next()?.parse().ok()
}

/// What stands behind the seed.
fn said(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}

impl Mutant {
    /// The source with the bug in it.
    fn planted(&self, root: &Path) -> Result<String, Failure> {
        let source = fs::read_to_string(root.join(&self.file))
            .map_err(|error| Failure(format!("mutant {}: {}: {error}", self.name, self.file)))?;
        match source.matches(&self.old).count() {
            1 => Ok(source.replacen(&self.old, &self.new, 1)),
            times => Err(Failure(format!(
                "mutant {}: its text is {times} times in {}, and must be there once: bring {LIST} up to date",
                self.name, self.file
            ))),
        }
    }
}

/// A copy of the sources, built with quick settings in a folder of its own.
struct Copy {
    folder: PathBuf,
    root: PathBuf,
}

impl Copy {
    fn make(root: &Path) -> Result<Self, Failure> {
        let copy = Self { folder: root.join("target/mutants"), root: root.to_owned() };
        for name in CRATES {
            copy_folder(&root.join(name), &copy.folder.join(name))?;
        }
        let manifest = fs::read_to_string(root.join("Cargo.toml")).map_err(|error| Failure(error.to_string()))?;
        write(&copy.folder.join("Cargo.toml"), &quick_manifest(&manifest)?)?;
        let lock = fs::read_to_string(root.join("Cargo.lock")).map_err(|error| Failure(error.to_string()))?;
        write(&copy.folder.join("Cargo.lock"), &lock)?;
        Ok(copy)
    }

    fn build(&self) -> Result<(), Failure> {
        let mut build = run::cargo(&["build", "--quiet", "--offline", "-p", "rendez-sim", "--example", "hunt"]);
        build.current_dir(&self.folder).env("CARGO_TARGET_DIR", self.folder.join("target"));
        build.env("RUSTFLAGS", "-A warnings");
        run::output(&mut build).map(drop)
    }

    fn hunt(&self, seeds: u64, starts: usize) -> Result<Vec<String>, Failure> {
        let mut hunt = Command::new(self.folder.join("target/debug/examples/hunt"));
        hunt.args(["swarm", "1", &seeds.to_string(), &starts.to_string()]).stdin(Stdio::null());
        Ok(run::output(&mut hunt)?.lines().map(str::to_owned).collect())
    }

    /// Plants a bug, hunts for it, and takes it out again.
    fn with(&self, mutant: &Mutant, seeds: u64, starts: usize) -> Result<Vec<String>, Failure> {
        let file = self.folder.join(&mutant.file);
        let planted = mutant.planted(&self.root)?;
        write(&file, &planted)?;
        let found = self.build().and_then(|()| self.hunt(seeds, starts));
        let source = fs::read_to_string(self.root.join(&mutant.file)).map_err(|error| Failure(error.to_string()))?;
        write(&file, &source)?;
        found
    }
}

/// The workspace's manifest with the copied crates as its only members, and a profile that builds quickly.
fn quick_manifest(manifest: &str) -> Result<String, Failure> {
    let members: Vec<String> = CRATES.iter().map(|name| format!("{name:?}")).collect();
    let profiles = manifest.find("[profile.").unwrap_or(manifest.len());
    let mut lines: Vec<String> = Vec::new();
    let mut rest = manifest[..profiles].lines();
    while let Some(line) = rest.next() {
        let list = ["members = [", "default-members = ["].into_iter().find(|list| line.starts_with(list));
        let Some(list) = list else {
            lines.push(line.to_owned());
            continue;
        };
        // The list ends in its own line, or in a later one.
        if !line.contains(']') && !rest.any(|line| line.starts_with(']')) {
            return Err(Failure(format!("the manifest's list `{list}` has no end")));
        }
        lines.push(format!("{list}{}]", members.join(", ")));
    }
    // Assertions of the code itself would find what the promises are to find.
    lines.push("[profile.dev]\nopt-level = 1\ndebug = false\ndebug-assertions = false\nincremental = true".to_owned());
    Ok(lines.join("\n") + "\n")
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure(format!("{}: {error}", from.display()));
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            write(&target, &fs::read_to_string(entry.path()).map_err(failed)?)?;
        }
    }
    Ok(())
}

/// Writes a file if its content differs: what is not touched is not built again.
fn write(path: &Path, content: &str) -> Result<(), Failure> {
    if fs::read_to_string(path).is_ok_and(|before| before == content) {
        return Ok(());
    }
    fs::write(path, content).map_err(|error| Failure(format!("{}: {error}", path.display())))
}

/// Reads the list: comments, and blocks of a name in brackets, `wrong = …`, `file = …`, and the two texts between
/// `<<<<`, `====` and `>>>>`.
fn parse(text: &str) -> Result<Vec<Mutant>, Failure> {
    let mut all: Vec<Mutant> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || Failure(format!("{LIST}: {line:?} is not where it should be"));
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (wrong, file, old, new) = Default::default();
            all.push(Mutant { name: name.to_owned(), wrong, file, old, new });
            continue;
        }
        let mutant = all.last_mut().ok_or_else(wrong)?;
        if let Some(words) = line.strip_prefix("wrong = ") {
            mutant.wrong = words.to_owned();
        } else if let Some(file) = line.strip_prefix("file = ") {
            mutant.file = file.to_owned();
        } else if line == "<<<<" {
            let old: Vec<&str> = lines.by_ref().take_while(|line| *line != "====").collect();
            let new: Vec<&str> = lines.by_ref().take_while(|line| *line != ">>>>").collect();
            (mutant.old, mutant.new) = (old.join("\n"), new.join("\n"));
        } else {
            return Err(wrong());
        }
    }
    match all.iter().find(|mutant| mutant.file.is_empty() || mutant.old.is_empty()) {
        Some(mutant) => Err(Failure(format!("{LIST}: {} names no file or no text", mutant.name))),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_and_every_text_stands_in_the_sources_once() {
        let text = fs::read_to_string(run::root().join(LIST)).unwrap();
        let all = parse(&text).unwrap();
        assert!(all.len() >= 40, "{} planted bugs", all.len());
        let planted = |mutant: &Mutant| match mutant.planted(&run::root()) {
            Ok(text) if text.contains(&mutant.new) && mutant.new != mutant.old => None,
            Ok(_) => Some(format!("mutant {} changes nothing", mutant.name)),
            Err(failure) => Some(failure.to_string()),
        };
        let stale: Vec<_> = all.iter().filter_map(planted).collect();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }

    #[test]
    fn a_block_has_two_texts_and_what_is_out_of_place_is_named() {
        let text = "# one\n[a-bug]\nwrong = all\nfile = src/a.rs\n<<<<\none\ntwo\n====\n>>>>\n";
        let (name, wrong, file) = ("a-bug".to_owned(), "all".to_owned(), "src/a.rs".to_owned());
        let expected = Mutant { name, wrong, file, old: "one\ntwo".to_owned(), new: String::new() };
        assert_eq!(parse(text).unwrap(), [expected]);
        assert!(parse("wrong = x\n").unwrap_err().0.contains("not where it should be"));
        assert!(parse("[a]\nfile = x\n").unwrap_err().0.contains("no text"));
    }

    #[test]
    fn the_quick_manifest_keeps_versions_and_drops_members_and_profiles() {
        let manifest =
            "[workspace]\nmembers = [\"a\", \"b\"]\n[workspace.dependencies]\nbytes = \"1\"\n[profile.dev]\nx = 1\n";
        let long = manifest.replace("[\"a\", \"b\"]", "[\n    \"a\",\n    \"b\",\n]");
        for manifest in [manifest, &long] {
            let quick = quick_manifest(manifest).unwrap();
            assert!(quick.contains("members = [\"rendez-core\", \"rendez-sim\"]\n[workspace.dep"), "{quick}");
            assert!(quick.contains("bytes = \"1\"") && !quick.contains("x = 1") && quick.contains("opt-level = 1"));
        }
        assert!(quick_manifest("[workspace]\nmembers = [\n").unwrap_err().0.contains("no end"));
    }

    #[test]
    fn what_the_hunt_prints_is_understood() {
        let line = "caught 17 1000016 S2 broken at 3 s: twice";
        assert_eq!((caught_after(line), said(line)), (Some(17), "S2 broken at 3 s: twice"));
        assert_eq!(caught_after("missed 3000"), None);
    }
}
