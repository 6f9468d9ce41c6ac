//! The names of the schema and the SQL that makes it. What the functions do stands in `sql/functions.sql`.
//!
//! Nothing here opens a connection.

use rendez_core::{ClusterName, StoreError};
use xxhash_rust::xxh64::xxh64;

use crate::options::fatal;

/// The version of the tables. One that a release does not know is refused before anything is written.
pub(crate) const LAYOUT: i32 = 1;

/// Counts the changes of the functions on the same tables: a newer release replaces them, an older one calls the newer.
pub(crate) const FUNCTIONS: i32 = 2;

const TABLES_SQL: &str = include_str!("sql/tables.sql");
const FUNCTIONS_SQL: &str = include_str!("sql/functions.sql");

/// Every request runs with its owner's rights, so that callers need none on the tables; then it must not look for
/// names where the caller says. Plans are made once, and never for the empty table that was there at the time.
const GUARD: &str = "SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off";

const SLOT_COLUMNS: [&str; 21] = [
    "workload",
    "unit",
    "revision",
    "token",
    "factor",
    "granted_by",
    "holder",
    "node",
    "taken_at",
    "freed_at",
    "moved_at",
    "offer_id",
    "offer_to",
    "offer_expires_at",
    "offer_giver_total",
    "offer_giver_of_workload",
    "offer_forced",
    "offer_ready",
    "force",
    "refusals",
    "checkpoint",
];

/// A slot `s` as a part of an answer; the checkpoint is for the holder only.
const SLOT_ITEM: &str = "ARRAY[s.granted_by, s.holder, s.offer_id, s.offer_to],
    ARRAY[s.revision, s.unit, s.token, s.taken_at, s.freed_at, s.moved_at, s.offer_expires_at, s.offer_giver_total,
        s.offer_giver_of_workload, s.offer_forced::int, s.offer_ready::int, s.force],
    ARRAY[s.workload, s.node, s.refusals::text], CASE WHEN s.holder = p_session THEN s.checkpoint END";

const CHANGE_STATUS: &str = "2::smallint, CASE WHEN left(s.verdict, 1) = '!' THEN substr(s.verdict, 2) ELSE '' END";

/// A session `i` (with its other row `x`) and a record `r`, the same way.
const SESSION_ITEM: &str = "1::smallint, ''::text, ARRAY[i.id, i.incarnation], ARRAY[i.revision, x.ttl, i.opened_at],
    ARRAY[i.info::text], NULL::bytea";
const RECORD_ITEM: &str = "3::smallint, ''::text, NULL::uuid[], ARRAY[r.revision, r.unit],
    ARRAY[r.kind, r.name, r.content::text], NULL::bytea";

/// The longest name that PostgreSQL keeps whole.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// A schema's name that needs no thought about quoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schema(String);

impl Schema {
    pub(crate) fn new(name: &str) -> Result<Self, StoreError> {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !first || !rest || name.len() > IDENTIFIER_BYTES_MAX || name.starts_with("pg_") {
            return Err(fatal(
                "the schema's name must be 1 to 63 of a-z, 0-9 and _, not begin with a digit, and not with pg_",
            ));
        }
        Ok(Self(name.to_owned()))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// A thing in the schema, ready for SQL.
    pub(crate) fn of(&self, what: &str) -> String {
        format!("\"{}\".{what}", self.0)
    }

    /// The number of the advisory lock under which the schema is made.
    pub(crate) fn lock(&self) -> i64 {
        i64::from_ne_bytes(xxh64(self.0.as_bytes(), LOCK_SEED).to_ne_bytes())
    }

    /// The channel of a cluster's hints: short, whatever the cluster is called.
    pub(crate) fn channel(&self, cluster: &ClusterName) -> String {
        let name = format!("{}\u{1f}{cluster}", self.0);
        format!("rendez_{:016x}{:016x}", xxh64(name.as_bytes(), 0), xxh64(name.as_bytes(), LOCK_SEED))
    }

    fn fill(&self, template: &str) -> String {
        let values: Vec<String> = SLOT_COLUMNS.iter().map(|column| format!("a.{column}")).collect();
        template
            .replace("{guard}", GUARD)
            .replace("{slot_columns}", &SLOT_COLUMNS.join(", "))
            .replace("{slot_values}", &values.join(", "))
            .replace("{slot_item}", &format!("2::smallint, ''::text, {SLOT_ITEM}"))
            .replace("{change_item}", &format!("{CHANGE_STATUS}, {SLOT_ITEM}"))
            .replace("{session_item}", SESSION_ITEM)
            .replace("{record_item}", RECORD_ITEM)
            .replace("{schema}", &format!("\"{}\"", self.0))
    }

    /// Makes the tables; the schema exists.
    pub(crate) fn tables(&self) -> String {
        self.fill(TABLES_SQL)
    }

    /// Makes or replaces the functions, and says so.
    pub(crate) fn functions(&self) -> String {
        format!(
            "{}\nREVOKE ALL ON ALL FUNCTIONS IN SCHEMA \"{schema}\" FROM PUBLIC;\n\
             DELETE FROM {layout};\nINSERT INTO {layout} VALUES ({LAYOUT}, {FUNCTIONS});\n",
            self.fill(FUNCTIONS_SQL),
            schema = self.0,
            layout = self.of("layout"),
        )
    }
}

const LOCK_SEED: u64 = 0x72656e64657a;

/// The SQL that makes a schema of this name, for administrators who do not let programs make their own.
///
/// To be run once, in one transaction, by the role that shall own it.
///
/// # Errors
/// [`ErrorKind::Fatal`](rendez_core::ErrorKind::Fatal) for a name that is refused.
pub fn migration(schema: &str) -> Result<String, StoreError> {
    let schema = Schema::new(schema)?;
    Ok(format!("CREATE SCHEMA \"{}\";\n{}\n{}", schema.0, schema.tables(), schema.functions()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_schemas() {
        for name in ["rendez", "_a1", &"a".repeat(63)] {
            assert!(Schema::new(name).is_ok(), "{name}");
        }
        for name in ["", "1a", "A", "a-b", "a\"b", "a;drop", "é", "pg_x", "a.b", &"a".repeat(64)] {
            assert!(Schema::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn channels_fit_and_differ() {
        let of = |schema: &str, cluster: &str| Schema(schema.to_owned()).channel(&cluster.parse().unwrap());
        let long = "x".repeat(200);
        assert!(of("rendez", &long).len() <= IDENTIFIER_BYTES_MAX);
        assert_ne!(of("a", "b"), of("ab", "b"));
        assert_ne!(of("rendez", "a"), of("rendez", "b"));
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        let sql = migration("mine").unwrap();
        assert!(!sql.contains("{s") && !sql.contains("{g") && !sql.contains("{c") && !sql.contains("{r"));
        assert!(sql.contains("\"mine\".heartbeat("));
    }
}
