//! Messages with types, and errors on their way back.

use rendez_core::{FencingToken, NodeId};
use rendez_router::*;
use serde::{Deserialize, Serialize};

use crate::{client, node};

#[derive(Serialize, Deserialize)]
struct GetUser {
    id: String,
}
impl Message for GetUser {}

#[derive(Serialize, Deserialize)]
struct Rename {
    name: String,
}
impl Message for Rename {
    fn message_type() -> &'static str {
        "users.rename"
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: String,
    name: String,
}

fn users() -> Dispatch {
    Dispatch::new()
        .on(|_: RequestContext, get: GetUser| async move {
            let name = format!("User {}", get.id);
            if get.id.is_empty() {
                Err(RequestError::handler("no_such_user", "nobody has no id"))
            } else {
                Ok(User { id: get.id, name })
            }
        })
        .on(|_: RequestContext, rename: Rename| async move { Ok::<_, BoxError>(rename.name) })
        .on_type("raw", crate::echo)
}

#[tokio::test]
async fn types_find_their_handler_and_answers_their_type() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, users()).await;
    let user = client(&transport).key("user-123");
    let get = GetUser { id: "123".to_owned() };
    let found = user.typed::<GetUser, User>().request(&get).await.unwrap();
    assert_eq!(found, User { id: "123".to_owned(), name: "User 123".to_owned() });
    assert_eq!(user.request(&get).await.unwrap(), r#"{"id":"123","name":"User 123"}"#);
    user.notify(&get).await.unwrap();
    let renamed = user.typed::<Rename, String>().request(&Rename { name: "Ada".to_owned() }).await;
    assert_eq!(renamed.unwrap(), "Ada");
    assert_eq!(user.request_as("raw", "as it is").await.unwrap(), "as it is");
}

#[tokio::test]
async fn what_does_not_fit_is_said() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, users()).await;
    let user = client(&transport).key("user-123");
    let error = user.request_as("Delete", "").await.unwrap_err();
    assert_eq!((error.to_string(), error.ran()), ("the handler knows no message \"Delete\"".to_owned(), Ran::No));
    let error = user.request_as("GetUser", "{").await.unwrap_err();
    assert!(error.to_string().starts_with("the request cannot be read: EOF"), "{error}");
    assert_eq!(error.ran(), Ran::No);
    let error = user.typed::<GetUser, u32>().request(&GetUser { id: "1".to_owned() }).await.unwrap_err();
    assert!(error.to_string().starts_with("the reply cannot be read: invalid type: map"), "{error}");
    assert_eq!(error.ran(), Ran::Yes);
    let error = user.request(&GetUser { id: String::new() }).await.unwrap_err();
    assert_eq!(error, RequestError::handler("no_such_user", "nobody has no id"));
    assert_eq!((error.to_string(), error.ran()), ("the handler failed: nobody has no id".to_owned(), Ran::Yes));
}

#[test]
fn every_error_survives_the_way_back() {
    let text = |text: &str| text.to_owned();
    for error in [
        RequestError::TransportClosed,
        RequestError::NoShardSubscriber { shard: 3 },
        RequestError::NoSuchNode { node: NodeId::new("a").unwrap() },
        RequestError::NotOwner { shard: 3, holder: None, token: None },
        RequestError::NotOwner { shard: 3, holder: Some(NodeId::new("a").unwrap()), token: Some(FencingToken::new(7)) },
        RequestError::NoOwner { shard: 3, millis: 2000 },
        RequestError::OwnershipLost { shard: 3 },
        RequestError::NoSuchShard { shard: 3, shards: 2 },
        RequestError::EnvelopeExpired,
        RequestError::HandlerTimeout { millis: 30_000 },
        RequestError::NoReply { millis: 30_000 },
        RequestError::Disconnected { why: text("reset") },
        RequestError::ReservedHeader { name: text("x-rendez-key") },
        RequestError::KeyRequired,
        RequestError::MissingKeyHeader,
        RequestError::Overloaded { what: text("the node"), most: 5 },
        RequestError::UnknownMessageType { message_type: text("Get") },
        RequestError::Handler { message: text("no"), code: None },
        RequestError::handler("code", "no"),
        RequestError::HandlerPanicked { message: text("no") },
        RequestError::Encode { what: Part::Request, why: text("no") },
        RequestError::Encode { what: Part::Reply, why: text("no") },
        RequestError::IdempotencyKeyReused { key: text("k") },
        RequestError::MemoryFull { shard: 3 },
        RequestError::Interrupted,
        RequestError::Decode { what: Part::Request, why: text("no") },
        RequestError::Decode { what: Part::Reply, why: text("no") },
    ] {
        let wire = serde_json::to_vec(&error).unwrap();
        assert_eq!(serde_json::from_slice::<RequestError>(&wire).unwrap(), error, "{}", String::from_utf8_lossy(&wire));
    }
}
