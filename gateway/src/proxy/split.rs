//! Chooses a track for a request. A *split* hashes the first of a rollout's keys that the request has, with the
//! rollout's salt, into one of 10,000 buckets; the canary owns the buckets below its weight.
//!
//! Hence the same key, salt and weight give the same track on every node, every build and every restart, and raising
//! the weight moves keys from stable to canary only. The hash is XXH3-64 (Yann Collet, xxHash specification), whose
//! output is fixed; `DefaultHasher` and its like promise no such thing. A range of buckets, not a hash ring: with two
//! versions a ring only adds variance.
//!
//! Pure: no clock, no I/O, no Pingora.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use lockgate_config::model::{KeyPart, Override};
use lockgate_config::units::Weight;
use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::track::Track;

/// Buckets of a split: the step of a weight is one of them, 0.01 %.
pub const BUCKETS: u16 = 10_000;

/// A key's place in `0..10_000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bucket(u16);

impl Bucket {
    fn of(hash: u64) -> Self {
        // The high bits of a product, not a remainder: no bias, and no division.
        let bucket = (u128::from(hash) * u128::from(BUCKETS)) >> 64;
        Self(u16::try_from(bucket).unwrap_or(BUCKETS - 1))
    }

    /// Returns the number, below [`BUCKETS`].
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a split may hash, and whom it believes.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// As the client sent them.
    pub headers: &'a HeaderMap,
    /// The client's address, behind trusted proxies.
    pub client: IpAddr,
    /// The address at the other end of the connection: the only one that can be trusted with an override.
    pub peer: Option<IpAddr>,
    /// Normalised, without the query.
    pub path: &'a str,
    /// Without the `?`.
    pub query: Option<&'a str>,
}

/// Decides the track of each request for one rollout.
#[derive(Clone, Debug)]
pub struct Split {
    seed: u64,
    keys: Box<[Key]>,
    threshold: u16,
    overriding: Option<Overriding>,
}

#[derive(Clone, Debug)]
enum Key {
    Header(HeaderName),
    Cookie(String),
    Query(String),
    ClientIp,
    Path,
}

#[derive(Clone, Debug)]
struct Overriding {
    header: HeaderName,
    trusted: Box<[IpNet]>,
}

/// What a split decided, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The track.
    pub track: Track,
    /// The key's bucket; none where no key was hashed.
    pub bucket: Option<Bucket>,
    /// What decided.
    pub why: Why,
}

/// What decided a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A trusted peer asked for it.
    Override,
    /// The rollout's key of this index was the first that the request has.
    Key(usize),
    /// The request has none of the keys. It stays on stable: without a key it would change tracks from request to
    /// request.
    NoKey,
}

impl Split {
    /// Returns a split. A header name that is not one never matches; the configuration refuses it before.
    pub fn new(salt: &str, key: &[KeyPart], weight: Weight, overriding: Option<&Override>) -> Self {
        let keys = key
            .iter()
            .filter_map(|part| {
                Some(match part {
                    KeyPart::Header(name) => Key::Header(HeaderName::try_from(name.as_str()).ok()?),
                    KeyPart::Cookie(name) => Key::Cookie(name.clone()),
                    KeyPart::Query(name) => Key::Query(name.clone()),
                    KeyPart::ClientIp => Key::ClientIp,
                    KeyPart::Path => Key::Path,
                })
            })
            .collect();
        let overriding = overriding.and_then(|o| {
            Some(Overriding {
                header: HeaderName::try_from(o.header.as_str()).ok()?,
                trusted: o.trusted.clone().into_boxed_slice(),
            })
        });
        Self { seed: xxh3_64(salt.as_bytes()), keys, threshold: weight.basis_points(), overriding }
    }

    /// Returns the first bucket that is stable's, 0 to 10,000.
    pub const fn threshold(&self) -> u16 {
        self.threshold
    }

    /// Returns the bucket of a key.
    pub fn bucket_of(&self, key: &[u8]) -> Bucket {
        Bucket::of(self.hash(key))
    }

    /// Returns the track of a bucket.
    pub const fn track_of(&self, bucket: Bucket) -> Track {
        if bucket.0 < self.threshold { Track::Canary } else { Track::Stable }
    }

