//! Bodies: streamed, read ahead of the target, limited, changed.

mod harness;

use std::time::Duration;

use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder};
use bytes::Bytes;
use harness::{Builder, Gateway, Reply, Seen, Upstream};
use http_body_util::StreamBody;
use lockgate_guests::Guest;
use reqwest::{Body, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xxhash_rust::xxh3::xxh3_64;

const BUFFERING: &str = r#"
upstreams: { app: ["${UPSTREAM}"], other: ["${UPSTREAM}"], h2: { endpoints: ["${UPSTREAM}"], protocol: h2c } }
filters:
  whole: { component: filters/body-buffer.wasm, limits: { body: 2MiB, memory: 32MiB, copy: 8MiB, deadline: 500ms } }
routes:
  - { name: h2, match: { path: /h2/* }, filters: [whole], upstream: h2 }
  - { name: h1, filters: [whole], upstream: app, alternatives: [other] }
"#;

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 251) as u8).collect()
}

/// A body without a length: in chunks on HTTP/1.1, open-ended on HTTP/2.
fn open(bytes: &[u8]) -> Body {
    let pieces: Vec<Result<_, std::io::Error>> =
        bytes.chunks(10_000).map(|piece| Ok(hyper::body::Frame::data(Bytes::copy_from_slice(piece)))).collect();
    Body::wrap(StreamBody::new(futures_util::stream::iter(pieces)))
}

async fn post(gateway: &Gateway, client: &reqwest::Client, path: &str, body: impl Into<Body>) -> Reply {
    gateway.send(client.post(gateway.url(path)).body(body)).await
}

#[tokio::test]
async fn a_whole_body_is_seen_before_the_target_and_forwarded_as_it_was() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(BUFFERING, &up).await;
    let http1 = reqwest::Client::builder().no_proxy().build().unwrap();
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for length in [0, 1, 63 << 10, 64 << 10, 65 << 10, 1 << 20] {
        let bytes = body(length);
        for (client, version) in [(&http1, "HTTP/1.1"), (&http2, "HTTP/2")] {
            for (path, to) in [("/echo", "HTTP/1.1"), ("/h2/echo", "HTTP/2")] {
                for with_length in [true, false] {
                    let what = format!("{length} bytes, {version} to {to}, with length: {with_length}");
                    let sent = if with_length { Body::from(bytes.clone()) } else { open(&bytes) };
                    let reply = tokio::time::timeout(Duration::from_secs(20), post(&gateway, client, path, sent))
                        .await
                        .unwrap_or_else(|_| panic!("{what}: no answer"));
                    assert_eq!(reply.status, StatusCode::OK, "{what}: {}", reply.text());
                    let seen = reply.seen();
                    assert_eq!((seen.body_length, seen.body_hash), (length, xxh3_64(&bytes)), "{what}");
                    assert_eq!(seen.header("x-body-length"), length.to_string(), "{what}");
                }
            }
        }
    }
}

/// What fails the first attempt, and over what the second one goes, is in the path.
const RETRYING: &str = r#"
upstreams:
  refused: { endpoints: ["127.0.0.1:1", "${GOOD}"], retries: { attempts: 1, budget: 100% }, ejection: { failures: 0 } }
  refused-h2:
    endpoints: ["127.0.0.1:1", "${GOOD}"]
    protocol: h2c
    retries: { attempts: 1, budget: 100% }
    ejection: { failures: 0 }
  flaky:
    endpoints: ["${BAD}", "${GOOD}"]
    retries: { attempts: 1, on: [503], non_idempotent: true, budget: 100%, backoff: 1ms }
    ejection: { failures: 0 }
  flaky-h2:
    endpoints: ["${BAD}", "${GOOD}"]
    protocol: h2c
    retries: { attempts: 1, on: [503], non_idempotent: true, budget: 100%, backoff: 1ms }
    ejection: { failures: 0 }
filters:
  whole: { component: filters/body-buffer.wasm, limits: { body: 2MiB, memory: 32MiB, copy: 8MiB, deadline: 500ms } }
routes:
  - { match: { path: /refused/h1 }, filters: [whole], upstream: refused }
  - { match: { path: /refused/h2 }, filters: [whole], upstream: refused-h2 }
  - { match: { path: /flaky/h1 }, filters: [whole], upstream: flaky }
  - { match: { path: /flaky/h2 }, filters: [whole], upstream: flaky-h2 }
"#;

/// A gateway with [`RETRYING`], and its upstreams.
async fn retrying() -> (Upstream, Upstream, Gateway) {
    let (bad, good) = (Upstream::named("bad").await, Upstream::named("good").await);
    bad.set_health(503);
    let builder = Builder::new(RETRYING).guest(Guest::BodyBuffer);
    let builder = builder.variable("BAD", &bad.address.to_string()).variable("GOOD", &good.address.to_string());
    let gateway = builder.start().await;
    (bad, good, gateway)
}

/// The attempts of the requests with these ids, the fewest first.
async fn attempts(gateway: &Gateway, ids: &[String]) -> Vec<u64> {
    let mut attempts = Vec::new();
    for id in ids {
        let line = gateway.logged(|line| line["id"] == id.as_str()).await;
        attempts.push(line["upstream"]["attempts"].as_u64().expect("an upstream was asked"));
    }
    attempts.sort_unstable();
    attempts
}

#[tokio::test]
async fn a_body_that_was_read_ahead_survives_a_retry() {
    let (_bad, _good, gateway) = retrying().await;
    let http1 = reqwest::Client::builder().no_proxy().build().unwrap();
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for length in [63 << 10, 65 << 10, 1 << 20] {
        let bytes = body(length);
        for path in ["/refused/h1", "/refused/h2", "/flaky/h1", "/flaky/h2"] {
            for (client, version) in [(&http1, "HTTP/1.1"), (&http2, "HTTP/2")] {
                for with_length in [true, false] {
                    let what = format!("{length} bytes, {version} to {path}, with length: {with_length}");
                    let mut ids = Vec::new();
                    // The endpoints take turns: one of the two requests meets the bad one first.
                    for _ in 0..2 {
                        let sent = if with_length { Body::from(bytes.clone()) } else { open(&bytes) };
                        let reply = tokio::time::timeout(Duration::from_secs(20), post(&gateway, client, path, sent))
                            .await
                            .unwrap_or_else(|_| panic!("{what}: no answer"));
                        assert_eq!(reply.status, StatusCode::OK, "{what}: {}", reply.text());
                        assert_eq!(reply.header("x-upstream"), "good", "{what}");
                        let seen = reply.seen();
                        assert_eq!((seen.body_length, seen.body_hash), (length, xxh3_64(&bytes)), "{what}");
                        ids.push(seen.header("x-request-id").to_owned());
                    }
                    assert_eq!(attempts(&gateway, &ids).await, [1, 2], "{what}");
                }
            }
        }
    }
}

/// Sends a header that expects to be told, waits for that, then sends the body, and returns what the upstream saw.
async fn expecting(gateway: &Gateway, path: &str, framing: &str, body: &[u8]) -> Seen {
    let mut stream = TcpStream::connect(gateway.http()).await.unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\n{framing}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 Continue"), "{}", String::from_utf8_lossy(&interim));
    stream.write_all(body).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200"), "{framing}: {rest}");
    // In one chunk, since a filter could have changed it.
    let seen = rest.find('{').zip(rest.rfind('}')).map_or("", |(start, end)| &rest[start..=end]);
    serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error} in {seen}"))
}

/// A body in chunks, as it is on the wire.
fn chunked(bytes: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in bytes.chunks(10_000) {
        wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        wire.extend_from_slice(piece);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    wire
}

#[tokio::test]
async fn a_client_that_expects_to_be_told_is_told_to_go_on() {
    let (_bad, _good, gateway) = retrying().await;
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for length in [5, 63 << 10, 65 << 10, 1 << 20] {
        let bytes = body(length);
        for in_chunks in [false, true] {
            let (framing, wire) = if in_chunks {
                ("transfer-encoding: chunked".to_owned(), chunked(&bytes))
            } else {
                (format!("content-length: {length}"), bytes.clone())
            };
            let mut ids = Vec::new();
            for _ in 0..2 {
                let seen = expecting(&gateway, "/flaky/h1", &framing, &wire).await;
                assert_eq!((seen.body_length, seen.body_hash), (length, xxh3_64(&bytes)), "{framing}");
                assert_eq!(seen.header("expect"), "", "it was answered");
                ids.push(seen.header("x-request-id").to_owned());
            }
            assert_eq!(attempts(&gateway, &ids).await, [1, 2], "{length} bytes, {framing}");
        }
        let request = http2.post(gateway.url("/refused/h1")).header("expect", "100-continue").body(bytes.clone());
        let seen = gateway.send(request).await.seen();
        assert_eq!((seen.body_length, seen.body_hash), (length, xxh3_64(&bytes)), "{length} bytes over HTTP/2");
        assert_eq!(seen.header("expect"), "", "it was answered");
    }
}

#[tokio::test]
async fn a_body_beyond_the_filters_limit_is_refused() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(BUFFERING, &up).await;
    let bytes = body((2 << 20) + 1);
    let reply = post(&gateway, gateway.client(), "/", bytes).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(up.requests(), 0);
}

#[tokio::test]
async fn a_filter_refuses_and_routes_on_the_body() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(BUFFERING, &up).await;
    let reply = post(&gateway, gateway.client(), "/", "this is forbidden").await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    let reply = post(&gateway, gateway.client(), "/echo", "upstream:other\nand more").await;
    assert_eq!(reply.status, StatusCode::OK);
    let line = gateway.logged(|line| line["upstream"]["name"] == "other").await;
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn the_gateways_own_limit_holds_with_and_without_a_length() {
    let up = Upstream::start().await;
    let config = r#"
server: { limits: { body: 100KiB } }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    let at_the_limit = body(100 << 10);
    assert_eq!(post(&gateway, gateway.client(), "/echo", open(&at_the_limit)).await.status, StatusCode::OK);
    let beyond = body((100 << 10) + 1);
    assert_eq!(post(&gateway, gateway.client(), "/echo", beyond.clone()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let reply = gateway.client().post(gateway.url("/echo")).body(open(&beyond)).send().await;
    // The client may still be writing when it is refused, and notice only that.
    if let Ok(reply) = reply {
        assert_eq!(reply.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    gateway.logged(|line| line["error"]["kind"] == "body_too_large").await;
}

#[tokio::test]
async fn bodies_are_changed_as_they_pass() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { upper: { component: filters/body-upper.wasm } }
routes: [{ filters: [upper], upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;

    let reply = gateway.get("/text/hello").await;
    assert_eq!(reply.text(), "HELLO");
    assert_eq!((reply.header("content-length"), reply.header("etag")), ("", "W/\"t-1\""));

    let reply = post(&gateway, gateway.client(), "/echo", "abc".repeat(100_000)).await;
    let seen: serde_json::Value = serde_json::from_str(&reply.text().to_lowercase()).unwrap();
    assert_eq!(seen["body_length"], 300_000);
    assert_eq!(seen["body_hash"], xxh3_64("ABC".repeat(100_000).as_bytes()));
}

#[tokio::test]
async fn a_gigabyte_passes_both_ways_with_flat_memory() {
    const GIGABYTE: usize = 1 << 30;
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
"#;
    let gateway = Gateway::start(config, &up).await;
    gateway.get("/").await;
    forget_the_most_resident(&gateway);
    let before = most_resident(&gateway);

    let mut reply = gateway.client().get(gateway.url(&format!("/bytes/{GIGABYTE}"))).send().await.unwrap();
    let mut received = 0;
    while let Some(piece) = reply.chunk().await.unwrap() {
        received += piece.len();
    }
    assert_eq!(received, GIGABYTE);
    let most = most_resident(&gateway);
    assert!(most < before + (64 << 20), "{before} bytes before, {most} at most on the way down");

    forget_the_most_resident(&gateway);
    let piece = Bytes::from(vec![0_u8; 1 << 20]);
    let pieces = futures_util::stream::iter(
        (0..1024).map(move |_| Ok::<_, std::io::Error>(hyper::body::Frame::data(piece.clone()))),
    );
    let reply = post(&gateway, gateway.client(), "/echo", Body::wrap(StreamBody::new(pieces))).await;
    assert_eq!(reply.seen().body_length, GIGABYTE);
    let most = most_resident(&gateway);
    assert!(most < before + (64 << 20), "{before} bytes before, {most} at most on the way up");
}

/// The most memory in bytes that the gateway had resident at any moment since [`forget_the_most_resident`].
fn most_resident(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Sets the kernel's mark back to what is resident now.
fn forget_the_most_resident(gateway: &Gateway) {
    std::fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").unwrap();
}

#[tokio::test]
async fn compressed_bodies_are_decompressed_before_filters_look_at_them() {
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  whole: { component: filters/body-buffer.wasm }
  upper: { component: filters/body-upper.wasm }
routes:
  - { name: whole, match: { path: /whole }, decompress: 100kB, filters: [whole], upstream: app }
  - { name: upper, match: { path: /upper }, decompress: 100kB, filters: [upper], upstream: app }
  - { name: none, match: { path: /none }, decompress: 100kB, upstream: app }
"#;
    let up = Upstream::start().await;
    let gateway = Gateway::start(config, &up).await;
    let send = async |path: &str, coding: &str, body: &[u8]| {
        let request = gateway.client().post(gateway.url(path)).header("content-encoding", coding);
        gateway.send(request.body(body.to_vec())).await
    };
    let text = "hello ".repeat(10_000);
    let (mut gzip, mut brotli, mut bomb) = (Vec::new(), Vec::new(), Vec::new());
    GzipEncoder::new(text.as_bytes()).read_to_end(&mut gzip).await.unwrap();
    BrotliEncoder::new(text.as_bytes()).read_to_end(&mut brotli).await.unwrap();
    GzipEncoder::new(&vec![0; 10 << 20][..]).read_to_end(&mut bomb).await.unwrap();

    let seen = send("/whole", "gzip", &gzip).await.seen();
    assert_eq!((seen.body_length, seen.body_hash), (text.len(), xxh3_64(text.as_bytes())));
    assert_eq!((seen.header("x-body-length"), seen.header("content-encoding")), ("60000", ""));
    assert_eq!(seen.header("content-length"), "60000");
    // A filter that takes a body piece by piece gets it in one.
    let reply = send("/upper", "br", &brotli).await;
    assert!(reply.text().to_ascii_lowercase().contains("\"body_length\":60000"), "{}", reply.text());
    // Without a filter that looks at it, nobody needs it.
    let seen = send("/none", "gzip", &gzip).await.seen();
    assert_eq!((seen.body_length, seen.header("content-encoding")), (gzip.len(), "gzip"));
    let requests = up.requests();

    assert_eq!(send("/whole", "gzip", &bomb).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send("/whole", "gzip", b"nothing of the kind").await.status, StatusCode::BAD_REQUEST);
    let unknown = send("/whole", "compress", &gzip).await;
    assert_eq!(unknown.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(unknown.header("accept-encoding"), "gzip, zstd, br");
    assert_eq!(gateway.logged(|line| line["status"] == 415).await["error"]["kind"], "unknown_coding");
    assert_eq!(up.requests(), requests);
}
