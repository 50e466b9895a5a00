//! How often who may ask. A *rate* is a limit with what it remembers of its keys; it outlives the snapshots that use it,
//! for as long as the limit stays the same.
//!
//! The algorithm (GCRA, a bucket that fills evenly) is the crate `governor`'s. What is remembered is one moment a key, in a
//! table of a fixed size, rather than in the crate's map, which grows with every address that a flood makes up and would
//! have to be swept. A key has eight places in the table. Where all are taken, the key goes that has used the least: most
//! of the time one that has all of its requests back, so that nothing is lost with it. Those that had not are counted.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use lockgate_config::model::{KeyPart, RateLimit};
use lockgate_config::units::Weight;
use parking_lot::Mutex;
use prometheus::IntCounter;

use crate::metrics::RateSeries;
use crate::proxy::split::{Attributes, Split, Why};

/// Places that a key can have: two lines of a processor's cache.
const WAYS: usize = 8;

/// Parts of a table, each with a lock, so that threads rarely wait for each other.
const SHARDS_MAX: usize = 64;

/// A limit, with what it remembers.
#[derive(Debug)]
pub struct Rate {
    limit: RateLimit,
    limiter: Limiter,
    clock: DefaultClock,
    /// Hashes keys. Its salt is drawn, so that nobody can make up keys that share a place.
    key: Split,
    interval: Duration,
    series: RateSeries,
}

type Limiter = RateLimiter<u64, Table, DefaultClock, StateInformationMiddleware>;

/// What a limit says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Admitted(Standing),
    /// It may come again after this time.
    Refused(Duration),
}

/// What is left to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that may come at once.
    pub remaining: u32,
    /// Until all of them are back.
    pub reset: Duration,
}

impl Rate {
    /// Returns a limit that remembers nothing yet; none for one that limits nothing, which the configuration refuses.
    pub fn new(limit: &RateLimit, series: RateSeries) -> Option<Self> {
        let interval = limit.per / limit.requests.max(1);
        let quota = Quota::with_period(interval)?.allow_burst(NonZeroU32::new(limit.burst)?);
        let clock = DefaultClock::default();
        let table = Table::new(limit.keys_max as usize, interval, series.forgotten.clone());
        let salt = RandomState::new().hash_one(&limit.name).to_string();
        Some(Self {
            limit: limit.clone(),
            limiter: RateLimiter::new(quota, table, clock.clone()),
            clock,
            key: Split::new(&salt, &limit.key, Weight::ZERO, None),
            interval,
            series,
        })
    }

    /// Returns the limit, as it is configured.
    pub const fn limit(&self) -> &RateLimit {
        &self.limit
    }

    /// Counts a request. Allocates nothing; takes a short lock that the data plane alone knows.
    pub fn admit(&self, request: &Attributes<'_>) -> Verdict {
        match self.limiter.check_key(&self.key_of(request)) {
            Ok(state) => {
                self.series.admitted.inc();
                let remaining = state.remaining_burst_capacity();
                let used = self.limit.burst.saturating_sub(remaining);
                Verdict::Admitted(Standing { remaining, reset: self.interval.saturating_mul(used) })
            }
            Err(until) => {
                self.series.refused.inc();
                Verdict::Refused(until.wait_time_from(self.clock.now()))
            }
        }
    }

