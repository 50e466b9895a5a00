//! Addresses: `127.0.0.1:3000`, `app.internal:3000`, `[::1]:3000`, `unix:/run/admin.sock`, `https://api.example.com`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use super::TextError;
use super::host::check_domain;
use crate::model::{Endpoint, Host, ListenAddress, OutboundGrant};

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// `127.0.0.1:3000`, `[::1]:3000`, `app.internal:3000`.
impl FromStr for Endpoint {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("host and port, such as `127.0.0.1:3000` or `app.internal:3000`");
        if let Some((_, rest)) = text.split_once("://") {
            let bare = rest.trim_end_matches('/');
            return Err(match bare.parse::<Self>() {
                Ok(_) => expected().hint("leave out what stands before the host; `protocol` says what is spoken"),
                Err(_) => expected(),
            });
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(expected().hint("put an IPv6 address in brackets, and its port behind: `[::1]:3000`"));
        }
        let Some((host, port)) = split_port(text) else {
            return Err(expected().hint("add the port: `:80`, for example"));
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(expected().hint("a port is a number from 1 to 65535")),
        };
        Ok(Self { host: host.parse()?, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// An address (IPv6 in brackets), or a name.
impl FromStr for Host {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return match inside.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Self::Address(address.into())),
                Err(_) => Err(TextError::new("an IPv6 address between the brackets")),
            };
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => check_domain(text).map(Self::Name),
        }
    }
}

/// Splits at the last colon that is not within brackets.
fn split_port(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && !port.contains(']'))
}

/// Parses the address of a listener.
fn parse_socket(text: &str) -> Result<SocketAddr, TextError> {
    text.parse().map_err(|_| {
        let expected = TextError::new("address and port, such as `0.0.0.0:8080` or `[::1]:8080`");
        let (host, port) = split_port(text).unwrap_or(("", text.trim_start_matches(':')));
        match port.parse::<u16>() {
            Ok(port) if host == "localhost" => expected.hint(format!("write `127.0.0.1:{port}`")),
            Ok(port) if host.is_empty() || host == "*" => {
                expected.hint(format!("write `0.0.0.0:{port}`, or `127.0.0.1:{port}` for this machine only"))
            }
            Ok(_) if text.parse::<Ipv6Addr>().is_err() => {
                expected.hint("an address of this machine is asked for, not a name")
            }
            _ => expected,
        }
    })
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `127.0.0.1:9901`, `unix:/run/lockgate/admin.sock`.
impl FromStr for ListenAddress {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(TextError::new("the socket's path after `unix:`")),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => parse_socket(text).map(Self::Tcp).map_err(|error| TextError {
                expected: "address and port, such as `127.0.0.1:8080`, or `unix:` and the path of a socket".into(),
                hint: if text.starts_with('/') { Some("put `unix:` before the path".into()) } else { error.hint },
            }),
        }
    }
}

/// Where it is for. The port is left out where it is the scheme's own.
impl fmt::Display for OutboundGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// `https://api.example.com`, `http://127.0.0.1:8081`, `https://*.example.com`.
impl FromStr for OutboundGrant {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("scheme, host and perhaps port, such as `https://api.example.com`");
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(expected().hint("the schemes are `http` and `https`")),
            None => return Err(expected().hint("begin with `https://` or `http://`")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(expected().hint("a grant holds for a whole host: leave the path out"));
        }
        if rest.contains('@') {
            return Err(expected().hint("leave user and password out: a filter sets them itself"));
        }
        let (host, port) = match split_port(rest) {
            Some((host, port)) => match port.parse::<u16>() {
                Ok(port) if port > 0 => (host, port),
                _ => return Err(expected().hint("a port is a number from 1 to 65535")),
            },
            None => (rest, if tls { 443 } else { 80 }),
        };
        let host = match host.strip_prefix("*.") {
            Some(parent) if parent.contains('.') => format!("*.{}", check_domain(parent)?),
            Some(_) => {
                return Err(expected().hint("`*.` wants a domain with a dot behind it: `*.example.com`"));
            }
            None => host.parse::<Host>()?.to_string(),
        };
        Ok(Self { tls, host, port, methods: Vec::new(), addresses: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Result<String, TextError> {
        text.parse::<Endpoint>().map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn endpoints_are_addresses_or_names_with_a_port() {
        for text in ["127.0.0.1:3000", "app-2.internal:3000", "[::1]:80", "my_service:1"] {
            assert_eq!(endpoint(text).as_deref(), Ok(text));
        }
        assert_eq!(endpoint("APP:80").as_deref(), Ok("app:80"));
        for text in
            ["app", "app:", "app:0", "app:99999", ":80", "::1", "http://app:80", "127.0.0.300:80", "a b:80", "app:80/x"]
        {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_listener_wants_an_address_of_this_machine() {
        assert!(parse_socket("0.0.0.0:8080").is_ok() && parse_socket("[::]:0").is_ok());
        for (text, hint) in [
            ("8080", "write `0.0.0.0:8080`, or `127.0.0.1:8080` for this machine only"),
            (":8080", "write `0.0.0.0:8080`, or `127.0.0.1:8080` for this machine only"),
            ("localhost:80", "write `127.0.0.1:80`"),
            ("example.com:80", "an address of this machine is asked for, not a name"),
        ] {
            assert_eq!(parse_socket(text).unwrap_err().hint.as_deref(), Some(hint), "{text}");
        }
    }

    #[test]
    fn the_admin_listens_on_an_address_or_a_socket() {
        for text in ["127.0.0.1:9901", "unix:/run/lockgate/admin.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert_eq!("/run/a.sock".parse::<ListenAddress>().unwrap_err().hint.unwrap(), "put `unix:` before the path");
        assert!("unix:".parse::<ListenAddress>().is_err());
    }

    #[test]
    fn a_grant_is_a_scheme_a_host_and_a_port() {
        for (text, shown) in [
            ("https://API.example.com", "https://api.example.com"),
            ("https://api.example.com:443/", "https://api.example.com"),
            ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
            ("https://*.example.com:8443", "https://*.example.com:8443"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(text.parse::<OutboundGrant>().map(|grant| grant.to_string()).as_deref(), Ok(shown));
        }
        for text in [
            "api.example.com",
            "ftp://a.b",
            "https://a.b/c",
            "https://u:p@a.b",
            "https://*.com",
            "https://a.*.b",
            "https://",
            "http://a:0",
        ] {
            assert!(text.parse::<OutboundGrant>().is_err(), "{text}");
        }
    }
}
