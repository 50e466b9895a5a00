//! What a grant covers. A *grant* lets a guest touch one thing outside of its own memory; what no grant covers is denied.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A place to which a guest may send HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OutboundGrant {
    /// `https` rather than `http`.
    pub tls: bool,
    /// A host name or address; `*.example.com` stands for every name below `example.com`, not for itself.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Methods, in upper case; none for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Addresses that the host may have although they are not public. A host that is written as an address is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
}

impl OutboundGrant {
    /// Returns a grant for all methods, to public addresses only.
    pub fn new(tls: bool, host: impl Into<String>, port: u16) -> Self {
        Self { tls, host: host.into(), port, methods: Vec::new(), addresses: Vec::new() }
    }

    /// Returns whether a request to `host` and `port` is covered, whatever its method.
    pub(crate) fn covers(&self, tls: bool, host: &str, port: u16) -> bool {
        if self.tls != tls || self.port != port {
            return false;
        }
        match self.parent() {
            None => bare(&self.host).eq_ignore_ascii_case(host),
            Some(parent) => host
                .len()
                .checked_sub(parent.len() + 1)
                .filter(|&dot| dot > 0)
                .and_then(|dot| host.get(dot..))
                .and_then(|tail| tail.strip_prefix('.'))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(parent)),
        }
    }

    /// Returns whether all that `other` covers is covered, methods and addresses aside.
    pub fn contains(&self, other: &Self) -> bool {
        match (self.parent(), other.parent()) {
            (Some(parent), Some(below)) if self.tls == other.tls && self.port == other.port => {
                parent.eq_ignore_ascii_case(below) || self.covers(other.tls, below, other.port)
            }
            (None, Some(_)) | (Some(_), Some(_)) => false,
            (_, None) => self.covers(other.tls, bare(&other.host), other.port),
        }
    }

    /// Returns whether requests may have this method.
    pub fn allows(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|granted| granted == method)
    }

    /// Returns how closely the grant names a host: an address or name more than a wildcard, a longer one more than a shorter.
    pub(crate) fn closeness(&self) -> (bool, usize) {
        (self.parent().is_none(), self.host.len())
    }

    /// Returns the addresses that need not be public, in order.
    pub fn allowed_addresses(&self) -> Vec<IpNet> {
        let written = bare(&self.host).parse::<IpAddr>().ok().map(IpNet::from);
        let mut addresses: Vec<_> = self.addresses.iter().copied().chain(written).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn parent(&self) -> Option<&str> {
        self.host.strip_prefix("*.")
    }

    /// Returns the line that stands for the grant in a version's digest.
    pub(crate) fn digested(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let mut line = format!("{scheme}://{}:{}", self.host.to_ascii_lowercase(), self.port);
        for (what, mut values) in
            [("methods", self.methods.clone()), ("addresses", self.addresses.iter().map(ToString::to_string).collect())]
        {
            values.sort();
            values.dedup();
            if !values.is_empty() {
                line.push_str(&format!(" {what}={}", values.join(",")));
            }
        }
        line.push('\n');
        line
    }
}

/// Returns a host without the brackets that an address of version 6 has in a URI.
pub(crate) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// An upstream of the gateway's to which a guest may send HTTP requests, as `http://NAME.upstream/…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UpstreamGrant {
    /// Its name.
    pub upstream: String,
    /// Methods, in upper case; none for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

impl UpstreamGrant {
    /// Returns whether requests may have this method.
    pub fn allows(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|granted| granted == method)
    }

    /// Returns the line that stands for the grant in a version's digest.
    pub(crate) fn digested(&self) -> String {
        let mut methods = self.methods.clone();
        methods.sort();
        methods.dedup();
        format!("upstream {} methods={}\n", self.upstream, methods.join(","))
    }
}

/// A folder that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FolderGrant {
    /// The folder. An absolute path, since it is part of the version.
    pub path: PathBuf,
    /// The absolute path under which the guest finds it.
    pub seen_as: String,
    /// Whether it may write there.
    pub write: bool,
}

impl FolderGrant {
    /// Returns the line that stands for the grant in a version's digest.
    pub(crate) fn digested(&self) -> String {
        let write = if self.write { "write" } else { "read" };
        format!("folder {write} {} {:?}\n", self.seen_as.escape_debug(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(host: &str) -> OutboundGrant {
        OutboundGrant::new(true, host, 443)
    }

    #[test]
    fn a_wildcard_covers_names_below_and_not_itself() {
        let wildcard = grant("*.Example.com");
        for (host, covered) in [
            ("a.example.com", true),
            ("a.b.EXAMPLE.com", true),
            ("example.com", false),
            (".example.com", false),
            ("badexample.com", false),
            ("example.com.evil.net", false),
            ("", false),
        ] {
            assert_eq!(wildcard.covers(true, host, 443), covered, "{host}");
        }
        assert!(!wildcard.covers(false, "a.example.com", 443));
        assert!(!wildcard.covers(true, "a.example.com", 444));
        assert!(grant("example.com").covers(true, "EXAMPLE.com", 443));
        assert!(grant("[::1]").covers(true, "::1", 443));
    }

    #[test]
    fn a_wildcard_contains_what_is_below_it() {
        for (wide, narrow, contains) in [
            ("a.example.com", "A.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "*.a.example.com", true),
            ("*.a.example.com", "*.example.com", false),
            ("*.example.com", "*.badexample.com", false),
            ("*.example.com", "example.com", false),
            ("example.com", "*.example.com", false),
        ] {
            assert_eq!(grant(wide).contains(&grant(narrow)), contains, "{wide} {narrow}");
        }
        assert!(!OutboundGrant::new(false, "a", 443).contains(&grant("a")));
        assert!(!OutboundGrant::new(false, "*.a.b", 443).contains(&grant("*.a.b")));
    }

    #[test]
    fn a_host_that_is_an_address_lists_itself() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(grant("127.0.0.1").allowed_addresses(), networks(&["127.0.0.1/32"]));
        assert_eq!(grant("[fd00::1]").allowed_addresses(), networks(&["fd00::1/128"]));
        assert_eq!(grant("localhost").allowed_addresses(), []);
        let listing = OutboundGrant { addresses: networks(&["10.0.0.0/8"]), ..grant("*.internal.example") };
        assert_eq!(listing.allowed_addresses(), networks(&["10.0.0.0/8"]));
    }

    #[test]
    fn methods_are_all_or_those_that_are_named() {
        assert!(grant("a").allows("DELETE"));
        let reading = OutboundGrant { methods: vec!["GET".to_owned(), "HEAD".to_owned()], ..grant("a") };
        assert!(reading.allows("HEAD"));
        assert!(!reading.allows("POST"));
        assert!(!reading.allows("get"), "methods have a case");
    }

    #[test]
    fn a_state_that_knows_neither_methods_nor_addresses_is_read() {
        let read: OutboundGrant = serde_json::from_str(r#"{"tls":true,"host":"a","port":443}"#).unwrap();
        assert_eq!(read, grant("a"));
    }
}
