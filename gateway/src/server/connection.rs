//! A client's connection, as Pingora sees it. A *connection* is a transport with what Pingora's own stream leaves out: a
//! total deadline for the headers of a request, a write buffer that costs an idle connection nothing, and a guard that
//! tells the drain when the connection is gone.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use lockgate_config::model::RequestLimits;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::drain::ConnectionGuard;
use super::transport::Transport;
use crate::proxy::arrival::{Arrival, Cut};

/// What every HTTP/2 connection without TLS begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the first read: the headers of nearly every request, so that they arrive in one piece.
const FIRST_READ_BYTES: usize = 4096;

/// Bytes that wait for a flush at most. Larger than most headers together with a small body, so that both leave in one
/// packet; what is longer is written at once, together with what waits.
const WRITE_BUFFER_BYTES_MAX: usize = 4096;

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2.
    H2,
}

/// A client's connection.
pub(super) struct Connection {
    stream: Transport,
    /// Read already, to tell the protocol.
    first: Bytes,
    /// Waits for a flush; allocated only while something does.
    waiting: Vec<u8>,
    /// How much of `waiting` is written.
    written: usize,
    header: Header,
    header_timeout: Duration,
    header_bytes_max: usize,
    /// Turns ready when a tunnel is to end; made when the connection is one.
    tunnel_over: Option<Over>,
    established: SystemTime,
    digest: Arc<SocketDigest>,
    ssl: Option<Arc<SslDigest>>,
    arrival: Arc<Arrival>,
    /// The same, as Pingora carries it.
    wrapped: Arc<ProxyDigest>,
    _guard: ConnectionGuard,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).field("header", &self.header).finish_non_exhaustive()
    }
}

/// Waits for the end of tunnels.
type Over = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// How far the headers of the current request have come. Pingora bounds each read, not their sum: a client that sends a
/// byte a minute would hold a connection for days.
#[derive(Debug)]
enum Header {
    /// Nothing of it has arrived.
    Awaited,
    /// Some of it. The timer is made only when the first read did not bring all.
    Reading { end: HeaderEnd, bytes: usize, deadline: Option<Pin<Box<Sleep>>> },
    /// All of it: what follows is body, or is not HTTP/1.
    Over,
}

/// Finds the empty line that ends the headers, over as many reads as it takes.
#[derive(Clone, Copy, Debug, Default)]
struct HeaderEnd {
    /// Whether the last byte, or the last but a carriage return, was a line feed.
    after_line_feed: bool,
}

impl HeaderEnd {
    /// Returns whether the headers end within these bytes. Pingora's parser takes bare line feeds, and so does this.
    fn found_in(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_line_feed => return true,
                b'\n' => self.after_line_feed = true,
                b'\r' => {}
                _ => self.after_line_feed = false,
            }
        }
        false
    }
}

