//! Lines as JSON objects, written into a buffer field by field. The access log is most of what the gateway itself does
//! for a request without filters, so what every line has is not taken through a serializer's traits and the formatting
//! machinery of the standard library.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::HeaderName;
use http::header::{HOST, USER_AGENT};

use super::{Ended, Passed};
use crate::control::time::Timestamp;

/// Puts a line together. What a line says of a request:
///
/// - `path` comes without the query, which may hold secrets; `query` is there where it is asked for.
/// - `tls.client` is who has shown a certificate.
/// - `status` is 0 where the client was gone before there was one; of a fault that a client of gRPC was told in a status of
///   gRPC's, it is the one that HTTP has for it.
/// - `filters` are the route's, middleware among them, with version and track, in the order of the chain; one without
///   `outcome` was not called. `us` of a middleware is for how long it kept a thread.
/// - `function.busy_ms` is for how long it kept a thread; without `outcome` the client was gone before there was one.
/// - `policy` is what of the route's policy answered, in the place of the target or as it.
/// - `error.reason` is what the operating system or Pingora says, where they say something, or which limit was reached.
/// - `sample` is the share of requests that the line stands for, where not all are logged.
pub(super) fn line(out: &mut Vec<u8>, ended: &Ended<'_>, query: bool, headers: &[HeaderName], sampled: bool) {
    let Ended { session, context, status, duration, sample, redact } = *ended;
    let request = session.req_header();
    let mut object = Object::begin(out);
    object.time("time", Timestamp::now());
    object.text("id", &context.id);
    if let Some(trace) = &context.trace {
        object.hexadecimal("trace", trace.id());
    }
    object.address("client", ended.client());
    object.text("method", request.method.as_str());
    object.optional_text("host", ended.header(&HOST));
    object.text("path", request.uri.path());
    if let Some(query) = request.uri.query().filter(|_| query) {
        object.pieces("query", |piece| redact.query(query, piece));
    }
    object.text("protocol", ended.protocol());
    if let Some(tls) = context.arrival.as_ref().and_then(|arrival| arrival.tls.as_ref()) {
        object.object("tls", |object| {
            object.text("version", tls.version);
            if let Some(name) = &tls.server_name {
                object.text("server_name", name);
            }
            if let Some(client) = &tls.client {
                object.object("client", |object| {
                    object.text("subject", &client.subject);
                    object.texts("names", client.names.iter().map(|name| &**name));
                });
            }
        });
    }
    if let Some(agent) = ended.header(&USER_AGENT) {
        object.pieces("user_agent", |piece| redact.header(&USER_AGENT, agent, piece));
    }
    if !headers.is_empty() {
        object.object("headers", |object| {
            for name in headers {
                if let Some(value) = ended.header(name) {
                    object.pieces(name.as_str(), |piece| redact.header(name, value, piece));
                }
            }
        });
    }
    object.number("status", status.into());
    object.number("bytes_received", context.body.received);
    object.number("bytes_sent", ended.bytes_sent());
    object.millis("duration_ms", duration);
    object.optional_text("route", context.route().map(|route| &*route.name));
    if let Some(attempt) = &context.attempt {
        object.object("upstream", |object| {
            object.text("name", attempt.upstream.name());
            object.text("track", attempt.track.as_str());
            object.endpoint("address", attempt.address);
            object.number("attempts", attempt.number.into());
            if let Some(after) = attempt.header_after {
                object.millis("header_ms", after);
            }
        });
    }
    if let Some(answering) = &context.answering {
        object.object("function", |object| {
            object.text("name", answering.version.function().name());
            object.text("version", answering.version.label());
            object.text("track", answering.track.as_str());
            object.optional_text("outcome", answering.outcome);
            if let Some(after) = answering.header_after {
                object.millis("header_ms", after);
            }
            object.millis("busy_ms", answering.busy);
        });
    }
    if let Some(file) = &context.file {
        object.object("static", |object| {
            object.text("file", &file.name);
            if let Some(encoding) = file.encoding {
                object.text("encoding", encoding);
            }
        });
    }
    if let Some(policy) = context.answered_by {
        object.text("policy", policy.as_str());
    }
    object.objects("filters", super::passed(context), |object, Passed { name, version, track, step }| {
        object.text("name", name);
        object.text("version", version);
        object.text("track", track.as_str());
        object.optional_text("outcome", step.and_then(|step| step.outcome));
        object.micros("us", step.map_or(Duration::ZERO, |step| step.spent));
    });
    if let Some(fault) = context.fault {
        object.object("error", |object| {
            object.text("source", fault.source().as_str());
            object.text("kind", fault.kind());
            if let Some(reason) = &context.reason {
                object.text("reason", reason);
            }
        });
    }
    object.number("generation", context.snapshot.generation);
    if sampled {
        object.share("sample", sample.basis_points());
    }
    object.end();
}

