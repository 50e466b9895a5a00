//! Normalises a request's target, once. Router, filters and upstream then see the same bytes: where they differ, an
//! access rule can be walked around (`//admin`, `/x/../admin`, `/%61dmin`).
//!
//! A *normalised* target is in origin form; its path has no empty, `.` or `..` segment, no percent-encoded unreserved
//! character, upper-case hex digits, and only characters that RFC 3986 allows. An encoded slash stays encoded: it is
//! data, not a separator. Pure.

use std::borrow::Cow;
use std::fmt;

/// Why a target was refused; the answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Does not begin with `/`.
    NotOriginForm,
    /// A `%` without two hex digits after it.
    BadEscape,
    /// A control character, a space or a `#`, raw; or NUL, encoded.
    BadCharacter,
    /// More `..` than there are segments before them.
    AboveRoot,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOriginForm => "request target does not begin with `/`",
            Self::BadEscape => "request target has a `%` without two hex digits",
            Self::BadCharacter => "request target has a character that must not be there",
            Self::AboveRoot => "request target climbs above `/`",
        })
    }
}

/// Returns the normalised form of a target (path, and query where there is one).
///
/// Allocates only where something changes, which is rare.
///
/// # Errors
/// Where it is no target, or one that could be read in two ways.
pub fn normalise(target: &[u8]) -> Result<Cow<'_, str>, TargetError> {
    if target.first() != Some(&b'/') {
        return Err(TargetError::NotOriginForm);
    }
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    if is_plain(path) && query.iter().all(|byte| is_plain_in_query(*byte)) {
        // Both checks leave ASCII only.
        return std::str::from_utf8(target).map(Cow::Borrowed).map_err(|_| TargetError::BadCharacter);
    }
    let mut out = String::with_capacity(target.len() + 8);
    push_path(&mut out, path)?;
    push_escaped(&mut out, query, |byte| matches!(byte, b'/' | b'?'))?;
    Ok(Cow::Owned(out))
}

/// Returns whether a path is in normal form already, by one pass. Any `%` sends it to the slow path.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for (index, byte) in path.iter().enumerate() {
        let plain = match byte {
            b'/' => previous != b'/',
            // A segment that begins with a dot may be `.` or `..`.
            b'.' => previous != b'/' || !matches!(path.get(index + 1), None | Some(b'/' | b'.')),
            _ => is_unreserved(*byte) || is_sub_delimiter(*byte),
        };
        if !plain {
            return false;
        }
        previous = *byte;
    }
    true
}

const fn is_plain_in_query(byte: u8) -> bool {
    is_unreserved(byte) || is_sub_delimiter(byte) || matches!(byte, b'/' | b'?')
}

/// RFC 3986, section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What else a segment may hold as it is: RFC 3986, section 3.3.
const fn is_sub_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

fn push_path(out: &mut String, path: &[u8]) -> Result<(), TargetError> {
    // Where each segment begins, so that `..` can take the last one back.
    let mut starts: Vec<usize> = Vec::new();
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let start = out.len();
        out.push('/');
        push_escaped(out, segment, |_| false)?;
        match &out[start + 1..] {
            "" | "." => {
                out.truncate(start);
            }
            ".." => {
                let parent = starts.pop().ok_or(TargetError::AboveRoot)?;
                out.truncate(parent);
            }
            _ => {
                starts.push(start);
                continue;
            }
        }
        // `/a/`, `/a/.` and `/a/b/..` name the folder.
        if last {
            out.push('/');
        }
    }
    Ok(())
}

fn push_escaped(out: &mut String, text: &[u8], keep: fn(u8) -> bool) -> Result<(), TargetError> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let escape = |out: &mut String, byte: u8| {
        out.push('%');
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    };
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
                let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
                    return Err(TargetError::BadEscape);
                };
                match u8::try_from(high * 16 + low).map_err(|_| TargetError::BadEscape)? {
                    0 => return Err(TargetError::BadCharacter),
                    byte if is_unreserved(byte) => out.push(char::from(byte)),
                    byte => escape(out, byte),
                }
            }
            0..=b' ' | b'#' | 0x7f => return Err(TargetError::BadCharacter),
            byte if is_unreserved(byte) || is_sub_delimiter(byte) || keep(byte) => out.push(char::from(byte)),
            byte => escape(out, byte),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(target: &str, expect: Result<&str, TargetError>) {
        assert_eq!(normalise(target.as_bytes()).as_deref().map_err(|e| *e), expect, "{target}");
    }

    #[test]
    fn what_is_normal_stays_as_it_is() {
        for target in ["/", "/a", "/a/", "/a/b.c/.well-known/x", "/a?b=c&d=/e?f", "/a;p=1/@me"] {
            check(target, Ok(target));
            assert!(matches!(normalise(target.as_bytes()), Ok(Cow::Borrowed(_))), "{target}");
        }
    }

    #[test]
    fn what_is_not_normal_is_made_so() {
        check("/...", Ok("/..."));
        check("/a/..b", Ok("/a/..b"));
        check("//admin", Ok("/admin"));
        check("/x/../admin", Ok("/admin"));
        check("/x/%2e%2E/admin", Ok("/admin"));
        check("/%61dmin", Ok("/admin"));
        check("/a//b///c", Ok("/a/b/c"));
        check("/a/./b/.", Ok("/a/b/"));
        check("/a/b/..", Ok("/a/"));
        check("/a/..", Ok("/"));
        check("/a%2fb", Ok("/a%2Fb"));
        check("/a\\b", Ok("/a%5Cb"));
        check("/ü?ü", Ok("/%C3%BC?%C3%BC"));
        check("/a?x=%7e%2f", Ok("/a?x=~%2F"));
        check("/a?..//..", Ok("/a?..//.."));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        check("", Err(TargetError::NotOriginForm));
        check("*", Err(TargetError::NotOriginForm));
        check("http://a/", Err(TargetError::NotOriginForm));
        check("/%", Err(TargetError::BadEscape));
        check("/%4", Err(TargetError::BadEscape));
        check("/%zz", Err(TargetError::BadEscape));
        check("/%00", Err(TargetError::BadCharacter));
        check("/a b", Err(TargetError::BadCharacter));
        check("/a#b", Err(TargetError::BadCharacter));
        check("/..", Err(TargetError::AboveRoot));
        check("/a/../../b", Err(TargetError::AboveRoot));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing_more(target in "/[ -~ü]{0,40}") {
            if let Ok(once) = normalise(target.as_bytes()) {
                let twice = normalise(once.as_bytes());
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                let path = once.split('?').next().unwrap_or_default();
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(target in any::<Vec<u8>>()) {
            let _ = normalise(&target);
        }
    }
}
