//! An upstream at run time: its addresses, how they do, and whose turn it is. Names are resolved and endpoints are checked
//! by tasks of the control plane; the data plane reads what they found, and notes how its requests went.

pub mod budget;
pub mod connections;
pub mod endpoints;
pub mod health;
pub mod member;
pub mod pool;
pub mod resolve;
pub mod room;
pub mod tls;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lockgate_config::model::{self, Balance, Endpoint, Health, Host, UpstreamProtocol};
use lockgate_config::units::Weight;
use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use pingora::protocols::ALPN;
use pingora::upstreams::peer::HttpPeer;

use crate::metrics::{Limit, Metrics, UpstreamSeries};
use crate::proxy::split::{Attributes, Split};
use budget::Budget;
use connections::Connections;
use member::{InFlight, Member};
use pool::{By, Draw, Pool};
use resolve::Resolver;
use room::{Admitted, Crowded, Room};
use tls::Material;

/// Requests that share one HTTP/2 connection to an upstream. Pingora's default is one.
const H2_STREAMS_MAX: usize = 128;

/// A named group of endpoints.
#[derive(Debug)]
pub struct Upstream {
    config: model::Upstream,
    digest: String,
    /// As configured, or as they stand in the file. Only the control plane looks at them.
    endpoints: Mutex<Arc<[(Endpoint, u32)]>>,
    tls: Option<Material>,
    /// Connections of one upstream are not another's, even where the address is the same.
    group: u64,
    /// What the members' times count from.
    began: Instant,
    /// Beside the snapshot, not in it: an address that moves is no new generation.
    pool: ArcSwap<Pool>,
    turn: AtomicUsize,
    room: Arc<Room>,
    /// Hashes a request's key, where that chooses the endpoint.
    key: Option<Split>,
    /// What further attempts may cost.
    pub budget: Budget,
    /// Metric handles.
    pub series: Arc<UpstreamSeries>,
}

impl Upstream {
    /// Returns an upstream whose names are not resolved yet: see [`Self::tend`].
    pub fn new(config: &model::Upstream, tls: Option<Material>, metrics: &Metrics) -> Arc<Self> {
        let digest = digest_of(config);
        let key = match &config.balance {
            Balance::Hash(key) => Some(Split::new(&config.name, key, Weight::ZERO, None)),
            Balance::RoundRobin | Balance::LeastRequests => None,
        };
        let series = metrics.upstream(&config.name);
        let upstream = Self {
            group: xxhash_rust::xxh3::xxh3_64(digest.as_bytes()),
            tls,
            began: Instant::now(),
            pool: ArcSwap::from_pointee(Pool::new(Vec::new(), false)),
            turn: AtomicUsize::new(0),
            room: Arc::new(Room::new(config.limits, series.limits.clone())),
            key,
            budget: Budget::new(config.retries.budget),
            series,
            endpoints: Mutex::new(config.endpoints.clone().into()),
            config: config.clone(),
            digest,
        };
        let literal = upstream.config.endpoints.iter().filter_map(|(endpoint, weight)| match &endpoint.host {
            Host::Address(address) => Some((SocketAddr::new(*address, endpoint.port), *weight, endpoint.to_string())),
            Host::Name(_) => None,
        });
        let literal = literal.collect();
        upstream.set_members(literal);
        Arc::new(upstream)
    }

    /// Returns the name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Returns the configuration.
    pub fn config(&self) -> &model::Upstream {
        &self.config
    }

    /// Returns a digest over name and settings: what makes it another version.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns what was read for TLS.
    pub fn tls(&self) -> Option<&Material> {
        self.tls.as_ref()
    }

