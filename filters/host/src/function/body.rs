//! Bodies. A request's body is pulled: whoever has the client hands over a piece only when the guest waits for one, so that
//! nothing piles up.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use wasmtime_wasi_http::Error;

/// The body of a request to a function.
#[derive(Debug)]
pub struct RequestBody(Source);

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Pulled(Arc<Pipe>),
}

impl RequestBody {
    /// Returns a body that is there already; an empty one is none.
    pub fn whole(bytes: Bytes) -> Self {
        Self(Source::Whole(bytes))
    }

    /// Returns a body that is still to come, and its other end.
    pub fn pulled() -> (Self, Upload) {
        let pipe = Arc::new(Pipe::default());
        (Self(Source::Pulled(Arc::clone(&pipe))), Upload(pipe))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.get_mut().0 {
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Pulled(pipe) => pipe.poll_piece(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Source::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Pulled(_) => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Source::Pulled(pipe) = &self.0 {
            pipe.close();
        }
    }
}

/// The end of a request's body at which pieces are put in.
#[derive(Debug)]
pub struct Upload(Arc<Pipe>);

impl Upload {
    /// Returns when the guest waits for a piece, with true; or when it will never want one again, with false. May be
    /// dropped and asked anew.
    pub async fn wanted(&self) -> bool {
        poll_fn(|context| self.0.poll_wanted(context)).await
    }

    /// Returns when the guest will never want a piece again. May be dropped and asked anew.
    pub async fn unwanted(&self) {
        poll_fn(|context| self.0.poll_unwanted(context)).await;
    }

    /// Puts in the piece that was wanted. An empty one is passed over: it is no end.
    pub fn push(&self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.put(Piece::Data(piece));
        }
    }

    /// As [`Self::push`], and ends the body: the guest will not have to ask for that.
    pub fn push_last(&self, piece: Bytes) {
        self.0.put(if piece.is_empty() { Piece::End } else { Piece::Last(piece) });
    }

    /// Ends the body.
    pub fn end(&self) {
        self.0.put(Piece::End);
    }

    /// Breaks the body off: the client is gone, or sent what is no body.
    pub fn fail(&self) {
        self.0.put(Piece::Broken);
    }
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    /// Data, and the end behind it.
    Last(Bytes),
    End,
    Broken,
}

#[derive(Debug, Default)]
struct Pipe(Mutex<Ends>);

#[derive(Debug, Default)]
struct Ends {
    piece: Option<Piece>,
    wanted: bool,
    /// Nobody reads any more.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Ends {
    /// Returns whether nothing can be put in any more.
    fn is_over(&self) -> bool {
        self.closed || matches!(self.piece, Some(Piece::Last(_) | Piece::End | Piece::Broken))
    }
}

impl Pipe {
    fn poll_piece(&self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut ends = self.0.lock();
        match ends.piece.take() {
            Some(Piece::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Piece::Last(bytes)) => {
                ends.piece = Some(Piece::End);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Piece::End) => {
                // It stays the end, however often it is asked for.
                ends.piece = Some(Piece::End);
                Poll::Ready(None)
            }
            Some(Piece::Broken) => {
                ends.piece = Some(Piece::End);
                Poll::Ready(Some(Err(Error::ConnectionTerminated)))
            }
            None => {
                ends.wanted = true;
                ends.reader = Some(context.waker().clone());
                if let Some(writer) = ends.writer.take() {
                    writer.wake();
                }
                Poll::Pending
            }
        }
    }

    fn poll_unwanted(&self, context: &Context<'_>) -> Poll<()> {
        let mut ends = self.0.lock();
        if ends.is_over() {
            return Poll::Ready(());
        }
        ends.writer = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_wanted(&self, context: &Context<'_>) -> Poll<bool> {
        let mut ends = self.0.lock();
        if ends.is_over() {
            return Poll::Ready(false);
        }
        if ends.wanted {
            return Poll::Ready(true);
        }
        ends.writer = Some(context.waker().clone());
        Poll::Pending
    }

    fn put(&self, piece: Piece) {
        let mut ends = self.0.lock();
        ends.piece = Some(piece);
        ends.wanted = false;
        if let Some(reader) = ends.reader.take() {
            reader.wake();
        }
    }

    fn close(&self) {
        let mut ends = self.0.lock();
        ends.closed = true;
        ends.piece = None;
        if let Some(writer) = ends.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_piece_is_wanted_only_when_the_reader_waits() {
        let (mut body, upload) = RequestBody::pulled();
        let nothing = std::time::Duration::ZERO;
        assert!(tokio::time::timeout(nothing, upload.wanted()).await.is_err());
        let reading = async { body.frame().await.unwrap().unwrap().into_data().unwrap() };
        let writing = async {
            assert!(upload.wanted().await);
            upload.push(Bytes::from_static(b"one"));
        };
        assert_eq!(tokio::join!(reading, writing).0, "one");
        assert!(tokio::time::timeout(nothing, upload.wanted()).await.is_err());
        upload.end();
        assert!(body.frame().await.is_none() && body.frame().await.is_none());
        assert!(!upload.wanted().await);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_wants_nothing() {
        let (body, upload) = RequestBody::pulled();
        drop(body);
        assert!(!upload.wanted().await);
    }

    #[tokio::test]
    async fn a_last_piece_is_followed_by_the_end() {
        let (mut body, upload) = RequestBody::pulled();
        upload.push_last(Bytes::from_static(b"last"));
        assert!(!upload.wanted().await);
        upload.unwanted().await;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error_and_no_end() {
        let (mut body, upload) = RequestBody::pulled();
        upload.fail();
        assert!(body.frame().await.unwrap().is_err());
    }
}
