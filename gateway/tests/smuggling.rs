//! Requests that two servers could read in two ways. Each is refused, or goes on in one form only: the one that was
//! routed. Sent as raw bytes, and recorded as raw bytes.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use harness::{Builder, Gateway};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const CONFIG: &str = r#"
server: { watch: false, limits: { read_timeout: 1s } }
upstreams: { app: ["${RECORDER}"] }
routes:
  - { name: any, upstream: app }
  - { name: admin, upstream: app, match: { path: "/admin/*" } }
"#;

/// An upstream that keeps every byte, and answers each connection once.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<u8>>>);

impl Recorder {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorded = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let recorded = Arc::clone(&recorded);
                tokio::spawn(async move {
                    let (mut piece, mut answered) = ([0; 4096], false);
                    while let Ok(count @ 1..) = stream.read(&mut piece).await {
                        let whole = {
                            let mut recorded = recorded.lock();
                            recorded.extend_from_slice(&piece[..count]);
                            is_whole(&recorded)
                        };
                        if whole && !answered {
                            answered = true;
                            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
                            let _ = stream.write_all(answer).await;
                        }
                    }
                });
            }
        });
        address
    }

    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.0.lock())).into_owned()
    }
}

/// Whether a request is there to its end, as its own header has it.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
    match length {
        Some(length) => body.len() >= length,
        None => !head.contains("transfer-encoding") || body.ends_with("0\r\n\r\n"),
    }
}