    /// Returns the addresses with what is known about them.
    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.load_full()
    }

    /// Returns a time as its members count them, in milliseconds.
    pub fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether its checks have found none of its endpoints well. Never without checks. One read of a shared
    /// pointer.
    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    pub fn is_down(&self) -> bool {
        self.config.health.is_some() && self.pool.load().members().iter().all(|member| !member.is_healthy())
    }

    /// Returns what there is room for.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Lets a request in, for its next attempt: gives it a place, unless it was `admitted` for an earlier one, and chooses
    /// an endpoint. One read of a shared pointer and a few atomics.
    ///
    /// # Errors
    /// A limit is used up, or no endpoint is usable.
    pub fn enter(
        &self,
        request: &Attributes<'_>,
        tried: &[SocketAddr],
        admitted: &mut Option<Admitted>,
        now: Instant,
    ) -> Result<InFlight, Crowded> {
        // The endpoint first: it is only looked at, and a place that is taken and given back would wake somebody.
        let member = self.choose(request, tried, now)?;
        if admitted.is_none() {
            *admitted = Some(self.room.admit().ok_or(Crowded::Full(Limit::Requests))?);
        }
        Ok(InFlight::begin(member))
    }

    /// Returns whether there is room for a further request, as far as is known.
    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    pub fn has_room(&self, now: Instant) -> bool {
        self.room.has_place() && self.pool.load().choose(&self.draw(By::Turn, &[], now)).is_some()
    }

    /// Returns which limit keeps requests waiting.
    pub fn scarce(&self) -> Limit {
        match self.config.limits.connections_per_endpoint {
            Some(_) if self.room.has_place() => Limit::Connections,
            _ => Limit::Requests,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "addresses are beside the snapshot")]
    fn choose(&self, request: &Attributes<'_>, tried: &[SocketAddr], now: Instant) -> Result<Arc<Member>, Crowded> {
        let by = match (&self.config.balance, &self.key) {
            (Balance::Hash(_), Some(key)) => key.decide(request).hash.map_or(By::Turn, By::Key),
            (Balance::LeastRequests, _) => By::Load,
            _ => By::Turn,
        };
        let mut draw = self.draw(by, tried, now);
        if tried.is_empty() {
            // A further attempt takes nobody's turn, or every other endpoint would get all first ones.
            draw.turn = self.turn.fetch_add(1, Ordering::Relaxed);
        }
        let pool = self.pool.load();
        match pool.choose(&draw) {
            Some(member) => Ok(Arc::clone(member)),
            None if draw.with_room && pool.choose(&Draw { with_room: false, ..draw }).is_some() => {
                Err(Crowded::Full(Limit::Connections))
            }
            None => Err(Crowded::Nobody),
        }
    }

    fn draw<'a>(&self, by: By, tried: &'a [SocketAddr], now: Instant) -> Draw<'a> {
        Draw {
            by,
            turn: self.turn.load(Ordering::Relaxed),
            now_ms: self.millis(now),
            slow_start_ms: u64::try_from(self.config.slow_start.as_millis()).unwrap_or(u64::MAX),
            panic: self.config.panic,
            tried,
            with_room: self.config.limits.connections_per_endpoint.is_some(),
        }
    }

    /// Returns how requests connect to a member: over connections that are counted.
    pub fn peer(&self, member: &Member) -> HttpPeer {
        let mut peer = self.uncounted_peer(member);
        peer.options.custom_l4 = Some(member.gate());
        peer
    }

    /// Returns how to connect to a member whatever its limits.
    fn uncounted_peer(&self, member: &Member) -> HttpPeer {
        let mut peer = match &self.tls {
            None => HttpPeer::new(member.address, false, String::new()),
            Some(tls) => {
                // Never empty: Pingora would take that for "do not verify".
                let name = tls.server_name.as_deref().unwrap_or_else(|| host_name(&member.host));
                let mut peer = HttpPeer::new(member.address, true, name.to_owned());
                peer.options.ca.clone_from(&tls.ca);
                peer.client_cert_key.clone_from(&tls.identity);
                peer
            }
        };
        peer.group_key = self.group;
        let timeouts = self.config.timeouts;
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.write);
        peer.options.idle_timeout = Some(timeouts.idle);
        match self.config.protocol {
            UpstreamProtocol::Http1 => {}
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => peer.options.alpn = ALPN::H2,
            UpstreamProtocol::Auto => peer.options.alpn = ALPN::H2H1,
        }
        peer.options.max_h2_streams = H2_STREAMS_MAX;
        peer
    }

    /// Notes how an attempt ended: with an answer that came from the endpoint and is not 502, 503 or 504, or without.
    pub fn judge(self: &Arc<Self>, member: &Member, succeeded: bool, now: Instant) {
        if succeeded {
            member.succeeded();
            return;
        }
        if !member.failed(self.config.ejection.failures) {
            return;
        }
        let (now_ms, pool) = (self.millis(now), self.pool());
        let out = pool.members().iter().filter(|member| member.is_ejected(now_ms)).count();
        let may = (pool.members().len() as f64 * self.config.ejection.max.ratio()).floor();
        if (out as f64) < may && member.eject(now_ms, self.config.ejection.duration) {
            self.series.ejections.inc();
            self.show(now);
            let (upstream, until) = (Arc::downgrade(self), member.ejected_until_ms());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(until.saturating_sub(now_ms))).await;
                if let Some(upstream) = upstream.upgrade() {
                    upstream.show(Instant::now());
                }
            });
            tracing::warn!(upstream = %self.name(), endpoint = %member.address, "requests to an endpoint fail; it is left out for a while");
        }
    }

    /// Brings the gauges up to date, and has those that wait look anew. Called when endpoints came, went, or changed.
    pub fn show(&self, now: Instant) {
        self.room.wake_all();
        let (now_ms, pool) = (self.millis(now), self.pool());
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let of = |is: &dyn Fn(&Member) -> bool| count(pool.members().iter().filter(|member| is(member)).count());
        self.series.usable.set(count(pool.usable(now_ms)));
        self.series.unhealthy.set(of(&|member| !member.is_healthy()));
        self.series.ejected.set(of(&|member| member.is_healthy() && member.is_ejected(now_ms)));
    }

    /// Reads the endpoints where a file has them, resolves the names, and checks every endpoint, once; from then on a task does, for as long as the upstream lives.
    pub async fn tend(self: &Arc<Self>, resolver: &Resolver) {
        let (look, _) = self.look_at_file(None).await;
        let next = self.resolve(resolver).await;
        if self.config.endpoints_file.is_some() {
            tokio::spawn(endpoints::follow(Arc::downgrade(self), resolver.clone(), look, next));
        } else if let Some(next) = next {
            tokio::spawn(resolve_again(Arc::downgrade(self), resolver.clone(), next));
        }
        if let Some(health) = self.config.health.clone() {
            let connector = Connector::new(None);
            self.check(&health, &connector, &mut Streaks::default()).await;
            tokio::spawn(check_again(Arc::downgrade(self), health, connector));
        }
    }

    /// Resolves the names. A name that does not resolve keeps the addresses of the last time. Returns when to do it again;
    /// none where there are no names.
    async fn resolve(&self, resolver: &Resolver) -> Option<Duration> {
        let endpoints = Arc::clone(&self.endpoints.lock());
        let is_address = |(endpoint, _): &(Endpoint, u32)| matches!(endpoint.host, Host::Address(_));
        if self.config.endpoints_file.is_none() && endpoints.iter().all(is_address) {
            return None;
        }
        let (mut found, mut next) = (Vec::new(), Duration::MAX);
        for (endpoint, weight) in &*endpoints {
            let shown = endpoint.to_string();
            match &endpoint.host {
                Host::Address(address) => found.push((SocketAddr::new(*address, endpoint.port), *weight, shown)),
                Host::Name(name) => match resolver.lookup(name).await {
                    Ok((addresses, ttl)) => {
                        next = next.min(ttl);
                        let at = |address| (SocketAddr::new(address, endpoint.port), *weight, shown.clone());
                        found.extend(addresses.into_iter().map(at));
                    }
                    Err(error) => {
                        next = next.min(resolve::RETRY);
                        tracing::warn!(upstream = %self.name(), %name, %error, "name does not resolve; its last addresses stay in use");
                        let known = self.pool();
                        let last = known.members().iter().filter(|member| *member.host == *shown);
                        found.extend(last.map(|member| (member.address, member.weight, shown.clone())));
                    }
                },
            }
        }
        self.set_members(found);
        (next < Duration::MAX).then_some(next)
    }

    /// Puts other addresses in the place of the current ones; what is known about those that stay, stays.
    fn set_members(&self, found: Vec<(SocketAddr, u32, String)>) {
        let (known, now_ms) = (self.pool(), self.millis(Instant::now()));
        let since = if known.members().is_empty() { 0 } else { now_ms.max(1) };
        let member = |(address, weight, host): (SocketAddr, u32, String)| match known.find(&address) {
            Some(member) if member.weight == weight && *member.host == *host => Arc::clone(member),
            // Connections that are open stay so.
            Some(member) => {
                let connections = Arc::clone(member.connections());
                Arc::new(Member::new(address, weight, host.into(), since, connections))
            }
            None => {
                let connections = Connections::new(Arc::clone(&self.room), self.config.protocol);
                Arc::new(Member::new(address, weight, host.into(), since, connections))
            }
        };
        let next = Pool::new(found.into_iter().map(member).collect(), self.key.is_some());
        let same = known.members().len() == next.members().len()
            && known.members().iter().zip(next.members()).all(|(known, next)| Arc::ptr_eq(known, next));
        if !same {
            self.pool.store(Arc::new(next));
            self.show(Instant::now());
        }
    }

    /// Checks all endpoints, side by side.
    async fn check(self: &Arc<Self>, health: &Health, connector: &Connector, streaks: &mut Streaks) {
        let pool = self.pool();
        let checks = pool.members().iter().map(|member| async move {
            (Arc::clone(member), health::check(health, connector, self.uncounted_peer(member), &member.host).await)
        });
        let outcomes = futures_util::future::join_all(checks).await;
        let now_ms = self.millis(Instant::now());
        for (member, outcome) in outcomes {
            let decided = streaks.add(member.address, outcome.is_ok(), health);
            let Some(healthy) = decided.filter(|healthy| member.set_healthy(*healthy, now_ms)) else { continue };
            match outcome {
                Ok(()) => {
                    tracing::info!(upstream = %self.name(), endpoint = %member.address, healthy, "an endpoint is well again")
                }
                Err(error) => {
                    tracing::warn!(upstream = %self.name(), endpoint = %member.address, healthy, %error, "an endpoint is not well; it gets no requests");
                }
            }
        }
        streaks.0.retain(|(address, _)| pool.find(address).is_some());
        self.show(Instant::now());
    }
}