impl Connection {
    /// Takes an accepted socket over, after its handshake. Of the limits, those of headers are kept here.
    ///
    /// # Errors
    /// Pingora could not make an empty header.
    pub(super) fn new(
        stream: Transport,
        limits: &RequestLimits,
        arrival: Arc<Arrival>,
        guard: ConnectionGuard,
    ) -> pingora::Result<Self> {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // The cell is new, so that this cannot fail; were it set, it would hold the same address.
        let _ = digest.peer_addr.set(arrival.peer.map(Into::into));
        let mut connection = Self {
            first: Bytes::new(),
            waiting: Vec::new(),
            written: 0,
            header: Header::Awaited,
            header_timeout: limits.read_timeout,
            header_bytes_max: usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX),
            tunnel_over: None,
            established: SystemTime::now(),
            digest: Arc::new(digest),
            ssl: ssl_digest(&stream).map(Arc::new),
            stream,
            wrapped: arrival.wrap()?,
            arrival,
            _guard: guard,
        };
        // HTTP/2 has its own frames, and no empty line at the end of a header.
        if connection.negotiated() == Some(Protocol::H2) {
            connection.header = Header::Over;
        }
        Ok(connection)
    }

    /// Returns what its requests have in common.
    pub(super) const fn arrival(&self) -> &Arc<Arrival> {
        &self.arrival
    }

    /// Returns what the handshake decided on; none in the clear.
    pub(super) fn negotiated(&self) -> Option<Protocol> {
        let Transport::Tls(stream) = &self.stream else { return None };
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Some(Protocol::H2),
            _ => Some(Protocol::Http1),
        }
    }

    /// Reads until it is clear which protocol the client speaks. `None`: the client closed the connection.
    ///
    /// # Errors
    /// What reading fails with.
    pub(super) async fn sniff(&mut self) -> io::Result<Option<Protocol>> {
        let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
        loop {
            let seen = read.len().min(PREFACE.len());
            if read[..seen] != PREFACE[..seen] {
                break;
            }
            if seen == PREFACE.len() {
                self.first = read.freeze();
                self.header = Header::Over;
                return Ok(Some(Protocol::H2));
            }
            if self.stream.read_buf(&mut read).await? == 0 {
                return Ok(None);
            }
        }
        self.first = read.freeze();
        Ok(Some(Protocol::Http1))
    }

    /// Expects the headers of another request.
    pub(super) fn await_header(&mut self) {
        self.header = Header::Awaited;
    }

    /// Looks for the end of the headers in what was read.
    fn saw(&mut self, seen: &[u8]) -> io::Result<()> {
        if matches!(self.header, Header::Awaited) && !seen.is_empty() {
            self.header = Header::Reading { end: HeaderEnd::default(), bytes: 0, deadline: None };
        }
        let Header::Reading { end, bytes, .. } = &mut self.header else { return Ok(()) };
        if end.found_in(seen) {
            self.header = Header::Over;
            return Ok(());
        }
        *bytes += seen.len();
        if *bytes > self.header_bytes_max { Err(self.cut(Cut::HeaderBytes)) } else { Ok(()) }
    }

    /// Gives up on a request whose header is not whole. What the client is told leaves with the connection.
    fn cut(&mut self, cut: Cut) -> io::Error {
        self.arrival.listening.series.cut(cut);
        self.header = Header::Over;
        let (status, kind) = match cut {
            Cut::HeaderTimeout => ("408 Request Timeout", io::ErrorKind::TimedOut),
            _ => ("431 Request Header Fields Too Large", io::ErrorKind::InvalidData),
        };
        self.waiting.extend_from_slice(
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").as_bytes(),
        );
        io::Error::new(kind, cut.reason())
    }

    fn poll_header_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Header::Reading { deadline, .. } = &mut self.header else { return self.poll_tunnel_over(cx) };
        let timeout = self.header_timeout;
        let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(self.cut(Cut::HeaderTimeout)))
    }

    /// A tunnel reads until it is told to end.
    fn poll_tunnel_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.arrival.is_tunnel() {
            return Poll::Pending;
        }
        let arrival = &self.arrival;
        let over = self.tunnel_over.get_or_insert_with(|| {
            let mut over = arrival.tunnels_over();
            Box::pin(async move { drop(over.wait_for(|&over| over).await) })
        });
        ready!(over.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Writes what waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        // Given back, not kept: ten thousand idle connections would hold 40 MiB.
        self.waiting = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() + bytes <= WRITE_BUFFER_BYTES_MAX
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let n = this.first.len().min(buf.remaining());
            let piece = this.first.split_to(n);
            buf.put_slice(&piece);
            return Poll::Ready(this.saw(&piece));
        }
        let filled = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if matches!(this.header, Header::Over) {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(this.saw(&buf.filled()[filled..]))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_header_deadline(cx),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.has_room(buf.len()) {
            this.waiting.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        while this.written < this.waiting.len() {
            // One system call for what waits and what comes.
            let rest = this.waiting.len() - this.written;
            let slices = [IoSlice::new(&this.waiting[this.written..]), IoSlice::new(buf)];
            let n = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, &slices))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if n > rest {
                this.waiting = Vec::new();
                this.written = 0;
                return Poll::Ready(Ok(n - rest));
            }
            this.written += n;
        }
        this.waiting.clear();
        this.written = 0;
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let total = bufs.iter().map(|buf| buf.len()).sum();
        if this.has_room(total) {
            for buf in bufs {
                this.waiting.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(total));
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Pingora drops connections that it has answered last without a flush.
        self.stream.part(&self.waiting[self.written..]);
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // The client may be gone already: there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait]
impl Peek for Connection {
    /// Answers from what [`Connection::sniff`] read: Pingora asks for the HTTP/2 preface, and would wait for 24 bytes
    /// of a request that may be shorter.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        if self.first.remaining() < buf.len() {
            return Ok(false);
        }
        buf.copy_from_slice(&self.first[..buf.len()]);
        Ok(true)
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.stream.as_raw_fd()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.ssl.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match self.negotiated()? {
            Protocol::Http1 => Some(ALPN::H1),
            Protocol::H2 => Some(ALPN::H2),
        }
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.established, ..TimingDigest::default() })]
    }
}

impl GetProxyDigest for Connection {
    /// There is no such proxy: it is the only place where Pingora carries what is ours.
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.wrapped.clone())
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

fn ssl_digest(stream: &Transport) -> Option<SslDigest> {
    let Transport::Tls(stream) = stream else { return None };
    let suite = stream.get_ref().1.negotiated_cipher_suite();
    let cipher = suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    Some(SslDigest::new(cipher, tls_version(stream.get_ref().1), None, None, Vec::new()))
}

