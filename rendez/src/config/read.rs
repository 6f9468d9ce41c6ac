//! From written values to values of their types: one function a type.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rendez_core::placement::{LoadFactor, Policy, PolicyError};
use rendez_core::{Declared, DynamicWorkloads, NameError, UNITS_MAX, WorkloadName};

use super::raw::{Entry, Raw};

/// The longest time that any key takes.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is wrong with a value, and what would do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wrong {
    /// The entry below the key that it is about, its value and its line.
    pub(super) below: Option<(String, String, usize)>,
    pub(super) wrong: String,
    pub(super) hint: String,
}

impl Wrong {
    pub(super) fn new(wrong: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { below: None, wrong: wrong.into(), hint: hint.into() }
    }

    fn at(self, entry: &Entry) -> Self {
        let (mut path, value, line) = self.below.unwrap_or_else(|| (String::new(), entry.value.shown(), entry.line));
        path.insert_str(0, &format!(".{}", entry.key));
        Self { below: Some((path, value, line)), wrong: self.wrong, hint: self.hint }
    }
}

pub(super) type Read<T> = Result<T, Vec<Wrong>>;

/// A value of a key: how it is read, and which ones can be.
pub(super) fn read<T>(raw: &Raw, parse: fn(&Raw) -> Read<T>, check: fn(&T) -> Result<(), Wrong>) -> Read<T> {
    let value = parse(raw)?;
    check(&value).map_err(|wrong| vec![wrong])?;
    Ok(value)
}

fn one(wrong: impl Into<String>, hint: impl Into<String>) -> Vec<Wrong> {
    vec![Wrong::new(wrong, hint)]
}

// --- texts ---

pub(super) fn text(raw: &Raw) -> Read<String> {
    match raw {
        Raw::Plain(text) | Raw::Text(text) => Ok(text.clone()),
        _ => Err(one("a text is wanted", format!("write it in quotes: {:?}", raw.shown().replace('"', "")))),
    }
}

pub(super) fn path(raw: &Raw) -> Read<PathBuf> {
    text(raw).map(PathBuf::from)
}

pub(super) fn name<T>(raw: &Raw) -> Read<T>
where
    T: std::str::FromStr<Err = NameError>,
{
    text(raw)?.parse().map_err(|error| vec![name_wrong(&error)])
}

pub(super) fn name_wrong(error: &NameError) -> Wrong {
    let whole = error.to_string();
    let (wrong, hint) = whole.split_once(": ").unwrap_or((&whole, "use 1 to 200 bytes of UTF-8"));
    Wrong::new(wrong, hint)
}

/// The address of a store: only that it has a scheme; which schemes there are, the opener knows.
pub(super) fn check_store(store: &impl AsRef<str>) -> Result<(), Wrong> {
    let store = store.as_ref();
    let scheme = store.split_once(':').map_or("", |(scheme, _)| scheme);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(good) && plain(store) {
        return Ok(());
    }
    Err(Wrong::new(
        "it is no address of a store",
        "write SCHEME:REST, for example memory:, redis://HOST:6379, postgres://HOST/DATABASE or file:PATH",
    ))
}

pub(super) fn check_path(path: &impl AsRef<Path>) -> Result<(), Wrong> {
    if path.as_ref().as_os_str().is_empty() {
        return Err(Wrong::new("it is empty", "write the path of a file that holds the store's address"));
    }
    Ok(())
}

fn plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

// --- numbers ---

pub(super) fn number(raw: &Raw) -> Read<u32> {
    let text = match raw {
        Raw::Plain(text) | Raw::Integer(text) => text.replace('_', ""),
        Raw::Text(text) if text.parse::<u32>().is_ok() => {
            return Err(one("a number is wanted", format!("write it without quotes: {text}")));
        }
        _ => return Err(one("a whole number is wanted", "write digits only, for example 3")),
    };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ if digits => Err(one("it is too large", format!("use {} or less", u32::MAX))),
        _ => Err(one("a whole number of 0 or more is wanted", "write digits only, for example 3")),
    }
}

/// A limit, or the word that says that there is none.
fn number_or(raw: &Raw, word: &str) -> Read<Option<u32>> {
    match raw {
        Raw::Plain(text) | Raw::Text(text) if text == word => Ok(None),
        Raw::Text(_) => Err(one("a number is wanted", format!("write a number without quotes, or {word:?}"))),
        _ => number(raw).map(Some),
    }
}

pub(super) fn limit(raw: &Raw) -> Read<Option<u32>> {
    number_or(raw, "none")
}

pub(super) fn failures(raw: &Raw) -> Read<Option<u32>> {
    number_or(raw, "never")
}

pub(super) fn yes_or_no(raw: &Raw) -> Read<bool> {
    match raw {
        Raw::Boolean(value) => Ok(*value),
        Raw::Plain(text) if text == "true" => Ok(true),
        Raw::Plain(text) if text == "false" => Ok(false),
        _ => Err(one("it is neither true nor false", "write true or false, without quotes")),
    }
}

