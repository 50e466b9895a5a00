//! The header of a program's answer, as RFC 3875 has it in section 6: lines that end with LF or CRLF, and an empty one
//! behind them. `Status`, `Content-Type` and `Location` are for the server, one of them at least must be there, and none
//! twice; whatever else is there is for the client. Pure.

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Size of a header. As large as a set of headers that a handler makes may be.
pub(super) const HEADER_BYTES_MAX: usize = 64 << 10;

/// A header that is no header, and why: `line 2, "hello", has no colon`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

/// The header of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
}

/// Takes a header in, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Reader {
    read: Vec<u8>,
    /// Where the line begins that is not whole yet.
    line: usize,
}

impl Reader {
    /// Takes a piece in. Returns the header and what of the piece is behind it, once the header is whole.
    ///
    /// # Errors
    ///
    /// It is none, or none that may be so long.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
        let mut taken = 0;
        while let Some(end) = piece[taken..].iter().position(|byte| *byte == b'\n') {
            self.read.extend_from_slice(&piece[taken..=taken + end]);
            taken += end + 1;
            self.check_size()?;
            let empty = matches!(&self.read[self.line..], b"\n" | b"\r\n");
            self.line = self.read.len();
            if empty {
                return parse(&self.read).map(|header| Some((header, taken)));
            }
        }
        self.read.extend_from_slice(&piece[taken..]);
        self.check_size()?;
        Ok(None)
    }

    /// Returns whether nothing was taken in.
    pub(super) fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Returns what is wrong with a header that is not whole when the program has ended.
    pub(super) fn unfinished(&self) -> Malformed {
        parse(&self.read).err().unwrap_or_else(|| Malformed("there is no empty line behind it".to_owned()))
    }

    fn check_size(&self) -> Result<(), Malformed> {
        if self.read.len() > HEADER_BYTES_MAX {
            return Err(Malformed(format!("it is longer than {HEADER_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

fn parse(block: &[u8]) -> Result<Header, Malformed> {
    let mut status = None;
    let mut fields = HeaderMap::new();
    let lines = block.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for (line, number) in lines.take_while(|line| !line.is_empty()).zip(1..) {
        let wrong = |what: &str| {
            // Enough of it to be recognised.
            let shown = &line[..line.len().min(60)];
            Malformed(format!("line {number}, {:?}, {what}", String::from_utf8_lossy(shown)))
        };
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| wrong("has no colon"))?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| wrong("does not begin with a header's name"))?;
        let value = line[colon + 1..].trim_ascii();
        if name == "status" {
            if status.is_some() {
                return Err(wrong("is a second one of its name"));
            }
            // A reason may follow. HTTP/2 has none, and nobody reads those of HTTP/1.1.
            let code = value.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            status = Some(StatusCode::from_bytes(code).map_err(|_| wrong("has no status of three digits"))?);
            continue;
        }
        if (name == CONTENT_TYPE || name == LOCATION) && fields.contains_key(&name) {
            return Err(wrong("is a second one of its name"));
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| wrong("has a control character in it"))?;
        fields.append(name, value);
    }
    if status.is_none() && !fields.contains_key(CONTENT_TYPE) && !fields.contains_key(LOCATION) {
        return Err(Malformed("it has neither `status` nor `content-type` nor `location`".to_owned()));
    }
    let implied = if fields.contains_key(LOCATION) { StatusCode::FOUND } else { StatusCode::OK };
    Ok(Header { status: status.unwrap_or(implied), fields })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Status, fields, and what is behind the header.
    type Read<'a> = (u16, &'a [(&'a str, &'a str)], &'a str);

    fn check(text: &str, expect: Result<Read<'_>, &str>) {
        let read = Reader::default().feed(text.as_bytes());
        match (read, expect) {
            (Ok(Some((header, taken))), Ok((status, fields, rest))) => {
                let seen: Vec<_> =
                    header.fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
                assert_eq!((header.status.as_u16(), &*seen, &text[taken..]), (status, fields, rest), "{text:?}");
            }
            (Err(Malformed(why)), Err(expect)) => assert_eq!(why, expect, "{text:?}"),
            (read, expect) => panic!("{text:?}: {read:?} in the place of {expect:?}"),
        }
    }

    #[test]
    fn a_header_ends_with_an_empty_line() {
        check("Content-Type: text/plain\n\nhello\n\n", Ok((200, &[("content-type", "text/plain")], "hello\n\n")));
        check("Status: 404 Not Found\r\n\r\n", Ok((404, &[], "")));
        check("status:201\nX-A: 1\nx-a:2 \n\n", Ok((201, &[("x-a", "1"), ("x-a", "2")], "")));
    }

    #[test]
    fn a_location_redirects_where_no_status_says_otherwise() {
        check("Location: /there\n\n", Ok((302, &[("location", "/there")], "")));
        check("Location: /made\nStatus: 201\n\n", Ok((201, &[("location", "/made")], "")));
    }

    #[test]
    fn what_is_no_header_is_told_with_its_line() {
        check("hello\n\n", Err("line 1, \"hello\", has no colon"));
        check("Status: 200\n two: x\n\n", Err("line 2, \" two: x\", does not begin with a header's name"));
        check("Status: OK\n\n", Err("line 1, \"Status: OK\", has no status of three digits"));
        check("Status: 200\nStatus: 200\n\n", Err("line 2, \"Status: 200\", is a second one of its name"));
        check("Content-Type: a\u{1}\n\n", Err("line 1, \"Content-Type: a\\u{1}\", has a control character in it"));
        check("X-A: 1\n\n", Err("it has neither `status` nor `content-type` nor `location`"));
        check("\n", Err("it has neither `status` nor `content-type` nor `location`"));
    }

    #[test]
    fn a_header_that_does_not_end_is_told_by_what_is_wrong_with_it_first() {
        let unfinished = |text: &str| {
            let mut reader = Reader::default();
            assert_eq!(reader.feed(text.as_bytes()), Ok(None));
            reader.unfinished().0
        };
        assert_eq!(unfinished("hello\n"), "line 1, \"hello\", has no colon");
        assert_eq!(unfinished("Status: 200\n"), "there is no empty line behind it");
    }

    #[test]
    fn a_header_is_not_gathered_for_ever() {
        let mut reader = Reader::default();
        let piece = [b'x'; 4096];
        let told = (0..17).find_map(|_| reader.feed(&piece).err());
        assert_eq!(told, Some(Malformed("it is longer than 65536 bytes".to_owned())));
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_where_it_is_cut(cuts in proptest::collection::vec(1..9_usize, 0..9)) {
            let text = b"Status: 201\r\nContent-Type: a/b\nX: y\r\n\r\nbody\n\n";
            let whole = Reader::default().feed(text).unwrap().unwrap();
            let mut reader = Reader::default();
            let (mut at, mut found) = (0, None);
            for size in cuts.into_iter().chain([text.len()]) {
                let piece = &text[at..(at + size).min(text.len())];
                if let Some((header, taken)) = reader.feed(piece).unwrap() {
                    found = Some((header, at + taken));
                    break;
                }
                at += piece.len();
            }
            prop_assert_eq!(found, Some(whole));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let _ = Reader::default().feed(&bytes);
        }
    }
}
