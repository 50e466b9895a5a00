//! Calls of gRPC. Most of what happens to them happens to any request over HTTP/2; here is what they have of their own.
//!
//! The gateway's own *faults* are told to their clients where these look for them: in a status of gRPC's, with which HTTP's is
//! always 200. Counts and log keep what HTTP would have said.
//!
//! *gRPC-Web* is gRPC as a page in a browser can speak it ([`web`]). Where the route says so, such a call is translated
//! before the first filter, and its response behind the last, so that filters see a call of gRPC like any other, but for the
//! length that its header may still tell. A response that is no gRPC passes as it is.

pub mod web;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use lockgate_host::Response;
use pingora::ErrorType::InternalError;
use pingora::OrErr;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::forward;
use web::{Decoder, Form};

const GRPC: &[u8] = b"application/grpc";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Headers of a response that a page has to be let read, where a call fails before it has begun to answer.
pub const READ_BY_PAGES: [HeaderName; 2] = [GRPC_STATUS, GRPC_MESSAGE];

/// How a client speaks gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// By trailers of HTTP/2.
    Native,
    /// As a page does.
    Web {
        /// How it writes.
        request: Form,
        /// How it wants to be answered.
        response: Form,
    },
}

impl Dialect {
    /// Returns how a request speaks gRPC; none where it does not.
    pub fn of(request: &RequestHeader) -> Option<Self> {
        if request.method != Method::POST {
            return None;
        }
        let kind = Kind::of(request.headers.get(CONTENT_TYPE)?.as_bytes())?;
        let Some(form) = kind.form else { return Some(Self::Native) };
        let accepted =
            request.headers.get_all(ACCEPT).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        let accepted = accepted.filter_map(|accepted| Kind::of(accepted.trim_ascii())?.form).next();
        Some(Self::Web { request: form, response: accepted.unwrap_or(form) })
    }
}

/// A kind of content of gRPC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind<'a> {
    /// How a page writes it; none where it is that of HTTP/2.
    form: Option<Form>,
    /// Of which kind messages are, as `+proto`, and whatever parameters there are.
    messages: &'a [u8],
}

impl<'a> Kind<'a> {
    fn of(value: &'a [u8]) -> Option<Self> {
        let rest = after(value, GRPC)?;
        let (form, messages) =
            [(&b"-web-text"[..], Some(Form::Text)), (&b"-web"[..], Some(Form::Binary)), (&b""[..], None)]
                .into_iter()
                .find_map(|(ending, form)| Some((form, after(rest, ending)?)))?;
        matches!(messages.first(), None | Some(b'+' | b';' | b' ')).then_some(Self { form, messages })
    }

    /// Returns the same kind of messages, in a form.
    fn in_form(self, form: Option<Form>) -> pingora::Result<HeaderValue> {
        let ending: &[u8] = match form {
            None => b"",
            Some(Form::Binary) => b"-web",
            Some(Form::Text) => b"-web-text",
        };
        HeaderValue::from_bytes(&[GRPC, ending, self.messages].concat()).or_err(InternalError, "a kind of content")
    }
}

/// Returns what follows a beginning, whose case makes no difference.
fn after<'a>(value: &'a [u8], beginning: &[u8]) -> Option<&'a [u8]> {
    let (first, rest) = value.split_at_checked(beginning.len())?;
    first.eq_ignore_ascii_case(beginning).then_some(rest)
}

/// A call of gRPC-Web that goes to an upstream as one of gRPC.
#[derive(Debug)]
pub struct Translation {
    request: Form,
    response: Form,
    decoder: Decoder,
    /// Whether what answers is gRPC.
    answered: bool,
}

/// Begins to translate a request, where its route takes gRPC-Web and it is that.
///
/// # Errors
/// A value that is none; the one here is.
pub fn begin(session: &mut Session, context: &mut Context) -> pingora::Result<()> {
    let Some(Dialect::Web { request, response }) = context.grpc else { return Ok(()) };
    if context.parent.is_some() || !context.route().is_some_and(|route| route.grpc_web) {
        return Ok(());
    }
    let header = session.req_header_mut();
    let kind = header.headers.get(CONTENT_TYPE).and_then(|value| Kind::of(value.as_bytes()));
    // An edit of the route's may have made something else of it.
    let Some(kind) = kind.filter(|kind| kind.form.is_some()) else { return Ok(()) };
    let native = kind.in_form(None)?;
    header.insert_header(CONTENT_TYPE, native)?;
    context.translation =
        Some(Box::new(Translation { request, response, decoder: Decoder::default(), answered: false }));
    Ok(())
}

/// Edits a translated request on its way to the upstream, anew for each attempt, with which the body begins anew.
///
/// # Errors
/// A header with more fields than fit.
pub fn to_upstream(request: &mut RequestHeader, context: &mut Context) -> pingora::Result<()> {
    let whole = context.body.whole.is_some();
    let Some(translation) = &mut context.translation else { return Ok(()) };
    translation.decoder = Decoder::default();
    // Names forms that the upstream does not answer in.
    request.remove_header(&ACCEPT);
    // Without it, servers take whoever asks for a proxy that loses trailers.
    request.insert_header(TE, HeaderValue::from_static("trailers"))?;
    if translation.request == Form::Text && !whole {
        request.remove_header(&CONTENT_LENGTH);
    }
    Ok(())
}

/// Translates a piece of a request's body.
///
/// # Errors
/// It is not what its header says.
pub fn request_piece(context: &mut Context, body: &mut Option<Bytes>, end: bool) -> Result<(), Fault> {
    let Some(translation) = context.translation.as_mut().filter(|it| it.request == Form::Text) else { return Ok(()) };
    let piece = translation.decoder.piece(body.as_deref().unwrap_or_default(), end).map_err(|_| Fault::BadRequest)?;
    // None is the end, as it came.
    if body.is_some() || !piece.is_empty() {
        *body = Some(piece);
    }
    Ok(())
}

