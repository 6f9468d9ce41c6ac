//! The HTTP side of the server: who asks, what for, and whether they may; streams for watches.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, header};
use serde_json::{Value, json};

use super::objects::{Page, Refusal, Selector, Stored, Wanted};
use super::{NAMESPACE_PATH, Shared, Verb, Watched};

/// The largest body that is read: more than the largest object.
const BODY_BYTES_MAX: usize = 3 << 20;
/// Events that are sent at once.
const EVENTS_MAX: usize = 500;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a request is about.
struct Target {
    namespace: String,
    name: Option<String>,
}

/// The words behind the question mark.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|part| !part.is_empty());
        Self(pairs.map(|part| part.split_once('=').unwrap_or((part, ""))).map(|(k, v)| (plain(k), plain(v))).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Refusal> {
        let read = |text: &str| text.parse().map_err(|_| Refusal::bad_request(format!("{key} is no number")));
        self.get(key).map(read).transpose()
    }

    fn selector(&self) -> Result<Selector, Refusal> {
        let text = self.get("labelSelector").unwrap_or("");
        let wrong = || Refusal::bad_request("this server knows only selectors of the form a=b,c=d");
        let parts = text.split(',').filter(|part| !part.is_empty());
        let pair = |part: &str| part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = parts.map(|part| pair(part).ok_or_else(wrong)).collect::<Result<_, _>>()?;
        Ok(Selector { labels, name: self.name()?.map(str::to_owned) })
    }

    /// The one object that a list or a watch is about.
    fn name(&self) -> Result<Option<&str>, Refusal> {
        let wrong = || Refusal::bad_request("this server knows only the field selector metadata.name=a");
        let read = |text| str::strip_prefix(text, "metadata.name=").ok_or_else(wrong);
        self.get("fieldSelector").map(read).transpose()
    }
}

/// Undoes `%XX` and `+`.
fn plain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = std::str::from_utf8(after.get(..2).unwrap_or_default()).ok();
        match (first, code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn reply(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    let mut response = reply(refusal.code, refusal.to_json().to_string());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Answers one request.
pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    shared.go_on().await;
    let answer = serve(&shared, request).await;
    // A server that stands still answers nothing.
    shared.go_on().await;
    let answer = answer.unwrap_or_else(|refusal| refuse(&refusal));
    let bytes = hyper::body::Body::size_hint(answer.body()).exact().unwrap_or(0);
    shared.count_sent(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(answer)
}

async fn serve(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    let Some(grants) = token.and_then(|token| shared.user(token)) else {
        return Err(Refusal::new(401, "Unauthorized", "Unauthorized"));
    };
    let query = Query::parse(parts.uri.query().unwrap_or(""));
    let path = parts.uri.path();
    let Some(target) = target(path) else {
        return Err(Refusal::new(404, "NotFound", "the server could not find the requested resource"));
    };
    let verb = match (&parts.method, &target.name) {
        (&Method::GET, Some(_)) => Verb::Get,
        (&Method::GET, None) if query.get("watch").is_some_and(|watch| watch != "false") => Verb::Watch,
        (&Method::GET, None) => Verb::List,
        (&Method::POST, None) => Verb::Create,
        (&Method::PUT, Some(_)) => Verb::Update,
        (&Method::DELETE, Some(_)) => Verb::Delete,
        _ => {
            let message = "the server does not allow this method on the requested resource";
            return Err(Refusal::new(405, "MethodNotAllowed", message));
        }
    };
    // A list or a watch of one object, by its name, is as good as one that names it.
    let about = target.name.as_deref().or(query.name()?);
    if !grants.iter().any(|grant| grant.permits(&target.namespace, verb, about)) {
        let message = format!(
            "leases.coordination.k8s.io is forbidden: User cannot {} resource \"leases\" in API group \
             \"coordination.k8s.io\" in the namespace {:?}",
            verb.as_str(),
            target.namespace
        );
        return Err(Refusal::new(403, "Forbidden", message));
    }
    if let Some(refusal) = shared.refusal_of_the_day() {
        return Err(refusal);
    }
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Refusal::bad_request(error.to_string()))?.to_bytes();
    shared.count(verb, body.len());
    let json = || -> Result<Value, Refusal> {
        if body.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))
    };
    let space = target.namespace.as_str();
    let name = target.name.as_deref().unwrap_or("");
    match verb {
        Verb::Get => Ok(reply(200, shared.read(|all| all.get(space, name))?.json.to_string())),
        Verb::List => list(shared, space, &query),
        Verb::Watch => watch(shared, space, &query),
        Verb::Create => {
            let body = json()?;
            let made = shared.write(|all, clock| all.create(space, &body, clock)).await?;
            Ok(reply(201, made.json.to_string()))
        }
        Verb::Update => {
            let body = json()?;
            let (made, created) = shared.write(|all, clock| all.replace(space, name, &body, clock)).await?;
            Ok(reply(if created { 201 } else { 200 }, made.json.to_string()))
        }
        Verb::Delete => {
            let options = json()?;
            let uid = shared.write(|all, _| all.delete(space, name, &options)).await?;
            let details = json!({ "name": name, "group": "coordination.k8s.io", "kind": "leases", "uid": uid });
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            Ok(reply(200, status.to_string()))
        }
    }
}

