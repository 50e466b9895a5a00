//! Decompresses a request's body before filters look at it: what is compressed tells them nothing, and is where one would
//! hide something from them. The body is whole by then, and what comes out is bounded: a *bomb*, which is small and becomes
//! large, is found when it has become one byte too large.

use std::pin::Pin;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::proxy::fault::Fault;

/// What a client is told that sends something else.
pub const CODINGS: &str = "gzip, zstd, br";

/// Bytes that are decompressed before other requests of the thread have their turn.
const PIECE_BYTES: usize = 64 << 10;

/// The largest window of zstd, as a power of two: 8 MiB, which RFC 8878 asks every decoder for. The format knows windows of
/// terabytes, and a decoder makes room for them before it has seen a byte.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coded {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
}

/// Returns how a request's body is compressed; none where it is not.
///
/// # Errors
/// In a way that is not known here, or in several.
pub fn coding(request: &HeaderMap) -> Result<Option<Coded>, Fault> {
    let codings = request.get_all(CONTENT_ENCODING).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let mut coded = None;
    for coding in codings.map(<[u8]>::trim_ascii) {
        let found = match coding.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => continue,
            b"gzip" | b"x-gzip" => Coded::Gzip,
            b"zstd" => Coded::Zstd,
            b"br" => Coded::Brotli,
            _ => return Err(Fault::UnknownCoding),
        };
        if coded.replace(found).is_some() {
            return Err(Fault::UnknownCoding);
        }
    }
    Ok(coded)
}

/// Decompresses a body, to `max` bytes at most.
///
/// # Errors
/// It is longer, or is not what it says.
pub async fn decompress(coded: Coded, body: &[u8], max: u64) -> Result<Bytes, Fault> {
    let mut decoder: Pin<Box<dyn AsyncRead + Send + '_>> = match coded {
        Coded::Gzip => {
            let mut decoder = GzipDecoder::new(body);
            // Otherwise what follows the first would be forgotten, and the target would not know.
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Coded::Zstd => {
            let mut decoder = ZstdDecoder::with_params(body, &[DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)]);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Coded::Brotli => Box::pin(BrotliDecoder::new(body)),
    };
    let mut whole = Vec::new();
    loop {
        let before = whole.len();
        let piece = (&mut decoder).take(PIECE_BYTES as u64).read_to_end(&mut whole).await;
        piece.map_err(|_| Fault::BadRequest)?;
        if whole.len() as u64 > max {
            return Err(Fault::BodyTooLarge);
        }
        if whole.len() == before {
            return Ok(whole.into());
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
    use http::HeaderValue;

    use super::*;

    async fn compressed(coded: Coded, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coded {
            Coded::Gzip => GzipEncoder::new(body).read_to_end(&mut out).await.unwrap(),
            Coded::Zstd => ZstdEncoder::new(body).read_to_end(&mut out).await.unwrap(),
            Coded::Brotli => BrotliEncoder::new(body).read_to_end(&mut out).await.unwrap(),
        };
        out
    }

    #[tokio::test]
    async fn what_was_compressed_comes_out_as_it_was() {
        for coded in [Coded::Gzip, Coded::Zstd, Coded::Brotli] {
            for length in [0, 1, 200_000] {
                let body: Vec<u8> = (0..length).map(|index: u32| (index * 7 % 251) as u8).collect();
                let small = compressed(coded, &body).await;
                assert_eq!(decompress(coded, &small, u64::from(length)).await.unwrap(), body, "{coded:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_bomb_is_found_before_it_has_grown() {
        for coded in [Coded::Gzip, Coded::Zstd, Coded::Brotli] {
            let bomb = compressed(coded, &vec![0; 16 << 20]).await;
            assert!(bomb.len() < 64 << 10, "{}", bomb.len());
            assert_eq!(decompress(coded, &bomb, 1 << 20).await, Err(Fault::BodyTooLarge), "{coded:?}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_something_else_is_refused() {
        for coded in [Coded::Gzip, Coded::Zstd, Coded::Brotli] {
            let small = compressed(coded, &[7; 1_000]).await;
            assert_eq!(
                decompress(coded, &small[..small.len() - 3], 1 << 20).await,
                Err(Fault::BadRequest),
                "{coded:?}"
            );
            assert_eq!(decompress(coded, b"no such thing", 1 << 20).await, Err(Fault::BadRequest), "{coded:?}");
        }
        let two = [compressed(Coded::Gzip, b"one").await, compressed(Coded::Gzip, b"two").await].concat();
        assert_eq!(decompress(Coded::Gzip, &two, 100).await.unwrap(), "onetwo");
    }

    #[test]
    fn one_known_coding_is_understood() {
        let of =
            |value: &'static str| coding(&HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(value))]));
        assert_eq!(of("GZIP"), Ok(Some(Coded::Gzip)));
        assert_eq!(of("identity, br"), Ok(Some(Coded::Brotli)));
        assert_eq!(of("zstd"), Ok(Some(Coded::Zstd)));
        assert_eq!(coding(&HeaderMap::new()), Ok(None));
        for other in ["deflate", "gzip, gzip", "gzip, br", "gzip;q=1"] {
            assert_eq!(of(other), Err(Fault::UnknownCoding), "{other}");
        }
    }
}
