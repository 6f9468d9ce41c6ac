//! A program of which one copy leads: the one that holds a Lease, which participants of client-go may share.
//!
//! In a pod it uses its service account; elsewhere the kubeconfig file that `kubectl` uses:
//!
//! ```sh
//! LEASE_NAME=my-controller POD_NAMESPACE=default POD_NAME=a cargo run -p rendez-kubernetes --example leader-lease
//! ```
//!
//! `examples/kubernetes/` has what it takes to run it in a cluster.

use std::error::Error;
use std::time::Duration;

use rendez_kubernetes::{KubernetesOptions, LeaderLease, LeaderLeaseOptions};
use tokio::signal::unix::{SignalKind, signal};

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("set {name}: see examples/kubernetes/deployment.yaml"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The pod's name alone would be that of the next process in the same pod, too.
    let identity = LeaderLeaseOptions::unique_identity(&variable("POD_NAME")?);
    let options = LeaderLeaseOptions::new(variable("POD_NAMESPACE")?, variable("LEASE_NAME")?, identity);
    let election = LeaderLease::connect(&KubernetesOptions::default(), options).await?;
    println!("{} takes part", election.identity());
    let mut told_to_end = signal(SignalKind::terminate())?;
    let watcher = tokio::spawn(tell(election.clone()));
    tokio::select! {
        // To be dropped ends the work, here between two of its steps.
        worked = work(&election) => worked?,
        _ = tokio::signal::ctrl_c() => {}
        _ = told_to_end.recv() => {}
    }
    // The work has ended: now another may lead.
    watcher.abort();
    election.stop().await?;
    println!("{} has gone", election.identity());
    Ok(())
}

/// Leads, works, and waits to lead again, without end.
async fn work(election: &LeaderLease) -> Result<(), Box<dyn Error>> {
    loop {
        let token = election.wait_for_leadership().await?;
        println!("{} leads under token {token}", election.identity());
        // Before each step: is it still ours? The token goes with whatever a step writes.
        while election.is_leader() {
            println!("a step under token {token}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        println!("{} leads no more", election.identity());
    }
}

/// Tells who leads, whoever that is, and what keeps the election from going on.
async fn tell(election: LeaderLease) {
    let mut states = election.states();
    let (mut leader, mut trouble) = (None, None);
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        let now = state.leader.map(|leader| leader.identity);
        if now != leader {
            println!("leader: {}", now.as_deref().unwrap_or("nobody"));
            leader = now;
        }
        if state.trouble != trouble {
            println!("trouble: {}", state.trouble.as_deref().unwrap_or("none"));
            trouble = state.trouble;
        }
    }
}
