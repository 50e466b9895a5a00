//! Limits of connections and headers: what is too much, too long or too slow is turned away, counted, and harms nobody
//! else.

mod harness;

use std::time::Duration;

use harness::{Gateway, Upstream};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONFIG: &str = r#"
server: { watch: false, limits: { LIMITS } }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

async fn start(limits: &str, up: &Upstream) -> Gateway {
    Gateway::start(&CONFIG.replace("LIMITS", limits), up).await
}

async fn cut(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("lockgate_connections_cut_total", &[&format!("reason=\"{reason}\"")]).await
}

/// Sends bytes, and reads until the gateway closes the connection.
async fn exchange(gateway: &Gateway, request: &[u8]) -> String {
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(request).await.unwrap();
    rest_of(&mut client).await
}

async fn rest_of(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is a close as well.
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_header_that_is_too_slow_or_too_long_is_answered_and_counted() {
    let up = Upstream::start().await;
    let gateway = start("read_timeout: 300ms, header_bytes: 2KiB, headers: 10", &up).await;
    let slow = exchange(&gateway, b"GET / HTTP/1.1\r\nhost: a\r\n").await;
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    assert_eq!(cut(&gateway, "header_timeout").await, 1.0);

    let endless = [&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'a'; 4096]].concat();
    let long = exchange(&gateway, &endless).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
    assert_eq!(cut(&gateway, "header_bytes").await, 1.0);

    let many = format!("GET /many HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{}\r\n", "x: y\r\n".repeat(12));
    let many = exchange(&gateway, many.as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    assert_eq!(gateway.logged(|line| line["path"] == "/many").await["error"]["kind"], "header_too_large");
    assert_eq!(up.requests(), 0);
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let up = Upstream::start().await;
    let gateway = start("read_timeout: 300ms, body_rate: 1KiB", &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = client.split();
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Fails once the gateway has closed; the reader sees that too.
            if writer.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = trickle => unreachable!("it trickles for ever"),
        _ = reader.read_to_end(&mut answer) => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(gateway.logged(|line| line["path"] == "/slow").await["error"]["kind"], "body_timeout");
}

#[tokio::test]
async fn connections_beyond_the_limits_are_closed_and_the_others_serve_on() {
    let up = Upstream::start().await;
    for (limits, reason) in
        [("connections: 2", "connections"), ("connections_per_address: 2", "connections_per_address")]
    {
        let gateway = start(limits, &up).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(gateway.http()).await.unwrap();
            client.write_all(b"GET /text/a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            assert!(client.read(&mut [0; 4096]).await.unwrap() > 0);
            held.push(client);
        }
        assert_eq!(exchange(&gateway, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await, "");
        assert_eq!(cut(&gateway, reason).await, 1.0);
        let first = &mut held[0];
        first.write_all(b"GET /text/b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(rest_of(first).await.ends_with('b'));
        // Its place is free again, a moment later.
        while gateway.metric("lockgate_connections", &[]).await > 1.0 {}
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_connection_is_closed_in_good_order_when_it_has_had_its_requests() {
    let up = Upstream::start().await;
    let gateway = start("requests_per_connection: 3", &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    for number in 1..=3 {
        client.write_all(b"GET /text/a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        if number < 3 {
            assert!(client.read(&mut [0; 4096]).await.unwrap() > 0);
        }
    }
    let last = rest_of(&mut client).await;
    assert!(last.to_ascii_lowercase().contains("connection: close") && last.ends_with('a'), "{last}");

    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for _ in 0..30 {
        assert_eq!(http2.get(gateway.url("/text/a")).send().await.expect("an answer").status(), StatusCode::OK);
    }
    // The client may have sent a few more before it heard of it.
    assert!(gateway.metric("lockgate_connections_total", &[]).await > 3.0);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_their_connection() {
    let up = Upstream::start().await;
    let gateway = start("http2_streams: 100", &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(4, 0, 0, &[]));
    for number in 0..5_000 {
        let stream = 2 * number + 1;
        // GET http://a/hold
        let header = [&[0x82, 0x86, 0x41, 1, b'a', 0x44, 5][..], b"/hold"].concat();
        flood.extend(frame(1, 5, stream, &header));
        flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let (mut reader, mut writer) = client.split();
    // Fails as soon as the gateway has had enough.
    let (_, answer) = tokio::join!(writer.write_all(&flood), async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        answer
    });
    // GOAWAY, with ENHANCE_YOUR_CALM.
    let goodbye = answer.windows(17).any(|bytes| bytes[3] == 7 && bytes[13..17] == [0, 0, 0, 11]);
    assert!(goodbye, "{} bytes, and no such frame", answer.len());
    assert!(up.requests() < 1_000, "{} of 5,000 requests went on", up.requests());
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}
