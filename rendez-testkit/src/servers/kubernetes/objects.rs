//! Leases as a Kubernetes API server keeps them: one counter of versions for everything, optimistic writes, a history for
//! lists of the past and for watches.
//!
//! Pure: no connection, no user, no clock but the one that is given. What is refused is refused as the real server
//! (1.36, asked) refuses it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::lease::{self, Lease};

/// The most changes that are remembered. Who asks for an older state or watch is told 410.
const HISTORY_MAX: usize = 30_000;

/// Why a request is refused: a Kubernetes `Status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status code.
    pub code: u16,
    /// The machine's word for it.
    pub reason: &'static str,
    /// The people's.
    pub message: String,
    /// For how many seconds the client shall stay away.
    pub retry_after: Option<u32>,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn invalid(name: &str, why: &str) -> Self {
        Self::new(422, "Invalid", format!("Lease.coordination.k8s.io {name:?} is invalid: {why}"))
    }

    fn not_found(name: &str) -> Self {
        Self::new(404, "NotFound", format!("leases.coordination.k8s.io {name:?} not found"))
    }

    fn conflict(name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on leases.coordination.k8s.io {name:?}: {why}");
        Self::new(409, "Conflict", message)
    }

    fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    fn too_large(asked: u64, now: u64) -> Self {
        Self::new(504, "Timeout", format!("Too large resource version: {asked}, current: {now}"))
    }

    /// The answer's body.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
            "details": { "group": "coordination.k8s.io", "kind": "leases", "retryAfterSeconds": self.retry_after.unwrap_or(0) },
        })
    }
}

/// One version of one object, ready to be sent.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) lease: Lease,
    pub(super) version: u64,
    pub(super) json: Arc<str>,
}

/// What happened to one object.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub(super) version: u64,
    key: Key,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
    /// The object as a watch tells of its end: with the version of the end.
    gone: Option<Arc<str>>,
}

/// Namespace and name.
type Key = (String, String);

/// Which objects are meant.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    /// Labels that they must have.
    pub(super) labels: Vec<(String, String)>,
    /// The name, if it is one object only.
    pub(super) name: Option<String>,
}

/// All Leases of a server.
#[derive(Debug)]
pub(super) struct Objects {
    version: u64,
    now: BTreeMap<Key, Arc<Stored>>,
    /// The objects that have a label: lists ask by labels, and there are many objects.
    by_label: HashMap<(String, String), BTreeSet<Key>>,
    history: VecDeque<Happened>,
    /// Everything up to here is forgotten.
    forgotten: u64,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Stored>>,
    pub(super) next: Option<String>,
    pub(super) remaining: usize,
}

/// What a list is asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) selector: Selector,
    pub(super) limit: Option<usize>,
    pub(super) go_on: Option<String>,
    /// The exact version.
    pub(super) exactly: Option<u64>,
    /// At least this version.
    pub(super) at_least: Option<u64>,
}

impl Objects {
    pub(super) fn new() -> Self {
        Self { version: 1, now: BTreeMap::new(), by_label: HashMap::new(), history: VecDeque::new(), forgotten: 0 }
    }

    /// Something else than a Lease has changed: the counter is one for everything.
    pub(super) fn skip(&mut self, versions: u64) {
        self.version += versions;
    }