pub(super) fn check_nothing<T>(_: &T) -> Result<(), Wrong> {
    Ok(())
}

pub(super) fn check_weight(weight: &u32) -> Result<(), Wrong> {
    if *weight == 0 {
        return Err(Wrong::new(
            "a weight of 0 cannot be",
            "use 1 or more, and cordon a node that shall be given nothing",
        ));
    }
    Ok(())
}

pub(super) fn check_at_least_one(number: &u32) -> Result<(), Wrong> {
    if *number == 0 { Err(Wrong::new("0 cannot be", "use 1 or more")) } else { Ok(()) }
}

pub(super) fn check_capacity(capacity: &Option<u32>) -> Result<(), Wrong> {
    if *capacity == Some(0) {
        return Err(Wrong::new(
            "a limit of 0 would keep everything away",
            "use 1 or more, or \"none\" for no limit, and cordon a node that shall be given nothing",
        ));
    }
    Ok(())
}

pub(super) fn check_failures(failures: &Option<u32>) -> Result<(), Wrong> {
    if *failures == Some(0) {
        return Err(Wrong::new("0 failures cannot be", "use 1 or more, or \"never\""));
    }
    Ok(())
}

pub(super) fn check_permille(number: &u32) -> Result<(), Wrong> {
    if *number > 1000 { Err(Wrong::new("it is more than the whole", "use 1000 or less")) } else { Ok(()) }
}

// --- times ---

pub(super) fn duration(raw: &Raw) -> Read<Duration> {
    const HINT: &str = "write it with its unit: \"10s\", \"500ms\", \"1m 500ms\", \"2h\"";
    let text = match raw {
        Raw::Plain(text) | Raw::Text(text) => text,
        Raw::Integer(number) => {
            return Err(one("a time needs its unit", format!("write \"{number}s\" or \"{number}ms\"")));
        }
        _ => return Err(one("a time is wanted", HINT)),
    };
    let parsed: jiff::SignedDuration = text.trim().parse().map_err(|_| one("it is no time", HINT))?;
    Duration::try_from(parsed).map_err(|_| one("a time cannot be negative", "use 0s or more"))
}

pub(super) fn check_duration(time: &Duration) -> Result<(), Wrong> {
    if *time > DURATION_MAX { Err(Wrong::new("it is too long", "use 8760h or less")) } else { Ok(()) }
}

pub(super) fn check_session_ttl(ttl: &Duration) -> Result<(), Wrong> {
    if *ttl < Duration::from_millis(1) {
        return Err(Wrong::new("it is too short", "use 1ms or more"));
    }
    if *ttl > Duration::from_secs(24 * 3600) {
        return Err(Wrong::new("it is too long", "use 24h or less"));
    }
    Ok(())
}

pub(super) fn check_at_least_1ms(time: &Duration) -> Result<(), Wrong> {
    if *time < Duration::from_millis(1) {
        return Err(Wrong::new("it is too short", "use 1ms or more"));
    }
    check_duration(time)
}

// --- placement ---

pub(super) fn policy(raw: &Raw) -> Read<Policy> {
    let name = text(raw)?;
    Policy::from_str(&name).map_err(|error| {
        let near = nearest(&name, ["balanced", "rendezvous", "ring", "sticky"]).unwrap_or("balanced");
        let hint = match error {
            PolicyError::VirtualNodes(_) => "write for example \"ring:64\"".to_owned(),
            PolicyError::Unknown => {
                format!("use \"balanced\", \"rendezvous\", \"ring\" or \"sticky\" (did you mean {near:?}?)")
            }
        };
        one("there is no such policy", hint)
    })
}

/// A factor, written as a decimal number with up to three places.
pub(super) fn load_factor(raw: &Raw) -> Read<LoadFactor> {
    const HINT: &str = "use 1.0 to 100.0, with three decimal places or fewer";
    let (Raw::Plain(text) | Raw::Integer(text) | Raw::Float(text)) = raw else {
        return Err(one("a number is wanted", HINT));
    };
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let permille = format!("{whole}{places:0<3}").parse().ok();
    let permille = permille.filter(|_| !whole.is_empty() && places.len() <= 3 && digits(whole) && digits(places));
    let factor = permille.and_then(|permille| LoadFactor::from_permille(permille).ok());
    factor.ok_or_else(|| one("it is no load factor", HINT))
}

// --- tables ---

/// The entries of a table; in an environment variable, those of an inline table of TOML.
fn table(raw: &Raw, example: &str) -> Read<Vec<Entry>> {
    match raw {
        Raw::Table(entries) => Ok(entries.clone()),
        Raw::Plain(text) => match Raw::read_value(text) {
            Ok(Raw::Table(entries)) => Ok(entries),
            Ok(_) => Err(one("a table is wanted", format!("write {example}"))),
            Err(unreadable) => Err(one(format!("it is no TOML: {}", unreadable.why), format!("write {example}"))),
        },
        _ => Err(one("a table is wanted", format!("write {example}"))),
    }
}

