//! A handler for each key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rendez_router::*;
use tokio::sync::Semaphore;

use crate::{LONG, client, node, node_with, until};

/// What is known of all handlers: how many of a key there are now, and were at most; how often one was made and closed.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<BTreeMap<String, Line>>>, Arc<AtomicUsize>);

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Line {
    now: usize,
    most: usize,
    made: usize,
    closed: usize,
}

impl Book {
    fn of(&self, key: &str) -> Line {
        self.0.lock().unwrap().get(key).copied().unwrap_or_default()
    }

    fn note(&self, key: &str, change: impl FnOnce(&mut Line)) {
        change(self.0.lock().unwrap().entry(key.to_owned()).or_default());
    }
}

/// One key's handler: answers when `go` permits it.
struct Keyed {
    key: String,
    book: Book,
    go: Arc<Semaphore>,
    closing: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl Handler for Keyed {
    async fn handle(&self, _: RequestContext, _: Envelope) -> Result<Bytes, RequestError> {
        self.book.1.fetch_add(1, Ordering::SeqCst);
        self.go.acquire().await.unwrap().forget();
        Ok(self.key.clone().into())
    }

    async fn close(&self) {
        self.closing.acquire().await.unwrap().forget();
        self.book.note(&self.key, |line| {
            line.closed += 1;
            line.now -= 1;
        });
    }
}

struct World {
    book: Book,
    /// Requests may end.
    go: Arc<Semaphore>,
    /// Closings may end.
    closing: Arc<Semaphore>,
}

const FREE: usize = 1 << 20;

impl World {
    fn new(go: usize, closing: usize) -> Self {
        let permits = |count| Arc::new(Semaphore::new(count));
        Self { book: Book::default(), go: permits(go), closing: permits(closing) }
    }

    fn handler(&self, capacity: usize) -> KeyHandler {
        let (book, go, closing) = (self.book.clone(), self.go.clone(), self.closing.clone());
        let make = move |key: String| {
            let (book, go, closing) = (book.clone(), go.clone(), closing.clone());
            async move {
                // Others come meanwhile.
                tokio::time::sleep(Duration::from_millis(5)).await;
                book.note(&key, |line| {
                    line.made += 1;
                    line.now += 1;
                    line.most = line.most.max(line.now);
                });
                Ok::<_, BoxError>(Keyed { key, book, go, closing })
            }
        };
        KeyHandler::builder(make).capacity(capacity).build()
    }

    /// How many requests have reached a handler.
    fn begun(&self) -> usize {
        self.book.1.load(Ordering::SeqCst)
    }
}

fn ask(client: &Client, key: &str) -> tokio::task::JoinHandle<Result<Bytes, RequestError>> {
    let (client, key) = (client.clone(), key.to_owned());
    tokio::spawn(async move { client.request_key(&key, "Get", "").await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_first_requests_make_one_handler() {
    let transport = MemoryTransport::new();
    let world = World::new(FREE, FREE);
    let _node = node(&transport, world.handler(10)).await;
    let client = client(&transport);
    let tasks: Vec<_> = (0..64).map(|_| ask(&client, "a")).collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), "a");
    }
    assert_eq!(world.book.of("a"), Line { now: 1, most: 1, made: 1, closed: 0 });
}

#[tokio::test]
async fn a_key_is_needed() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, World::new(FREE, FREE).handler(10)).await;
    assert_eq!(client(&transport).request_shard(1, "Get", "").await, Err(RequestError::MissingKeyHeader));
}

#[tokio::test]
async fn of_too_many_the_one_unused_for_longest_is_closed() {
    let transport = MemoryTransport::new();
    let world = World::new(FREE, FREE);
    let closed = Arc::new(Mutex::new(Vec::new()));
    let (noted, book) = (closed.clone(), world.book.clone());
    let handler = KeyHandler::builder(move |key: String| {
        let book = book.clone();
        async move {
            book.note(&key, |line| line.made += 1);
            Ok::<_, BoxError>(crate::echo)
        }
    });
    let handler = handler.capacity(2).on_close(move |key| noted.lock().unwrap().push(key.to_owned())).build();
    let _node = node(&transport, handler).await;
    let client = client(&transport);
    for key in ["a", "b", "a", "c"] {
        client.request_key(key, "Get", "").await.unwrap();
    }
    until("b is closed", || *closed.lock().unwrap() == ["b"]).await;
    client.request_key("b", "Get", "").await.unwrap();
    until("a is closed", || *closed.lock().unwrap() == ["b", "a"]).await;
    let made = |key| world.book.of(key).made;
    assert_eq!((made("a"), made("b"), made("c")), (1, 2, 1));
}

