//! Reads a part of a file, piece by piece, on the blocking pool. While the client is sent one piece the next one is read,
//! and no more: a slow client holds two pieces, whatever the length of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes read at once. Fewer would be more trips to the pool, more would be more memory for each slow client.
const PIECE: u64 = 64 << 10;

/// A part of a file that is being read.
#[derive(Debug)]
pub struct Pieces {
    file: Arc<File>,
    /// What has not been asked for.
    left: Range<u64>,
    /// What has been read already.
    first: Option<Bytes>,
    /// What is being read.
    next: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Pieces {
    /// Begins to read; with `read`, the first piece at once, on this thread. Blocks.
    pub(super) fn open(file: File, range: Range<u64>, read: bool) -> io::Result<Self> {
        let mut pieces = Self { file: Arc::new(file), left: range, first: None, next: None };
        if read && let Some(first) = pieces.take() {
            pieces.first = Some(piece(&pieces.file, first)?);
        }
        Ok(pieces)
    }

    /// Returns the next piece; none after the last.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let ready = match self.first.take() {
            Some(first) => first,
            None => match self.next.take().or_else(|| self.start()) {
                Some(reading) => reading.await.map_err(io::Error::other)??,
                None => return Ok(None),
            },
        };
        self.next = self.start();
        Ok(Some(ready))
    }

    /// Returns whether [`Self::next`] has returned the last piece.
    pub const fn is_done(&self) -> bool {
        self.first.is_none() && self.next.is_none() && self.left.start >= self.left.end
    }

    fn start(&mut self) -> Option<JoinHandle<io::Result<Bytes>>> {
        let range = self.take()?;
        let file = Arc::clone(&self.file);
        Some(spawn_blocking(move || piece(&file, range)))
    }

    fn take(&mut self) -> Option<Range<u64>> {
        let range = self.left.start..self.left.end.min(self.left.start.saturating_add(PIECE));
        self.left.start = range.end;
        Some(range).filter(|range| !range.is_empty())
    }
}

fn piece(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_make_up_the_part_and_a_file_that_shrinks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..200_000_u32).map(|index| (index * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for (range, read) in
            [(0..200_000, true), (0..200_000, false), (65_536..131_072, true), (7..7, true), (9..10, false)]
        {
            let mut pieces = Pieces::open(File::open(&path).unwrap(), range.clone(), read).unwrap();
            let mut got = Vec::new();
            while let Some(piece) = pieces.next().await.unwrap() {
                got.extend_from_slice(&piece);
            }
            assert!(pieces.is_done());
            assert_eq!(got, bytes[range.start as usize..range.end as usize]);
        }
        let mut pieces = Pieces::open(File::open(&path).unwrap(), 0..200_000, true).unwrap();
        std::fs::write(&path, &bytes[..100_000]).unwrap();
        let error = loop {
            match pieces.next().await {
                Ok(piece) => assert!(piece.is_some(), "the file ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
