//! How requests arrive: what all requests of a connection have in common. Known when the connection is made, and carried
//! to each of its requests by Pingora, in the place that it keeps for proxies in front.

use std::sync::Arc;

use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::proxy::Session;

use crate::control::snapshot::Listening;
use crate::tls::Identity;

/// How requests arrive.
#[derive(Debug)]
pub struct Arrival {
    /// The listener's terms, as they were when the connection was accepted.
    pub listening: Arc<Listening>,
    /// What TLS says; none in the clear.
    pub tls: Option<Secured>,
}

/// What TLS says about a connection.
#[derive(Debug)]
pub struct Secured {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The host that the client asked for in the handshake.
    pub server_name: Option<Box<str>>,
    /// Who the client is, if it has shown a certificate.
    pub client: Option<Identity>,
}

impl Arrival {
    /// Wraps it up as Pingora carries it: once a connection.
    ///
    /// # Errors
    /// Pingora could not make an empty header.
    pub fn wrap(self) -> pingora::Result<Arc<ProxyDigest>> {
        let unused = Box::new(ResponseHeader::build(200, Some(0))?);
        Ok(Arc::new(ProxyDigest::new(unused, Some(Box::new(Arc::new(self))))))
    }

    /// Returns how a request arrived; none for one that no listener of ours accepted. One pointer is cloned.
    pub fn of(session: &Session) -> Option<Arc<Self>> {
        let digest = session.as_downstream().digest()?.proxy_digest.as_ref()?;
        digest.user_data.as_ref()?.downcast_ref::<Arc<Self>>().cloned()
    }

    /// Returns the scheme of its requests' addresses.
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}
