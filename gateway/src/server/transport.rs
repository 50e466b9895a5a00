//! What a connection's bytes go over: the socket itself, by TCP or within this machine, or TLS over it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// What a connection's bytes go over.
#[derive(Debug)]
pub(super) enum Transport {
    /// In the clear.
    Plain(Raw),
    /// Encrypted. Boxed: its state is twenty times that of a socket.
    Tls(Box<TlsStream<Raw>>),
}

/// An accepted socket.
#[derive(Debug)]
pub(super) enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Raw {
    /// Answers small requests at once. A Unix socket does so anyway.
    ///
    /// # Errors
    /// The client has gone.
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Tries something whenever more can be read, until it says something else than that it would block.
    pub(super) async fn when_readable<T>(
        &self,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.async_io(Interest::READABLE, || attempt(stream.as_fd())).await,
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || attempt(stream.as_fd())).await,
        }
    }
}

impl Transport {
    /// Writes `rest` and takes leave, as far as it goes without waiting: for a connection that is dropped.
    pub(super) fn part(&mut self, rest: &[u8]) {
        let last = async {
            self.write_all(rest).await?;
            match self {
                // Closing says the same.
                Self::Plain(_) => Ok(()),
                // Without a goodbye a client cannot tell the end of what it was sent from an attack.
                Self::Tls(stream) => stream.shutdown().await,
            }
        };
        // Whatever does not go at once is lost; the client is gone, or does not read.
        let _ = pin!(tokio::task::unconstrained(last)).poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Plain(raw) => raw.as_raw_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_raw_fd(),
        }
    }
}

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

/// Reads and writes by whichever variant it is.
macro_rules! by_variant {
    ($type:ty, $first:ident, $second:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match &mut *self {
                    Self::$first(stream) => Pin::new(stream).poll_read(cx, buf),
                    Self::$second(stream) => Pin::new(stream).poll_read(cx, buf),
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match &mut *self {
                    Self::$first(stream) => Pin::new(stream).poll_write(cx, buf),
                    Self::$second(stream) => Pin::new(stream).poll_write(cx, buf),
                }
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match &mut *self {
                    Self::$first(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                    Self::$second(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut *self {
                    Self::$first(stream) => Pin::new(stream).poll_flush(cx),
                    Self::$second(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match &mut *self {
                    Self::$first(stream) => Pin::new(stream).poll_shutdown(cx),
                    Self::$second(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

by_variant!(Transport, Plain, Tls);
by_variant!(Raw, Tcp, Unix);
