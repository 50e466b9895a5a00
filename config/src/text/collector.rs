//! Addresses of OpenTelemetry collectors.

use std::fmt;
use std::str::FromStr;

use super::TextError;

/// Where traces are posted, below every base address: the OTLP specification's path.
const TRACES: &str = "/v1/traces";

/// The base address of a collector, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CollectorUrl(String);

impl CollectorUrl {
    /// Returns where traces are posted.
    pub(crate) fn traces(&self) -> String {
        format!("{}{TRACES}", self.0)
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CollectorUrl {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("the address of a collector, such as `http://127.0.0.1:4318`");
        let uri: http::Uri = text.parse().map_err(|_| expected())?;
        match (uri.scheme_str(), uri.host(), uri.query()) {
            (Some("http" | "https"), Some(host), None) if !host.is_empty() && !text.contains('@') => {}
            (None, ..) => return Err(expected().hint("it begins with `http://` or `https://`")),
            (_, _, Some(_)) => return Err(expected().hint("leave the query out")),
            _ => return Err(expected().hint("put user and password into `headers`, as `authorization`")),
        }
        if uri.port_u16() == Some(4317) {
            return Err(expected().hint("4317 is where collectors take gRPC; HTTP is taken at 4318"));
        }
        let base = text.trim_end_matches('/');
        Ok(Self(base.strip_suffix(TRACES).unwrap_or(base).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_have_their_path_below_the_base() {
        let traces = |text: &str| text.parse::<CollectorUrl>().map(|url| url.traces()).ok();
        assert_eq!(traces("http://127.0.0.1:4318").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(traces("http://127.0.0.1:4318/").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(traces("https://a.example/otlp").as_deref(), Some("https://a.example/otlp/v1/traces"));
        assert_eq!(traces("https://a.example/v1/traces").as_deref(), Some("https://a.example/v1/traces"));
        for wrong in
            ["127.0.0.1:4318", "ftp://a", "http://", "http://u:p@a", "http://a:4317", "http://a?b", "http://a b"]
        {
            assert_eq!(traces(wrong), None, "{wrong}");
        }
    }
}
