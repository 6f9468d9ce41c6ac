//! A service of three nodes that keep accounts in memory, each the accounts of the slots that it holds; all three are replaced one
//! after the other while callers go on. No request fails, and every deposit is there in the end.
//!
//! `cargo run -p rendez-examples --bin accounts`; ends by itself, with an error if a deposit was lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rendez::{BoxError, Coordinator, EngineConfig, Handle, MemoryStore, SlotContext};
use rendez_router::{
    Client, Envelope, FollowedOwners, Handler, MemoryTransport, Node, RequestContext, RequestError, ServedSlots,
};

const SLOTS: u32 = 16;
const ACCOUNTS: u32 = 100;

/// The accounts of one slot, while this node holds it.
struct Accounts {
    slot: SlotContext,
    balances: Mutex<BTreeMap<String, u64>>,
}

impl Accounts {
    /// Goes on with what the last owner has left.
    async fn load(slot: SlotContext) -> Result<Self, BoxError> {
        let left = slot.checkpoint().map(|left| String::from_utf8(left.to_vec())).transpose()?.unwrap_or_default();
        let balance = |line: &str| {
            let (account, balance) = line.split_once('=')?;
            Some((account.to_owned(), balance.parse().ok()?))
        };
        let balances = left.lines().filter_map(balance).collect();
        Ok(Self { slot, balances: Mutex::new(balances) })
    }
}

#[async_trait]
impl Handler for Accounts {
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        let account = request.key().ok_or(RequestError::MissingKeyHeader)?.to_owned();
        let message_type = request.message_type();
        tokio::time::sleep(Duration::from_millis(1)).await; // some work
        let mut balances = self.balances.lock().unwrap_or_else(PoisonError::into_inner);
        let balance = balances.entry(account).or_default();
        match message_type {
            "Deposit" => {
                // Before each side effect. What is written elsewhere would be given `lease.token()`.
                if ctx.lease().is_none_or(|lease| lease.check().is_err()) {
                    return Err(RequestError::OwnershipLost { shard: request.shard() });
                }
                *balance += 1;
            }
            "Balance" => {}
            other => return Err(RequestError::UnknownMessageType { message_type: other.to_owned() }),
        }
        Ok(balance.to_string().into())
    }

    /// After the last request, and before the slot goes: what is left here travels with it.
    async fn close(&self) {
        let balances = self.balances.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> = balances.iter().map(|(account, balance)| format!("{account}={balance}")).collect();
        if let Err(error) = self.slot.leave_checkpoint(lines.join("\n")) {
            eprintln!("the accounts of {} are too many for a checkpoint: {error}", self.slot.slot());
        }
    }
}

/// One process of the service; here three of them live in one.
struct Process {
    name: String,
    handle: Handle,
    node: Node,
    slots: ServedSlots,
}

impl Process {
    async fn start(name: String, store: &MemoryStore, transport: &MemoryTransport) -> Result<Self, BoxError> {
        let slots = ServedSlots::new(Accounts::load);
        let mut config = EngineConfig::for_ttl(Duration::from_secs(3));
        // A service would wait for calm before it moves slots; this one shows how they move.
        config.stabilizers.settling = Duration::ZERO;
        config.stabilizers.runtime_min = Duration::ZERO;
        let handle = Coordinator::builder()
            .store(store.clone())
            .cluster("bank")
            .node_id(&name)
            .workload("accounts", SLOTS)
            .engine_config(config)
            .runner(slots.clone())
            .start()
            .await?;
        let node = Node::builder(transport.clone()).id(&name).slots(slots.clone()).start().await?;
        while slots.shards().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!("{name} takes part with the slots {:?}", slots.shards());
        Ok(Self { name, handle, node, slots })
    }

    async fn shutdown(self) -> Result<(), BoxError> {
        println!("{} leaves with the slots {:?}", self.name, self.slots.shards());
        self.handle.shutdown().await?;
        self.node.shutdown().await;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (store, transport) = (MemoryStore::new(), MemoryTransport::new());
    let mut processes = Vec::new();
    for name in ["anna", "ben", "cleo"] {
        processes.push(Process::start(name.to_owned(), &store, &transport).await?);
    }
    let owners = FollowedOwners::follow(Arc::new(store.clone()), "bank".parse()?, "accounts".parse()?);
    let client = Client::builder(transport.clone(), SLOTS).owners(owners).patience(Duration::from_secs(10)).build()?;

    let (over, deposits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for caller in 0..8_u32 {
        let (client, over, deposits) = (client.clone(), over.clone(), deposits.clone());
        callers.push(tokio::spawn(async move {
            let (mut number, mut failed) = (caller, 0_u64);
            while !over.load(Ordering::Relaxed) {
                number = (number + 7) % ACCOUNTS;
                match client.request_key(&format!("account-{number}"), "Deposit", "").await {
                    Ok(_) => drop(deposits.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => {
                        eprintln!("a request failed: {error}");
                        failed += 1;
                    }
                }
            }
            failed
        }));
    }
    for process in &mut processes {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let new = Process::start(format!("{} the second", process.name), &store, &transport).await?;
        std::mem::replace(process, new).shutdown().await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    over.store(true, Ordering::Relaxed);
    let mut failed = 0;
    for caller in callers {
        failed += caller.await?;
    }

    let mut total = 0;
    for number in 0..ACCOUNTS {
        let balance = client.request_key(&format!("account-{number}"), "Balance", "").await?;
        total += std::str::from_utf8(&balance)?.parse::<u64>()?;
    }
    let deposits = deposits.load(Ordering::Relaxed);
    println!("{deposits} deposits were answered, {failed} requests failed, and the accounts hold {total}");
    for process in processes {
        process.shutdown().await?;
    }
    if failed == 0 && total == deposits { Ok(()) } else { Err("a deposit was lost, or a request failed".into()) }
}
