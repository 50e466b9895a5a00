//! Methods, and names and values of headers.

use super::TextError;

/// What a [token](is_token) is, for messages.
pub(crate) const TOKEN_EXPECTED: &str = "letters, digits and any of ``!#$%&'*+-.^_`|~``";

/// Tells whether a text is a token of RFC 9110: the form of methods and of the names of headers and cookies.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Tells whether a text can be the value of a header, as a filter or an upstream would see it.
pub(crate) fn is_value(text: &str) -> bool {
    text.trim_matches([' ', '\t']) == text && http::HeaderValue::from_str(text).is_ok()
}

/// The name of a header, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderName(pub(crate) String);

/// Headers between two neighbours, which mean nothing to whoever is behind them.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the gateway itself says to targets and clients, or goes by.
const WRITTEN_BY_US: [&str; 8] = [
    "expect",
    "forwarded",
    "host",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

impl HeaderName {
    pub(crate) fn parse(text: &str) -> Result<Self, TextError> {
        if is_token(text) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        let expected = TextError::new("the name of a header, such as `x-user-id`");
        Err(match text.strip_suffix(':') {
            Some(name) if is_token(name) => expected.hint("leave the colon out"),
            _ => expected.hint(format!("a name is made of {TOKEN_EXPECTED}")),
        })
    }

    pub(crate) fn is_hop_by_hop(&self) -> bool {
        HOP_BY_HOP.contains(&self.0.as_str())
    }

    /// Tells whether edits of a header must leave it alone: it frames messages, routes them, or says who asks, which is
    /// the gateway's own word.
    pub(crate) fn is_untouchable(&self) -> bool {
        self.is_hop_by_hop() || self.is_ours() || WRITTEN_BY_US.contains(&self.0.as_str())
    }

    /// Tells whether the gateway writes it itself, and takes it away from what comes in.
    pub(crate) fn is_ours(&self) -> bool {
        self.0.starts_with("x-lockgate-")
    }
}

/// The method of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Method(pub(crate) String);

impl Method {
    pub(crate) fn parse(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("a method such as `GET`");
        let upper = text.to_ascii_uppercase();
        if !is_token(text) {
            Err(expected())
        } else if upper == "CONNECT" {
            Err(expected().hint("`CONNECT` is refused by the gateway: no route gets to see it"))
        } else if text != upper {
            Err(expected().hint("methods are told apart by case: write it in capitals"))
        } else {
            Ok(Self(upper))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_kept_in_lower_case() {
        assert_eq!(HeaderName::parse("X-User-Id").unwrap().0, "x-user-id");
        for text in ["", "a b", "x:", "ä"] {
            assert!(HeaderName::parse(text).is_err(), "{text}");
        }
        assert!(HeaderName::parse("Transfer-Encoding").unwrap().is_hop_by_hop());
        assert!(HeaderName::parse("X-Lockgate-Version").unwrap().is_ours());
    }

    #[test]
    fn methods_are_in_capitals() {
        assert!(Method::parse("GET").is_ok() && Method::parse("M-SEARCH").is_ok());
        assert!(Method::parse("get").is_err() && Method::parse("CONNECT").is_err() && Method::parse("").is_err());
    }
}
