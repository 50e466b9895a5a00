//! Responses are compressed where route and client agree, and stay what they were.

mod harness;

use std::pin::Pin;
use std::process::Stdio;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use async_compression::tokio::write;
use harness::{Gateway, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const CONFIG: &str = r#"
server: { watch: false }
upstreams: { app: ["${UPSTREAM}"] }
routes:
  - { upstream: app, compress: [zstd, br, gzip] }
  - { match: { path: "/plain/*" }, upstream: app }
"#;

async fn decoded(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match coding {
        "gzip" => GzipDecoder::new(body).read_to_end(&mut plain).await,
        "zstd" => ZstdDecoder::new(body).read_to_end(&mut plain).await,
        "br" => BrotliDecoder::new(body).read_to_end(&mut plain).await,
        _ => panic!("`{coding}` is none of ours"),
    };
    read.expect("it can be decoded");
    plain
}

#[tokio::test]
async fn the_client_gets_the_best_coding_that_it_takes() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (accepted, coding) in
        [("gzip, deflate, br, zstd", "zstd"), ("gzip, br;q=0.5", "br"), ("br;q=0, deflate, gzip", "gzip")]
    {
        let reply = gateway.get_with("/json/9000", "accept-encoding", accepted).await;
        assert_eq!((reply.header("content-encoding"), reply.header("vary")), (coding, "accept-encoding"), "{accepted}");
        assert_eq!(reply.header("etag"), "W/\"j-1\"");
        assert!(reply.body.len() < 1_000, "{} bytes", reply.body.len());
        let plain = decoded(coding, &reply.body).await;
        assert_eq!(plain, format!("\"{}\"", "a".repeat(9_000)).as_bytes());
    }
    for accepted in ["identity", "gzip;q=0", "deflate"] {
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

#[tokio::test]
async fn a_slow_stream_arrives_piece_by_piece() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for coding in ["zstd", "br", "gzip"] {
        let request = gateway.client().get(gateway.url("/ticks/3")).header("accept-encoding", coding);
        up.release(1);
        let mut response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-encoding"], coding);
        let mut stream = Vec::new();
        for index in 0..3 {
            let expected: String = (0..=index).map(|index| format!("tick {index}\n")).collect();
            // The next one waits at the upstream until this one has been read.
            while so_far(coding, &stream).await != expected {
                stream.extend(response.chunk().await.unwrap().unwrap_or_else(|| panic!("{coding} ends at {index}")));
            }
            if index < 2 {
                up.release(1);
            }
        }
        while let Some(rest) = response.chunk().await.unwrap() {
            stream.extend(rest);
        }
        assert_eq!(decoded(coding, &stream).await, b"tick 0\ntick 1\ntick 2\n", "{coding}");
    }
}

/// What can be read of a stream that has not ended.
async fn so_far(coding: &str, stream: &[u8]) -> String {
    let mut plain = Vec::new();
    {
        let mut decoder: Pin<Box<dyn AsyncWrite + Send + '_>> = match coding {
            "gzip" => Box::pin(write::GzipDecoder::new(&mut plain)),
            "zstd" => Box::pin(write::ZstdDecoder::new(&mut plain)),
            _ => Box::pin(write::BrotliDecoder::new(&mut plain)),
        };
        decoder.write_all(stream).await.expect("it can be decoded");
        decoder.flush().await.expect("it can be decoded");
    }
    String::from_utf8(plain).expect("a text")
}

#[tokio::test]
async fn curl_reads_each_coding() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for coding in ["br", "gzip", "zstd"] {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--fail", "--compressed", "--header"]).arg(format!("accept-encoding: {coding}"));
        let ran = curl.args(["--write-out", "%{size_download}"]).arg(gateway.url("/json/9000")).stdin(Stdio::null());
        let ran = ran.output().await.expect("`curl` runs; `make setup-test` as root installs it");
        let text = String::from_utf8(ran.stdout).expect("a text");
        let (body, downloaded) = text.split_at(9_002);
        assert_eq!(body, format!("\"{}\"", "a".repeat(9_000)), "{coding}");
        assert!(downloaded.parse::<u32>().unwrap() < 1_000, "{coding}: {downloaded} bytes");
    }
}
