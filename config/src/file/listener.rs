//! `listeners`.

use std::time::Duration;

use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};

use super::forms::Either;
use super::server::{no, seconds, yes};
use super::written::{FilePath, Plain, Scalar, Timeout, Whole, Written};
use crate::model::{ListenAddress, TlsVersion};
use crate::text::TextError;

/// An address, or a map.
pub(crate) type ListenerForm = Either<Written<ListenAddress>, Listener>;

/// Where requests come in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// Address and port of this machine, or `unix:` and the path of a socket (made with mode 0660, and trusted like
    /// `server.trusted_proxies`). Port 0 takes a free one, which the log tells.
    pub(crate) address: Written<ListenAddress>,
    /// Whether each connection begins with a PROXY header of version 1 or 2, which says who the client is. One without,
    /// or from an address that is none of `server.trusted_proxies`, is closed.
    #[serde(default = "no")]
    pub(crate) proxy_protocol: Written<bool>,
    /// Whether HTTP/2 without TLS (with prior knowledge) is understood beside HTTP/1.1. With `tls`, the client and
    /// `alpn` decide instead.
    #[serde(default = "yes")]
    pub(crate) h2c: Written<bool>,
    /// Ends TLS here. Connections under way keep the certificates that they began with.
    #[serde(default)]
    #[schemars(extend("x-default" = "none, requests come in the clear"))]
    pub(crate) tls: Option<Tls>,
    /// Sends clients to HTTPS on this port instead of serving them, with status 308. Not with `tls`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none, requests are served"))]
    pub(crate) redirect_to_https: Option<Written<Whole<1, 65535>>>,
}

/// TLS on a listener.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// At least one. The client gets one that names the host that it asks for, `*.example.com` for one label before
    /// it; the first is the default. Several may name the same host, with keys of different kinds. The files are
    /// watched like this one.
    pub(crate) certificates: Vec<Certificate>,
    /// The oldest version that is spoken: `1.2` or `1.3`.
    #[serde(default = "tls_1_2")]
    pub(crate) min_version: Written<TlsVersion>,
    /// What is spoken inside, in the order of preference: `h2` and `http/1.1`.
    #[serde(default = "both")]
    pub(crate) alpn: Vec<Alpn>,
    /// Asks clients for a certificate of their own.
    #[serde(default)]
    #[schemars(extend("x-default" = "none, clients are not asked"))]
    pub(crate) client_auth: Option<ClientAuth>,
    /// Time for the handshake.
    #[serde(default = "ten_seconds")]
    pub(crate) handshake_timeout: Written<Timeout>,
    /// Tells browsers, by `strict-transport-security`, to come by HTTPS only from now on.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) hsts: Option<Hsts>,
}

const fn tls_1_2() -> Written<TlsVersion> {
    Written(TlsVersion::Tls12)
}

fn both() -> Vec<Alpn> {
    vec![Alpn::H2, Alpn::Http1]
}

const fn ten_seconds() -> Written<Timeout> {
    seconds(10)
}

/// A certificate with its key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    /// File with the certificate and those between it and its authority, in PEM, in this order. A relative path starts
    /// at the folder of this file.
    pub(crate) cert: Written<FilePath>,
    /// File with the private key, in PEM, not encrypted: PKCS#8, PKCS#1 or SEC1.
    pub(crate) key: Written<FilePath>,
}

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[schemars(inline)]
pub(crate) enum Alpn {
    /// HTTP/2.
    #[serde(rename = "h2")]
    H2,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http1,
}

/// Certificates of clients.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientAuth {
    /// File with the authorities that clients' certificates must come from, in PEM.
    pub(crate) ca: Written<FilePath>,
    /// Whether a client without a certificate is turned away. A wrong one always is.
    #[serde(default)]
    pub(crate) mode: ClientAuthMode,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum ClientAuthMode {
    /// Without one there is no connection.
    #[default]
    Required,
    /// Without one requests are served, as nobody's.
    Optional,
}

/// What browsers are told about HTTPS.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hsts {
    /// Days for which it holds; 0 takes it back.
    pub(crate) days: Written<Whole<0, 3650>>,
    /// Whether it holds for all hosts below as well.
    pub(crate) include_subdomains: Written<bool>,
    /// Whether the host may be put on the lists that browsers ship.
    pub(crate) preload: Written<bool>,
}

impl Default for Hsts {
    fn default() -> Self {
        Self { days: Written(Whole(365)), include_subdomains: Written(false), preload: Written(false) }
    }
}

impl Hsts {
    pub(crate) const fn max_age(&self) -> Duration {
        Duration::from_secs(self.days.0.0 as u64 * 86_400)
    }
}

impl Scalar for TlsVersion {
    const KIND: &'static str = "a version of TLS";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(TextError::new("`1.2` or `1.3`").hint("nothing older is safe to speak")),
        }
    }

    fn write(&self) -> String {
        match self {
            Self::Tls12 => "1.2".into(),
            Self::Tls13 => "1.3".into(),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number"], "enum": ["1.2", "1.3", 1.2, 1.3] })
    }
}
