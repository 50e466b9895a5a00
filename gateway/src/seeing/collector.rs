//! The way to an OpenTelemetry collector: one request of HTTP/1.1 on a connection of its own for each batch of spans, in
//! the clear or by TLS. There are few of them, and a connection that is not kept cannot be found broken.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer; all that it has to say is which spans it did not like.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Asks one collector.
#[derive(Clone)]
pub(super) struct Client {
    timeout: Duration,
    /// None where the collector is asked in the clear.
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).field("tls", &self.tls.is_some()).finish()
    }
}

impl Client {
    /// Returns a client for a collector's address. By TLS, the system's authorities are trusted.
    ///
    /// # Errors
    /// The system has none that can be read.
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        let tls = url.starts_with("https://").then(|| {
            let mut roots = RootCertStore::empty();
            pingora::tls::load_platform_certs_incl_env_into_store(&mut roots)
                .map_err(|error| format!("the system's certificates cannot be read: {error}"))?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok::<_, String>(TlsConnector::from(Arc::new(config)))
        });
        Ok(Self { timeout, tls: tls.transpose()? })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or("the address has no host")?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        match &self.tls {
            None => exchange(stream, request, &uri).await,
            Some(tls) => exchange(tls.connect(ServerName::try_from(host)?, stream).await?, request, &uri).await,
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("the collector did not answer within {:?}", self.timeout).into()),
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Bytes>, uri: &Uri) -> Result<Response<Bytes>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (mut head, body) = request.into_parts();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    head.headers.insert(HOST, HeaderValue::from_str(authority)?);
    head.uri = uri.path_and_query().map_or("/", |target| target.as_str()).parse()?;
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}