/// Translates the header of a response, if that is gRPC.
///
/// # Errors
/// A value that is none; the ones here are.
pub fn to_client(response: &mut ResponseHeader, context: &mut Context) -> pingora::Result<()> {
    let Some(translation) = &mut context.translation else { return Ok(()) };
    let kind = response.headers.get(CONTENT_TYPE).and_then(|value| Kind::of(value.as_bytes()));
    let Some(kind) = kind.filter(|kind| kind.form.is_none()) else { return Ok(()) };
    let web = kind.in_form(Some(translation.response))?;
    translation.answered = true;
    response.insert_header(CONTENT_TYPE, web)?;
    forward::open_length(response, false)
}

/// Translates a piece of a response's body.
pub fn response_piece(context: &Context, body: &mut Option<Bytes>) {
    if let Some(translation) = context.translation.as_ref().filter(|translation| translation.answered) {
        *body = body.take().map(|piece| translation.response.encode(piece));
    }
}

/// Returns what is still to be sent of a body that trailers follow: `rest`, which filters had held back, and for a page the
/// trailers themselves.
pub fn last_piece(context: &Context, rest: Option<Bytes>, trailers: &HeaderMap) -> Option<Bytes> {
    let Some(translation) = context.translation.as_ref().filter(|translation| translation.answered) else {
        return rest;
    };
    let encode = |piece| translation.response.encode(piece);
    let frame = encode(web::trailers(trailers));
    Some(match rest.filter(|rest| !rest.is_empty()) {
        None => frame,
        Some(rest) => [encode(rest), frame].concat().into(),
    })
}

/// Tells a fault as gRPC does, where the client speaks that.
pub fn told(mut response: Response, context: &mut Context) -> Response {
    let (Some(dialect), Some(fault)) = (context.grpc, context.fault) else { return response };
    // A filter may have made something of it that is none any more.
    if response.status.is_success() || response.status.is_redirection() {
        return response;
    }
    context.meant = Some(response.status);
    let status = [
        (GRPC_STATUS, HeaderValue::from(code(response.status))),
        (GRPC_MESSAGE, HeaderValue::from_static(fault.text())),
    ];
    let kind = match dialect {
        Dialect::Native => {
            response.headers.extend(status);
            response.body = Bytes::new();
            "application/grpc"
        }
        // In the body, which a page may read whatever it is told of headers.
        Dialect::Web { response: form, .. } => {
            response.body = form.encode(web::trailers(&HeaderMap::from_iter(status)));
            match form {
                Form::Binary => "application/grpc-web+proto",
                Form::Text => "application/grpc-web-text+proto",
            }
        }
    };
    response.status = StatusCode::OK;
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Returns the status of gRPC's that says what one of HTTP's does. Where clients guess it from HTTP, they take the gateway's
/// time that is over for an upstream that is away, and a client that asks too often likewise.
fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        // INVALID_ARGUMENT
        400 | 415 => 3,
        // DEADLINE_EXCEEDED
        408 | 504 => 4,
        // PERMISSION_DENIED
        403 => 7,
        // RESOURCE_EXHAUSTED
        413 | 429 | 431 => 8,
        // UNIMPLEMENTED
        404 | 405 | 501 => 12,
        // INTERNAL
        500 => 13,
        // UNAVAILABLE
        502 | 503 => 14,
        // UNAUTHENTICATED
        401 => 16,
        // UNKNOWN
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, fields: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/shop.Basket/Add", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn the_kind_of_content_says_how_a_client_speaks() {
        let web = |request, response| Some(Dialect::Web { request, response });
        let of = |kind, accept| Dialect::of(&request(Method::POST, &[("content-type", kind), ("accept", accept)]));
        for (kind, accept, expected) in [
            ("application/grpc", "*/*", Some(Dialect::Native)),
            ("Application/gRPC+json; a=b", "application/grpc-web-text", Some(Dialect::Native)),
            ("application/grpc-web", "*/*", web(Form::Binary, Form::Binary)),
            ("application/grpc-web-text+proto", "", web(Form::Text, Form::Text)),
            ("application/grpc-web+proto", "text/html, application/grpc-web-text", web(Form::Binary, Form::Text)),
            ("application/grpc-web-text", "application/grpc-web+proto", web(Form::Text, Form::Binary)),
            ("application/grpc-webtext", "", None),
            ("application/grpcish", "", None),
            ("application/json", "application/grpc-web", None),
        ] {
            assert_eq!(of(kind, accept), expected, "{kind}, {accept}");
        }
        assert_eq!(Dialect::of(&request(Method::GET, &[("content-type", "application/grpc")])), None);
        assert_eq!(Dialect::of(&request(Method::POST, &[])), None);
    }

    #[test]
    fn what_messages_are_of_stays() {
        let web = Kind::of(b"application/grpc-web-text+thrift; a=b").unwrap();
        assert_eq!(web.in_form(None).unwrap(), "application/grpc+thrift; a=b");
        let native = Kind::of(b"application/GRPC").unwrap();
        assert_eq!(native.in_form(Some(Form::Text)).unwrap(), "application/grpc-web-text");
        assert_eq!(native.in_form(Some(Form::Binary)).unwrap(), "application/grpc-web");
    }

    #[test]
    fn every_fault_is_something_that_a_client_can_act_upon() {
        for fault in Fault::ALL.iter().filter(|fault| fault.code() != 0) {
            assert_ne!(code(fault.status()), 2, "{fault:?}");
            // It is a header as it stands: nothing in it has to be escaped.
            assert!(fault.text().bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'%'), "{fault:?}");
        }
    }
}