    /// Forgets what has happened.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.forgotten = self.version;
    }

    fn put(&mut self, key: Key, lease: Lease) -> Arc<Stored> {
        self.version += 1;
        let json = lease.to_json(&key.0, &key.1, self.version).to_string();
        let stored = Arc::new(Stored { lease, version: self.version, json: json.into() });
        let before = self.now.insert(key.clone(), Arc::clone(&stored));
        if let Some(before) = &before {
            self.forget_labels(&key, before);
        }
        for (label, value) in &stored.lease.labels {
            self.by_label.entry((label.clone(), value.clone())).or_default().insert(key.clone());
        }
        self.note(Happened { version: self.version, key, before, after: Some(Arc::clone(&stored)), gone: None });
        stored
    }

    fn forget_labels(&mut self, key: &Key, before: &Stored) {
        for (label, value) in &before.lease.labels {
            let label = (label.clone(), value.clone());
            if let Some(keys) = self.by_label.get_mut(&label) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
    }

    fn note(&mut self, happened: Happened) {
        self.history.push_back(happened);
        while self.history.len() > HISTORY_MAX {
            if let Some(oldest) = self.history.pop_front() {
                self.forgotten = oldest.version;
            }
        }
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Result<Arc<Stored>, Refusal> {
        let key = (namespace.to_owned(), name.to_owned());
        self.now.get(&key).cloned().ok_or_else(|| Refusal::not_found(name))
    }

    pub(super) fn create(&mut self, namespace: &str, body: &Value, clock: &str) -> Result<Arc<Stored>, Refusal> {
        let sent = lease::Sent::read(body)?;
        let name = sent.name.clone().ok_or_else(|| Refusal::invalid("", "metadata.name: Required value"))?;
        if sent.version.is_some() {
            return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let fresh = sent.lease(&name, fresh_uid(), clock.to_owned())?;
        let key = (namespace.to_owned(), name.clone());
        if self.now.contains_key(&key) {
            let message = format!("leases.coordination.k8s.io {name:?} already exists");
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        Ok(self.put(key, fresh))
    }

    /// Says as well whether the object is a new one.
    pub(super) fn replace(
        &mut self,
        namespace: &str,
        name: &str,
        body: &Value,
        clock: &str,
    ) -> Result<(Arc<Stored>, bool), Refusal> {
        let sent = lease::Sent::read(body)?;
        if sent.name.as_deref() != Some(name) {
            let named = sent.name.unwrap_or_default();
            let message = format!("the name of the object ({named}) does not match the name on the URL ({name})");
            return Err(Refusal::bad_request(message));
        }
        let key = (namespace.to_owned(), name.to_owned());
        let Some(before) = self.now.get(&key).cloned() else {
            if let Some(uid) = &sent.uid {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
                return Err(Refusal::conflict(name, &why));
            }
            // A version alone does not keep a deleted Lease from coming back.
            let fresh = sent.lease(name, fresh_uid(), clock.to_owned())?;
            return Ok((self.put(key, fresh), true));
        };
        if let Some(uid) = sent.uid.as_ref().filter(|uid| **uid != before.lease.uid) {
            let real = &before.lease.uid;
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {real}");
            return Err(Refusal::conflict(name, &why));
        }
        let Some(version) = sent.version else {
            let why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update";
            return Err(Refusal::invalid(name, why));
        };
        if version != before.version {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Refusal::conflict(name, why));
        }
        let after = sent.lease(name, before.lease.uid.clone(), before.lease.created.clone())?;
        if after == before.lease {
            return Ok((before, false));
        }
        Ok((self.put(key, after), false))
    }

    pub(super) fn delete(&mut self, namespace: &str, name: &str, options: &Value) -> Result<String, Refusal> {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.now.get(&key).cloned().ok_or_else(|| Refusal::not_found(name))?;
        let wanted = &options["preconditions"];
        if let Some(uid) = wanted["uid"].as_str().filter(|uid| *uid != before.lease.uid) {
            let real = &before.lease.uid;
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {real}");
            return Err(Refusal::conflict(name, &why));
        }
        if let Some(version) = wanted["resourceVersion"].as_str().filter(|it| **it != before.version.to_string()) {
            let real = before.version;
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {real}"
            );
            return Err(Refusal::conflict(name, &why));
        }
        self.now.remove(&key);
        self.forget_labels(&key, &before);
        self.version += 1;
        let gone = before.lease.to_json(namespace, name, self.version).to_string();
        let uid = before.lease.uid.clone();
        let happened =
            Happened { version: self.version, key, before: Some(before), after: None, gone: Some(gone.into()) };
        self.note(happened);
        Ok(uid)
    }

    /// What has changed since a version: each object as it was then.
    fn since(&self, version: u64) -> Result<BTreeMap<&Key, Option<&Arc<Stored>>>, Refusal> {
        if version > self.version {
            return Err(Refusal::too_large(version, self.version));
        }
        if version < self.forgotten {
            return Err(Refusal::expired(version, self.forgotten));
        }
        let later = self.history.iter().rev().take_while(|happened| happened.version > version);
        Ok(later.map(|happened| (&happened.key, happened.before.as_ref())).collect())
    }

    pub(super) fn list(&self, namespace: &str, wanted: &Wanted) -> Result<Page, Refusal> {
        if let Some(least) = wanted.at_least.filter(|least| *least > self.version) {
            return Err(Refusal::too_large(least, self.version));
        }
        let (version, after) = match &wanted.go_on {
            Some(token) => {
                let (version, after) = token
                    .split_once('/')
                    .and_then(|(version, after)| Some((version.parse().ok()?, after.to_owned())))
                    .ok_or_else(|| Refusal::bad_request("continue key is not valid"))?;
                (version, Some(after))
            }
            None => (wanted.exactly.unwrap_or(self.version), None),
        };
        let then = self.since(version)?;
        let labels = wanted.selector.labels.iter().map(|label| self.by_label.get(label));
        let candidates: Box<dyn Iterator<Item = (&Key, &Arc<Stored>)>> =
            match labels.min_by_key(|keys| keys.map_or(0, BTreeSet::len)) {
                None => Box::new(self.now.iter()),
                Some(keys) => Box::new(keys.into_iter().flatten().filter_map(|key| self.now.get_key_value(key))),
            };
        let unchanged = candidates.filter(|(key, _)| !then.contains_key(key));
        let changed = then.iter().filter_map(|(key, stored)| Some((*key, (*stored)?)));
        let mut found: Vec<(&str, &Arc<Stored>)> = unchanged
            .chain(changed)
            .filter(|((space, name), stored)| space == namespace && matches(&wanted.selector, name, stored))
            .map(|((_, name), stored)| (name.as_str(), stored))
            .filter(|(name, _)| after.as_deref().is_none_or(|after| *name > after))
            .collect();
        found.sort_by_key(|(name, _)| *name);
        let limit = wanted.limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let remaining = found.len().saturating_sub(limit);
        found.truncate(limit);
        let next = found.last().filter(|_| remaining > 0).map(|(name, _)| format!("{version}/{name}"));
        let items = found.into_iter().map(|(_, stored)| Arc::clone(stored)).collect();
        Ok(Page { version, items, next, remaining })
    }

    /// What a watch from a version on is told next: at most so many events, and up to where they lead.
    pub(super) fn events(
        &self,
        namespace: &str,
        selector: &Selector,
        after: u64,
        most: usize,
    ) -> Result<(Vec<String>, u64), Refusal> {
        if after < self.forgotten {
            return Err(Refusal::expired(after, self.forgotten));
        }
        let start = self.history.partition_point(|happened| happened.version <= after);
        let mut reached = after;
        let mut events = Vec::new();
        for happened in self.history.range(start..) {
            if events.len() >= most {
                return Ok((events, reached));
            }
            reached = happened.version;
            if happened.key.0 != namespace {
                continue;
            }
            let fits = |stored: &Option<Arc<Stored>>| {
                let stored = stored.as_ref().filter(|stored| matches(selector, &happened.key.1, stored));
                stored.map(|stored| Arc::clone(&stored.json))
            };
            let (word, object) = match (fits(&happened.before), fits(&happened.after)) {
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(before), None) => ("DELETED", happened.gone.clone().unwrap_or(before)),
                (None, None) => continue,
            };
            events.push(format!("{{\"type\":\"{word}\",\"object\":{object}}}\n"));
        }
        Ok((events, reached.max(self.version)))
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether something has happened since a version that a watch is to be told.
    pub(super) fn concerns(&self, since: u64, namespace: &str, selector: &Selector) -> bool {
        let fits = |name: &str, stored: &Option<Arc<Stored>>| {
            stored.as_ref().is_some_and(|stored| matches(selector, name, stored))
        };
        let later = self.history.iter().rev().take_while(|happened| happened.version > since);
        later.into_iter().any(|Happened { key: (space, name), before, after, .. }| {
            space == namespace && (fits(name, before) || fits(name, after))
        })
    }

    /// Whether a watch can begin at a version.
    pub(super) fn can_watch(&self, from: u64) -> Result<(), Refusal> {
        if from > self.version { Err(Refusal::too_large(from, self.version)) } else { Ok(()) }
    }
}

fn matches(selector: &Selector, name: &str, stored: &Stored) -> bool {
    selector.name.as_deref().is_none_or(|wanted| wanted == name)
        && selector.labels.iter().all(|(key, value)| stored.lease.labels.get(key) == Some(value))
}

fn fresh_uid() -> String {
    let bits = fastrand::u128(..);
    let hex = format!("{bits:032x}");
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: &str = "2026-11-01T00:00:00Z";

    fn lease(name: &str, holder: &str) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "labels": { "of": "x" } },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 3 },
        })
    }

    fn with(mut body: Value, uid: Option<&str>, version: Option<u64>) -> Value {
        if let Some(uid) = uid {
            body["metadata"]["uid"] = json!(uid);
        }
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        body
    }

    #[test]
    fn writes_are_compared_with_uid_and_version() {
        let mut all = Objects::new();
        let one = all.create("n", &lease("a", "x"), CLOCK).unwrap();
        assert_eq!(all.create("n", &lease("a", "x"), CLOCK).unwrap_err().reason, "AlreadyExists");
        let uid = one.lease.uid.clone();
        let replace = |all: &mut Objects, uid: Option<&str>, version, holder: &str| {
            all.replace("n", "a", &with(lease("a", holder), uid, version), CLOCK)
        };
        assert_eq!(replace(&mut all, Some(&uid), None, "y").unwrap_err().code, 422);
        assert_eq!(replace(&mut all, Some(&uid), Some(one.version - 1), "y").unwrap_err().code, 409);
        assert_eq!(replace(&mut all, Some("another"), Some(one.version), "y").unwrap_err().code, 409);
        // What changes nothing has no new version.
        let (same, _) = replace(&mut all, Some(&uid), Some(one.version), "x").unwrap();
        assert_eq!((same.version, all.version), (one.version, one.version));
        let (two, _) = replace(&mut all, Some(&uid), Some(one.version), "y").unwrap();
        assert!(two.version > one.version);
        let options = |version: u64| json!({ "preconditions": { "uid": uid, "resourceVersion": version.to_string() } });
        assert_eq!(all.delete("n", "a", &options(one.version)).unwrap_err().code, 409);
        all.delete("n", "a", &options(two.version)).unwrap();
        assert_eq!(all.delete("n", "a", &options(two.version)).unwrap_err().code, 404);
        // It is gone: with the uid that stays so, with the version alone it comes back.
        assert_eq!(replace(&mut all, Some(&uid), Some(two.version), "z").unwrap_err().code, 409);
        let (three, created) = replace(&mut all, None, Some(two.version), "z").unwrap();
        assert!(created && three.lease.uid != uid);
    }

    #[test]
    fn a_list_of_the_past_and_its_pages_are_of_one_version() {
        let mut all = Objects::new();
        for name in ["a", "b", "c"] {
            all.create("n", &lease(name, "x"), CLOCK).unwrap();
        }
        let then = all.version;
        all.delete("n", "b", &json!({})).unwrap();
        all.create("n", &lease("d", "x"), CLOCK).unwrap();
        all.create("other", &lease("e", "x"), CLOCK).unwrap();
        let wanted = Wanted { exactly: Some(then), limit: Some(2), ..Wanted::default() };
        let page = all.list("n", &wanted).unwrap();
        assert_eq!((page.items.len(), page.remaining, page.version), (2, 1, then));
        let wanted = Wanted { go_on: page.next, limit: Some(2), ..Wanted::default() };
        let page = all.list("n", &wanted).unwrap();
        assert_eq!((page.items.len(), page.next, page.version), (1, None, then));
        assert!(page.items[0].json.contains("\"c\""));
        assert_eq!(all.list("n", &Wanted::default()).unwrap().items.len(), 3);
        let of = |value: &str| Wanted {
            selector: Selector { labels: vec![("of".into(), value.into())], name: None },
            ..Wanted::default()
        };
        assert_eq!(all.list("n", &of("x")).unwrap().items.len(), 3);
        assert_eq!(all.list("n", &of("y")).unwrap().items.len(), 0);
        all.compact();
        assert_eq!(all.list("n", &wanted).err().unwrap().code, 410);
        let future = Wanted { exactly: Some(1000), ..Wanted::default() };
        assert_eq!(all.list("n", &future).err().unwrap().code, 504);
    }

    #[test]
    fn a_watch_is_told_what_happened_in_order_until_that_is_forgotten() {
        let mut all = Objects::new();
        let start = all.version;
        let one = all.create("n", &lease("a", "x"), CLOCK).unwrap();
        all.create("other", &lease("a", "x"), CLOCK).unwrap();
        all.replace("n", "a", &with(lease("a", "y"), None, Some(one.version)), CLOCK).unwrap();
        all.delete("n", "a", &json!({})).unwrap();
        let (events, reached) = all.events("n", &Selector::default(), start, 100).unwrap();
        let words: Vec<&str> = events.iter().filter_map(|event| event.split('"').nth(3)).collect();
        assert_eq!(words, ["ADDED", "MODIFIED", "DELETED"]);
        assert!(events[2].contains(&format!("\"resourceVersion\":\"{}\"", all.version)), "{}", events[2]);
        assert_eq!(reached, all.version);
        let (first, reached) = all.events("n", &Selector::default(), start, 1).unwrap();
        assert_eq!((first.len(), reached < all.version), (1, true));
        all.compact();
        assert_eq!(all.events("n", &Selector::default(), start, 100).unwrap_err().code, 410);
        assert!(all.can_watch(all.version + 1).is_err());
    }
}