/// Returns `1.2` or `1.3`.
pub(super) fn tls_version(connection: &rustls::ServerConnection) -> &'static str {
    match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        _ => "1.2",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lockgate_config::model::{ListenAddress, Listener};
    use lockgate_config::problem::Source;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::drain::Connections;
    use super::*;
    use crate::control::snapshot::Listening;
    use crate::metrics::Metrics;
    use crate::proxy::arrival::Tunnels;
    use crate::server::transport::Raw;

    const CONFIG: &str =
        "{ listeners: [\"127.0.0.1:1\"], upstreams: { a: [\"127.0.0.1:2\"] }, routes: [{ upstream: a }] }";

    async fn pair(header_timeout: Duration) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let metrics = Metrics::new().unwrap();
        let listening = Arc::new(Listening::new(&Listener::new(ListenAddress::Tcp(peer)), None, &metrics));
        let counters = (metrics.tunnels.clone(), metrics.tunnels_opened.clone(), metrics.tunnels_cut.clone());
        let tunnels = Arc::new(Tunnels::new(counters.0, counters.1, counters.2));
        let arrival = Arc::new(Arrival::new(listening, Some(peer), None, tunnels));
        let guard = Arc::new(Connections::new(&metrics)).opened();
        let source = Source { file: "a.yaml".into(), text: CONFIG.into() };
        let config = lockgate_config::parse(source, Path::new("/"), &|_| None).unwrap();
        let limits = RequestLimits { read_timeout: header_timeout, ..config.server.limits };
        (client, Connection::new(Transport::Plain(Raw::Tcp(stream)), &limits, arrival, guard).unwrap())
    }

    fn end_of(pieces: &[&str]) -> Option<usize> {
        let mut end = HeaderEnd::default();
        pieces.iter().position(|piece| end.found_in(piece.as_bytes()))
    }

    #[test]
    fn the_end_of_the_headers_is_found_across_reads() {
        assert_eq!(end_of(&["GET / HTTP/1.1\r\nhost: a\r\n\r\n"]), Some(0));
        assert_eq!(end_of(&["GET / HTTP/1.1\r\nhost: a\r", "\n", "\r", "\n"]), Some(3));
        assert_eq!(end_of(&["GET / HTTP/1.1\nhost: a\n\n"]), Some(0));
        assert_eq!(end_of(&["GET / HTTP/1.1\r\nhost: a\r\n", "b: c\r\n"]), None);
    }

    #[tokio::test]
    async fn a_request_shorter_than_the_preface_is_http1_at_once() {
        let (mut client, mut connection) = pair(Duration::from_secs(60)).await;
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        assert_eq!(connection.sniff().await.unwrap(), Some(Protocol::Http1));
        let mut read = vec![0; 64];
        let n = connection.read(&mut read).await.unwrap();
        assert_eq!(&read[..n], b"GET / HTTP/1.0\r\n\r\n");
    }

    #[tokio::test]
    async fn the_preface_is_recognised_in_pieces_and_kept() {
        let (mut client, mut connection) = pair(Duration::from_secs(60)).await;
        let write = async {
            client.write_all(&PREFACE[..5]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&PREFACE[5..]).await.unwrap();
            client
        };
        let (_client, protocol) = tokio::join!(write, connection.sniff());
        assert_eq!(protocol.unwrap(), Some(Protocol::H2));
        let mut peeked = [0; 24];
        assert!(connection.try_peek(&mut peeked).await.unwrap());
        let mut read = [0; 24];
        connection.read_exact(&mut read).await.unwrap();
        assert_eq!((&peeked, &read), (PREFACE, PREFACE));
    }

    #[tokio::test]
    async fn headers_that_trickle_end_at_the_deadline() {
        let (mut client, mut connection) = pair(Duration::from_millis(20)).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        let mut read = [0; 64];
        assert!(connection.read(&mut read).await.unwrap() > 0);
        let error = connection.read(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn what_waits_leaves_in_order_with_what_comes() {
        let (mut client, mut connection) = pair(Duration::from_secs(60)).await;
        let large = vec![b'b'; 3 * WRITE_BUFFER_BYTES_MAX];
        let write = async {
            connection.write_all(b"aaaa").await.unwrap();
            connection.write_all(&large).await.unwrap();
            connection.write_all(b"cccc").await.unwrap();
            connection.flush().await.unwrap();
            assert_eq!(connection.waiting.capacity(), 0);
        };
        let mut read = vec![0; large.len() + 8];
        let (_, n) = tokio::join!(write, client.read_exact(&mut read));
        assert_eq!(n.unwrap(), read.len());
        assert!(read.starts_with(b"aaaab") && read.ends_with(b"bcccc"));
    }
}