async fn resolve_again(upstream: Weak<Upstream>, resolver: Resolver, mut next: Duration) {
    loop {
        tokio::time::sleep(next).await;
        let Some(upstream) = upstream.upgrade() else { return };
        let Some(after) = upstream.resolve(&resolver).await else { return };
        next = after;
    }
}

async fn check_again(upstream: Weak<Upstream>, health: Health, connector: Connector) {
    let mut streaks = Streaks::default();
    if let Some(upstream) = upstream.upgrade() {
        streaks.0 = upstream.pool().members().iter().map(|member| (member.address, Streak::settled(member))).collect();
    }
    loop {
        tokio::time::sleep(health.interval).await;
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.check(&health, &connector, &mut streaks).await;
    }
}

/// What the last checks of each address said.
#[derive(Debug, Default)]
struct Streaks(Vec<(SocketAddr, Streak)>);

#[derive(Clone, Copy, Debug)]
struct Streak {
    successes: bool,
    length: u32,
}

impl Streak {
    /// Returns the state of a member that was checked before: its next change needs a whole streak.
    fn settled(member: &Member) -> Self {
        Self { successes: member.is_healthy(), length: u32::MAX }
    }
}

impl Streaks {
    /// Adds a check's outcome; returns what is decided by it. The first check of an address decides alone.
    fn add(&mut self, address: SocketAddr, success: bool, health: &Health) -> Option<bool> {
        let Some((_, streak)) = self.0.iter_mut().find(|(known, _)| *known == address) else {
            self.0.push((address, Streak { successes: success, length: u32::MAX }));
            return Some(success);
        };
        let length = if streak.successes == success { streak.length.saturating_add(1) } else { 1 };
        *streak = Streak { successes: success, length };
        let needed = if success { health.healthy } else { health.unhealthy };
        (length >= needed).then_some(success)
    }
}

/// Returns a host without its port.
fn host_name(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// Returns a digest over an upstream's name and settings.
pub fn digest_of(config: &model::Upstream) -> String {
    let settings = format!("{} {}", config.name, lockgate_config::upstream(config));
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(settings.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_check_decides_alone_and_later_ones_in_a_row() {
        let health = Health {
            check: model::HealthCheck::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
        };
        let (mut streaks, address) = (Streaks::default(), "127.0.0.1:1".parse().unwrap());
        let mut add = |success| streaks.add(address, success, &health);
        assert_eq!(add(false), Some(false));
        assert_eq!((add(true), add(true)), (None, Some(true)));
        assert_eq!((add(false), add(false), add(true), add(false)), (None, None, None, None));
        assert_eq!((add(false), add(false)), (None, Some(false)));
    }

    #[test]
    fn a_host_is_named_without_its_port() {
        assert_eq!(host_name("app.internal:443"), "app.internal");
    }
}
