//! Responses are compressed where route and client agree, and stay what they were.

mod harness;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use harness::{Gateway, Upstream};
use tokio::io::AsyncReadExt as _;

const CONFIG: &str = r#"
server: { watch: false }
upstreams: { app: ["${UPSTREAM}"] }
routes:
  - { upstream: app, compress: [zstd, gzip] }
  - { match: { path: "/plain/*" }, upstream: app }
"#;

async fn decoded(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match coding {
        "gzip" => GzipDecoder::new(body).read_to_end(&mut plain).await,
        "zstd" => ZstdDecoder::new(body).read_to_end(&mut plain).await,
        _ => panic!("`{coding}` is none of ours"),
    };
    read.expect("it can be decoded");
    plain
}

#[tokio::test]
async fn the_client_gets_the_best_coding_that_it_takes() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (accepted, coding) in [("gzip, deflate, br, zstd", "zstd"), ("gzip, br;q=0.5", "gzip")] {
        let reply = gateway.get_with("/json/9000", "accept-encoding", accepted).await;
        assert_eq!((reply.header("content-encoding"), reply.header("vary")), (coding, "accept-encoding"), "{accepted}");
        assert_eq!(reply.header("etag"), "W/\"j-1\"");
        assert!(reply.body.len() < 1_000, "{} bytes", reply.body.len());
        let plain = decoded(coding, &reply.body).await;
        assert_eq!(plain, format!("\"{}\"", "a".repeat(9_000)).as_bytes());
    }
    for accepted in ["identity", "gzip;q=0"] {
        let reply = gateway.get_with("/json/9000", "accept-encoding", accepted).await;
        assert_eq!((reply.header("content-encoding"), reply.header("vary")), ("", "accept-encoding"), "{accepted}");
        assert_eq!((reply.header("etag"), reply.body.len()), ("\"j-1\"", 9_002));
    }
}

#[tokio::test]
async fn what_the_route_or_the_response_rules_out_passes_as_it_is() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let reply = gateway.get_with("/plain/json", "accept-encoding", "gzip").await;
    assert_eq!((reply.header("content-encoding"), reply.header("vary")), ("", ""));
    // Too short to grow shorter.
    let reply = gateway.get_with("/json/5", "accept-encoding", "gzip").await;
    assert_eq!((reply.header("content-encoding"), reply.text()), ("", "\"aaaaa\"".to_owned()));
    let request = gateway.client().head(gateway.url("/json/9000")).header("accept-encoding", "gzip");
    let reply = gateway.send(request).await;
    assert_eq!((reply.header("content-encoding"), reply.header("content-length")), ("", "9002"));
}
