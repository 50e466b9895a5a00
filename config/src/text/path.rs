//! Paths: `/exact`, `/below/*`, `/users/{id}`.
//!
//! A path is routed in its *normal form*, the one of RFC 3986: percent-encoded only where it must be, with digits in
//! upper case, without `.` and `..`, and without empty segments but a last one. A pattern in another form would never
//! match, so it is refused, with the form that does.

use std::fmt::{self, Write};
use std::str::FromStr;

use super::TextError;
use crate::model::{PathPattern, Segment};

/// As it is written in a file.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Template(segments) => segments.iter().try_for_each(|segment| match segment {
                Segment::Literal(text) => write!(f, "/{text}"),
                Segment::Parameter(name) => write!(f, "/{{{name}}}"),
            }),
        }
    }
}

fn expected() -> TextError {
    TextError::new("a path such as `/exact`, `/below/*` or `/users/{id}`")
}

/// `/exact`, `/below/*` or `/users/{id}`.
impl FromStr for PathPattern {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if !text.starts_with('/') {
            return Err(expected().hint("a path begins with `/`"));
        }
        if text.contains(['?', '#']) {
            return Err(expected().hint("a path ends before `?` and `#`; routes do not look at the query"));
        }
        if let Some(prefix) = text.strip_suffix("/*").filter(|prefix| !prefix.contains(['*', '{', '}'])) {
            let prefix = format!("{prefix}/");
            check_normal(&prefix, "*")?;
            return Ok(Self::Prefix(prefix));
        }
        if text.contains('*') {
            return Err(expected().hint(
                "`*` stands only as the last segment of a path without `{…}`: `/below/*`; write `%2A` for the character",
            ));
        }
        if !text.contains(['{', '}']) {
            check_normal(text, "")?;
            return Ok(Self::Exact(text.to_owned()));
        }
        template(&text[1..]).map(Self::Template)
    }
}

fn template(text: &str) -> Result<Vec<Segment>, TextError> {
    let mut segments: Vec<Segment> = Vec::new();
    for text in text.split('/') {
        let segment = match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) if !is_parameter(name) => {
                return Err(expected().hint("a parameter's name is made of letters, digits and `_`: `{id}`"));
            }
            Some(name) => Segment::Parameter(name.to_owned()),
            None if text.contains(['{', '}']) => {
                return Err(expected().hint("a parameter is a whole segment: `/{id}/`, not `/a-{id}/`"));
            }
            None if text.is_empty() => {
                return Err(expected().hint("a path with `{…}` has no empty segment, and no `/` at its end"));
            }
            None => {
                check_normal(&format!("/{text}"), "")?;
                Segment::Literal(text.to_owned())
            }
        };
        if matches!(segment, Segment::Parameter(_)) && segments.contains(&segment) {
            return Err(expected().hint("two parameters have the same name"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn is_parameter(name: &str) -> bool {
    name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Checks that a path is in its normal form; `suffix` is what the hint ends with.
fn check_normal(path: &str, suffix: &str) -> Result<(), TextError> {
    match normalise(path) {
        Some(normal) if normal == path => Ok(()),
        Some(normal) => Err(TextError::new("a path in its normal form").hint(format!("write `{normal}{suffix}`"))),
        None => Err(TextError::new("two hexadecimal digits after each `%`").hint("write `%25` for a per cent sign")),
    }
}

/// Returns a path's normal form; none, where a `%` begins no percent-encoding.
fn normalise(path: &str) -> Option<String> {
    let mut segments: Vec<String> = Vec::new();
    let mut count = path.split('/').skip(1).peekable();
    while let Some(segment) = count.next() {
        let last = count.peek().is_none();
        match normal_segment(segment)?.as_str() {
            ".." => {
                segments.pop();
                if last {
                    segments.push(String::new());
                }
            }
            "." | "" if last => segments.push(String::new()),
            "." | "" => {}
            segment => segments.push(segment.to_owned()),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

fn normal_segment(segment: &str) -> Option<String> {
    let mut out = String::with_capacity(segment.len());
    let bytes = segment.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        let (byte, encoded, width) = match bytes[index] {
            b'%' => {
                let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                let (high, low) = digit(index + 1).zip(digit(index + 2))?;
                ((high * 16 + low) as u8, true, 3)
            }
            byte => (byte, false, 1),
        };
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if unreserved || (!encoded && b"!$&'()*+,;=:@".contains(&byte)) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").ok()?;
        }
        index += width;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hint(text: &str) -> String {
        text.parse::<PathPattern>().unwrap_err().hint.unwrap_or_default()
    }

    #[test]
    fn patterns_are_exact_prefixes_or_templates() {
        let literal = |text: &str| Segment::Literal(text.into());
        for (text, pattern) in [
            ("/", PathPattern::Exact("/".into())),
            ("/a/b.html", PathPattern::Exact("/a/b.html".into())),
            ("/a/", PathPattern::Exact("/a/".into())),
            ("/*", PathPattern::Prefix("/".into())),
            ("/static/*", PathPattern::Prefix("/static/".into())),
            ("/u/{id}/p", PathPattern::Template(vec![literal("u"), Segment::Parameter("id".into()), literal("p")])),
        ] {
            assert_eq!(text.parse(), Ok(pattern.clone()));
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn another_form_is_refused_with_the_normal_one() {
        for (text, normal) in [
            ("//a", "/a"),
            ("/a//b/*", "/a/b/*"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/%41%2f", "/A%2F"),
            ("/%2e%2e/a", "/a"),
            ("/a b/ä", "/a%20b/%C3%A4"),
        ] {
            assert_eq!(hint(text), format!("write `{normal}`"), "{text}");
        }
        assert_eq!(hint("/100%"), "write `%25` for a per cent sign");
    }

    #[test]
    fn wildcards_and_parameters_are_whole_segments() {
        for text in ["/a*", "/*/b", "/a/{id}/*", "/{id}.json", "/{}", "/{a}/{a}", "/{a}/", "/{a", "/a?b", "a", ""] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own(path in "/[a-c%0-9./ äA-F]{0,20}") {
            if let Some(normal) = normalise(&path) {
                prop_assert_eq!(normalise(&normal), Some(normal));
            }
        }
    }
}