fn target(path: &str) -> Option<Target> {
    let rest = path.strip_prefix(NAMESPACE_PATH)?;
    let (namespace, rest) = rest.split_once("/leases")?;
    let name = match rest {
        "" | "/" => None,
        rest => Some(plain(rest.strip_prefix('/')?)),
    };
    Some(Target { namespace: namespace.to_owned(), name })
}

fn list(shared: &Shared, namespace: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    let version = query.number::<u64>("resourceVersion")?;
    let (exactly, at_least) = match (query.get("resourceVersionMatch"), version) {
        (Some("Exact"), Some(version)) if version > 0 => (Some(version), None),
        (Some("NotOlderThan"), Some(version)) => (None, Some(version)),
        (None, version) => (None, version),
        (Some(_), _) => return Err(Refusal::bad_request("resourceVersionMatch and resourceVersion do not fit")),
    };
    let wanted = Wanted {
        selector: query.selector()?,
        limit: query.number("limit")?,
        go_on: query.get("continue").map(str::to_owned),
        exactly,
        at_least,
    };
    let Page { version, items, next, remaining } = shared.read(|all| all.list(namespace, &wanted))?;
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(next) = next {
        metadata["continue"] = json!(next);
        metadata["remainingItemCount"] = json!(remaining);
    }
    let mut body = format!(
        "{{\"kind\":\"LeaseList\",\"apiVersion\":\"coordination.k8s.io/v1\",\"metadata\":{metadata},\"items\":["
    );
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        let stored: &Stored = item;
        body.push_str(&stored.json);
    }
    body.push_str("]}");
    Ok(reply(200, body))
}

/// Where a watch stands.
struct Watching {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    /// What is there when it begins, if it does not begin at a version.
    first: Option<String>,
    after: u64,
    bookmarks: bool,
    until: tokio::time::Instant,
    over: bool,
}

fn watch(shared: &Arc<Shared>, namespace: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    let selector = query.selector()?;
    // Made known before anything is read, so that it misses nothing.
    let watched = shared.watched(namespace, &selector);
    let (after, first) = match query.number::<u64>("resourceVersion")?.filter(|version| *version > 0) {
        Some(after) => {
            shared.read(|all| all.can_watch(after))?;
            (after, None)
        }
        None => {
            let page = shared.read(|all| all.list(namespace, &Wanted { selector, ..Wanted::default() }))?;
            let added = |item: &Arc<Stored>| format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", item.json);
            let first: String = page.items.iter().map(added).collect();
            (page.version, Some(first).filter(|first| !first.is_empty()))
        }
    };
    let seconds = query.number::<u64>("timeoutSeconds")?.unwrap_or(3600);
    let watching = Watching {
        shared: Arc::clone(shared),
        watched,
        first,
        after,
        bookmarks: query.get("allowWatchBookmarks") == Some("true"),
        until: tokio::time::Instant::now() + Duration::from_secs(seconds),
        over: false,
    };
    let frames = stream::unfold(watching, |mut watching| async move {
        let text = watching.next().await?;
        watching.shared.count_sent(text.len());
        Some((Ok(Frame::data(Bytes::from(text))), watching))
    });
    let mut response = reply(200, "");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

impl Watching {
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            self.shared.go_on().await;
            return Some(first);
        }
        let mut bookmark = tokio::time::Instant::now() + self.shared.bookmark_interval();
        loop {
            if self.over {
                return None;
            }
            self.shared.go_on().await;
            let told = self
                .shared
                .read(|all| all.events(&self.watched.namespace, &self.watched.selector, self.after, EVENTS_MAX));
            match told {
                Ok((events, reached)) => {
                    self.after = reached;
                    if !events.is_empty() {
                        return Some(events.concat());
                    }
                }
                // It is too late for an HTTP status.
                Err(refusal) => {
                    self.over = true;
                    return Some(format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", refusal.to_json()));
                }
            }
            tokio::select! {
                () = self.watched.woken.notified() => {}
                () = tokio::time::sleep_until(self.until) => return None,
                () = tokio::time::sleep_until(bookmark) => {
                    bookmark = tokio::time::Instant::now() + self.shared.bookmark_interval();
                    if self.bookmarks {
                        let version = self.after;
                        return Some(format!(
                            "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"Lease\",\"apiVersion\":\
                             \"coordination.k8s.io/v1\",\"metadata\":{{\"resourceVersion\":\"{version}\",\
                             \"creationTimestamp\":null}},\"spec\":{{}}}}}}\n"
                        ));
                    }
                }
            }
        }
    }
}