    /// Decides the track of a request. Allocates nothing.
    pub fn decide(&self, request: &Attributes<'_>) -> Decision {
        if let Some(track) = self.asked_for(request) {
            return Decision { track, bucket: None, why: Why::Override };
        }
        match self.key_of(request) {
            Some((index, hash)) => {
                let bucket = Bucket::of(hash);
                Decision { track: self.track_of(bucket), bucket: Some(bucket), why: Why::Key(index) }
            }
            None => Decision { track: Track::Stable, bucket: None, why: Why::NoKey },
        }
    }

    /// Returns the hash of the first key that a request has, with the salt; none where it has none of them.
    pub fn key_hash(&self, request: &Attributes<'_>) -> Option<u64> {
        self.key_of(request).map(|(_, hash)| hash)
    }

    /// Returns the index of the first key that a request has, and its hash.
    fn key_of(&self, request: &Attributes<'_>) -> Option<(usize, u64)> {
        self.keys.iter().enumerate().find_map(|(index, key)| {
            let hash = match key {
                Key::Header(name) => request
                    .headers
                    .get(name)
                    .map(http::HeaderValue::as_bytes)
                    .filter(|value| !value.is_empty())
                    .map(|value| self.hash(value)),
                Key::Cookie(name) => cookie(request.headers, name).map(|v| self.hash(v)),
                Key::Query(name) => parameter(request.query, name).map(|v| self.hash(v)),
                Key::ClientIp => Some(self.hash_of_address(request.client)),
                Key::Path => Some(self.hash(request.path.as_bytes())),
            }?;
            Some((index, hash))
        })
    }

    fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }

    /// Returns the hash of an address: of its text, so that it can be asked for by hand.
    fn hash_of_address(&self, address: IpAddr) -> u64 {
        // The longest address in text has 45 characters.
        let mut text = [0_u8; 48];
        let mut rest = &mut text[..];
        let written = match write!(rest, "{}", address.to_canonical()) {
            Ok(()) => 48 - rest.len(),
            Err(_) => 0,
        };
        self.hash(&text[..written])
    }

    fn asked_for(&self, request: &Attributes<'_>) -> Option<Track> {
        let overriding = self.overriding.as_ref()?;
        let asked = request.headers.get(&overriding.header)?;
        let peer = request.peer?.to_canonical();
        if !overriding.trusted.iter().any(|net| net.contains(&peer)) {
            return None;
        }
        Track::ALL.into_iter().find(|track| asked.as_bytes().eq_ignore_ascii_case(track.as_str().as_bytes()))
    }
}

/// Returns a cookie's value, if it is there and not empty.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(http::header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| value_of(pair.trim_ascii(), name))
}