/// What must become of a request.
enum Expected {
    /// A status of the gateway's own, or a closed connection, and not a byte goes on.
    Refused,
    /// The same, when its header has gone on already: what the upstream saw has no end, and cannot be answered.
    BrokenOff,
    /// One request goes on, with this first line, this host and this body, and neither more nor other framing.
    Forwarded { line: &'static str, host: &'static str, body: &'static str },
}

use Expected::{BrokenOff, Forwarded, Refused};

const fn plain(line: &'static str) -> Expected {
    Forwarded { line, host: "a", body: "" }
}

async fn send(gateway: &Gateway, request: &[u8]) -> String {
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // What is kept alive, or waits for more, is left alone after a while.
    let read = async { while let Ok(1..) = client.read_buf(&mut answer).await {} };
    let _ = tokio::time::timeout(Duration::from_millis(1_500), read).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Holds what became of a request against what must.
fn check(name: &str, request: &[u8], expected: &Expected, answer: &str, seen: &str) {
    let context = format!("{name}\nsent: {}\nanswer: {answer}\nseen: {seen}", request.escape_ascii());
    match expected {
        Refused => {
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{context}");
            assert_eq!(seen, "", "{context}");
        }
        BrokenOff => {
            assert!(answer.starts_with("HTTP/1.1 4"), "{context}");
            assert!(!is_whole(seen.as_bytes()), "{context}");
        }
        Forwarded { line, host, body } => {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{context}");
            let (head, rest) = seen.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{context}"));
            let mut lines = head.split("\r\n");
            assert_eq!(lines.next(), Some(*line), "{context}");
            let fields: Vec<(String, &str)> = lines
                .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{context}")))
                .map(|(name, value)| (name.to_ascii_lowercase(), value))
                .collect();
            let values = |name: &str| {
                fields.iter().filter(|(field, _)| field == name).map(|(_, value)| *value).collect::<Vec<_>>()
            };
            assert_eq!(values("host"), [*host], "{context}");
            let (length, coding) = (values("content-length"), values("transfer-encoding"));
            assert!(length.len() + coding.len() <= 1, "{context}");
            match (length.first(), coding.first()) {
                (Some(length), _) => assert_eq!((length.parse(), rest), (Ok(body.len()), *body), "{context}"),
                (_, Some(coding)) => {
                    let chunked = format!("{:X}\r\n{body}\r\n0\r\n\r\n", body.len());
                    let chunked = if body.is_empty() { "0\r\n\r\n".to_owned() } else { chunked };
                    assert_eq!((coding.to_ascii_lowercase(), rest), ("chunked".into(), &*chunked), "{context}");
                }
                _ => assert_eq!((rest, *body), ("", ""), "{context}"),
            }
        }
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_or_goes_on_in_one() {
    let recorder = Recorder::default();
    let upstream = recorder.start().await;
    let gateway = Builder::new(CONFIG).variable("RECORDER", &upstream.to_string()).start().await;
    let posted = |body| Forwarded { line: "POST / HTTP/1.1", host: "a", body };
    let cases: &[(&str, &[u8], Expected)] = &[
        ("a plain request", b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /x HTTP/1.1")),
        ("a body with a length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", posted("hello")),
        ("a body in chunks", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", posted("hello")),
        // Framing that contradicts itself.
        ("length and chunks", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", posted("")),
        ("chunks and length", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nG", posted("")),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Refused),
        ("two lengths in one line", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!", Refused),
        ("a length with a sign", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", Refused),
        ("a length that is no number", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", Refused),
        ("a length beyond numbers", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nhello", Refused),
        ("a coding that is none", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused),
        ("chunked not last", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", Refused),
        ("chunks in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
        ("a name that ends in a space", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", Refused),
        ("a coding behind a tab", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", Refused),
        ("a chunk with a length that is none", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\nhello\r\n0\r\n\r\n", BrokenOff),
        // Lines that end or begin where they should not.
        ("a folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", Refused),
        ("a folded first line", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refused),
        ("a carriage return in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: w\r\n\r\n", Refused),
        ("a zero in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", Refused),
        ("bare line feeds", b"GET /x HTTP/1.1\nHost: a\n\n", plain("GET /x HTTP/1.1")),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /a%20b HTTP/1.1")),
        ("a line without a colon", b"GET / HTTP/1.1\r\nHost: a\r\nGET /admin HTTP/1.1\r\n\r\n", Refused),
        // Who is asked.
        ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Refused),
        ("no host", b"GET / HTTP/1.1\r\n\r\n", Refused),
        ("an empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Refused),
        ("a host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused),
        ("a host with a user", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Refused),
        ("hosts in one line", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Refused),
        ("the absolute form", b"GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /x?y HTTP/1.1")),
        ("the absolute form of another host", b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        ("a scheme that is none of ours", b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        ("the authority form", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Refused),
        // What is asked for.
        ("dots", b"GET /x/../admin/./y HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /admin/y HTTP/1.1")),
        ("encoded dots", b"GET /x/%2e%2e/admin HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /admin HTTP/1.1")),
        ("dots above the root", b"GET /../../x HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        ("an encoded slash", b"GET /x%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /x%2Fadmin HTTP/1.1")),
        ("a backslash", b"GET /x\\..\\admin HTTP/1.1\r\nHost: a\r\n\r\n", plain("GET /x%5C..%5Cadmin HTTP/1.1")),
        ("an encoded zero", b"GET /x%00 HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        ("an escape that is none", b"GET /x%zz HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        ("a target that is no path", b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", Refused),
        // What belongs to a connection stays on it.
        ("a header that is named for removal", b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for\r\n\r\n", Refused),
        ("the host named for removal", b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", Refused),
        ("an upgrade to HTTP/2", b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", plain("GET /x HTTP/1.1")),
    ];
    let mut wrong = Vec::new();
    for (name, request, expected) in cases {
        let answer = send(&gateway, request).await;
        if matches!(expected, BrokenOff) {
            // The client may have its answer before the recorder's task has come to what went on.
            let arrived = async {
                while recorder.0.lock().is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(1_500), arrived).await;
        }
        let seen = recorder.take();
        // The whole table is told, not the first line that is wrong.
        if std::panic::catch_unwind(|| check(name, request, expected, &answer, &seen)).is_err() {
            wrong.push(*name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn what_follows_a_body_is_never_a_request_of_its_own_to_the_upstream() {
    let recorder = Recorder::default();
    let upstream = recorder.start().await;
    let gateway = Builder::new(CONFIG).variable("RECORDER", &upstream.to_string()).start().await;
    let hidden = b"GET /admin/hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for request in [
        &b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"[..],
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        send(&gateway, &[request, &hidden[..]].concat()).await;
        let seen = recorder.take();
        // Either not at all, or as a request that was routed: with our headers.
        if let Some((_, rest)) = seen.split_once("GET /admin/hidden") {
            assert!(rest.contains("x-request-id"), "{seen}");
        }
    }
}
