//! Headers as filters may write them. The gateway owns framing: no filter can write a header that decides where a
//! message ends, and no value that could start another header.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use wasmtime::component::{ComponentType, Lift, Lower};

/// Names and values of all headers of a message together, in bytes.
pub(crate) const BYTES_MAX: usize = 64 << 10;

/// Headers of a message.
pub(crate) const COUNT_MAX: usize = 128;

/// Why a write was refused; `header-error` in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum HeaderError {
    #[component(name = "invalid-name")]
    InvalidName,
    #[component(name = "invalid-value")]
    InvalidValue,
    #[component(name = "forbidden")]
    Forbidden,
    #[component(name = "too-large")]
    TooLarge,
    #[component(name = "already-sent")]
    AlreadySent,
}

/// Returns whether only the gateway may write this header.
pub(crate) fn is_owned_by_gateway(name: &HeaderName) -> bool {
    // Names that `http` knows are compared by number, so the list costs next to nothing.
    matches!(
        *name,
        header::CONNECTION
            | header::CONTENT_LENGTH
            | header::EXPECT
            | header::HOST
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
        || name.as_str().starts_with("x-lockgate-")
}

fn writable(name: &str) -> Result<HeaderName, HeaderError> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderError::InvalidName)?;
    if is_owned_by_gateway(&name) { Err(HeaderError::Forbidden) } else { Ok(name) }
}

fn held_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Sets a header to one value, in place of all it had.
pub(crate) fn set(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), HeaderError> {
    let name = writable(name)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| HeaderError::InvalidValue)?;
    let replaced = headers
        .get_all(&name)
        .iter()
        .fold((0, 0), |(count, bytes), old| (count + 1, bytes + name.as_str().len() + old.len()));
    let bytes = held_bytes(headers) - replaced.1 + name.as_str().len() + value.len();
    if bytes > BYTES_MAX || headers.len() - replaced.0 + 1 > COUNT_MAX {
        return Err(HeaderError::TooLarge);
    }
    headers.insert(name, value);
    Ok(())
}

/// Adds a value to a header.
pub(crate) fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), HeaderError> {
    let name = writable(name)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| HeaderError::InvalidValue)?;
    let bytes = held_bytes(headers) + name.as_str().len() + value.len();
    if bytes > BYTES_MAX || headers.len() >= COUNT_MAX {
        return Err(HeaderError::TooLarge);
    }
    headers.append(name, value);
    Ok(())
}

/// Removes all values of a header.
pub(crate) fn remove(headers: &mut HeaderMap, name: &str) -> Result<(), HeaderError> {
    headers.remove(writable(name)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn writes_are_judged() {
        use HeaderError::{Forbidden, InvalidName, InvalidValue, TooLarge};
        let large = "v".repeat(BYTES_MAX);
        for (name, value, expected) in [
            ("x-a", "1", Ok(())),
            ("X-A", "caf\u{e9}", Ok(())),
            ("x-a", "", Ok(())),
            ("", "1", Err(InvalidName)),
            ("x a", "1", Err(InvalidName)),
            (":path", "/", Err(InvalidName)),
            ("x-a\r\nx-b", "1", Err(InvalidName)),
            ("x-a", "1\r\nx-b: 2", Err(InvalidValue)),
            ("x-a", "1\n", Err(InvalidValue)),
            ("x-a", "\0", Err(InvalidValue)),
            ("Connection", "close", Err(Forbidden)),
            ("content-length", "0", Err(Forbidden)),
            ("host", "evil", Err(Forbidden)),
            ("keep-alive", "1", Err(Forbidden)),
            ("proxy-connection", "1", Err(Forbidden)),
            ("te", "trailers", Err(Forbidden)),
            ("trailer", "a", Err(Forbidden)),
            ("Transfer-Encoding", "chunked", Err(Forbidden)),
            ("upgrade", "h2c", Err(Forbidden)),
            ("http2-settings", "a", Err(Forbidden)),
            ("expect", "100-continue", Err(Forbidden)),
            ("X-Lockgate-Track", "canary", Err(Forbidden)),
            ("x-a", &large, Err(TooLarge)),
        ] {
            let mut headers = HeaderMap::new();
            assert_eq!(set(&mut headers, name, value.as_bytes()), expected, "set {name}: {value:.20}");
            let mut headers = HeaderMap::new();
            assert_eq!(append(&mut headers, name, value.as_bytes()), expected, "append {name}: {value:.20}");
        }
    }

    #[test]
    fn a_refused_write_changes_nothing() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("1"));
        let before = headers.clone();
        assert!(set(&mut headers, "x-a", b"\r").is_err());
        assert!(append(&mut headers, "x-a", &vec![b'v'; BYTES_MAX]).is_err());
        assert!(remove(&mut headers, "host").is_err());
        assert_eq!(headers, before);
    }

    #[test]
    fn the_number_of_headers_is_bounded() {
        let mut headers = HeaderMap::new();
        for _ in 0..COUNT_MAX {
            append(&mut headers, "x-a", b"1").unwrap();
        }
        assert_eq!(append(&mut headers, "x-a", b"1"), Err(HeaderError::TooLarge));
        assert_eq!(set(&mut headers, "x-b", b"1"), Err(HeaderError::TooLarge));
        set(&mut headers, "x-a", b"1").unwrap();
        assert_eq!(headers.len(), 1);
    }

    proptest! {
        #[test]
        fn no_accepted_write_breaks_a_message(name in ".{0,12}", value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut headers = HeaderMap::new();
            if set(&mut headers, &name, &value).is_ok() {
                let (name, value) = headers.iter().next().unwrap();
                prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
                prop_assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
        }
    }
}