    /// Returns whose requests a request counts with: those with the same first part of the key, or those without any.
    fn key_of(&self, request: &Attributes<'_>) -> u64 {
        if self.limit.key.is_empty() {
            return 0;
        }
        let request = match network(request.client) {
            Some(client) if self.limit.key.contains(&KeyPart::ClientIp) => Attributes { client, ..*request },
            _ => *request,
        };
        let decision = self.key.decide(&request);
        match (decision.hash, decision.why) {
            // A client must not be able to use up another's requests by sending its address as a header.
            (Some(hash), Why::Key(part)) => hash.wrapping_add((part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            _ => 0,
        }
    }
}

/// Returns the network that stands for an address of version 6: a client has 64 bits of them.
fn network(client: std::net::IpAddr) -> Option<std::net::IpAddr> {
    match client.to_canonical() {
        std::net::IpAddr::V4(_) => None,
        std::net::IpAddr::V6(address) => Some(std::net::Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
    }
}

/// A key with its moment, in nanoseconds; zero where there is none.
type Slot = [u64; 2];

/// What is remembered.
struct Table {
    shards: Box<[Mutex<Box<[Slot]>>]>,
    interval: u64,
    forgotten: IntCounter,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl Table {
    fn new(keys: usize, interval: Duration, forgotten: IntCounter) -> Self {
        let sets = keys.div_ceil(WAYS).next_power_of_two();
        let shards = sets.min(SHARDS_MAX);
        // Zeros are not touched before they are used.
        let shard = || Mutex::new(vec![[0_u64; 2]; sets / shards * WAYS].into_boxed_slice());
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Self { shards: std::iter::repeat_with(shard).take(shards).collect(), interval, forgotten }
    }
}

impl StateStore for Table {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // Zero is nobody's.
        let key = *key | 1;
        // The high bits say which shard, the middle ones which set.
        let shard = (key >> 32) as usize % self.shards.len();
        let mut slots = self.shards[shard].lock();
        let sets = slots.len() / WAYS;
        let first = (key >> 8) as usize % sets * WAYS;
        let set = &mut slots[first..first + WAYS];
        if let Some([_, moment]) = set.iter_mut().find(|[known, _]| *known == key) {
            let (decided, next) = f(Some(Nanos::from(*moment)))?;
            *moment = next.as_u64();
            return Ok(decided);
        }
        let (decided, next) = f(None)?;
        if let Some(slot) = set.iter_mut().min_by_key(|[_, moment]| *moment) {
            // A new key's first request is due one interval after now.
            if slot[1].saturating_add(self.interval) > next.as_u64() {
                self.forgotten.inc();
            }
            *slot = [key, next.as_u64()];
        }
        Ok(decided)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::metrics::Metrics;

    fn limit(requests: u32, key: Vec<KeyPart>) -> RateLimit {
        let per = Duration::from_secs(3600);
        RateLimit { name: "l".into(), requests, per, burst: requests, key, keys_max: 1024, headers: true }
    }

    fn rate(limit: &RateLimit) -> Rate {
        Rate::new(limit, Metrics::new().unwrap().rate("route", "l")).unwrap()
    }

    fn admitted(rate: &Rate, client: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        let client: IpAddr = client.parse().unwrap();
        let request = Attributes { headers: &headers, client, peer: None, path: "/", query: None };
        matches!(rate.admit(&request), Verdict::Admitted(_))
    }

    #[test]
    fn each_key_has_its_requests() {
        let rate = rate(&limit(2, vec![KeyPart::ClientIp]));
        for client in ["192.0.2.1", "192.0.2.2"] {
            assert_eq!([0; 3].map(|_| admitted(&rate, client, &[])), [true, true, false]);
        }
        assert_eq!((rate.series.admitted.get(), rate.series.refused.get()), (4, 2));
    }

    #[test]
    fn what_is_left_and_when_it_is_back_is_told() {
        let rate = rate(&limit(10, Vec::new()));
        let headers = HeaderMap::new();
        let client = IpAddr::from([192, 0, 2, 1]);
        let request = Attributes { headers: &headers, client, peer: None, path: "/", query: None };
        let each = Duration::from_secs(360);
        assert_eq!(rate.admit(&request), Verdict::Admitted(Standing { remaining: 9, reset: each }));
        assert_eq!(rate.admit(&request), Verdict::Admitted(Standing { remaining: 8, reset: each * 2 }));
        for _ in 0..8 {
            rate.admit(&request);
        }
        let Verdict::Refused(wait) = rate.admit(&request) else { panic!("all are used up") };
        assert!(wait <= each && wait > each - Duration::from_secs(60), "{wait:?}");
    }

    #[test]
    fn whoever_has_no_key_counts_with_all_who_have_none() {
        let rate = rate(&limit(1, vec![KeyPart::Header("x-key".into())]));
        assert!(admitted(&rate, "192.0.2.1", &[("x-key", "a")]) && admitted(&rate, "192.0.2.1", &[("x-key", "b")]));
        assert!(admitted(&rate, "192.0.2.1", &[]) && !admitted(&rate, "192.0.2.2", &[]));
    }

    #[test]
    fn an_address_in_a_header_is_not_that_client() {
        let rate = rate(&limit(1, vec![KeyPart::Header("x-key".into()), KeyPart::ClientIp]));
        assert!(admitted(&rate, "192.0.2.9", &[("x-key", "192.0.2.1")]));
        assert!(admitted(&rate, "192.0.2.1", &[]));
    }

    #[test]
    fn a_client_has_a_whole_network_of_version_six() {
        let rate = rate(&limit(1, vec![KeyPart::ClientIp]));
        assert!(admitted(&rate, "2001:db8::1", &[]) && !admitted(&rate, "2001:db8::2", &[]));
        assert!(admitted(&rate, "2001:db8:0:1::1", &[]));
    }

    #[test]
    fn a_flood_of_keys_makes_forget_those_that_used_the_least() {
        let rate = rate(&limit(4, vec![KeyPart::ClientIp]));
        for _ in 0..4 {
            assert!(admitted(&rate, "192.0.2.1", &[]));
        }
        for number in 0..100_000_u32 {
            assert!(admitted(&rate, &std::net::Ipv4Addr::from(number).to_string(), &[]));
        }
        assert!(!admitted(&rate, "192.0.2.1", &[]), "it has used more than any of the flood");
        assert!(rate.series.forgotten.get() > 90_000);
    }

    #[test]
    fn a_table_is_as_large_as_it_was_made() {
        let forgotten = IntCounter::new("forgotten", "forgotten").unwrap();
        for (keys, slots) in [(1_024, 1_024), (65_536, 65_536), (65_537, 131_072)] {
            let table = Table::new(keys, Duration::from_secs(1), forgotten.clone());
            assert_eq!(table.shards.iter().map(|shard| shard.lock().len()).sum::<usize>(), slots);
        }
    }
}
