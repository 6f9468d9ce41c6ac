//! The server of the Lease API, asked over plain HTTP: it must do what a real one does, or the store's tests prove nothing.

use std::time::Duration;

use rendez_testkit::servers::{KubernetesServer, Verb};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/rendez-test/leases";
/// Longer than anything here takes.
const BOUND: Duration = Duration::from_secs(20);

/// Sends a request on a connection of its own.
async fn send(server: &KubernetesServer, method: &str, path: &str, token: &str, body: &Value) -> BufReader<TcpStream> {
    let addr = server.http_url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&addr).await.unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    BufReader::new(stream)
}

/// The status, the head, and what comes after it.
async fn head(stream: &mut BufReader<TcpStream>) -> (u16, String) {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

async fn ask_as(
    server: &KubernetesServer,
    token: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Value, String) {
    let answered = tokio::time::timeout(BOUND, async {
        let mut stream = send(server, method, path, token, body).await;
        let (status, head) = head(&mut stream).await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (status, serde_json::from_str(&text).unwrap(), head)
    });
    answered.await.unwrap()
}

async fn ask(server: &KubernetesServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, answer, _) = ask_as(server, server.admin_token(), method, path, body).await;
    (status, answer)
}

fn lease(name: &str, holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "labels": { "of": "test" } },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 10 },
    })
}

fn version(lease: &Value) -> u64 {
    lease["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// A watch: lines of events.
struct Events(BufReader<TcpStream>);

impl Events {
    async fn from(server: &KubernetesServer, version: u64, more: &str) -> (u16, Self) {
        let path = format!("{LEASES}?watch=true&resourceVersion={version}&labelSelector=of%3Dtest{more}");
        let mut stream = send(server, "GET", &path, server.admin_token(), &Value::Null).await;
        let (status, _) = head(&mut stream).await;
        (status, Self(stream))
    }

    /// The next event, or nothing when the stream has ended. What stands between chunks is passed over.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(BOUND, self.0.read_line(&mut line)).await.unwrap().unwrap();
            if read == 0 {
                return None;
            }
            if let Ok(Value::Object(mut event)) = serde_json::from_str(&line) {
                let word = event["type"].as_str().unwrap().to_owned();
                return Some((word, event.remove("object").unwrap()));
            }
        }
    }
}

#[tokio::test]
async fn leases_are_made_read_replaced_and_deleted() {
    let server = KubernetesServer::start().await.unwrap();
    let one = format!("{LEASES}/a");
    assert_eq!(ask(&server, "GET", &one, &Value::Null).await.0, 404);
    let (status, made) = ask(&server, "POST", LEASES, &lease("a", "x")).await;
    assert_eq!(status, 201);
    assert_eq!(ask(&server, "POST", LEASES, &lease("a", "x")).await.1["reason"], "AlreadyExists");
    let (status, read) = ask(&server, "GET", &one, &Value::Null).await;
    assert_eq!((status, &read), (200, &made));
    // Without a version, with a stale one, with another uid, and with nothing that changes.
    assert_eq!(ask(&server, "PUT", &one, &lease("a", "y")).await.0, 422);
    let mut stale = made.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    let (status, refusal) = ask(&server, "PUT", &one, &stale).await;
    assert_eq!((status, &refusal["kind"], &refusal["code"]), (409, &"Status".into(), &409.into()));
    let mut another = made.clone();
    another["metadata"]["uid"] = "another".into();
    assert_eq!(ask(&server, "PUT", &one, &another).await.0, 409);
    let (status, same) = ask(&server, "PUT", &one, &made).await;
    assert_eq!((status, version(&same)), (200, version(&made)));
    let mut next = made.clone();
    next["spec"]["holderIdentity"] = "y".into();
    let (status, mut next) = ask(&server, "PUT", &one, &next).await;
    assert!(status == 200 && version(&next) > version(&made));
    // A deletion names what it deletes.
    let of = |lease: &Value| json!({ "preconditions": { "resourceVersion": lease["metadata"]["resourceVersion"] } });
    assert_eq!(ask(&server, "DELETE", &one, &of(&made)).await.0, 409);
    let (status, answer) = ask(&server, "DELETE", &one, &of(&next)).await;
    assert_eq!((status, &answer["status"]), (200, &"Success".into()));
    // The uid keeps it from coming back, the version alone does not.
    assert_eq!(ask(&server, "PUT", &one, &next).await.0, 409);
    next["metadata"].as_object_mut().unwrap().remove("uid");
    let (status, back) = ask(&server, "PUT", &one, &next).await;
    assert!(status == 201 && back["metadata"]["uid"] != made["metadata"]["uid"]);
    assert_eq!(ask(&server, "PATCH", &one, &next).await.0, 405);
    assert_eq!(ask(&server, "GET", "/api/v1/pods", &Value::Null).await.0, 404);
}

