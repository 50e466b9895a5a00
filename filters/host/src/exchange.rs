//! An [`Exchange`] is one HTTP request, later with its response, as filters see it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use http::{request, response};

/// Keys and values of a request's bag together, in bytes.
const BAG_BYTES_MAX: usize = 64 << 10;

/// One HTTP exchange as filters see it.
///
/// It is moved into the instance for a call and out of it afterwards, a pointer each way, however the call ends: by
/// return, trap, panic, or because the caller stopped waiting.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The request. The URI is in origin form (path and query, normalised); the `host` header holds the authority.
    pub request: request::Parts,
    /// The request's headers are on their way: writes are answered with `already-sent`.
    pub request_sent: bool,
    /// The response; none before the response phases.
    pub response: Option<response::Parts>,
    /// The response's headers are on their way: writes are answered with `already-sent`.
    pub response_sent: bool,
    /// What filters leave for those after them.
    pub context: Bag,
    /// `http` or `https`, as the client used it.
    pub scheme: &'static str,
    /// The client's address.
    pub client: IpAddr,
    /// The request's id.
    pub id: Arc<str>,
    /// The name of the route that the request took.
    pub route: Arc<str>,
    /// The upstreams that the route declares, its default first.
    pub upstreams: Arc<[Arc<str>]>,
    /// The chosen one of `upstreams`.
    pub upstream: usize,
}

impl Exchange {
    /// Returns an exchange without a response, at the route's default upstream.
    pub fn new(
        request: request::Parts,
        scheme: &'static str,
        client: IpAddr,
        id: Arc<str>,
        route: Arc<str>,
        upstreams: Arc<[Arc<str>]>,
    ) -> Self {
        Self {
            request,
            request_sent: false,
            response: None,
            response_sent: false,
            context: Bag::default(),
            scheme,
            client,
            id,
            route,
            upstreams,
            upstream: 0,
        }
    }

    /// Returns the exchange that an instance holds while it has none: what is swapped for the real one.
    pub(crate) fn vacant() -> Self {
        // Shared, so that the stand-in of each instance costs one allocation, its box.
        static NO_TEXT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        static NO_UPSTREAMS: LazyLock<Arc<[Arc<str>]>> = LazyLock::new(|| Arc::from([]));
        let (request, ()) = http::Request::new(()).into_parts();
        let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (id, route) = (NO_TEXT.clone(), NO_TEXT.clone());
        Self::new(request, "http", client, id, route, NO_UPSTREAMS.clone())
    }
}

/// Values by key that live as long as the request: at most 64 KiB of keys and values together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bag {
    values: HashMap<Box<str>, Vec<u8>>,
    bytes: usize,
}

impl Bag {
    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Returns what its keys and values have together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns all keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(|key| &**key)
    }

    /// Sets `key` to `value`. False, and nothing changed, where it would not fit.
    pub fn set(&mut self, key: &str, value: &[u8]) -> bool {
        let held = self.values.get(key).map_or(0, |old| key.len() + old.len());
        let bytes = self.bytes - held + key.len() + value.len();
        if bytes > BAG_BYTES_MAX {
            return false;
        }
        self.bytes = bytes;
        match self.values.get_mut(key) {
            Some(old) => value.clone_into(old),
            None => {
                self.values.insert(key.into(), value.to_vec());
            }
        }
        true
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) {
        if let Some(old) = self.values.remove(key) {
            self.bytes -= key.len() + old.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bag_holds_64_kib_and_not_a_byte_more() {
        let mut bag = Bag::default();
        assert!(bag.set("key", &vec![1; BAG_BYTES_MAX - 3]));
        assert!(!bag.set("key", &vec![1; BAG_BYTES_MAX - 2]));
        assert!(!bag.set("k", b""));
        assert_eq!(bag.get("key").map(<[u8]>::len), Some(BAG_BYTES_MAX - 3));
        bag.remove("key");
        assert!(bag.set("k", b""));
    }

    proptest! {
        #[test]
        fn a_bag_counts_what_it_holds(steps in proptest::collection::vec(("[a-c]{0,2}", 0_usize..40_000, any::<bool>()), 0..40)) {
            let mut bag = Bag::default();
            for (key, length, remove) in steps {
                if remove {
                    bag.remove(&key);
                } else {
                    bag.set(&key, &vec![0; length]);
                }
                let held: usize = bag.values.iter().map(|(key, value)| key.len() + value.len()).sum();
                prop_assert_eq!(held, bag.bytes);
                prop_assert!(held <= BAG_BYTES_MAX);
            }
        }
    }
}
