//! Standard output: the answer. Its header is gathered until it is whole; then the response begins, and what follows
//! streams. No more is kept than the client has yet to take.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi_http::Error;

use super::header::{Malformed, Reader};
use crate::error::{CallError, CallErrorKind};
use crate::function::call::Answer;
use crate::function::state::is_forbidden;
use crate::function::turn::Turn;

/// Bytes of the body that a program may print ahead of the client.
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes that are kept of a program that prints without asking whether it may. A well-behaved one has one stream, and
/// never comes near.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// What a program prints. However many streams it opens, they are one.
#[derive(Clone)]
pub(in crate::function) struct Output(Arc<Shared>);

struct Shared {
    turn: Arc<Turn>,
    printing: Mutex<Printing>,
}

struct Printing {
    stage: Stage,
    pieces: VecDeque<Bytes>,
    kept_bytes: usize,
    /// Those who wait for room.
    waiting: Vec<Waker>,
}

enum Stage {
    Header {
        reader: Reader,
        answer: oneshot::Sender<Answer>,
    },
    Body,
    /// The header was none, or nobody wants the body: what is printed is dropped.
    Ignored,
}

impl Output {
    pub(super) fn new(turn: Arc<Turn>, answer: oneshot::Sender<Answer>) -> Self {
        let stage = Stage::Header { reader: Reader::default(), answer };
        let printing = Printing { stage, pieces: VecDeque::new(), kept_bytes: 0, waiting: Vec::new() };
        Self(Arc::new(Shared { turn, printing: Mutex::new(printing) }))
    }

    /// Takes note that the program has ended well.
    ///
    /// # Errors
    ///
    /// It has printed no header, or half of one.
    pub(super) fn end(&self) -> Result<(), CallError> {
        match &self.0.printing.lock().stage {
            Stage::Header { reader, .. } if reader.is_empty() => {
                Err(self.0.turn.no_answer("it ended without printing an answer".to_owned()))
            }
            Stage::Header { reader, .. } => {
                let Malformed(why) = reader.unfinished();
                Err(CallError::new(CallErrorKind::CgiHeader, format!("its header is malformed: {why}")))
            }
            Stage::Body | Stage::Ignored => Ok(()),
        }
    }

    fn print(&self, bytes: Bytes) -> StreamResult<()> {
        let mut printing = self.0.printing.lock();
        let Stage::Header { reader, .. } = &mut printing.stage else {
            return printing.keep(bytes);
        };
        let (header, taken) = match reader.feed(&bytes) {
            Ok(None) => return Ok(()),
            Ok(Some(read)) => read,
            Err(Malformed(why)) => {
                printing.stage = Stage::Ignored;
                return Err(self.refuse(CallErrorKind::CgiHeader, format!("its header is malformed: {why}")));
            }
        };
        if let Some(name) = header.fields.keys().find(|name| is_forbidden(name)) {
            printing.stage = Stage::Ignored;
            let message = format!("it printed the header `{name}`, which belongs to the gateway");
            return Err(self.refuse(CallErrorKind::ForbiddenHeader, message));
        }
        let header_stage = std::mem::replace(&mut printing.stage, Stage::Body);
        let kept = printing.keep(bytes.slice(taken..));
        // Where nobody takes the response, its body is dropped at once, and wants the lock.
        drop(printing);
        if let Stage::Header { answer, .. } = header_stage {
            let mut response = http::Response::new(Printed(Arc::clone(&self.0)).boxed_unsync());
            *response.status_mut() = header.status;
            *response.headers_mut() = header.fields;
            // An error means that the call is gone, and the guest with it.
            drop(answer.send(Ok(response)));
        }
        kept
    }

    /// Ends the program, and notes why.
    fn refuse(&self, kind: CallErrorKind, message: String) -> StreamError {
        self.0.turn.refuse(kind, message);
        StreamError::trap("what it printed is no answer")
    }

    fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        let mut printing = self.0.printing.lock();
        if printing.room() > 0 {
            return Poll::Ready(());
        }
        if !printing.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            printing.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Printing {
    fn room(&self) -> usize {
        AHEAD_BYTES_MAX.saturating_sub(self.kept_bytes)
    }

    fn keep(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() || !matches!(self.stage, Stage::Body) {
            return Ok(());
        }
        self.kept_bytes += bytes.len();
        if self.kept_bytes > KEPT_BYTES_MAX {
            return Err(StreamError::trap("it prints without asking whether there is room"));
        }
        self.pieces.push_back(bytes);
        Ok(())
    }

    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// The body of a response that is being printed. It ends when the program does: whoever reads it looks after that.
struct Printed(Arc<Shared>);

impl Body for Printed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut printing = self.0.printing.lock();
        match printing.pieces.pop_front() {
            Some(piece) => {
                printing.kept_bytes -= piece.len();
                printing.wake();
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            // Nobody is woken for the next piece: only the program can print it, and runs on the task that waits here.
            None => Poll::Pending,
        }
    }
}

impl Drop for Printed {
    fn drop(&mut self) {
        // The answer to a `HEAD`, say. To close the stream would end most programs with an error.
        let mut printing = self.0.printing.lock();
        printing.stage = Stage::Ignored;
        printing.pieces.clear();
        printing.kept_bytes = 0;
        printing.wake();
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_room(context));
        let bytes = &bytes[..bytes.len().min(AHEAD_BYTES_MAX)];
        let printed = self.print(Bytes::copy_from_slice(bytes));
        Poll::Ready(printed.map(|()| bytes.len()).map_err(|error| io::Error::other(error.to_string())))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_room(context)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.print(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        // What is printed is there to be taken at once.
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.printing.lock().room())
    }
}
