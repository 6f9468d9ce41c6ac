//! The proxy in front of a server that echoes, and in front of a real one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rendez_testkit::proxy::{Direction, Proxy};
use rendez_testkit::servers::{READY_BOUND, RedisServer, RespClient, RespValue, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough to notice bytes that should not come; nothing waits for it to pass in vain but silence.
const SILENCE: Duration = Duration::from_millis(100);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    addr
}

async fn proxy_and_client() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo().await).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(echoes(&mut client, b"hello").await);
    (proxy, client)
}

/// Whether the bytes come back; `false` if the connection ends instead.
async fn echoes(client: &mut TcpStream, bytes: &[u8]) -> bool {
    let mut back = vec![0; bytes.len()];
    client.write_all(bytes).await.is_ok() && client.read_exact(&mut back).await.is_ok() && back == bytes
}

async fn is_silent(client: &mut TcpStream) -> bool {
    let mut byte = [0];
    tokio::time::timeout(SILENCE, client.peek(&mut byte)).await.is_err()
}

async fn is_closed(client: &mut TcpStream) -> bool {
    matches!(client.read(&mut [0]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn bytes_pass_unchanged_and_are_counted() {
    let (proxy, mut client) = proxy_and_client().await;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = client.split();
    let mut back = vec![0; bytes.len()];
    let (sent, received) = tokio::join!(write.write_all(&bytes), read.read_exact(&mut back));
    assert!(sent.is_ok() && received.is_ok() && back == bytes);
    assert_eq!(proxy.bytes(Direction::ToServer), 1_000_005);
    assert_eq!(proxy.bytes(Direction::ToClient), 1_000_005);
    assert_eq!((proxy.connections_accepted(), proxy.connections_open()), (1, 1));
    drop(client);
    let closed = wait_until("the connection to end", READY_BOUND, async || match proxy.connections_open() {
        0 => Ok(()),
        open => Err(open),
    });
    closed.await.unwrap();
}

#[tokio::test]
async fn the_end_of_one_direction_passes_and_the_other_goes_on() {
    let (_proxy, mut client) = proxy_and_client().await;
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"last words");
}

#[tokio::test]
async fn each_direction_is_delayed_on_its_own() {
    let (proxy, mut client) = proxy_and_client().await;
    for directions in [&[Direction::ToServer][..], &[Direction::ToClient], &[Direction::ToServer, Direction::ToClient]]
    {
        let delay = Duration::from_millis(60);
        directions.iter().for_each(|direction| proxy.set_delay(*direction, delay));
        let start = Instant::now();
        assert!(echoes(&mut client, b"x").await);
        assert!(start.elapsed() >= delay * u32::try_from(directions.len()).unwrap());
        proxy.heal().await.unwrap();
    }
}

#[tokio::test]
async fn a_cut_closes_all_and_refuses_new_until_healed() {
    let (proxy, mut client) = proxy_and_client().await;
    proxy.cut().await;
    assert!(is_closed(&mut client).await);
    assert_eq!(proxy.connections_open(), 0);
    assert!(TcpStream::connect(proxy.addr()).await.is_err());
    proxy.heal().await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(echoes(&mut client, b"again").await);
}

#[tokio::test]
async fn a_reset_closes_all_and_accepts_new() {
    let (proxy, mut client) = proxy_and_client().await;
    proxy.reset().await;
    assert!(is_closed(&mut client).await);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(echoes(&mut client, b"again").await);
}

#[tokio::test]
async fn frozen_bytes_arrive_after_healing_also_on_new_connections() {
    let (proxy, mut client) = proxy_and_client().await;
    proxy.freeze();
    let before = proxy.bytes(Direction::ToServer);
    client.write_all(b"late").await.unwrap();
    let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
    second.write_all(b"new").await.unwrap();
    assert!(is_silent(&mut client).await && is_silent(&mut second).await);
    assert_eq!(proxy.bytes(Direction::ToServer), before);
    proxy.heal().await.unwrap();
    let (mut late, mut new) = ([0; 4], [0; 3]);
    client.read_exact(&mut late).await.unwrap();
    second.read_exact(&mut new).await.unwrap();
    assert_eq!((&late, &new), (b"late", b"new"));
}

#[tokio::test]
async fn a_freeze_holds_back_what_is_under_way() {
    let (proxy, mut client) = proxy_and_client().await;
    proxy.set_delay(Direction::ToClient, Duration::from_millis(20));
    client.write_all(b"x").await.unwrap();
    proxy.freeze();
    assert!(is_silent(&mut client).await);
}

#[tokio::test]
async fn dropped_replies_never_come_and_their_connection_ends() {
    let redis = RedisServer::builder().start().await.unwrap();
    let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    client.command(&["PING"]).await.unwrap();
    proxy.drop_replies();
    let unanswered = tokio::time::timeout(SILENCE, client.command(&["SET", "key", "applied"])).await;
    assert!(unanswered.is_err());
    let applied =
        wait_until("the command to be run", READY_BOUND, async || match redis.command(&["GET", "key"]).await {
            Ok(RespValue::Bytes(value)) if value == b"applied" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    applied.await.unwrap();
    proxy.heal().await.unwrap();
    assert!(client.command(&["PING"]).await.is_err());
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    assert_eq!(client.command(&["GET", "key"]).await.unwrap(), RespValue::Bytes(b"applied".to_vec()));
}

#[tokio::test]
async fn dropped_requests_never_arrive_and_their_connection_ends() {
    let redis = RedisServer::builder().start().await.unwrap();
    let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    client.command(&["PING"]).await.unwrap();
    let before = proxy.bytes(Direction::ToServer);
    proxy.drop_requests();
    let unanswered = tokio::time::timeout(SILENCE, client.command(&["SET", "key", "applied"])).await;
    assert!(unanswered.is_err());
    assert_eq!(proxy.bytes(Direction::ToServer), before);
    // What the server says by itself still passes: here, that it ends the connection.
    let mut idle = TcpStream::connect(proxy.addr()).await.unwrap();
    let two = wait_until("both connections at the server", READY_BOUND, async || {
        let clients = redis.info("connected_clients").await.unwrap();
        // One is the harness' own.
        if clients == "3" { Ok(()) } else { Err(clients) }
    });
    two.await.unwrap();
    redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.unwrap();
    assert!(is_closed(&mut idle).await);
    proxy.heal().await.unwrap();
    assert!(client.command(&["PING"]).await.is_err());
    assert_eq!(redis.command(&["GET", "key"]).await.unwrap(), RespValue::Nil);
}

#[tokio::test]
async fn bytes_trickle_one_by_one_and_all_arrive() {
    let (proxy, mut client) = proxy_and_client().await;
    let pause = Duration::from_millis(2);
    proxy.trickle(pause);
    let (start, bytes) = (Instant::now(), [7; 50]);
    let (mut read, mut write) = client.split();
    write.write_all(&bytes).await.unwrap();
    let mut back: Vec<u8> = Vec::new();
    while back.len() < bytes.len() {
        let mut piece = [0; 50];
        let length = read.read(&mut piece).await.unwrap();
        back.extend(&piece[..length]);
    }
    assert_eq!(back, bytes.to_vec());
    assert!(start.elapsed() >= pause * 49);
    proxy.heal().await.unwrap();
    assert!(echoes(&mut client, &[8; 100_000]).await);
}

#[tokio::test]
async fn an_abandoned_connection_is_silent_on_both_sides_and_new_ones_are_good() {
    let redis = RedisServer::builder().start().await.unwrap();
    let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
    let clients = async || redis.info("connected_clients").await.unwrap();
    let mut old = RespClient::connect(proxy.addr()).await.unwrap();
    old.command(&["PING"]).await.unwrap();
    let gone = RespClient::connect(proxy.addr()).await.unwrap();
    wait_until("both at the server", READY_BOUND, async || match clients().await {
        count if count == "3" => Ok(()),
        count => Err(count),
    })
    .await
    .unwrap();
    proxy.abandon();
    let unanswered = tokio::time::timeout(SILENCE, old.command(&["SET", "key", "applied"])).await;
    assert!(unanswered.is_err());
    let mut new = RespClient::connect(proxy.addr()).await.unwrap();
    assert_eq!(new.command(&["GET", "key"]).await.unwrap(), RespValue::Nil);
    drop(gone);
    tokio::time::sleep(SILENCE).await;
    // The server does not hear of the end either: two abandoned, the new one, and the harness' own.
    assert_eq!(clients().await, "4");
    proxy.heal().await.unwrap();
    assert!(old.command(&["PING"]).await.is_err());
    assert_eq!(new.command(&["GET", "key"]).await.unwrap(), RespValue::Nil);
}

#[tokio::test]
async fn a_lost_reply_ends_its_connection_after_the_command_was_run() {
    let redis = RedisServer::builder().start().await.unwrap();
    let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    proxy.lose_replies(1);
    assert!(client.command(&["INCR", "counter"]).await.is_err());
    assert_eq!(redis.command(&["GET", "counter"]).await.unwrap(), RespValue::Bytes(b"1".to_vec()));
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    assert_eq!(client.command(&["INCR", "counter"]).await.unwrap(), RespValue::Integer(2));
}

#[tokio::test]
async fn an_upstream_that_is_down_closes_its_clients_and_may_come_back() {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
    redis.kill().unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(is_closed(&mut client).await);
    redis.restart(rendez_testkit::servers::Restart::Crashed).await.unwrap();
    let mut client = RespClient::connect(proxy.addr()).await.unwrap();
    client.command(&["PING"]).await.unwrap();
}
