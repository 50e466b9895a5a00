//! What filters decide: the outcomes as callers see them, and as they cross the boundary.
//!
//! A response that a filter gives is checked here, once: whatever leaves this module can be sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use wasmtime::component::{ComponentType, Lift};

use crate::error::{CallError, CallErrorKind};
use crate::headers;

/// A complete response that a filter gives instead of the target. Without framing headers: those are the sender's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: StatusCode,
    /// Valid names and values, none that the gateway owns.
    pub headers: HeaderMap,
    /// Empty where the status allows none (204, 304).
    pub body: Bytes,
}

/// What a filter decided about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Go on.
    Continue,
    /// Answer with this.
    Respond(Response),
    /// The filter could not do its work, and says why.
    Fail(String),
}

/// What a filter decided about a piece of a request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyOutcome {
    /// Leave it as it is.
    Continue,
    /// Put this in its place.
    Replace(Bytes),
    /// Answer with this.
    Respond(Response),
    /// The filter could not do its work, and says why.
    Fail(String),
}

/// What a filter decided about a response's headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseOutcome {
    /// Go on.
    Continue,
    /// The filter could not do its work, and says why.
    Fail(String),
}

/// What a filter decided about a piece of a response's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseBodyOutcome {
    /// Leave it as it is.
    Continue,
    /// Put this in its place.
    Replace(Bytes),
    /// The filter could not do its work, and says why.
    Fail(String),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct WireResponse {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum WireOutcome {
    #[component(name = "continue")]
    Continue,
    #[component(name = "respond")]
    Respond(WireResponse),
    #[component(name = "fail")]
    Fail(String),
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum WireBodyOutcome {
    #[component(name = "continue")]
    Continue,
    #[component(name = "replace")]
    Replace(Vec<u8>),
    #[component(name = "respond")]
    Respond(WireResponse),
    #[component(name = "fail")]
    Fail(String),
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum WireResponseOutcome {
    #[component(name = "continue")]
    Continue,
    #[component(name = "fail")]
    Fail(String),
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum WireResponseBodyOutcome {
    #[component(name = "continue")]
    Continue,
    #[component(name = "replace")]
    Replace(Vec<u8>),
    #[component(name = "fail")]
    Fail(String),
}

impl TryFrom<WireResponse> for Response {
    type Error = CallError;

    fn try_from(wire: WireResponse) -> Result<Self, CallError> {
        let refuse = |problem: String| CallError::new(CallErrorKind::InvalidResponse, problem);
        let status = StatusCode::from_u16(wire.status)
            .ok()
            .filter(|status| (200..600).contains(&status.as_u16()))
            .ok_or_else(|| refuse(format!("answered with status {}; it must be 200 to 599", wire.status)))?;
        if wire.headers.len() > headers::COUNT_MAX {
            return Err(refuse(format!(
                "answered with {} headers; the limit is {}",
                wire.headers.len(),
                headers::COUNT_MAX
            )));
        }
        let mut map = HeaderMap::with_capacity(wire.headers.len());
        let mut bytes = 0;
        for (name, value) in wire.headers {
            bytes += name.len() + value.len();
            let shown = name.escape_debug().take(64).collect::<String>();
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| refuse(format!("answered with the header `{shown}`, which is no valid name")))?;
            if headers::is_owned_by_gateway(&name) {
                return Err(refuse(format!("answered with the header `{name}`, which belongs to the gateway")));
            }
            let value = HeaderValue::from_maybe_shared(Bytes::from(value)).map_err(|_| {
                refuse(format!("answered with a value of `{name}` that has CR, LF, NUL or another control character"))
            })?;
            map.append(name, value);
        }
        if bytes > headers::BYTES_MAX {
            return Err(refuse(format!("answered with {bytes} bytes of headers; the limit is {}", headers::BYTES_MAX)));
        }
        let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if bodiless { Bytes::new() } else { Bytes::from(wire.body) };
        Ok(Self { status, headers: map, body })
    }
}

impl TryFrom<WireOutcome> for Outcome {
    type Error = CallError;

    fn try_from(wire: WireOutcome) -> Result<Self, CallError> {
        Ok(match wire {
            WireOutcome::Continue => Self::Continue,
            WireOutcome::Respond(response) => Self::Respond(response.try_into()?),
            WireOutcome::Fail(text) => Self::Fail(text),
        })
    }
}

impl TryFrom<WireBodyOutcome> for BodyOutcome {
    type Error = CallError;

    fn try_from(wire: WireBodyOutcome) -> Result<Self, CallError> {
        Ok(match wire {
            WireBodyOutcome::Continue => Self::Continue,
            WireBodyOutcome::Replace(bytes) => Self::Replace(bytes.into()),
            WireBodyOutcome::Respond(response) => Self::Respond(response.try_into()?),
            WireBodyOutcome::Fail(text) => Self::Fail(text),
        })
    }
}

impl From<WireResponseOutcome> for ResponseOutcome {
    fn from(wire: WireResponseOutcome) -> Self {
        match wire {
            WireResponseOutcome::Continue => Self::Continue,
            WireResponseOutcome::Fail(text) => Self::Fail(text),
        }
    }
}

impl From<WireResponseBodyOutcome> for ResponseBodyOutcome {
    fn from(wire: WireResponseBodyOutcome) -> Self {
        match wire {
            WireResponseBodyOutcome::Continue => Self::Continue,
            WireResponseBodyOutcome::Replace(bytes) => Self::Replace(bytes.into()),
            WireResponseBodyOutcome::Fail(text) => Self::Fail(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&str, &str)]) -> Result<Response, CallError> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        WireResponse { status, headers, body: b"body".to_vec() }.try_into()
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for (status, header, value) in [
            (199, "a", "b"),
            (600, "a", "b"),
            (101, "a", "b"),
            (200, "a b", "c"),
            (200, ":status", "c"),
            (200, "a", "b\r\nc: d"),
            (200, "a", "b\0"),
            (200, "content-length", "0"),
            (200, "Transfer-Encoding", "chunked"),
            (200, "connection", "close"),
            (200, "upgrade", "h2c"),
            (200, "x-lockgate-anything", "1"),
        ] {
            let error = response(status, &[(header, value)]).expect_err("is refused");
            assert_eq!(error.kind, CallErrorKind::InvalidResponse, "{status} {header}: {value}");
        }
    }

    #[test]
    fn repeated_headers_stay_apart() {
        let sent = response(200, &[("set-cookie", "a=1"), ("Set-Cookie", "b=2")]).unwrap();
        assert_eq!(sent.headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn a_status_without_a_body_has_none() {
        assert_eq!(response(204, &[]).unwrap().body, "");
        assert_eq!(response(304, &[]).unwrap().body, "");
        assert_eq!(response(200, &[]).unwrap().body, "body");
    }
}
