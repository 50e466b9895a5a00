//! The forms of gRPC-Web, free of any proxy. Messages are framed as gRPC frames them. The *trailers*, which a page could not
//! read, are a frame of their own, the last one of the body. A body in *text* is the same in base64, whose sender may pad
//! where it likes: pieces that are padded each by itself follow one another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;

/// What the first byte of a frame with trailers is.
const TRAILERS: u8 = 0x80;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As gRPC writes it.
    Binary,
    /// In base64.
    Text,
}

impl Form {
    /// Writes a piece of a body. In text it is padded, so that all of it can be read at once.
    pub fn encode(self, piece: Bytes) -> Bytes {
        match self {
            Self::Binary => piece,
            Self::Text => STANDARD.encode(piece).into(),
        }
    }
}

/// Returns the frame that has a response's trailers.
pub fn trailers(trailers: &HeaderMap) -> Bytes {
    let lines = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 3).sum::<usize>();
    let mut frame = Vec::with_capacity(5 + lines);
    frame.push(TRAILERS);
    // HTTP/2 bounds them far below.
    frame.extend(u32::try_from(lines).unwrap_or(u32::MAX).to_be_bytes());
    for (name, value) in trailers {
        frame.extend_from_slice(name.as_str().as_bytes());
        frame.push(b':');
        frame.extend_from_slice(value.as_bytes());
        frame.extend_from_slice(b"\r\n");
    }
    frame.into()
}

/// A text that is no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads a body in text whose pieces may end anywhere.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a group of four.
    held: Vec<u8>,
}

impl Decoder {
    /// Reads a piece, with `end` the last one. Returns all that can be read so far.
    ///
    /// # Errors
    /// It is no base64, or the last group is cut off.
    pub fn piece(&mut self, piece: &[u8], end: bool) -> Result<Bytes, Malformed> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        self.held = text.split_off(text.len() / 4 * 4);
        if end && !self.held.is_empty() {
            return Err(Malformed);
        }
        let mut out = Vec::with_capacity(text.len() / 4 * 3);
        let mut left = text.as_slice();
        while !left.is_empty() {
            // A group with padding ends what was written at once.
            let padding = left.iter().position(|byte| *byte == b'=');
            let (written, others) = left.split_at(padding.map_or(left.len(), |at| at / 4 * 4 + 4));
            STANDARD.decode_vec(written, &mut out).map_err(|_| Malformed)?;
            left = others;
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn trailers_are_lines_in_a_frame() {
        let map = HeaderMap::from_iter([
            (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0")),
            (HeaderName::from_static("x-a"), HeaderValue::from_static("b c")),
        ]);
        assert_eq!(trailers(&map), &b"\x80\0\0\0\x18grpc-status:0\r\nx-a:b c\r\n"[..]);
        assert_eq!(trailers(&HeaderMap::new()), &b"\x80\0\0\0\0"[..]);
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        let whole = |text: &[u8]| Decoder::default().piece(text, true);
        assert_eq!(whole(b"AAAAAAE=YQ==").unwrap(), &b"\0\0\0\0\x01a"[..]);
        assert_eq!(whole(b"").unwrap(), "");
        for text in ["AAA", "A===", "AA=A", "AA==A", "====", "AA A", "AA\r\n", "AA-_", "AAAB=AAA"] {
            assert_eq!(whole(text.as_bytes()), Err(Malformed), "{text}");
        }
        // What is missing may still come.
        assert_eq!(Decoder::default().piece(b"AAA", false).unwrap(), "");
    }

    proptest! {
        #[test]
        fn a_text_is_read_as_it_was_written_however_it_is_cut(
            written in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in proptest::collection::vec(0..20_usize, 0..60),
        ) {
            let text: Vec<u8> = written.iter().flat_map(|piece| Form::Text.encode(piece.clone().into())).collect();
            let (mut decoder, mut read, mut left) = (Decoder::default(), Vec::new(), text.as_slice());
            for cut in cuts {
                let (piece, others) = left.split_at(cut.min(left.len()));
                read.extend(decoder.piece(piece, false).unwrap());
                left = others;
            }
            read.extend(decoder.piece(left, true).unwrap());
            prop_assert_eq!(read, written.concat());
        }

        #[test]
        fn nothing_that_comes_makes_the_reader_panic(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..6),
        ) {
            let mut decoder = Decoder::default();
            for piece in &pieces {
                if decoder.piece(piece, false).is_err() {
                    break;
                }
            }
        }
    }
}