/// Reads all entries and tells everything that is wrong with them.
fn gather<K: Ord, V>(entries: &[Entry], read: impl Fn(&Entry) -> Read<(K, V)>) -> Read<BTreeMap<K, V>> {
    let (mut good, mut wrong) = (BTreeMap::new(), Vec::new());
    for entry in entries {
        match read(entry) {
            Ok((key, value)) => drop(good.insert(key, value)),
            Err(these) => wrong.extend(these.into_iter().map(|this| this.at(entry))),
        }
    }
    if wrong.is_empty() { Ok(good) } else { Err(wrong) }
}

pub(super) fn labels(raw: &Raw) -> Read<BTreeMap<String, String>> {
    gather(&table(raw, "{ disk = \"ssd\" }")?, |entry| {
        let value = text(&entry.value)?;
        check_label(&entry.key, &value).map_err(|wrong| vec![wrong])?;
        Ok((entry.key.clone(), value))
    })
}

pub(super) fn check_label(key: &str, value: &str) -> Result<(), Wrong> {
    if key.is_empty() {
        return Err(Wrong::new("a label must have a name", "use 1 or more printable characters"));
    }
    if !plain(key) || !plain(value) {
        return Err(Wrong::new("a label must not hold control characters", "use printable UTF-8"));
    }
    Ok(())
}

pub(super) fn options(raw: &Raw) -> Read<BTreeMap<String, String>> {
    gather(&table(raw, "{ min_replicas = \"1\" }")?, |entry| Ok((entry.key.clone(), text(&entry.value)?)))
}

pub(super) fn workloads(raw: &Raw) -> Read<BTreeMap<WorkloadName, Declared>> {
    gather(&table(raw, "{ inbox = 4, feed = { units = 8, cap = 2 } }")?, |entry| {
        let name = WorkloadName::new(&entry.key).map_err(|error| vec![name_wrong(&error)])?;
        let declared = match &entry.value {
            Raw::Table(entries) => declared(entries)?,
            units => Declared::new(number(units)?),
        };
        check_declared(&declared).map_err(|wrong| vec![wrong])?;
        Ok((name, declared))
    })
}

fn declared(entries: &[Entry]) -> Read<Declared> {
    const KEYS: [&str; 4] = ["units", "cap", "policy", "priority"];
    let read = Cell::new(Declared::new(0));
    let given = gather(entries, |entry| {
        let mut declared = read.get();
        match entry.key.as_str() {
            "units" => declared.units = number(&entry.value)?,
            "cap" => declared.cap = limit(&entry.value)?,
            "policy" => declared.policy = Some(policy(&entry.value)?),
            "priority" => declared.priority = number(&entry.value)?,
            other => return Err(one("a workload has no such key", unknown(other, KEYS))),
        }
        read.set(declared);
        Ok((entry.key.clone(), ()))
    })?;
    if !given.contains_key("units") {
        return Err(one("its number of units is missing", "write { units = 4 }, or just 4"));
    }
    Ok(read.get())
}

pub(super) fn check_declared(declared: &Declared) -> Result<(), Wrong> {
    if declared.units == 0 {
        return Err(Wrong::new("0 units cannot be", "use 1 or more, or leave the workload out"));
    }
    if declared.units > UNITS_MAX {
        return Err(Wrong::new(format!("{} units are too many", declared.units), format!("use {UNITS_MAX} or less")));
    }
    if declared.cap == Some(0) {
        return Err(Wrong::new("a cap of 0 cannot be", "use 1 or more, or leave the workload out"));
    }
    Ok(())
}

pub(super) fn dynamic(raw: &Raw) -> Read<DynamicWorkloads> {
    const HINT: &str = "use \"none\", \"all\", or a list of names: [\"inbox\", \"feed\"]";
    let list = match raw {
        Raw::Plain(text) | Raw::Text(text) if text == "none" => return Ok(DynamicWorkloads::None),
        Raw::Plain(text) | Raw::Text(text) if text == "all" => return Ok(DynamicWorkloads::All),
        Raw::Plain(text) => match Raw::read_value(text) {
            Ok(Raw::List(list)) => list,
            Ok(_) | Err(_) => return Err(one("it is neither a word nor a list", HINT)),
        },
        Raw::List(list) => list.clone(),
        _ => return Err(one("it is neither a word nor a list", HINT)),
    };
    let mut names = BTreeSet::new();
    for item in &list {
        let name: WorkloadName = name(item)?;
        if !names.insert(name) {
            return Err(one(format!("{} stands in it twice", item.shown()), "write each name once"));
        }
    }
    Ok(DynamicWorkloads::Only(names))
}

// --- names that are nearly right ---

/// What to write instead of an unknown key.
pub(super) fn unknown<'a>(key: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(key, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// The known word that is most like this one, unless none is.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(100).collect::<String>().to_lowercase().replace('-', "_");
    let distance = |known: &&str| strsim::damerau_levenshtein(&word, known);
    let near = known.into_iter().min_by_key(distance)?;
    (distance(&near) <= near.len().div_ceil(3)).then_some(near)
}
