//! Requests of guests to upstreams of the gateway's own: `http://NAME.upstream/…`. The gateway sends them, as it sends its
//! clients' requests; here is what it is asked by.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Sending;

/// What a guest puts behind an upstream's name, in the place of a host. No such domain can be registered with others: a
/// grant for it is one for the upstream.
pub(super) const DOMAIN: &str = ".upstream";

/// The body of a request to an upstream, or of its response.
pub type UpstreamBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A request on its way to an upstream. Dropping it gives it up; so does dropping the response's body.
pub type UpstreamSending = Pin<Box<dyn Future<Output = Result<http::Response<UpstreamBody>, UpstreamFailure>> + Send>>;

/// Reaches the gateway's upstreams for the guests of one request. Handed to each call, and let go of after it.
pub trait Upstreams: fmt::Debug + Send + Sync {
    /// Sends a request to an upstream that the guest is granted. Its target has a host, which is the upstream's name with
    /// `.upstream` behind it.
    fn send(&self, upstream: &str, request: http::Request<UpstreamBody>) -> UpstreamSending;
}

/// Why an upstream gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamFailure {
    /// It has no endpoint that is well, has enough to do, or is not there.
    Unavailable,
    /// No endpoint could be connected to.
    Refused,
    /// It took too long.
    TimedOut,
    /// The connection broke.
    Closed,
    /// Its answer breaks HTTP.
    Invalid,
}

impl UpstreamFailure {
    fn error(self) -> Error {
        match self {
            Self::Unavailable => Error::DestinationUnavailable,
            Self::Refused => Error::ConnectionRefused,
            Self::TimedOut => Error::HttpResponseTimeout,
            Self::Closed => Error::ConnectionTerminated,
            Self::Invalid => Error::HttpProtocolError,
        }
    }
}

/// Sends a request to an upstream, and waits for its header no longer than `wait`.
pub(crate) fn send(
    upstreams: Option<&dyn Upstreams>,
    name: &str,
    request: http::Request<WasiBody>,
    options: Option<wasmtime_wasi_http::RequestOptions>,
) -> Sending {
    let request = request.map(|body| body.map_err(|error| error.to_string().into()).boxed_unsync());
    let sending = upstreams.map(|upstreams| upstreams.send(name, request));
    let wait = options.and_then(|options| options.first_byte_timeout);
    Box::new(async move {
        // Nobody reaches anything while a component is only tried.
        let sending = sending.ok_or(Error::DestinationUnavailable)?;
        let response = match wait {
            Some(wait) => tokio::time::timeout(wait, sending).await.map_err(|_| Error::ConnectionReadTimeout)?,
            None => sending.await,
        };
        let response = response.map_err(UpstreamFailure::error)?;
        let finished: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(async { Ok(()) });
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| Error::InternalError(Some(error.to_string()));
        Ok((response.map(|body| body.map_err(broken).boxed_unsync()), finished))
    })
}
