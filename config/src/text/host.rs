//! Hosts that requests ask for: `api.example.com`, `*.example.com`.

use std::fmt;
use std::str::FromStr;

use super::TextError;
use crate::model::{Host, HostPattern};

/// Returns a domain in lower case.
pub(super) fn check_domain(text: &str) -> Result<String, TextError> {
    let expected = || TextError::new("a host such as `api.example.com`");
    if !text.is_ascii() {
        return Err(expected().hint("write an international name in its ASCII form, `xn--…`"));
    }
    if let Some(text) = text.strip_suffix('.') {
        return Err(match check_domain(text) {
            Ok(_) => expected().hint("leave the final dot out"),
            Err(error) => error,
        });
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(expected());
    }
    // No top-level domain is a number, so this was meant as an address: `127.0.0.300`.
    if text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(TextError::new("an address such as `127.0.0.1`, each part from 0 to 255"));
    }
    Ok(text.to_ascii_lowercase())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// A host, or one that begins with `*.`.
impl FromStr for HostPattern {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("a host such as `api.example.com` or `*.example.com`");
        if text == "*" {
            return Err(expected().hint("leave `host` out for any host"));
        }
        if text.contains("://") || text.contains('/') {
            return Err(expected().hint("leave out scheme and path; the path goes to `path`"));
        }
        match text.strip_prefix("*.") {
            Some(parent) => Ok(Self::Wildcard(format!(".{}", check_domain(parent)?))),
            None if text.contains('*') => {
                Err(expected().hint("`*` stands only at the start, and for whole labels: `*.example.com`"))
            }
            None => match text.parse::<Host>() {
                Ok(host) => Ok(Self::Exact(host.to_string())),
                Err(_) if text.rsplit_once(':').is_some_and(|(host, _)| host.parse::<Host>().is_ok()) => {
                    Err(expected().hint("leave the port out; a route takes its hosts on every port"))
                }
                Err(error) => Err(TextError { hint: error.hint, ..expected() }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_kept_in_lower_case() {
        for (text, shown) in [
            ("API.example.com", "api.example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(text.parse::<HostPattern>().map(|host| host.to_string()).as_deref(), Ok(shown));
        }
        assert_eq!("*.example.com".parse(), Ok(HostPattern::Wildcard(".example.com".into())));
    }

    #[test]
    fn what_is_no_host_is_refused_with_a_hint() {
        for (text, hint) in [
            ("*", Some("leave `host` out for any host")),
            ("a.example.com:80", Some("leave the port out; a route takes its hosts on every port")),
            ("https://a.b", Some("leave out scheme and path; the path goes to `path`")),
            ("a.*.com", Some("`*` stands only at the start, and for whole labels: `*.example.com`")),
            ("bücher.example", Some("write an international name in its ASCII form, `xn--…`")),
            ("example.com.", Some("leave the final dot out")),
            ("", None),
            ("a..b", None),
            ("-a.b", None),
            ("1.2.3", None),
        ] {
            assert_eq!(text.parse::<HostPattern>().unwrap_err().hint.as_deref(), hint, "{text}");
        }
    }
}
