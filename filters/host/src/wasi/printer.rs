//! A standard stream of Wasmtime's WASI that prints to something of ours, and is never busy.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::sink::Level;
use crate::state::LOG_LINE_BYTES_MAX;

/// Takes what a guest prints, and returns at once.
pub(crate) trait Print: Clone + Send + Sync + Unpin + 'static {
    fn print(&self, level: Level, bytes: &[u8]);
}

/// Standard output (`info`) or error (`warn`).
#[derive(Clone)]
pub(crate) struct Printer<P> {
    level: Level,
    to: P,
}

impl<P: Print> Printer<P> {
    pub(crate) fn new(level: Level, to: P) -> Self {
        Self { level, to }
    }
}

impl<P: Print> IsTerminal for Printer<P> {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl<P: Print> StdoutStream for Printer<P> {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl<P: Print> AsyncWrite for Printer<P> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.to.print(self.level, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl<P: Print> Pollable for Printer<P> {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl<P: Print> OutputStream for Printer<P> {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.to.print(self.level, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(LOG_LINE_BYTES_MAX)
    }
}