#[tokio::test]
async fn kind_and_version_may_be_left_to_the_path_but_not_be_others() {
    let server = KubernetesServer::start().await.unwrap();
    let mut short = lease("a", "x");
    for key in ["kind", "apiVersion"] {
        short.as_object_mut().unwrap().remove(key).unwrap();
    }
    let (status, made) = ask(&server, "POST", LEASES, &short).await;
    assert_eq!((status, &made["kind"], &made["apiVersion"]), (201, &"Lease".into(), &"coordination.k8s.io/v1".into()));
    for (key, value) in [("kind", "Pod"), ("apiVersion", "v1")] {
        let mut other = lease("b", "x");
        other[key] = value.into();
        let (status, refusal) = ask(&server, "POST", LEASES, &other).await;
        assert_eq!((status, &refusal["reason"]), (400, &"BadRequest".into()));
    }
}

#[tokio::test]
async fn lists_come_in_pages_of_one_version() {
    let server = KubernetesServer::start().await.unwrap();
    for name in ["a", "b", "c"] {
        ask(&server, "POST", LEASES, &lease(name, "x")).await;
    }
    let (_, first) = ask(&server, "GET", &format!("{LEASES}?limit=2"), &Value::Null).await;
    let metadata = &first["metadata"];
    assert_eq!((first["items"].as_array().unwrap().len(), &metadata["remainingItemCount"]), (2, &1.into()));
    ask(&server, "DELETE", &format!("{LEASES}/c"), &Value::Null).await;
    let go_on = metadata["continue"].as_str().unwrap();
    let (_, second) = ask(&server, "GET", &format!("{LEASES}?limit=2&continue={go_on}"), &Value::Null).await;
    assert_eq!(second["items"][0]["metadata"]["name"], "c", "as it was when the list began");
    assert!(second["metadata"]["continue"].is_null());
    let of = |query: &str| format!("{LEASES}?{query}");
    let (_, now) = ask(&server, "GET", &of("labelSelector=of%3Dtest"), &Value::Null).await;
    assert_eq!(now["items"].as_array().unwrap().len(), 2);
    let (_, none) = ask(&server, "GET", &of("labelSelector=of%3Dother"), &Value::Null).await;
    assert_eq!(none["items"].as_array().unwrap().len(), 0);
    server.compact();
    let exactly = of("resourceVersion=2&resourceVersionMatch=Exact");
    assert_eq!(ask(&server, "GET", &exactly, &Value::Null).await.0, 410);
    assert_eq!(ask(&server, "GET", &of("resourceVersion=100000"), &Value::Null).await.0, 504);
}

