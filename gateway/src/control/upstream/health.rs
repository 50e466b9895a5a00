//! Asks an endpoint whether it is well: over the same protocol, with the same TLS, as requests go to it, but each time over a
//! connection of its own: an open connection says little about whether the next one can be opened.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use lockgate_config::model::{Health, HealthCheck};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

/// The gRPC health protocol's method: `grpc.health.v1`, of gRPC's `doc/health-checking.md`.
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";

/// A `HealthCheckRequest` about the whole server: no compression, length 0.
const GRPC_REQUEST: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);

/// A `HealthCheckResponse` that says SERVING: no compression, length 2, field 1 is 1.
const GRPC_SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// Longest body of a gRPC answer that is read, in bytes.
const GRPC_BODY_MAX: usize = 1 << 10;

/// Checks one endpoint, once.
///
/// # Errors
///
/// Why it is not well, in words.
pub async fn check(health: &Health, connector: &Connector, mut peer: HttpPeer, host: &str) -> Result<(), String> {
    peer.options.connection_timeout = Some(health.timeout);
    peer.options.total_connection_timeout = Some(health.timeout);
    peer.options.read_timeout = Some(health.timeout);
    peer.options.write_timeout = Some(health.timeout);
    let check = async {
        match &health.check {
            HealthCheck::Tcp => {
                let stream = tokio::net::TcpStream::connect(peer._address.to_string()).await;
                stream.map(drop).map_err(|error| error.to_string())
            }
            HealthCheck::Http { path, host: named, statuses } => {
                http(connector, &peer, path, named.as_deref().unwrap_or(host), statuses).await
            }
            HealthCheck::Grpc => grpc(connector, &peer, host).await,
        }
    };
    match tokio::time::timeout(health.timeout, check).await {
        Ok(outcome) => outcome,
        Err(_) => Err("it did not answer in time".to_owned()),
    }
}

async fn http(connector: &Connector, peer: &HttpPeer, path: &str, host: &str, statuses: &[u16]) -> Result<(), String> {
    let mut request = header(Method::GET, path, host)?;
    request.insert_header(USER_AGENT, "lockgate").map_err(text)?;
    let (mut session, _) = connector.get_http_session(peer).await.map_err(text)?;
    let status = async {
        session.write_request_header(Box::new(request)).await.map_err(text)?;
        session.finish_request_body().await.map_err(text)?;
        status(&mut session).await
    }
    .await;
    session.shutdown().await;
    let status = status?;
    let well = if statuses.is_empty() { status.is_success() } else { statuses.contains(&status.as_u16()) };
    if well { Ok(()) } else { Err(format!("it answers with status {}", status.as_u16())) }
}

async fn grpc(connector: &Connector, peer: &HttpPeer, host: &str) -> Result<(), String> {
    let mut request = header(Method::POST, GRPC_PATH, host)?;
    request.insert_header(CONTENT_TYPE, "application/grpc").map_err(text)?;
    request.insert_header(HeaderName::from_static("te"), HeaderValue::from_static("trailers")).map_err(text)?;
    let (mut session, _) = connector.get_http_session(peer).await.map_err(text)?;
    let answer = async {
        session.write_request_header(Box::new(request)).await.map_err(text)?;
        session.write_request_body(GRPC_REQUEST, true).await.map_err(text)?;
        let status = status(&mut session).await?;
        let mut body = Vec::new();
        while let Some(piece) = session.read_response_body().await.map_err(text)? {
            body.extend_from_slice(&piece);
            if body.len() > GRPC_BODY_MAX {
                return Err("it answers with something else than a health status".to_owned());
            }
        }
        Ok((status, body))
    }
    .await;
    session.shutdown().await;
    match answer? {
        (StatusCode::OK, body) if body == GRPC_SERVING => Ok(()),
        (StatusCode::OK, body) if body.len() == GRPC_SERVING.len() => Err("it says that it is not serving".to_owned()),
        (status, _) => Err(format!("it does not answer the health service (status {})", status.as_u16())),
    }
}

fn header(method: Method, path: &str, host: &str) -> Result<RequestHeader, String> {
    let mut request = RequestHeader::build(method, path.as_bytes(), None).map_err(text)?;
    request.insert_header(HOST, host).map_err(text)?;
    Ok(request)
}

async fn status(session: &mut HttpSession) -> Result<StatusCode, String> {
    session.read_response_header().await.map_err(text)?;
    session.response_header().map(|header| header.status).ok_or_else(|| "it sent no header".to_owned())
}

fn text(error: Box<pingora::Error>) -> String {
    error.to_string()
}
