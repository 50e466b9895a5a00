//! Writes JSON objects into a buffer, field by field. The access log is most of what the gateway itself does for a
//! request without filters, so what every line has is not taken through a serializer's traits and the formatting
//! machinery of the standard library.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::control::time::Timestamp;

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

    /// Keys are words of ours: nothing in them needs an escape.
    fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
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
    pub(super) fn endpoint(&mut self, key: &'static str, endpoint: Option<SocketAddr>) {
        let out = self.key(key);
        let Some(endpoint) = endpoint else {
            out.extend_from_slice(b"null");
            return;
        };
        out.push(b'"');
        match endpoint {
            SocketAddr::V4(endpoint) => {
                ip(out, IpAddr::V4(*endpoint.ip()));
                out.push(b':');
                digits(out, endpoint.port().into());
            }
            // Writing to a vector does not fail.
            SocketAddr::V6(endpoint) => drop(write!(out, "{endpoint}")),
        }
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

fn digits(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes a number of which so many digits stand behind the point.
fn fixed(out: &mut Vec<u8>, number: u128, decimals: usize) {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    let unit = 10_u64.pow(u32::try_from(decimals).unwrap_or(0));
    digits(out, number / unit);
    out.push(b'.');
    let mut buffer = itoa::Buffer::new();
    let fraction = buffer.format(number % unit).as_bytes();
    out.resize(out.len() + decimals.saturating_sub(fraction.len()), b'0');
    out.extend_from_slice(fraction);
}

fn ip(out: &mut Vec<u8>, address: IpAddr) {
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

/// Writes a string: RFC 8259, section 7.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
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
    out.push(b'"');
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