/// An object that is being written; finished by [`Object::end`].
#[derive(Debug)]
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Object<'a> {
    /// Begins an object at the end of a buffer.
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out }
    }

    /// Ends the object.
    pub(super) fn end(self) {
        self.out.push(b'}');
    }

    /// Keys are words of ours or names of headers: nothing in them needs an escape.
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Writes a text.
    pub(super) fn text(&mut self, key: &'static str, text: &str) {
        let out = self.key(key);
        string(out, text);
    }

    /// Writes a text that comes in pieces.
    pub(super) fn pieces(&mut self, key: &str, pieces: impl FnOnce(&mut dyn FnMut(&str))) {
        let out = self.key(key);
        out.push(b'"');
        pieces(&mut |piece| escaped(out, piece));
        out.push(b'"');
    }

    /// Writes a number in hexadecimal, as a text of 32 digits.
    pub(super) fn hexadecimal(&mut self, key: &'static str, number: u128) {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(&hexadecimal(number));
        out.push(b'"');
    }

    /// Writes a share in hundredths of a per cent as a number from 0 to 1.
    pub(super) fn share(&mut self, key: &'static str, points: u16) {
        let out = self.key(key);
        fixed(out, points.into(), 4);
    }

    /// Writes a text, or `null`.
    pub(super) fn optional_text(&mut self, key: &'static str, text: Option<&str>) {
        let out = self.key(key);
        match text {
            Some(text) => string(out, text),
            None => out.extend_from_slice(b"null"),
        }
    }

    /// Writes a whole number.
    pub(super) fn number(&mut self, key: &'static str, number: u64) {
        let out = self.key(key);
        digits(out, number);
    }

    /// Writes milliseconds, to the microsecond.
    pub(super) fn millis(&mut self, key: &'static str, duration: Duration) {
        let out = self.key(key);
        fixed(out, duration.saturating_add(Duration::from_nanos(500)).as_micros(), 3);
    }

    /// Writes microseconds, to a tenth.
    pub(super) fn micros(&mut self, key: &'static str, duration: Duration) {
        let out = self.key(key);
        fixed(out, duration.saturating_add(Duration::from_nanos(50)).as_nanos() / 100, 1);
    }

    /// Writes a point in time.
    pub(super) fn time(&mut self, key: &'static str, time: Timestamp) {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(&time.rfc3339());
        out.push(b'"');
    }

    /// Writes an IP address.
    pub(super) fn address(&mut self, key: &'static str, address: IpAddr) {
        let out = self.key(key);
        out.push(b'"');
        ip(out, address);
        out.push(b'"');
    }

    /// Writes an IP address with its port, or `null`.
    pub(super) fn endpoint(&mut self, key: &'static str, address: Option<SocketAddr>) {
        let out = self.key(key);
        let Some(address) = address else {
            out.extend_from_slice(b"null");
            return;
        };
        out.push(b'"');
        endpoint(out, address);
        out.push(b'"');
    }

    /// Writes an object within this one.
    pub(super) fn object(&mut self, key: &'static str, fields: impl FnOnce(&mut Object<'_>)) {
        let mut object = Object::begin(self.key(key));
        fields(&mut object);
        object.end();
    }

    /// Writes a list of texts.
    pub(super) fn texts<'t>(&mut self, key: &'static str, texts: impl Iterator<Item = &'t str>) {
        let out = self.key(key);
        out.push(b'[');
        for (index, text) in texts.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            string(out, text);
        }
        out.push(b']');
    }

    /// Writes a list of objects.
    pub(super) fn objects<T>(
        &mut self,
        key: &'static str,
        items: impl Iterator<Item = T>,
        fields: impl Fn(&mut Object<'_>, T),
    ) {
        let out = self.key(key);
        out.push(b'[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            let mut object = Object::begin(out);
            fields(&mut object, item);
            object.end();
        }
        out.push(b']');
    }
}

