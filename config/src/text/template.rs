//! Texts with placeholders, and what they are used for: values of headers, and where a redirect leads. Also the small
//! texts of policies: statuses, origins, prefixes.

use std::fmt;
use std::str::FromStr;

use super::TextError;
use super::host::check_domain;
use crate::decode::did_you_mean;
use crate::model::{Host, Origin, Placeholder, StatusPattern, Template, TemplatePiece};

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                TemplatePiece::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                TemplatePiece::Placeholder(placeholder) => write!(f, "{{{}}}", placeholder.word())?,
            }
        }
        Ok(())
    }
}

/// `client {client_ip} of {route}`
impl FromStr for Template {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("a text, with placeholders such as `{client_ip}`");
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let (brace, behind) = rest[at..].split_at(1);
            if let Some(behind) = behind.strip_prefix(brace) {
                plain.push_str(brace);
                rest = behind;
                continue;
            }
            let Some((word, behind)) = behind.split_once('}').filter(|_| brace == "{") else {
                return Err(expected().hint(format!("write a brace that is meant as such twice: `{brace}{brace}`")));
            };
            let Some(placeholder) = Placeholder::ALL.iter().find(|known| known.word() == word) else {
                let words = || Placeholder::ALL.iter().map(|known| known.word());
                let all = words().map(|word| format!("`{{{word}}}`")).collect::<Vec<_>>().join(", ");
                return Err(expected().hint(match did_you_mean(word, words()) {
                    Some(hint) => hint,
                    None => format!("there are {all}; write a brace that is meant as such twice: `{{{{`"),
                }));
            };
            if !plain.is_empty() {
                pieces.push(TemplatePiece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(TemplatePiece::Placeholder(*placeholder));
            rest = behind;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(TemplatePiece::Text(plain));
        }
        Ok(Self(pieces))
    }
}

/// Reads the value of a header.
pub(crate) fn header_template(text: &str) -> Result<Template, TextError> {
    if text.is_empty() || !super::is_value(text) {
        return Err(TextError::new("the value of a header: no control characters, and no space at its ends"));
    }
    text.parse()
}

/// Reads where a redirect leads: a path, or a whole address. Whoever asks must not be able to choose the host by way of
/// a placeholder that continues it.
pub(crate) fn redirect_template(text: &str) -> Result<Template, TextError> {
    let expected = || TextError::new("a path such as `/new/{rest}`, or an address such as `https://example.com{path}`");
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(expected().hint("write what is not ASCII, and spaces, with their percent signs: `%20`"));
    }
    let template: Template = text.parse()?;
    let absolute = ["https://", "http://", "{scheme}://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = absolute else {
        return match text.strip_prefix('/') {
            Some(rest) if rest.starts_with(['/', '\\']) => {
                Err(expected().hint("a path with two slashes first leads to another host"))
            }
            Some(_) => Ok(template),
            None if text.starts_with("{path}") => Ok(template),
            None => Err(expected()),
        };
    };
    let rest = match rest.strip_prefix("{host}") {
        Some(rest) => rest,
        None => {
            let end = rest.find(['/', '?', '{']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            check_authority(authority).map_err(|()| expected())?;
            rest
        }
    };
    if rest.is_empty() || rest.starts_with(['/', '?']) || rest.starts_with("{path}") {
        return Ok(template);
    }
    Err(expected().hint("put a `/` behind the host: what follows it directly would be a part of it"))
}

/// Tells whether a text is a host, with a port or without.
fn check_authority(text: &str) -> Result<(), ()> {
    if text.parse::<Host>().is_ok() {
        return Ok(());
    }
    let (host, port) = text.rsplit_once(':').ok_or(())?;
    let sound = host.parse::<Host>().is_ok() && port.parse::<u16>().is_ok();
    sound.then_some(()).ok_or(())
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

/// `503`, `5xx`
impl FromStr for StatusPattern {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match (text.trim(), text.trim().parse()) {
            ("4xx", _) => Ok(Self::Class(4)),
            ("5xx", _) => Ok(Self::Class(5)),
            (_, Ok(status @ 400..=599)) => Ok(Self::Exact(status)),
            _ => Err(TextError::new("a status from 400 to 599, `4xx` or `5xx`")),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(origin) => f.write_str(origin),
            Self::Wildcard { scheme, suffix } => write!(f, "{scheme}*{suffix}"),
        }
    }
}

