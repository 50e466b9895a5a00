//! Standard input: the request's body. A piece is read when the program waits for one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::function::body::RequestBody;

/// What a program reads. However many streams it opens, they are one.
#[derive(Clone)]
pub(in crate::function) struct Input(Arc<Mutex<Reading>>);

struct Reading {
    body: RequestBody,
    piece: Bytes,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// More may come.
    Open,
    Whole,
    /// The client is gone, or sent what is no body. Told once; then it is the end.
    Broken,
}

impl Input {
    pub(super) fn new(body: RequestBody) -> Self {
        Self(Arc::new(Mutex::new(Reading { body, piece: Bytes::new(), end: End::Open })))
    }

    /// Waits until there is something to read, or nothing will come any more.
    fn poll_some(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut reading = self.0.lock();
        while reading.piece.is_empty() && reading.end == End::Open {
            match ready!(Pin::new(&mut reading.body).poll_frame(context)) {
                Some(Ok(frame)) => reading.piece = frame.into_data().unwrap_or_default(),
                Some(Err(_)) => reading.end = End::Broken,
                None => reading.end = End::Whole,
            }
        }
        Poll::Ready(())
    }

    /// Takes what is there.
    fn take(&self, bytes_max: usize) -> StreamResult<Bytes> {
        let mut reading = self.0.lock();
        if !reading.piece.is_empty() {
            let bytes = reading.piece.len().min(bytes_max);
            return Ok(reading.piece.split_to(bytes));
        }
        match reading.end {
            End::Open => Ok(Bytes::new()),
            End::Whole => Err(StreamError::Closed),
            End::Broken => {
                reading.end = End::Whole;
                Err(StreamError::LastOperationFailed(wasmtime::format_err!("the request's body broke off")))
            }
        }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

impl AsyncRead for Input {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_some(context));
        match self.take(buffer.remaining()) {
            Ok(bytes) => buffer.put_slice(bytes.chunk()),
            Err(StreamError::Closed) => {}
            Err(error) => return Poll::Ready(Err(io::Error::other(error.to_string()))),
        }
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        poll_fn(|context| self.poll_some(context)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.take(size)
    }
}