/// Returns a query parameter's first value as it was sent, not decoded, if it is there and not empty.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a [u8]> {
    query?.as_bytes().split(|byte| *byte == b'&').find_map(|pair| value_of(pair, name))
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn split(weight: u16) -> Split {
        let key = [
            KeyPart::Header("x-user-id".into()),
            KeyPart::Cookie("sid".into()),
            KeyPart::Query("user".into()),
            KeyPart::ClientIp,
        ];
        Split::new("auth-1.5", &key, Weight::from_basis_points(weight).unwrap(), None)
    }

    fn request(headers: &HeaderMap) -> Attributes<'_> {
        Attributes {
            headers,
            client: Ipv4Addr::new(192, 0, 2, 7).into(),
            peer: Some(Ipv4Addr::LOCALHOST.into()),
            path: "/",
            query: None,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// Invariant 5. Changing any of these moves live users between versions.
    #[test]
    fn buckets_are_the_same_on_every_node_and_build() {
        let split = split(0);
        let golden = [
            (&b""[..], GOLDEN[0]),
            (b"user-42", GOLDEN[1]),
            (b"192.0.2.7", GOLDEN[2]),
            (b"2001:db8::1", GOLDEN[3]),
            ("ünïcode".as_bytes(), GOLDEN[4]),
        ];
        for (key, bucket) in golden {
            assert_eq!(split.bucket_of(key), Bucket(bucket), "{}", String::from_utf8_lossy(key));
        }
        let other_salt = Split::new("checkout", &[KeyPart::ClientIp], Weight::ZERO, None);
        assert_eq!(other_salt.bucket_of(b"user-42"), Bucket(GOLDEN[5]));
    }

    /// Computed with the reference implementation of XXH3, not with this code.
    const GOLDEN: [u16; 6] = [7596, 8844, 1650, 7943, 3669, 7801];

    #[test]
    fn the_first_key_that_is_there_decides() {
        let split = split(5_000);
        let all = headers(&[("x-user-id", "user-42"), ("cookie", "a=b; sid=s-1")]);
        let decision = split.decide(&request(&all));
        assert_eq!(decision.why, Why::Key(0));
        assert_eq!(decision.bucket, Some(split.bucket_of(b"user-42")));

        let some = headers(&[("cookie", "xsid=no; sid=s-1"), ("x-user-id", "")]);
        let decision = split.decide(&request(&some));
        assert_eq!(decision.why, Why::Key(1));
        assert_eq!(decision.bucket, Some(split.bucket_of(b"s-1")));

        let none = HeaderMap::new();
        let mut by_query = request(&none);
        by_query.query = Some("superuser=1&user=u");
        assert_eq!(split.decide(&by_query).bucket, Some(split.bucket_of(b"u")));
        assert_eq!(split.decide(&request(&none)).bucket, Some(split.bucket_of(b"192.0.2.7")));
    }

    #[test]
    fn a_mapped_address_is_the_address_that_it_maps() {
        let split = split(0);
        let none = HeaderMap::new();
        let mut mapped = request(&none);
        mapped.client = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().into();
        assert_eq!(split.decide(&mapped), split.decide(&request(&none)));
    }

    #[test]
    fn without_a_key_a_request_stays_on_stable() {
        let split = Split::new("s", &[KeyPart::Cookie("sid".into())], Weight::FULL, None);
        let none = HeaderMap::new();
        let decision = split.decide(&request(&none));
        assert_eq!((decision.track, decision.why), (Track::Stable, Why::NoKey));
    }

    #[test]
    fn an_override_is_honoured_from_trusted_peers_only() {
        let overriding = Override { header: "x-lockgate-track".into(), trusted: vec!["127.0.0.0/8".parse().unwrap()] };
        let split = Split::new("s", &[KeyPart::ClientIp], Weight::ZERO, Some(&overriding));
        let asking = headers(&[("x-lockgate-track", "canary")]);
        let mut request = request(&asking);
        assert_eq!(split.decide(&request).track, Track::Canary);
        request.peer = Some(Ipv4Addr::new(192, 0, 2, 1).into());
        assert_eq!(split.decide(&request).track, Track::Stable);
    }

    #[test]
    fn a_weight_is_met_within_one_per_cent_by_ten_thousand_keys() {
        for weight in [100, 2_000, 5_000] {
            let split = split(weight);
            let canary = (0..10_000)
                .filter(|n| split.track_of(split.bucket_of(format!("user-{n}").as_bytes())) == Track::Canary)
                .count();
            let expected = usize::from(weight);
            assert!(canary.abs_diff(expected) <= 100, "{canary} of 10,000 at {weight}");
        }
    }

    proptest! {
        /// Invariant 6.
        #[test]
        fn raising_a_weight_moves_keys_from_stable_to_canary_only(
            key in any::<Vec<u8>>(), low in 0_u16..=10_000, more in 0_u16..=10_000,
        ) {
            let high = low.saturating_add(more).min(10_000);
            let (before, after) = (split(low), split(high));
            let bucket = before.bucket_of(&key);
            prop_assert_eq!(bucket, after.bucket_of(&key));
            if before.track_of(bucket) == Track::Canary {
                prop_assert_eq!(after.track_of(bucket), Track::Canary);
            }
        }

        #[test]
        fn nobody_at_zero_and_everybody_at_a_hundred_per_cent(key in any::<Vec<u8>>()) {
            let bucket = split(0).bucket_of(&key);
            prop_assert!(bucket.number() < BUCKETS);
            prop_assert_eq!(split(0).track_of(bucket), Track::Stable);
            prop_assert_eq!(split(10_000).track_of(bucket), Track::Canary);
        }
    }
}
