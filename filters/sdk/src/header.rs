//! Headers: why a write is refused, and how to find out before.
//!
//! The gateway checks every write. A filter whose *settings* have names or values checks them here in `configure`, so
//! that a mistake is found when the filter is loaded and not by the first request.

use std::fmt;

use crate::bindings::imports::lockgate::filter::types;

/// A write to a header that was refused; the header is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderError {
    /// The header's name as the filter gave it.
    pub name: String,
    /// Why.
    pub refusal: Refusal,
}

/// Why a write to a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The name is not a token of RFC 9110, section 5.6.2.
    InvalidName,
    /// The value has CR, LF, NUL or another control character.
    InvalidValue,
    /// The gateway owns the header: see [`check_name`].
    Forbidden,
    /// The headers together would be larger than the gateway's limit, or too many.
    TooLarge,
    /// In this phase the headers have been sent.
    AlreadySent,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::InvalidName => "it is not a header name",
            Self::InvalidValue => "the value has a control character",
            Self::Forbidden => "the gateway owns it",
            Self::TooLarge => "the headers would be too large",
            Self::AlreadySent => "the headers have been sent",
        })
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, refusal } = self;
        write!(formatter, "header `{}` cannot be written: {refusal}", name.escape_debug())
    }
}

impl std::error::Error for HeaderError {}

impl HeaderError {
    pub(crate) fn new(name: &str, refusal: types::HeaderError) -> Self {
        let refusal = match refusal {
            types::HeaderError::InvalidName => Refusal::InvalidName,
            types::HeaderError::InvalidValue => Refusal::InvalidValue,
            types::HeaderError::Forbidden => Refusal::Forbidden,
            types::HeaderError::TooLarge => Refusal::TooLarge,
            types::HeaderError::AlreadySent => Refusal::AlreadySent,
        };
        Self { name: name.to_owned(), refusal }
    }
}

/// Headers that frame a message or belong to one connection, and are the gateway's for that reason.
const FORBIDDEN: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The beginning of the names that the gateway keeps for itself.
const FORBIDDEN_PREFIX: &str = "x-lockgate-";

/// Checks that a filter may write a header of this name, in any case.
///
/// # Errors
///
/// [`Refusal::InvalidName`] or [`Refusal::Forbidden`].
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if !is_token(name) {
        return Err(Refusal::InvalidName);
    }
    let lower_case = name.to_ascii_lowercase();
    if FORBIDDEN.contains(&lower_case.as_str()) || lower_case.starts_with(FORBIDDEN_PREFIX) {
        return Err(Refusal::Forbidden);
    }
    Ok(())
}

/// Tells whether a text is a token of RFC 9110, section 5.6.2, as the names of headers are, also of those that a filter
/// may read but not write.
pub fn is_token(text: &str) -> bool {
    let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(of_token)
}

/// Checks that a header may have this value.
///
/// # Errors
///
/// [`Refusal::InvalidValue`].
pub fn check_value(value: &[u8]) -> Result<(), Refusal> {
    let control = |&byte: &u8| byte != b'\t' && byte.is_ascii_control();
    if value.iter().any(control) { Err(Refusal::InvalidValue) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_and_not_the_gateways_own() {
        let check = |name: &str| check_name(name).err();
        assert_eq!(check("x-greeting"), None);
        assert_eq!(check("X_odd.but~valid!"), None);
        assert_eq!(check("hostname"), None);
        assert_eq!(check("Host"), Some(Refusal::Forbidden));
        assert_eq!(check("Transfer-Encoding"), Some(Refusal::Forbidden));
        assert_eq!(check("X-Lockgate-Track"), Some(Refusal::Forbidden));
        assert_eq!(check(""), Some(Refusal::InvalidName));
        assert_eq!(check(":path"), Some(Refusal::InvalidName));
        assert_eq!(check("x y"), Some(Refusal::InvalidName));
        assert_eq!(check("x-é"), Some(Refusal::InvalidName));
    }

    #[test]
    fn values_have_no_control_characters_but_tabs() {
        assert_eq!(check_value(b"a\tb"), Ok(()));
        assert_eq!(check_value("é".as_bytes()), Ok(()));
        assert_eq!(check_value(b""), Ok(()));
        for value in [b"a\rb", b"a\nb", b"a\0b", b"a\x7fb"] {
            assert_eq!(check_value(value), Err(Refusal::InvalidValue));
        }
    }

    #[test]
    fn an_error_shows_an_odd_name_on_one_line() {
        let error = HeaderError { name: "a\r\nb".to_owned(), refusal: Refusal::InvalidName };
        assert_eq!(error.to_string(), r"header `a\r\nb` cannot be written: it is not a header name");
    }
}
