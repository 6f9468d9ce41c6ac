//! A store that one of the nodes reaches badly, or not at all.

use std::time::Duration;

use rendez_testkit::clock;
use rendez_testkit::proxy::{Direction, Proxy};
use rendez_testkit::servers::RedisServer;

use crate::stage::{Agent, Stage, TTL, shares_of};

/// The first node reaches the store through the proxy, the second one directly.
struct Pair {
    redis: RedisServer,
    proxy: Proxy,
    stage: Stage,
}

impl Pair {
    async fn new() -> Self {
        let redis = RedisServer::builder().start().await.unwrap();
        let proxy = Proxy::start(redis.addr().unwrap()).await.unwrap();
        let stage = Stage::new(&redis.url());
        Self { redis, proxy, stage }
    }

    fn agents(&self) -> [Agent; 2] {
        let url = format!("redis://{}", self.proxy.addr());
        let far = self.stage.agent("far").probe(&["--ignore-term"]).store(&url).start();
        let near = self.stage.agent("near").start();
        self.stage.wait_for_shares(&[("far", 2), ("near", 2)]);
        [far, near]
    }

    /// The other one has everything, until this one is back.
    async fn judge(self, agents: [Agent; 2]) {
        self.stage.wait_for_shares(&[("near", 4)]);
        std::thread::sleep(2 * TTL);
        self.proxy.heal().await.unwrap();
        self.stage.wait("its return", |running| running.len() == 4 && shares_of(running).len() == 2);
        drop(agents);
        self.stage.report().assert_good();
        drop(self.redis);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_ends_its_children_by_the_deadline() {
    let pair = Pair::new().await;
    let agents = pair.agents();
    pair.proxy.cut().await;
    let since = clock::now();
    pair.stage.wait_for_shares(&[("near", 4)]);
    for run in pair.stage.report().runs.values().flatten().filter(|run| run.node.as_str() == "far") {
        assert!(run.until <= since + TTL, "{run:?} went on after its deadline");
    }
    pair.judge(agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_arrive_long_after_they_were_sent_change_nothing() {
    let pair = Pair::new().await;
    let agents = pair.agents();
    pair.proxy.freeze();
    pair.judge(agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_no_reply_does_not_keep_its_slots_from_the_others() {
    let pair = Pair::new().await;
    let agents = pair.agents();
    pair.proxy.drop_replies();
    pair.judge(agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_over_a_bad_connection() {
    let pair = Pair::new().await;
    let [far, near] = pair.agents();
    let mut third = Vec::new();
    for round in 0..12 {
        match round % 4 {
            0 => pair.proxy.set_delay(Direction::ToClient, Duration::from_millis(40)),
            1 => pair.proxy.lose_replies(3),
            2 => pair.proxy.reset().await,
            _ => pair.proxy.set_delay(Direction::ToClient, Duration::ZERO),
        }
        if round % 3 == 0 {
            third.clear();
            third.push(pair.stage.agent("third").start());
        }
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    pair.proxy.heal().await.unwrap();
    pair.stage.wait("all to run on three nodes", |running| running.len() == 4 && shares_of(running).len() == 3);
    drop((far, near, third));
    pair.stage.report().assert_good();
}
