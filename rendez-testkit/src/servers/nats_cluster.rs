//! A cluster of NATS servers.

use super::ServerError;
use super::nats::{NatsServer, NatsServerBuilder, Seat};
use super::tls::TlsFiles;

const MEMBERS: usize = 3;

/// Three NATS servers that keep buckets together.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::NatsCluster;
///
/// let mut cluster = NatsCluster::builder().start().await?;
/// println!("{}", cluster.url()); // nats://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3
/// cluster.member("member1")?.stop()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NatsCluster {
    /// The members; their names are `member0`, `member1` and `member2`.
    pub members: Vec<NatsServer>,
    settings: NatsServerBuilder,
}

/// How a cluster is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct NatsClusterBuilder {
    member: NatsServerBuilder,
}

impl NatsCluster {
    /// Starts to describe a cluster.
    pub fn builder() -> NatsClusterBuilder {
        NatsClusterBuilder::default()
    }

    /// The URL with all members, for the first user if there are users.
    #[must_use]
    pub fn url(&self) -> String {
        let addrs: Vec<_> = self.members.iter().filter_map(|member| member.addr().ok()).collect();
        self.settings.url(self.settings.first_user(), &addrs)
    }

    /// The member of a name, as the servers themselves say who leads a stream.
    ///
    /// # Errors
    /// [`ServerError::Config`] if there is none.
    pub fn member(&mut self, name: &str) -> Result<&mut NatsServer, ServerError> {
        let place = name.strip_prefix("member").and_then(|number| number.parse::<usize>().ok());
        let member = place.and_then(|place| self.members.get_mut(place));
        member.ok_or_else(|| ServerError::Config(format!("the cluster has no member {name:?}")))
    }

    /// Returns when every member is healthy.
    ///
    /// # Errors
    /// [`ServerError::Ended`] or [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_ready(&mut self) -> Result<(), ServerError> {
        for member in &mut self.members {
            member.wait_ready().await?;
        }
        Ok(())
    }
}

impl NatsClusterBuilder {
    /// How each member is to be.
    pub fn member(mut self, member: NatsServerBuilder) -> Self {
        self.member = member;
        self
    }

    /// Starts everything; returns when the members are healthy, so they have found each other and a leader.
    ///
    /// # Errors
    /// As [`NatsServerBuilder::start`].
    pub async fn start(self) -> Result<NatsCluster, ServerError> {
        let seats = (0..MEMBERS).map(|n| Seat::take(&format!("member{n}"))).collect::<Result<Vec<_>, _>>()?;
        let peers: Vec<u16> = seats.iter().map(Seat::peer).collect();
        let tls = if self.member.speaks_tls() { Some(TlsFiles::create(seats[0].folder())?) } else { None };
        let members = seats.into_iter().map(|seat| self.member.begin(seat, peers.clone(), tls.as_ref()));
        let mut cluster =
            NatsCluster { members: members.collect::<Result<Vec<_>, _>>()?, settings: self.member.clone() };
        cluster.wait_ready().await?;
        Ok(cluster)
    }
}
