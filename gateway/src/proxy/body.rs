//! Reads a request's whole body before its header goes upstream, for filters that want to decide on it.
//!
//! Pingora can forward a body that was read early only from its retry buffer, which holds 64 KiB. What is done here
//! makes it ask for the body once more all the same; `request_body_filter` then hands it the whole one, on every attempt:
//!
//! - *HTTP/1.1 with a length*: the buffer is switched on for the last 64 KiB only, so that the tail is what asks.
//! - *HTTP/1.1 in chunks*: where all of it fits into the buffer, likewise. Where it does not, the reader is set back onto a
//!   stand-in body of one byte. What the client may have sent after the body is lost in that, so the connection is
//!   closed after the response.
//! - *HTTP/2*: the first frame goes through the buffer, the others pass it by.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use lockgate_config::model::RequestLimits;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession as Http1;
use pingora::protocols::http::v2::server::HttpSession as Http2;
use pingora::{Error, ErrorType};

use crate::proxy::fault::Fault;

/// What Pingora's retry buffer holds.
const RETRY_BUFFER: u64 = 64 * 1024;

/// A request whose body is one byte; only its framing matters.
const STAND_IN: &[u8] = b"POST / HTTP/1.1\r\nhost: stand-in\r\ncontent-length: 1\r\n\r\n\0";

/// Returns the length that a request declares; none where it declares none, or one that is no number (Pingora refuses
/// those before).
pub fn declared_length(request: &RequestHeader) -> Option<u64> {
    request.headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// How fast a body has to come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    began: Instant,
    grace: Duration,
    bytes_each_second: u64,
}

impl Pace {
    /// Returns the pace of a body that began to come at `began`.
    pub const fn new(began: Instant, limits: &RequestLimits) -> Self {
        Self { began, grace: limits.read_timeout, bytes_each_second: limits.body_rate.0 }
    }

    /// Returns whether so many bytes are enough by now. Asks the clock.
    pub fn is_kept(&self, received: u64) -> bool {
        let elapsed = self.began.elapsed();
        elapsed <= self.grace || received >= self.bytes_each_second.saturating_mul(elapsed.as_secs())
    }
}

/// What bounds a body that is read whole.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Its length in bytes.
    pub max: u64,
    /// The time between two pieces.
    pub timeout: Duration,
    /// How fast it comes.
    pub pace: Pace,
}

/// Reads a request's body within bounds.
///
/// # Errors
/// A body that is too long, too slow, malformed, or whose client went away.
pub async fn read_whole(session: &mut ServerSession, bounds: &Bounds) -> Result<Bytes, Fault> {
    let Bounds { max, timeout, .. } = *bounds;
    let declared = declared_length(session.req_header());
    if declared.is_some_and(|length| length > max) {
        return Err(Fault::BodyTooLarge);
    }
    if session
        .req_header()
        .headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        session.write_continue_response().await.map_err(|error| fault_of(&error))?;
    }
    match session {
        ServerSession::H1(session) => read_http1(session, declared, bounds).await,
        ServerSession::H2(session) => match tokio::time::timeout(timeout, read_first(session)).await {
            Ok(first) => read_http2(session, first?, bounds).await,
            Err(_) => Err(Fault::BodyTimeout),
        },
        _ => Err(Fault::Internal),
    }
}

async fn read_http1(session: &mut Http1, declared: Option<u64>, bounds: &Bounds) -> Result<Bytes, Fault> {
    let mut whole = BytesMut::new();
    if session.is_body_empty() {
        return Ok(Bytes::new());
    }
    loop {
        let left = declared.map_or(0, |length| length.saturating_sub(whole.len() as u64));
        if left <= RETRY_BUFFER {
            session.enable_retry_buffering();
        }
        match session.read_body_bytes().await.map_err(|error| fault_of(&error))? {
            Some(piece) => push(&mut whole, &piece, bounds)?,
            None => break,
        }
        // A read past the end of a body with a length would wait for what the client sends next.
        if session.is_body_done() {
            break;
        }
    }
    if declared.is_none() && whole.len() as u64 > RETRY_BUFFER {
        stand_in(session).await.map_err(|error| fault_of(&error))?;
    }
    Ok(whole.freeze())
}

/// Sets a session's body reader onto a body of one byte that has yet to be read.
async fn stand_in(session: &mut Http1) -> pingora::Result<()> {
    let blank = RequestHeader::build_no_case("GET", b"/", None)?;
    let header = std::mem::replace(session.req_header_mut(), blank);
    session.set_pipelined_prefix(BytesMut::from(STAND_IN));
    let parsed = session.read_request().await;
    // The reader takes its length from the header when it is first asked, so before the real one comes back.
    let _ = session.is_body_done();
    *session.req_header_mut() = header;
    session.set_server_keepalive(None);
    parsed.map(drop)
}

async fn read_first(session: &mut Http2) -> Result<Option<Bytes>, Fault> {
    session.enable_retry_buffering();
    loop {
        match session.read_body_bytes().await.map_err(|error| fault_of(&error))? {
            // An empty frame leaves the buffer empty, and an empty buffer does not ask.
            Some(piece) if piece.is_empty() => {}
            other => return Ok(other),
        }
    }
}

async fn read_http2(session: &mut Http2, first: Option<Bytes>, bounds: &Bounds) -> Result<Bytes, Fault> {
    let mut whole = BytesMut::new();
    let Some(first) = first else { return Ok(Bytes::new()) };
    push(&mut whole, &first, bounds)?;
    loop {
        let next = poll_fn(|context| session.poll_read_body_bytes(context));
        match tokio::time::timeout(bounds.timeout, next).await {
            Ok(Some(Ok(piece))) => push(&mut whole, &piece, bounds)?,
            Ok(Some(Err(_))) => return Err(Fault::ClientGone),
            Ok(None) => return Ok(whole.freeze()),
            Err(_) => return Err(Fault::BodyTimeout),
        }
    }
}

fn push(whole: &mut BytesMut, piece: &[u8], bounds: &Bounds) -> Result<(), Fault> {
    if (whole.len() + piece.len()) as u64 > bounds.max {
        return Err(Fault::BodyTooLarge);
    }
    whole.extend_from_slice(piece);
    if bounds.pace.is_kept(whole.len() as u64) { Ok(()) } else { Err(Fault::BodyTimeout) }
}

fn fault_of(error: &Error) -> Fault {
    match error.etype() {
        ErrorType::ReadTimedout => Fault::BodyTimeout,
        ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteError => Fault::ClientGone,
        _ => Fault::BadRequest,
    }
}