#[tokio::test]
async fn a_watch_tells_what_happens_and_expires_within_its_stream() {
    let server = KubernetesServer::start().await.unwrap();
    server.set_bookmark_interval(Duration::from_millis(100));
    let (_, made) = ask(&server, "POST", LEASES, &lease("a", "x")).await;
    let start = version(&made) - 1;
    let (status, mut events) = Events::from(&server, start, "&allowWatchBookmarks=true").await;
    assert_eq!(status, 200);
    assert_eq!(events.next().await, Some(("ADDED".to_owned(), made.clone())));
    let (word, bookmark) = events.next().await.unwrap();
    assert_eq!((word.as_str(), version(&bookmark)), ("BOOKMARK", version(&made)));
    ask(&server, "DELETE", &format!("{LEASES}/a"), &Value::Null).await;
    let (word, gone) = events.next().await.unwrap();
    let (word, gone) = if word == "BOOKMARK" { events.next().await.unwrap() } else { (word, gone) };
    assert!(word == "DELETED" && version(&gone) > version(&made), "{word} {gone}");
    // The status was 200 long ago: the error comes as an event.
    server.expire_watches();
    let (word, status) = loop {
        let event = events.next().await.unwrap();
        if event.0 != "BOOKMARK" {
            break event;
        }
    };
    assert_eq!((word.as_str(), &status["kind"], &status["code"]), ("ERROR", &"Status".into(), &410.into()));
    assert_eq!(events.next().await, None);
    let (status, mut events) = Events::from(&server, start, "").await;
    assert_eq!((status, events.next().await.unwrap().1["code"].clone()), (200, 410.into()));
    let (status, mut events) = Events::from(&server, version(&gone) + 1, "&timeoutSeconds=1").await;
    assert_eq!((status, events.next().await), (200, None), "a watch ends when its time is over");
    assert_eq!(Events::from(&server, 100_000, "").await.0, 504);
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_there_is_and_one_may_be_of_one_name() {
    let server = KubernetesServer::start().await.unwrap();
    let (_, a) = ask(&server, "POST", LEASES, &lease("a", "x")).await;
    let (_, b) = ask(&server, "POST", LEASES, &lease("b", "x")).await;
    let (_, mut all) = Events::from(&server, 0, "").await;
    assert_eq!(all.next().await, Some(("ADDED".to_owned(), a)));
    assert_eq!(all.next().await, Some(("ADDED".to_owned(), b.clone())));
    let (_, mut events) = Events::from(&server, 0, "&fieldSelector=metadata.name%3Db").await;
    assert_eq!(events.next().await, Some(("ADDED".to_owned(), b.clone())));
    ask(&server, "DELETE", &format!("{LEASES}/a"), &Value::Null).await;
    ask(&server, "DELETE", &format!("{LEASES}/b"), &Value::Null).await;
    let (word, gone) = events.next().await.unwrap();
    assert_eq!((word.as_str(), &gone["metadata"]["uid"]), ("DELETED", &b["metadata"]["uid"]));
    let (status, _) = ask(&server, "GET", &format!("{LEASES}?fieldSelector=spec.x%3Db"), &Value::Null).await;
    assert_eq!(status, 400);
}

/// `resourceNames` permit what names the object: no creation and no list of all.
#[tokio::test]
async fn a_rule_may_be_about_one_lease() {
    let server = KubernetesServer::start().await.unwrap();
    let verbs = [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Update];
    server.add_user_with("of-a", &[(&verbs, &["a"])]).unwrap();
    let status = async |method, path: &str, body: &Value| ask_as(&server, "of-a", method, path, body).await.0;
    assert_eq!(status("POST", LEASES, &lease("a", "x")).await, 403);
    let (_, made) = ask(&server, "POST", LEASES, &lease("a", "x")).await;
    assert_eq!(status("GET", &format!("{LEASES}/a"), &Value::Null).await, 200);
    assert_eq!(status("PUT", &format!("{LEASES}/a"), &made).await, 200);
    assert_eq!(status("GET", &format!("{LEASES}/b"), &Value::Null).await, 403);
    assert_eq!(status("GET", LEASES, &Value::Null).await, 403);
    assert_eq!(status("GET", &format!("{LEASES}?fieldSelector=metadata.name%3Da"), &Value::Null).await, 200);
    assert_eq!(status("GET", &format!("{LEASES}?fieldSelector=metadata.name%3Db&watch=1"), &Value::Null).await, 403);
}

#[tokio::test]
async fn users_may_do_what_their_role_says() {
    let server = KubernetesServer::start().await.unwrap();
    server.add_user("reader", &[Verb::Get, Verb::List]).unwrap();
    let (status, answer, _) = ask_as(&server, "nobody", "GET", LEASES, &Value::Null).await;
    assert_eq!((status, &answer["reason"]), (401, &"Unauthorized".into()));
    assert_eq!(ask_as(&server, "reader", "GET", LEASES, &Value::Null).await.0, 200);
    let (status, answer, _) = ask_as(&server, "reader", "POST", LEASES, &lease("a", "x")).await;
    assert_eq!((status, &answer["reason"]), (403, &"Forbidden".into()));
    assert_eq!(
        ask_as(&server, "reader", "GET", &format!("{LEASES}?watch=1&resourceVersion=1"), &Value::Null).await.0,
        403
    );
    let elsewhere = LEASES.replace("rendez-test", "other");
    assert_eq!(ask_as(&server, "reader", "GET", &elsewhere, &Value::Null).await.0, 403);
}

#[tokio::test]
async fn it_can_be_made_to_fail() {
    let server = KubernetesServer::start().await.unwrap();
    server.throttle(1, 3);
    let (status, answer, head) = ask_as(&server, server.admin_token(), "GET", LEASES, &Value::Null).await;
    assert_eq!((status, &answer["details"]["retryAfterSeconds"]), (429, &3.into()));
    assert!(head.contains("retry-after: 3"), "{head}");
    assert_eq!(ask(&server, "GET", LEASES, &Value::Null).await.0, 200);
    server.refuse(1, 500, "InternalError");
    assert_eq!(ask(&server, "GET", LEASES, &Value::Null).await.0, 500);
    // What was answered with 504 has happened all the same.
    server.lose_answers(1, Duration::ZERO);
    assert_eq!(ask(&server, "POST", LEASES, &lease("a", "x")).await.0, 504);
    assert_eq!(ask(&server, "GET", &format!("{LEASES}/a"), &Value::Null).await.0, 200);
    // A server that stands still keeps its connections and answers nothing.
    server.stall();
    let mut stream = send(&server, "GET", LEASES, server.admin_token(), &Value::Null).await;
    let mut line = String::new();
    let early = tokio::time::timeout(Duration::from_millis(200), stream.read_line(&mut line)).await;
    assert!(early.is_err(), "{line}");
    server.resume();
    assert_eq!(head_status(&mut stream).await, 200);
    // A restart cuts connections and keeps what there is; an empty one keeps nothing.
    let (_, mut events) = Events::from(&server, 1, "").await;
    events.next().await.unwrap();
    server.restart();
    assert_eq!(events.next().await, None);
    assert_eq!(server.leases().len(), 1);
    server.restart_empty();
    assert_eq!(server.leases().len(), 0);
    let begun = server.requests(Verb::List);
    assert_eq!(ask(&server, "GET", LEASES, &Value::Null).await.0, 200);
    assert!(server.requests(Verb::List) > begun);
}

async fn head_status(stream: &mut BufReader<TcpStream>) -> u16 {
    tokio::time::timeout(BOUND, head(stream)).await.unwrap().0
}
