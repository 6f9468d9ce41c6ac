//! One message at a time a key.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rendez_router::*;
use tokio::sync::Semaphore;

use crate::{LONG, client, node, until};

/// Writes down what it is told, and does it when it may.
struct Scribe {
    key: String,
    words: Vec<String>,
    world: World,
}

#[derive(Clone)]
struct World {
    made: Arc<AtomicUsize>,
    /// The keys whose actor works now.
    working: Arc<Mutex<BTreeSet<String>>>,
    begun: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
    stopped: Arc<Mutex<Vec<(String, usize)>>>,
}

impl World {
    fn new(go: usize) -> Self {
        let count = || Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Semaphore::new(go));
        Self { made: count(), working: Arc::default(), begun: count(), go, stopped: Arc::default() }
    }

    fn handler(&self, options: ActorOptions) -> ActorHandler {
        let world = self.clone();
        ActorHandler::with(options, move |key: String| {
            world.made.fetch_add(1, Ordering::SeqCst);
            let scribe = Scribe { key, words: Vec::new(), world: world.clone() };
            async move { Ok::<_, BoxError>(scribe) }
        })
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

/// A message that is worked on, to its end or until it is dropped.
struct Working(World, String);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.lock().unwrap().remove(&self.1);
    }
}

#[async_trait::async_trait]
impl Actor for Scribe {
    async fn receive(&mut self, _: RequestContext, message: Envelope) -> Result<Bytes, RequestError> {
        let first = self.world.working.lock().unwrap().insert(self.key.clone());
        assert!(first, "one message at a time");
        let _working = Working(self.world.clone(), self.key.clone());
        self.world.begun.fetch_add(1, Ordering::SeqCst);
        let word = String::from_utf8(message.data().to_vec()).unwrap();
        assert!(word != "panic", "told to panic");
        self.words.push(word);
        tokio::task::yield_now().await;
        self.world.go.acquire().await.unwrap().forget();
        Ok(self.words.join(" ").into())
    }

    async fn stop(&mut self) {
        self.world.stopped.lock().unwrap().push((self.key.clone(), self.words.len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_actor_works_on_one_message_at_a_time_and_forgets_none() {
    let world = World::new(1 << 20);
    let transport = MemoryTransport::new();
    let going = node(&transport, world.handler(ActorOptions::default())).await;
    let tasks = (0..50).map(|number| {
        let client = client(&transport);
        tokio::spawn(async move { client.request_key("a", "Say", number.to_string()).await.unwrap() })
    });
    let mut longest = Bytes::new();
    for task in tasks.collect::<Vec<_>>() {
        let words = task.await.unwrap();
        longest = if words.len() > longest.len() { words } else { longest };
    }
    let mut said: Vec<u32> =
        std::str::from_utf8(&longest).unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
    said.sort_unstable();
    assert_eq!(said, (0..50).collect::<Vec<_>>());
    going.shutdown().await;
    assert_eq!(*world.stopped.lock().unwrap(), [("a".to_owned(), 50)]);
    assert_eq!(world.made.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn messages_are_worked_on_in_the_order_of_their_arrival_also_when_nobody_waits() {
    let world = World::new(0);
    let transport = MemoryTransport::new();
    let _node = node(&transport, world.handler(ActorOptions::default())).await;
    let client = client(&transport);
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.request_key("a", "Say", "one").await }
    });
    until("it works on the first", || world.begun() == 1).await;
    // Its caller goes; it goes on.
    first.abort();
    let _ = first.await;
    let rest = ["two", "three"].map(|word| {
        let request = client.request_key("a", "Say", word);
        Box::pin(request)
    });
    let [mut two, mut three] = rest;
    // Polled once, each is in the mailbox.
    assert!(futures_util::poll!(&mut two).is_pending() && futures_util::poll!(&mut three).is_pending());
    world.go.add_permits(3);
    assert_eq!(two.await.unwrap(), "one two");
    assert_eq!(three.await.unwrap(), "one two three");
}

#[tokio::test]
async fn a_full_mailbox_refuses() {
    let world = World::new(0);
    let transport = MemoryTransport::new();
    let mut options = ActorOptions::default();
    options.mailbox = 2;
    let _node = node(&transport, world.handler(options)).await;
    let client = client(&transport);
    let ask = |word: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.request_key("a", "Say", word).await })
    };
    let first = ask("one");
    until("it works on the first", || world.begun() == 1).await;
    let (second, third) = (ask("two"), ask("three"));
    until("two more wait", || transport.running() == 3).await;
    let error = ask("four").await.unwrap().unwrap_err();
    assert_eq!(error, RequestError::Overloaded { what: "the mailbox of \"a\"".to_owned(), most: 2 });
    // Another key has a mailbox of its own.
    world.go.add_permits(10);
    assert_eq!(client.request_key("b", "Say", "other").await.unwrap(), "other");
    for task in [first, second, third] {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn one_that_panics_is_replaced() {
    let world = World::new(1 << 20);
    let transport = MemoryTransport::new();
    let _node = node(&transport, world.handler(ActorOptions::default())).await;
    let client = client(&transport);
    assert_eq!(client.request_key("a", "Say", "one").await.unwrap(), "one");
    let error = client.request_key("a", "Say", "panic").await.unwrap_err();
    assert_eq!(error, RequestError::HandlerPanicked { message: "told to panic".to_owned() });
    assert_eq!(client.request_key("a", "Say", "two").await.unwrap(), "two");
    assert_eq!(world.made.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_too_long_is_interrupted_and_works_on() {
    let world = World::new(0);
    let transport = MemoryTransport::builder().handler_timeout(Duration::from_secs(3)).build();
    let _node = node(&transport, world.handler(ActorOptions::default())).await;
    let client = client(&transport);
    let error = client.request_key("a", "Say", "one").await.unwrap_err();
    assert_eq!(error, RequestError::HandlerTimeout { millis: 3000 });
    until("it was interrupted", || world.working.lock().unwrap().is_empty()).await;
    world.go.add_permits(1);
    assert_eq!(client.request_key("a", "Say", "two").await.unwrap(), "one two");
}

#[tokio::test]
async fn of_too_many_keys_one_is_stopped_with_all_its_work_done() {
    let world = World::new(1 << 20);
    let transport = MemoryTransport::new();
    let mut options = ActorOptions::default();
    options.capacity = 1;
    let going = node(&transport, world.handler(options)).await;
    for (key, word) in [("a", "one"), ("a", "two"), ("b", "three")] {
        client(&transport).request_key(key, "Say", word).await.unwrap();
    }
    until("a is stopped", || *world.stopped.lock().unwrap() == [("a".to_owned(), 2)]).await;
    tokio::time::timeout(LONG, going.shutdown()).await.unwrap();
    assert_eq!(*world.stopped.lock().unwrap(), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
}