/// Writes a whole number.
pub(super) fn digits(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes a number of which so many digits stand behind the point.
pub(super) fn fixed(out: &mut Vec<u8>, number: u128, decimals: usize) {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    let unit = 10_u64.pow(u32::try_from(decimals).unwrap_or(0));
    digits(out, number / unit);
    out.push(b'.');
    let mut buffer = itoa::Buffer::new();
    let fraction = buffer.format(number % unit).as_bytes();
    out.resize(out.len() + decimals.saturating_sub(fraction.len()), b'0');
    out.extend_from_slice(fraction);
}

/// Writes an IP address with its port.
pub(super) fn endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    match endpoint {
        SocketAddr::V4(endpoint) => {
            ip(out, IpAddr::V4(*endpoint.ip()));
            out.push(b':');
            digits(out, endpoint.port().into());
        }
        // Writing to a vector does not fail.
        SocketAddr::V6(endpoint) => drop(write!(out, "{endpoint}")),
    }
}

/// Writes an IP address.
pub(super) fn ip(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                digits(out, octet.into());
            }
        }
        // Writing to a vector does not fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Returns all 32 digits of a number.
pub(super) fn hexadecimal(number: u128) -> [u8; 32] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (124 - 4 * place)) as usize & 15])
}

/// Writes a string: RFC 8259, section 7.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// Writes what stands in a string.
fn escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // All of them are looked at, since that is faster than to stop at the first.
    if bytes.iter().fold(false, |any, &byte| any | is_escaped(byte)) {
        for &byte in bytes {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                // Writing to a vector does not fail.
                byte if is_escaped(byte) => drop(write!(out, "\\u{byte:04x}")),
                byte => out.push(byte),
            }
        }
    } else {
        out.extend_from_slice(bytes);
    }
}

const fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn written(fields: impl FnOnce(&mut Object<'_>)) -> String {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        fields(&mut object);
        object.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_are_separated_wherever_they_stand() {
        let text = written(|object| {
            object.objects("none", std::iter::empty::<u64>(), |object, n| object.number("n", n));
            object.objects("two", [1, 2].into_iter(), |object, n| object.number("n", n));
            object.object("inner", |_| ());
            object.optional_text("text", None);
            object.texts("texts", ["a", "\""].into_iter());
        });
        assert_eq!(text, r#"{"none":[],"two":[{"n":1},{"n":2}],"inner":{},"text":null,"texts":["a","\""]}"#);
    }

    #[test]
    fn texts_in_pieces_shares_and_ids_are_values() {
        let text = written(|object| {
            object.pieces("query", |piece| ["a=\"", "***"].into_iter().for_each(piece));
            object.share("sample", 50);
            object.share("all", 10_000);
            object.hexadecimal("trace", 0xab);
        });
        let trace = "000000000000000000000000000000ab";
        assert_eq!(text, format!(r#"{{"query":"a=\"***","sample":0.0050,"all":1.0000,"trace":"{trace}"}}"#));
    }

    #[test]
    fn durations_have_a_fixed_number_of_decimals() {
        let text = written(|object| {
            object.millis("zero", Duration::ZERO);
            object.millis("rounded", Duration::from_nanos(1_000_500));
            object.millis("long", Duration::from_millis(61_004));
            object.micros("tenths", Duration::from_nanos(1_049));
            object.micros("above", Duration::from_nanos(1_050));
        });
        assert_eq!(text, r#"{"zero":0.000,"rounded":1.001,"long":61004.000,"tenths":1.0,"above":1.1}"#);
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        for endpoint in
            ["192.0.2.1:80", "0.0.0.0:0", "255.255.255.255:65535", "[2001:db8::1]:443", "[::ffff:1.2.3.4]:1"]
        {
            let endpoint: SocketAddr = endpoint.parse().unwrap();
            let text = written(|object| {
                object.address("address", endpoint.ip());
                object.endpoint("endpoint", Some(endpoint));
                object.endpoint("none", None);
            });
            let expected = format!(r#"{{"address":"{}","endpoint":"{endpoint}","none":null}}"#, endpoint.ip());
            assert_eq!(text, expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_and_any_number_come_back(text in ".*", number in any::<u64>()) {
            let line = written(|object| {
                object.text("text", &text);
                object.number("number", number);
            });
            let read: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(read["text"].as_str(), Some(&*text));
            prop_assert_eq!(read["number"].as_u64(), Some(number));
        }
    }
}
