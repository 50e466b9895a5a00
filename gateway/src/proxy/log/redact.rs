//! What is kept out of lines: values of headers and of query parameters that let somebody in, and the last bits of an
//! address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderName;
use http::header::{LOCATION, REFERER};
use lockgate_config::model;

/// What stands in the place of a value.
pub(super) const HIDDEN: &str = "***";

/// What is kept of addresses: a site's network, which is what registries give to one customer.
const V4_MASK: u32 = 0xffff_ff00;
const V6_MASK: u128 = 0xffff_ffff_ffff << 80;

/// What is kept out of lines.
#[derive(Debug)]
pub(super) struct Redact {
    headers: Box<[HeaderName]>,
    /// In lower case.
    query: Box<[Box<str>]>,
    client: bool,
}

impl Redact {
    pub(super) fn new(redact: &model::Redact) -> Self {
        Self {
            headers: redact.headers.iter().filter_map(|name| HeaderName::try_from(name).ok()).collect(),
            query: redact.query.iter().map(|name| name.as_str().into()).collect(),
            client: redact.client,
        }
    }

    /// Returns an address, or its network.
    pub(super) fn client(&self, address: IpAddr) -> IpAddr {
        match address {
            _ if !self.client => address,
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & V4_MASK).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & V6_MASK).into(),
        }
    }

    /// Hands over a header's value, piece by piece.
    pub(super) fn header(&self, name: &HeaderName, value: &str, mut piece: impl FnMut(&str)) {
        if self.headers.contains(name) {
            return piece(HIDDEN);
        }
        match value.split_once('?') {
            Some((before, query)) if *name == REFERER || *name == LOCATION => {
                let (query, fragment) = match query.find('#') {
                    Some(at) => query.split_at(at),
                    None => (query, ""),
                };
                piece(before);
                piece("?");
                self.query(query, &mut piece);
                // OAuth puts tokens there.
                self.query(fragment, piece);
            }
            _ => piece(value),
        }
    }

    /// Hands over a query, piece by piece.
    pub(super) fn query(&self, query: &str, mut piece: impl FnMut(&str)) {
        for (index, pair) in query.split('&').enumerate() {
            if index > 0 {
                piece("&");
            }
            match pair.split_once('=') {
                Some((name, _)) if self.hides(name) => {
                    piece(name);
                    piece("=");
                    piece(HIDDEN);
                }
                _ => piece(pair),
            }
        }
    }

    fn hides(&self, parameter: &str) -> bool {
        let parameter = parameter.strip_prefix('#').unwrap_or(parameter);
        self.query.iter().any(|name| name.eq_ignore_ascii_case(parameter))
    }
}

#[cfg(test)]
mod tests {
    use http::header::{COOKIE, USER_AGENT};

    use super::*;

    fn redact() -> Redact {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Redact::new(&model::Redact { headers: texts(&["cookie"]), query: texts(&["token", "key"]), client: true })
    }

    fn written(write: impl FnOnce(&Redact, &mut dyn FnMut(&str))) -> String {
        let mut text = String::new();
        write(&redact(), &mut |piece| text.push_str(piece));
        text
    }

    #[test]
    fn values_of_named_parameters_are_hidden() {
        let query = |query: &str| written(|redact, piece| redact.query(query, piece));
        assert_eq!(query("a=1&token=s3cret&b"), "a=1&token=***&b");
        assert_eq!(query("TOKEN=s3=cret&key="), "TOKEN=***&key=***");
        assert_eq!(query("tokens=1&key&"), "tokens=1&key&");
        assert_eq!(query(""), "");
    }

    #[test]
    fn headers_are_hidden_and_addresses_in_them_have_queries_too() {
        let header = |name: HeaderName, value: &str| written(|redact, piece| redact.header(&name, value, piece));
        assert_eq!(header(COOKIE, "sid=1"), "***");
        assert_eq!(header(USER_AGENT, "curl/8?token=1"), "curl/8?token=1");
        assert_eq!(header(REFERER, "https://a/b?token=1&c=2#d"), "https://a/b?token=***&c=2#d");
        assert_eq!(header(LOCATION, "/b?c#token=1&e=2"), "/b?c#token=***&e=2");
        assert_eq!(header(REFERER, "https://a/b"), "https://a/b");
    }

    #[test]
    fn of_an_address_the_network_is_left() {
        let client = |address: &str| redact().client(address.parse().unwrap()).to_string();
        assert_eq!(client("192.0.2.77"), "192.0.2.0");
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1::");
    }
}