#[tokio::test]
async fn one_that_is_used_is_closed_after_its_last_use_and_kept_if_it_is_needed_again() {
    let transport = MemoryTransport::new();
    let world = World::new(0, FREE);
    let handler = Arc::new(world.handler(1));
    let _node = node_with(&transport, handler.clone()).await;
    let client = client(&transport);
    let first = ask(&client, "a");
    until("a runs", || world.begun() == 1).await;
    let other = ask(&client, "b");
    until("b runs", || world.begun() == 2).await;
    assert_eq!((world.book.of("a").closed, handler.len()), (0, 2));
    // Evicted but in use, it is taken back, and b leaves in its place.
    let second = ask(&client, "a");
    until("a runs twice", || world.begun() == 3).await;
    assert_eq!(world.book.of("a"), Line { now: 1, most: 1, made: 1, closed: 0 });
    world.go.add_permits(3);
    for task in [first, other, second] {
        task.await.unwrap().unwrap();
    }
    until("b is closed", || world.book.of("b").closed == 1).await;
    assert_eq!(world.book.of("a"), Line { now: 1, most: 1, made: 1, closed: 0 });
}

#[tokio::test]
async fn a_key_whose_handler_is_being_closed_waits_for_it() {
    let transport = MemoryTransport::new();
    let world = World::new(FREE, 0);
    let _node = node(&transport, world.handler(1)).await;
    let client = client(&transport);
    client.request_key("a", "Get", "").await.unwrap();
    client.request_key("b", "Get", "").await.unwrap();
    let mut again = ask(&client, "a");
    assert!(tokio::time::timeout(Duration::from_millis(30), &mut again).await.is_err(), "it waits");
    assert_eq!(world.book.of("a").made, 1);
    world.closing.add_permits(FREE);
    assert_eq!(again.await.unwrap().unwrap(), "a");
    assert_eq!(world.book.of("a"), Line { now: 1, most: 1, made: 2, closed: 1 });
}

#[tokio::test]
async fn one_that_could_not_be_made_is_tried_again() {
    let transport = MemoryTransport::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let handler = Arc::new(KeyHandler::new(move |key: String| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        async move { if number == 0 { Err(format!("{key} cannot be loaded")) } else { Ok(crate::echo) } }
    }));
    let _node = node_with(&transport, handler.clone()).await;
    let error = client(&transport).request_key("a", "Get", "").await.unwrap_err();
    assert_eq!(error, RequestError::Handler { message: "a cannot be loaded".to_owned(), code: None });
    assert!(handler.is_empty());
    assert_eq!(client(&transport).request_key("a", "Get", "x").await.unwrap(), "x");
    assert_eq!((tries.load(Ordering::SeqCst), handler.len()), (2, 1));
}

#[tokio::test]
async fn closing_closes_all_and_waits_for_it() {
    let world = World::new(FREE, FREE);
    let transport = MemoryTransport::new();
    let going = node(&transport, world.handler(10)).await;
    for key in ["a", "b", "c"] {
        client(&transport).request_key(key, "Get", "").await.unwrap();
    }
    tokio::time::timeout(LONG, going.shutdown()).await.unwrap();
    for key in ["a", "b", "c"] {
        assert_eq!(world.book.of(key), Line { now: 0, most: 1, made: 1, closed: 1 });
    }
}

/// Few places for many keys, and callers who go: never two of a key, and all are closed in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_key_ever_has_two_handlers() {
    let transport = MemoryTransport::new();
    let world = World::new(FREE, FREE);
    let going = node(&transport, world.handler(3)).await;
    let tasks = (0..16_u64).map(|caller| {
        let client = client(&transport);
        tokio::spawn(async move {
            let mut dice = fastrand::Rng::with_seed(caller);
            for _ in 0..150 {
                let key = format!("key-{}", dice.u8(..8));
                let request = client.request_key(&key, "Get", "");
                let patience = Duration::from_millis(dice.u64(1..12));
                if let Ok(answer) = tokio::time::timeout(patience, request).await {
                    assert_eq!(answer.unwrap(), key);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    going.shutdown().await;
    let lines: Vec<Line> = world.book.0.lock().unwrap().values().copied().collect();
    assert!(lines.iter().any(|line| line.made > 1), "{lines:?}");
    assert!(lines.iter().all(|line| line.most == 1 && line.made == line.closed), "{lines:?}");
}

#[tokio::test]
async fn it_keeps_1024_keys_unless_said_otherwise() {
    let handler = Arc::new(KeyHandler::new(|_: String| async { Ok::<_, BoxError>(crate::echo) }));
    let transport = MemoryTransport::new();
    let _node = node_with(&transport, handler.clone()).await;
    let client = client(&transport);
    for key in 0..1030 {
        client.request_key(&key.to_string(), "Get", "").await.unwrap();
    }
    until("the others are closed", || handler.len() == 1024).await;
}
