//! A cluster of etcd servers.

use super::ServerError;
use super::etcd::{EtcdServer, EtcdServerBuilder, Seat};
use super::redis::Restart;
use super::tls::TlsFiles;
use super::wait::{READY_BOUND, wait_until};

const MEMBERS: usize = 3;

/// Three etcd servers that elect a leader.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::EtcdCluster;
///
/// let mut cluster = EtcdCluster::builder().start().await?;
/// println!("{}", cluster.url()); // etcd://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3
/// let old = cluster.leader().await?;
/// cluster.members[old].stop()?;
/// let new = cluster.wait_for_another_leader(old).await?;
/// assert_ne!(old, new);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct EtcdCluster {
    /// The members.
    pub members: Vec<EtcdServer>,
    settings: EtcdServerBuilder,
}

/// How a cluster is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EtcdClusterBuilder {
    member: EtcdServerBuilder,
}

impl EtcdCluster {
    /// Starts to describe a cluster.
    pub fn builder() -> EtcdClusterBuilder {
        EtcdClusterBuilder::default()
    }

    /// The URL with all members, for root if there is a root password.
    #[must_use]
    pub fn url(&self) -> String {
        let addrs: Vec<_> = self.members.iter().filter_map(|member| member.addr().ok()).collect();
        self.settings.url(self.settings.root(), &addrs)
    }

    /// The place in [`members`](Self::members) of the leader.
    ///
    /// # Errors
    /// [`ServerError::Answer`] if at the moment nobody who answers says to be it, or more than one.
    pub async fn leader(&self) -> Result<usize, ServerError> {
        let mut leaders = Vec::new();
        for (place, member) in self.members.iter().enumerate() {
            // One that is down or stopped leads nobody.
            if member.metric("etcd_server_is_leader").await.is_ok_and(|yes| yes > 0.0) {
                leaders.push(place);
            }
        }
        match leaders[..] {
            [leader] => Ok(leader),
            _ => Err(ServerError::Answer { request: "who leads".to_owned(), answer: format!("leaders: {leaders:?}") }),
        }
    }

    /// Returns the place of the leader when it is another one than `old`.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_for_another_leader(&self, old: usize) -> Result<usize, ServerError> {
        wait_until("the cluster to elect another leader", READY_BOUND, async || match self.leader().await {
            Ok(new) if new != old => Ok(new),
            Ok(_) => Err("the old leader is still the one".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Restarts all members, with or without their data; returns when they have a leader.
    ///
    /// # Errors
    /// As [`EtcdServer::restart`].
    pub async fn restart(&mut self, how: Restart) -> Result<(), ServerError> {
        for member in &mut self.members {
            member.end(how).await?;
        }
        for member in &mut self.members {
            member.begin()?;
        }
        self.wait_ready().await?;
        if how == Restart::Empty { self.members[0].enable_root().await } else { Ok(()) }
    }

    /// Returns when every member has a leader.
    ///
    /// # Errors
    /// [`ServerError::Ended`] or [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_ready(&mut self) -> Result<(), ServerError> {
        for member in &mut self.members {
            member.wait_ready().await?;
        }
        wait_until("one leader", READY_BOUND, async || self.leader().await).await.map(drop)
    }
}

impl EtcdClusterBuilder {
    /// How each member is to be.
    pub fn member(mut self, member: EtcdServerBuilder) -> Self {
        self.member = member;
        self
    }

    /// Starts everything; returns when the cluster has a leader.
    ///
    /// # Errors
    /// As [`EtcdServerBuilder::start`].
    pub async fn start(self) -> Result<EtcdCluster, ServerError> {
        let seats = (0..MEMBERS).map(|n| Seat::take(&format!("member{n}"))).collect::<Result<Vec<_>, _>>()?;
        let peers: Vec<_> = seats.iter().map(Seat::peer).collect();
        let tls = if self.member.speaks_tls() { Some(TlsFiles::create(seats[0].folder())?) } else { None };
        let members = seats.into_iter().map(|seat| self.member.begin(seat, peers.clone(), tls.as_ref()));
        let mut cluster =
            EtcdCluster { members: members.collect::<Result<Vec<_>, _>>()?, settings: self.member.clone() };
        cluster.wait_ready().await?;
        cluster.members[0].enable_root().await?;
        Ok(cluster)
    }
}
