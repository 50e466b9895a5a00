//! Lines by a template: pieces of text with values between them. What a request does not have is `-`. A value cannot end
//! its line or its quotes: control characters, `"` and `\` are written as `\xHH`.

use std::time::Duration;

use http::HeaderName;
use http::header::HOST;
use lockgate_config::model::{LogField, LogPiece};

use super::json::{digits, endpoint, fixed, hexadecimal, ip};
use super::{Ended, Passed};
use crate::control::time::Timestamp;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Piece {
    /// As it stands.
    Text(Box<str>),
    /// Something of the request.
    Field(LogField),
    /// A header of the request.
    RequestHeader(HeaderName),
    /// A header of the response.
    ResponseHeader(HeaderName),
}

impl Piece {
    /// Prepares a piece; none for the name of a header that is none, which the configuration rules out.
    pub(super) fn new(piece: &LogPiece) -> Option<Self> {
        Some(match piece {
            LogPiece::Text(text) => Self::Text(text.as_str().into()),
            LogPiece::Field(field) => Self::Field(*field),
            LogPiece::RequestHeader(name) => Self::RequestHeader(HeaderName::try_from(name).ok()?),
            LogPiece::ResponseHeader(name) => Self::ResponseHeader(HeaderName::try_from(name).ok()?),
        })
    }
}

/// Puts a line together.
pub(super) fn line(out: &mut Vec<u8>, ended: &Ended<'_>, pieces: &[Piece]) {
    for piece in pieces {
        let start = out.len();
        match piece {
            Piece::Text(text) => {
                out.extend_from_slice(text.as_bytes());
                continue;
            }
            Piece::Field(field) => write(out, ended, *field),
            Piece::RequestHeader(name) => {
                if let Some(value) = ended.header(name) {
                    ended.redact.header(name, value, |piece| escaped(out, piece));
                }
            }
            Piece::ResponseHeader(name) => {
                let value = ended.session.response_written().and_then(|response| response.headers.get(name));
                if let Some(value) = value.and_then(|value| value.to_str().ok()) {
                    ended.redact.header(name, value, |piece| escaped(out, piece));
                }
            }
        }
        if out.len() == start {
            out.push(b'-');
        }
    }
}

/// Writes a value, or nothing where there is none.
fn write(out: &mut Vec<u8>, ended: &Ended<'_>, field: LogField) {
    let Ended { session, context, status, duration, sample, redact } = *ended;
    let request = session.req_header();
    let tls = context.arrival.as_ref().and_then(|arrival| arrival.tls.as_ref());
    let (attempt, answering) = (context.attempt.as_ref(), context.answering.as_ref());
    let mut text = |text: Option<&str>| escaped(out, text.unwrap_or_default());
    match field {
        LogField::Attempts => digits(out, attempt.map_or(0, |attempt| attempt.number.into())),
        LogField::BytesReceived => digits(out, context.body.received),
        LogField::BytesSent => digits(out, ended.bytes_sent()),
        LogField::Client => ip(out, ended.client()),
        LogField::ClfTime => out.extend_from_slice(&Timestamp::now().clf()),
        LogField::DurationMs => millis(out, duration),
        LogField::Error => text(context.fault.map(|fault| fault.kind())),
        LogField::ErrorReason => text(context.reason.as_deref()),
        LogField::ErrorSource => text(context.fault.map(|fault| fault.source().as_str())),
        LogField::File => text(context.file.as_ref().map(|file| file.name.as_str())),
        LogField::Filters => filters(out, ended),
        LogField::Function => text(answering.map(|answering| &**answering.version.function().name())),
        LogField::FunctionTrack => text(answering.map(|answering| answering.track.as_str())),
        LogField::Generation => digits(out, context.snapshot.generation),
        LogField::Host => text(ended.header(&HOST)),
        LogField::Id => text(Some(&context.id)),
        LogField::Method => text(Some(request.method.as_str())),
        LogField::Path => text(Some(request.uri.path())),
        LogField::Protocol => text(Some(ended.protocol())),
        LogField::Query => {
            if let Some(query) = request.uri.query() {
                redact.query(query, |piece| escaped(out, piece));
            }
        }
        LogField::Route => text(context.route().map(|route| &*route.name)),
        LogField::Sample => fixed(out, sample.basis_points().into(), 4),
        LogField::Status => digits(out, status.into()),
        LogField::Target => {
            text(Some(request.uri.path()));
            if let Some(query) = request.uri.query() {
                out.push(b'?');
                redact.query(query, |piece| escaped(out, piece));
            }
        }
        LogField::Time => out.extend_from_slice(&Timestamp::now().rfc3339()),
        LogField::TlsClient => text(tls.and_then(|tls| tls.client.as_ref()).map(|client| client.subject.as_str())),
        LogField::TlsServerName => text(tls.and_then(|tls| tls.server_name.as_deref())),
        LogField::TlsVersion => text(tls.map(|tls| tls.version)),
        LogField::Trace => {
            if let Some(trace) = &context.trace {
                out.extend_from_slice(&hexadecimal(trace.id()));
            }
        }
        LogField::Upstream => text(attempt.map(|attempt| &**attempt.upstream.name())),
        LogField::UpstreamAddress => {
            if let Some(address) = attempt.and_then(|attempt| attempt.address) {
                endpoint(out, address);
            }
        }
        LogField::UpstreamMs => {
            if let Some(after) = attempt.and_then(|attempt| attempt.header_after) {
                millis(out, after);
            }
        }
        LogField::UpstreamTrack => text(attempt.map(|attempt| attempt.track.as_str())),
    }
}

/// Writes what became of the request in each filter: `auth@7ae9ca.26ee0c.e3b0c4/canary=respond`, with commas between.
fn filters(out: &mut Vec<u8>, ended: &Ended<'_>) {
    for (index, Passed { name, version, track, step }) in super::passed(ended.context).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let outcome = step.and_then(|step| step.outcome).unwrap_or("-");
        let parts: [&str; 7] = [name, "@", version, "/", track.as_str(), "=", outcome];
        for part in parts {
            escaped(out, part);
        }
    }
}

/// Writes milliseconds, to the microsecond.
fn millis(out: &mut Vec<u8>, duration: Duration) {
    fixed(out, duration.saturating_add(Duration::from_nanos(500)).as_micros(), 3);
}

fn escaped(out: &mut Vec<u8>, text: &str) {
    for &byte in text.as_bytes() {
        match byte {
            0..0x20 | b'"' | b'\\' | 0x7f => {
                let digit = |nibble: u8| b"0123456789ABCDEF"[usize::from(nibble)];
                out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
            }
            byte => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_neither_its_line_nor_its_quotes() {
        let mut out = Vec::new();
        escaped(&mut out, "a\"b\\c\nd\x7f é");
        assert_eq!(String::from_utf8(out).unwrap(), r"a\x22b\x5Cc\x0Ad\x7F é");
    }
}
