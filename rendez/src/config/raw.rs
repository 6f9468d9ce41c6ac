//! Values as they are written, before they have a meaning.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The most characters of a value that an error shows.
const SHOWN_MAX: usize = 60;

/// A value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// What stands in an environment variable: what it is, the key decides.
    Plain(String),
    Text(String),
    Integer(String),
    Float(String),
    Boolean(bool),
    Date(String),
    List(Vec<Raw>),
    Table(Vec<Entry>),
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Raw,
    pub(super) line: usize,
}

/// Why a text is no TOML.
pub(super) struct Unreadable {
    pub(super) line: usize,
    pub(super) why: String,
}

/// The entries of a TOML text.
pub(super) fn read_toml(text: &str) -> Result<Vec<Entry>, Unreadable> {
    let table = DeTable::parse(text).map_err(|error| unreadable(text, &error))?;
    Ok(entries(text, table.into_inner()))
}

impl Raw {
    /// The value that a plain text stands for, where it stands for a list or a table.
    pub(super) fn read_value(text: &str) -> Result<Self, Unreadable> {
        let value = DeValue::parse(text).map_err(|error| unreadable(text, &error))?;
        Ok(Self::of(text, value.into_inner()))
    }

    fn of(text: &str, value: DeValue<'_>) -> Self {
        match value {
            DeValue::String(value) => Self::Text(value.into_owned()),
            DeValue::Integer(value) if value.radix() == 10 => Self::Integer(value.as_str().to_owned()),
            DeValue::Integer(value) => {
                let number = i128::from_str_radix(value.as_str(), value.radix());
                Self::Integer(number.map_or_else(|_| value.as_str().to_owned(), |number| number.to_string()))
            }
            DeValue::Float(value) => Self::Float(value.as_str().to_owned()),
            DeValue::Boolean(value) => Self::Boolean(value),
            DeValue::Datetime(value) => Self::Date(value.to_string()),
            DeValue::Array(values) => {
                Self::List(values.into_iter().map(|value| Self::of(text, value.into_inner())).collect())
            }
            DeValue::Table(table) => Self::Table(entries(text, table)),
        }
    }

    /// The value as an error shows it.
    pub(super) fn shown(&self) -> String {
        let whole = self.written();
        if whole.chars().count() <= SHOWN_MAX {
            return whole;
        }
        whole.chars().take(SHOWN_MAX).chain("…".chars()).collect()
    }

    fn written(&self) -> String {
        match self {
            Self::Plain(text) | Self::Text(text) => format!("{text:?}"),
            Self::Integer(text) | Self::Float(text) | Self::Date(text) => text.clone(),
            Self::Boolean(value) => value.to_string(),
            Self::List(values) => format!("[{}]", values.iter().map(Self::written).collect::<Vec<_>>().join(", ")),
            Self::Table(entries) => {
                let written = |entry: &Entry| format!("{:?} = {}", entry.key, entry.value.written());
                format!("{{{}}}", entries.iter().map(written).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn entries(text: &str, table: DeTable<'_>) -> Vec<Entry> {
    let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
        let line = line_of(text, key.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        Entry { key: key.into_owned(), value: Raw::of(text, value.into_inner()), line }
    };
    let mut entries: Vec<Entry> = table.into_iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.line);
    entries
}

fn unreadable(text: &str, error: &toml::de::Error) -> Unreadable {
    let line = error.span().map_or(0, |span| line_of(text, span.start));
    Unreadable { line, why: error.message().replace('\n', ", ") }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
