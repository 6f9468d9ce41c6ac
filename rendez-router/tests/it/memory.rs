//! Bounds of the transport in memory: how many, how long, and until when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rendez_router::*;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::{LONG, client, echo, node, until};

/// A handler that waits until it is let go, and counts how many wait.
#[derive(Clone, Default)]
struct Gate {
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    go: Arc<Notify>,
    open: Arc<AtomicBool>,
}

struct Inside(Gate, bool);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Gate {
    fn handler(&self) -> impl Handler {
        let gate = self.clone();
        move |_: RequestContext, request: Envelope| {
            let gate = gate.clone();
            async move {
                let now = gate.inside.fetch_add(1, Ordering::SeqCst) + 1;
                gate.most.fetch_max(now, Ordering::SeqCst);
                let mut inside = Inside(gate.clone(), false);
                while !gate.open.load(Ordering::SeqCst) {
                    gate.go.notified().await;
                }
                inside.1 = true;
                Ok::<_, BoxError>(request.into_data())
            }
        }
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.go.notify_waiters();
    }
}

#[tokio::test]
async fn only_so_many_handlers_run_at_once_and_only_so_many_requests_wait() {
    let transport = MemoryTransport::builder().max_concurrent_handlers(2).max_waiting(3).build();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    let mut tasks = Vec::new();
    for number in 0..5 {
        let client = client(&transport);
        tasks.push(tokio::spawn(async move { client.request_shard(number, "Get", "a").await }));
        tokio::task::yield_now().await;
    }
    until("two run", || gate.inside() == 2).await;
    assert_eq!(transport.running(), 2);
    let error = client(&transport).request_shard(0, "Get", "a").await.unwrap_err();
    assert_eq!(error, RequestError::Overloaded { what: "the transport".to_owned(), most: 3 });
    gate.open();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), "a");
    }
    assert_eq!((gate.most.load(Ordering::SeqCst), transport.running()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_does_not_begin() {
    let transport = MemoryTransport::builder().max_concurrent_handlers(1).build();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    let late = Envelope::new(1, "Get", "").with_ttl(Duration::from_secs(1));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(transport.request(&Address::Shard(1), late).await, Err(RequestError::EnvelopeExpired));
    // The same while it waits for its turn.
    let first = tokio::spawn({
        let client = client(&transport);
        async move { client.request_shard(1, "Get", "first").await }
    });
    until("the first one runs", || gate.inside() == 1).await;
    let begun = Instant::now();
    let scoped = client(&transport).shard(1).with_ttl(Duration::from_secs(3));
    assert_eq!(scoped.request_as("Get", "second").await, Err(RequestError::EnvelopeExpired));
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    gate.open();
    assert_eq!(first.await.unwrap().unwrap(), "first");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_too_long_is_dropped() {
    let transport = MemoryTransport::builder().handler_timeout(Duration::from_secs(7)).build();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    let endless = Client::builder(transport.clone(), 16).ttl(None).build().unwrap();
    let begun = Instant::now();
    let error = endless.request_shard(1, "Get", "").await.unwrap_err();
    assert_eq!((&error, begun.elapsed()), (&RequestError::HandlerTimeout { millis: 7000 }, Duration::from_secs(7)));
    assert_eq!((error.ran(), gate.dropped.load(Ordering::SeqCst)), (Ran::Maybe, 1));
    // The request's own time, if that is shorter.
    let error = endless.shard(1).with_ttl(Duration::from_secs(2)).request_as("Get", "").await.unwrap_err();
    assert_eq!(error, RequestError::HandlerTimeout { millis: 2000 });
    assert_eq!(begun.elapsed(), Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn bounds_that_nobody_set() {
    let transport = MemoryTransport::new();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    let endless = Client::builder(transport.clone(), 16).ttl(None).build().unwrap();
    let begun = Instant::now();
    let requests: Vec<_> = (0..101)
        .map(|_| {
            let client = endless.clone();
            tokio::spawn(async move { client.request_shard(1, "Get", "").await })
        })
        .collect();
    until("100 run", || gate.inside() == 100).await;
    assert_eq!(transport.running(), 100);
    for request in requests {
        assert_eq!(request.await.unwrap(), Err(RequestError::HandlerTimeout { millis: 30_000 }));
    }
    // The last one began when the others had gone.
    assert_eq!((begun.elapsed(), gate.most.load(Ordering::SeqCst)), (Duration::from_secs(60), 100));
}

#[tokio::test(start_paused = true)]
async fn a_handler_knows_how_long_it_has() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, |ctx: RequestContext, _: Envelope| async move {
        Ok::<_, BoxError>(ctx.remaining().as_secs().to_string())
    })
    .await;
    assert_eq!(client(&transport).request_shard(0, "Get", "").await.unwrap(), "30");
    let short = client(&transport).shard(0).with_ttl(Duration::from_secs(5));
    assert_eq!(short.request_as("Get", "").await.unwrap(), "5");
}

#[tokio::test]
async fn who_goes_takes_the_handler_along() {
    let transport = MemoryTransport::new();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    let task = tokio::spawn({
        let client = client(&transport);
        async move { client.request_shard(1, "Get", "").await }
    });
    until("it runs", || gate.inside() == 1).await;
    task.abort();
    until("it was dropped", || gate.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(transport.running(), 0);
}

#[tokio::test]
async fn shutdown_takes_nothing_new_and_waits_for_what_runs() {
    let transport = MemoryTransport::new();
    let gate = Gate::default();
    let going = node(&transport, gate.handler()).await;
    let request = tokio::spawn({
        let client = client(&transport);
        async move { client.request_shard(1, "Get", "late").await }
    });
    until("it runs", || gate.inside() == 1).await;
    let mut shutdown = tokio::spawn(going.shutdown());
    let nobody = RequestError::NoShardSubscriber { shard: 2 };
    let refused = async {
        while client(&transport).shard(2).node_info().await.err().as_ref() != Some(&nobody) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, refused).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut shutdown).await.is_err(), "one runs still");
    gate.open();
    shutdown.await.unwrap();
    assert_eq!(request.await.unwrap().unwrap(), "late");
}

#[tokio::test]
async fn a_closed_transport_waits_for_what_runs_and_takes_nothing_new() {
    let transport = MemoryTransport::new();
    let gate = Gate::default();
    let _node = node(&transport, gate.handler()).await;
    client(&transport).notify_shard(1, "Get", "").await.unwrap();
    until("it runs", || gate.inside() == 1).await;
    let mut closing = tokio::spawn({
        let transport = transport.clone();
        async move { ClientTransport::close(&transport).await }
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut closing).await.is_err(), "one runs still");
    assert_eq!(client(&transport).request_shard(2, "Get", "").await, Err(RequestError::TransportClosed));
    assert_eq!(client(&transport).notify_shard(2, "Get", "").await, Err(RequestError::TransportClosed));
    gate.open();
    closing.await.unwrap();
    assert_eq!((gate.inside(), gate.dropped.load(Ordering::SeqCst)), (0, 0));
    ServerTransport::close(&transport).await;
}

#[tokio::test]
async fn a_panic_is_the_callers_to_hear_and_harms_nobody_else() {
    let transport = MemoryTransport::builder().max_concurrent_handlers(1).build();
    let _node = node(&transport, |_: RequestContext, request: Envelope| async move {
        assert!(request.data() != "bad", "cannot do {:?}", request.message_type());
        Ok::<_, BoxError>(request.into_data())
    })
    .await;
    let error = client(&transport).request_shard(1, "That", "bad").await.unwrap_err();
    assert_eq!(error, RequestError::HandlerPanicked { message: "cannot do \"That\"".to_owned() });
    assert_eq!(client(&transport).request_shard(1, "That", "good").await.unwrap(), "good");
}

#[tokio::test]
async fn notifications_arrive_and_nobody_waits_for_them() {
    let transport = MemoryTransport::new();
    let seen = Arc::new(Semaphore::new(0));
    let _node = node(&transport, {
        let seen = seen.clone();
        move |_: RequestContext, _: Envelope| {
            seen.add_permits(1);
            async { Err::<bytes::Bytes, _>("nobody hears this") }
        }
    })
    .await;
    let client = client(&transport);
    client.notify_key("a", "Tell", "").await.unwrap();
    client.key("b").notify_as("Tell", "").await.unwrap();
    let both = tokio::time::timeout(LONG, seen.acquire_many(2)).await.unwrap();
    assert!(both.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_callers_at_once_get_their_own_answers() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, echo).await;
    let tasks = (0..64).map(|caller| {
        let client = client(&transport);
        tokio::spawn(async move {
            for number in 0..500 {
                let word = format!("{caller}:{number}");
                assert_eq!(client.request_key(&word, "Echo", word.clone()).await.unwrap(), word);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(transport.running(), 0);
}
