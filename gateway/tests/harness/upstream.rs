//! A real HTTP server on loopback, HTTP/1.1 and HTTP/2 by prior knowledge. Paths choose what it does; what it does not
//! know, it echoes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::reply::Seen;

/// A server that tells what it saw.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    requests: AtomicUsize,
    /// Of these, those to `/healthz`.
    checks: AtomicUsize,
    connections: AtomicUsize,
    /// Requests to `/hold` wait for a permit, and so do the bodies of `/stall`.
    gate: Semaphore,
    /// Requests that wait there.
    held: tokio::sync::watch::Sender<usize>,
    /// The status of `/healthz`, of `/sick`, and of `/flaky`.
    health: AtomicU16,
}

/// What a server shows over TLS, and whom it lets in.
pub struct Identity {
    /// The server's own certificate and key.
    pub own: rcgen::CertifiedKey<rcgen::KeyPair>,
    /// The authority of clients; none to let everybody in.
    pub clients: Option<rcgen::CertifiedKey<rcgen::KeyPair>>,
}

impl Identity {
    /// An identity for a name, signed by itself.
    pub fn of(name: &str) -> Self {
        let own = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        Self { own, clients: None }
    }

    fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(clients.cert.der().clone()).expect("an authority");
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.expect("a verifier"))
            }
        };
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.own.signing_key.serialize_der());
        let mut config =
            builder.with_single_cert(vec![self.own.cert.der().clone()], key.into()).expect("a key that fits");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

type Body = BoxBody<Bytes, Infallible>;

impl Upstream {
    pub async fn start() -> Self {
        Self::named("upstream").await
    }

    /// As [`Self::start`]; the name is in the response header `x-upstream`.
    pub async fn named(name: &str) -> Self {
        Self::serve(name, TcpListener::bind("127.0.0.1:0").await.expect("a free port"), None)
    }

    /// As [`Self::named`], at an address where another one was.
    pub async fn at(address: SocketAddr, name: &str) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(address).expect("the address is free again");
        Self::serve(name, socket.listen(64).expect("a listener"), None)
    }

    /// As [`Self::named`], over TLS, with HTTP/1.1 and HTTP/2.
    pub async fn tls(name: &str, identity: &Identity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::serve(name, listener, Some(identity.acceptor()))
    }

    fn serve(name: &str, listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            requests: AtomicUsize::new(0),
            checks: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            held: tokio::sync::watch::channel(0).0,
            health: AtomicU16::new(200),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            // Dropped with this task: whoever is connected then finds the server gone.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let (shared, tls) = (Arc::clone(&serving), tls.clone());
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is not this server's concern.
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, shared, accepting }
    }

    /// Requests that it was sent.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests that it was sent to other paths than that of health checks.
    pub fn asked(&self) -> usize {
        self.requests() - self.shared.checks.load(Ordering::Relaxed)
    }

    /// Connections that it accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Sets what `/healthz` and `/sick` answer from now on, and `/flaky` once it has read the request's body.
    pub fn set_health(&self, status: u16) {
        self.shared.health.store(status, Ordering::Relaxed);
    }

    /// Waits until so many requests wait at `/hold`.
    pub async fn holding(&self, count: usize) {
        let mut held = self.shared.held.subscribe();
        held.wait_for(|held| *held >= count).await.expect("the upstream lives");
    }

    /// Lets so many requests at `/hold`, or bodies of `/stall`, go on.
    pub fn release(&self, count: usize) {
        self.shared.gate.add_permits(count);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let mut segments = path.split('/').skip(1);
    let response = Response::builder().header("x-upstream", &shared.name);
    let (command, argument) = (segments.next().unwrap_or_default(), segments.next());
    let response = match (command, argument.and_then(|argument| argument.parse::<u64>().ok())) {
        ("status", Some(status)) => {
            response.status(u16::try_from(status).unwrap_or(200)).body(full(format!("status {status}\n")))
        }
        ("bytes", Some(count)) => response.header("content-type", "application/octet-stream").body(zeros(count)),
        ("json", Some(count)) => {
            let text = "a".repeat(usize::try_from(count).unwrap_or_default());
            let length = (text.len() + 2).to_string();
            let response = response.header("content-type", "application/json").header("etag", "\"j-1\"");
            // A HEAD is told the length of what a GET gets.
            let response = if request.method() == hyper::Method::HEAD {
                response.header("content-length", length)
            } else {
                response
            };
            response.body(full(format!("\"{text}\"")))
        }
        ("trailers", _) => {
            let trailers = hyper::HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("grpc-status"),
                hyper::header::HeaderValue::from_static("7"),
            )]);
            let frames = [Frame::data(Bytes::from_static(b"message")), Frame::trailers(trailers)].map(Ok);
            response
                .header("content-type", "application/grpc")
                .body(BoxBody::new(StreamBody::new(futures_util::stream::iter(frames))))
        }
        ("ticks", Some(count)) => response.header("content-type", "text/plain").body(ticks(shared, count)),
        ("grpc", _) if argument == Some("refused") => response
            .header("content-type", "application/grpc")
            .header("grpc-status", "9")
            .header("grpc-message", "not now")
            .body(full(String::new())),
        ("grpc", _) => call(response, request),
        ("healthz" | "sick", _) => {
            shared.checks.fetch_add(usize::from(command == "healthz"), Ordering::Relaxed);
            response.status(shared.health.load(Ordering::Relaxed)).body(full("so it is\n".to_owned()))
        }
        ("text", _) => response.header("etag", "\"t-1\"").body(full(argument.unwrap_or_default().to_owned())),
        ("hop", _) => response
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("keep-alive", "timeout=9")
            .body(full(String::new())),
        ("hold", _) => {
            shared.held.send_modify(|held| *held += 1);
            if let Ok(permit) = shared.gate.acquire().await {
                permit.forget();
            }
            shared.held.send_modify(|held| *held -= 1);
            response.body(full("held\n".to_owned()))
        }
        ("stall", Some(count)) => {
            let gate = Arc::clone(&shared);
            let first = futures_util::stream::once(async move {
                if let Ok(permit) = gate.gate.acquire().await {
                    permit.forget();
                }
                Ok(Frame::data(Bytes::new()))
            });
            let pieces = first.chain(futures_util::stream::iter(pieces_of_zeros(count)));
            response.body(BoxBody::new(StreamBody::new(pieces)))
        }
        _ => {
            let seen = see(request).await;
            let status = if command == "flaky" { shared.health.load(Ordering::Relaxed) } else { 200 };
            response
                .status(status)
                .header("content-type", "application/json")
                .body(full(serde_json::to_string(&seen).unwrap_or_default()))
        }
    };
    Ok(response.expect("a response of ours is well-formed"))
}