/// `https://app.example.com`, `https://*.example.com:8443`, `*`, `null`
impl FromStr for Origin {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected =
            || TextError::new("an origin such as `https://app.example.com`, `https://*.example.com`, `*` or `null`");
        match text {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Exact(text.to_owned())),
            _ => {}
        }
        let lower = text.to_ascii_lowercase();
        let Some((scheme, authority)) = lower.split_once("://").filter(|(scheme, _)| super::is_token(scheme)) else {
            return Err(expected().hint("begin with the scheme: `https://`"));
        };
        if authority.contains('/') {
            return Err(expected().hint("leave the path out, and the last `/`: an origin has none"));
        }
        let (default, scheme) = (if scheme == "https" { ":443" } else { ":80" }, format!("{scheme}://"));
        if let Some(host) = authority.strip_suffix(default) {
            return Err(expected().hint(format!("browsers leave this port out: `{scheme}{host}`")));
        }
        let Some(parent) = authority.strip_prefix("*.") else {
            check_authority(authority).map_err(|()| expected())?;
            return Ok(Self::Exact(lower));
        };
        let (domain, port) = parent.split_once(':').unwrap_or((parent, "1"));
        check_domain(domain).map_err(|_| expected())?;
        port.parse::<u16>().map_err(|_| expected())?;
        Ok(Self::Wildcard { scheme, suffix: format!(".{parent}") })
    }
}

/// Returns a prefix that a path can begin with, without its last `/`, unless that is all of it.
pub(crate) fn path_prefix(text: &str) -> Result<String, TextError> {
    let expected = || TextError::new("the beginning of a path, such as `/v2` or `/`");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    if !text.starts_with('/') || !text.bytes().all(plain) {
        return Err(expected());
    }
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if trimmed.split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(expected().hint("no segment may be empty, `.` or `..`"));
    }
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_and_written() {
        for text in ["", "plain", "{client_ip}", "a {host}/{path}?{query} b", "{{\"group\": \"{route}\"}}"] {
            assert_eq!(text.parse::<Template>().unwrap().to_string(), text);
        }
        let pieces = "{{x}} {scheme}".parse::<Template>().unwrap().0;
        assert_eq!(
            pieces,
            [TemplatePiece::Text("{x} ".into()), TemplatePiece::Placeholder(Placeholder::Scheme)],
            "two braces are one"
        );
    }

    #[test]
    fn an_unknown_placeholder_is_refused_with_a_guess() {
        let hint = |text: &str| text.parse::<Template>().unwrap_err().hint.unwrap();
        assert_eq!(hint("{client-ip}"), "did you mean `client_ip`?");
        assert!(hint("{nothing}").contains("`{request_id}`"));
        assert_eq!(hint("a } b"), "write a brace that is meant as such twice: `}}`");
        assert_eq!(hint("{open"), "write a brace that is meant as such twice: `{{`");
    }

    #[test]
    fn a_redirect_leads_to_a_host_of_the_operators_choice() {
        for text in [
            "/new/{rest}",
            "{path}",
            "https://example.com",
            "https://example.com{path}",
            "https://example.com:8443/a?b={query}",
            "{scheme}://{host}/x",
            "http://[::1]:80/",
        ] {
            assert!(redirect_template(text).is_ok(), "{text}");
        }
        for text in [
            "new",
            "//example.com/",
            "/\\example.com",
            "https://example.com{rest}",
            "https://{rest}",
            "https://{host}.evil.example/",
            "https://user@example.com/",
            "ftp://example.com/",
            "{rest}",
            "/a b",
            "",
        ] {
            assert!(redirect_template(text).is_err(), "{text}");
        }
    }

    #[test]
    fn origins_are_what_browsers_write() {
        for text in ["*", "null", "https://app.example.com", "http://localhost:3000", "https://*.example.com:8443"] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for text in ["app.example.com", "https://a.b/", "https://a.b:443", "http://a.b:80", "https://*", "https://a.*"]
        {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn prefixes_and_statuses() {
        assert_eq!(path_prefix("/v2/").as_deref(), Ok("/v2"));
        assert_eq!(path_prefix("/").as_deref(), Ok("/"));
        for text in ["", "v2", "/a//b", "/../a", "/a?b", "/a b"] {
            assert!(path_prefix(text).is_err(), "{text}");
        }
        assert_eq!("5xx".parse(), Ok(StatusPattern::Class(5)));
        assert_eq!("404".parse(), Ok(StatusPattern::Exact(404)));
        assert!("200".parse::<StatusPattern>().is_err() && "3xx".parse::<StatusPattern>().is_err());
    }
}