async fn see(request: Request<Incoming>) -> Seen {
    let (parts, mut body) = request.into_parts();
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.to_string())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    let (mut hash, mut body_length) = (xxhash_rust::xxh3::Xxh3::new(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            hash.update(data);
            body_length += data.len();
        }
    }
    Seen {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers,
        body_length,
        body_hash: hash.digest(),
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed()
}

/// `tick 0`, `tick 1` and so on, each of which waits for a permit.
fn ticks(shared: Arc<Shared>, count: u64) -> Body {
    let ticks = futures_util::stream::unfold((shared, 0), move |(shared, index)| async move {
        if index == count {
            return None;
        }
        shared.gate.acquire().await.ok()?.forget();
        Some((Ok(Frame::data(Bytes::from(format!("tick {index}\n")))), (shared, index + 1)))
    });
    BodyExt::boxed(StreamBody::new(ticks))
}

/// A call of gRPC that is answered with what it sends, as it comes; the trailers have the status 0. What the server saw is
/// in `x-seen-type` and `x-seen-te`.
fn call(response: hyper::http::response::Builder, request: Request<Incoming>) -> hyper::http::Result<Response<Body>> {
    let seen = |name| request.headers().get(name).cloned().unwrap_or(hyper::header::HeaderValue::from_static("none"));
    let response = response
        .header("content-type", "application/grpc+proto")
        .header("x-seen-type", seen("content-type"))
        .header("x-seen-te", seen("te"))
        .header("x-seen-length", seen("content-length"));
    let trailers = hyper::HeaderMap::from_iter(
        [("grpc-status", "0"), ("x-trailer", "kept")]
            .map(|(name, value)| (name.parse().expect("a name"), hyper::header::HeaderValue::from_static(value))),
    );
    let frames = BodyStream::new(request.into_body()).filter_map(|frame| std::future::ready(frame.ok().map(Ok)));
    let frames = frames.chain(futures_util::stream::iter([Ok(Frame::trailers(trailers))]));
    response.body(BodyExt::boxed(StreamBody::new(frames)))
}

/// So many bytes, made as they are asked for.
fn zeros(count: u64) -> Body {
    BoxBody::new(StreamBody::new(futures_util::stream::iter(pieces_of_zeros(count))))
}

fn pieces_of_zeros(count: u64) -> impl Iterator<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync + 'static {
    static PIECE: [u8; 64 << 10] = [0; 64 << 10];
    let pieces = count / PIECE.len() as u64;
    let rest = usize::try_from(count % PIECE.len() as u64).unwrap_or_default();
    (0..pieces)
        .map(|_| &PIECE[..])
        .chain((rest > 0).then(|| &PIECE[..rest]))
        .map(|piece| Ok(Frame::data(Bytes::from_static(piece))))
}
