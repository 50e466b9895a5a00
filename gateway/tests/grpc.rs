//! Calls of gRPC: the gateway's own faults are told as its clients expect, and pages call by gRPC-Web.

mod harness;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use harness::{Builder, Gateway, Reply, Upstream};
use lockgate_guests::Guest;
use reqwest::header::HeaderMap;
use reqwest::{Client, StatusCode};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const CONFIG: &str = r#"
upstreams:
  calls: { endpoints: ["${UPSTREAM}"], protocol: h2c }
  away: { endpoints: ["127.0.0.1:1"], protocol: h2c, retries: 0 }
routes:
  - name: web
    upstream: calls
    match: { path: /grpc/* }
    grpc_web: true
    compress: [zstd, br, gzip]
    cors: { origins: "https://app.example", expose: [x-seen-type], headers: "*" }
  - { name: others, upstream: calls, match: { path: /grpc/plain/* } }
  - { name: away, upstream: away, match: { path: /away/* }, grpc_web: true }
  - { name: held, upstream: calls, match: { path: /hold }, grpc_web: true, limits: { body: 100B } }
  - name: limited
    upstream: calls
    match: { path: /limited/* }
    rate_limits: [{ name: few, requests: 1, per: 1h }]
"#;

const TRAILERS: &[u8] = b"\x80\0\0\0\x1fgrpc-status:0\r\nx-trailer:kept\r\n";

fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

fn clients() -> [(&'static str, Client); 2] {
    let http2 = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    [("HTTP/1.1", Client::builder().no_proxy().build().unwrap()), ("HTTP/2", http2)]
}

async fn call(gateway: &Gateway, client: &Client, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> Reply {
    gateway.send(client.post(gateway.url(path)).header("content-type", kind).body(body.into())).await
}

/// Reads base64 whose pieces are padded each by itself, as pages do.
fn from_text(text: &[u8]) -> Vec<u8> {
    text.chunks(4).flat_map(|group| BASE64.decode(group).expect("a group of four")).collect()
}

/// The lines of the only frame of a body, which has trailers.
fn told(body: &[u8]) -> String {
    assert_eq!((body[0], body[1..5].to_vec()), (0x80, u32::try_from(body.len() - 5).unwrap().to_be_bytes().to_vec()));
    String::from_utf8(body[5..].to_vec()).unwrap()
}

#[tokio::test]
async fn a_page_calls_by_grpc_and_gets_the_trailers_in_the_body() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let sent = [message(b"one"), message(&[7; 100_000])].concat();
    let whole = [&sent, TRAILERS].concat();
    for (version, client) in clients() {
        let reply = call(&gateway, &client, "/grpc/Echo", "application/grpc-web+proto", sent.clone()).await;
        assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/grpc-web+proto"));
        assert_eq!((reply.header("x-seen-type"), reply.header("x-seen-te")), ("application/grpc+proto", "trailers"));
        assert_eq!(reply.header("content-length"), "");
        assert!(reply.body == whole, "{version}: {} bytes", reply.body.len());

        let text = [BASE64.encode(&sent[..4]), BASE64.encode(&sent[4..])].concat();
        let reply = call(&gateway, &client, "/grpc/Echo", "application/grpc-web-text", text).await;
        assert_eq!(
            (reply.header("content-type"), reply.header("x-seen-type")),
            ("application/grpc-web-text+proto", "application/grpc")
        );
        assert_eq!(reply.header("x-seen-length"), "none");
        assert!(from_text(&reply.body) == whole, "{version}: {} bytes", reply.body.len());

        // Asked for in one form, answered in the other.
        let request = client.post(gateway.url("/grpc/Echo")).header("content-type", "application/grpc-web+proto");
        let reply = gateway.send(request.header("accept", "application/grpc-web-text").body(message(b"x"))).await;
        assert_eq!(reply.header("content-type"), "application/grpc-web-text+proto");
        assert_eq!(from_text(&reply.body), [message(b"x"), TRAILERS.to_vec()].concat());
    }
    gateway.settles("lockgate_requests_total", &["route=\"web\"", "2xx"], 6.0).await;
}

#[tokio::test]
async fn a_call_that_fails_before_it_answers_says_so_in_its_header() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (version, client) in clients() {
        let request = client.post(gateway.url("/grpc/refused")).header("content-type", "application/grpc-web-text");
        let reply = gateway.send(request.header("origin", "https://app.example")).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (StatusCode::OK, "application/grpc-web-text"),
            "{version}"
        );
        assert_eq!((reply.header("grpc-status"), reply.header("grpc-message")), ("9", "not now"));
        assert!(reply.body.is_empty());
        // What a page of another origin could not read otherwise.
        assert_eq!(reply.header("access-control-expose-headers"), "x-seen-type, grpc-status, grpc-message");
        assert_eq!(reply.header("access-control-allow-origin"), "https://app.example");
    }
}

#[tokio::test]
async fn messages_pass_as_they_come() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut stream = BufReader::new(TcpStream::connect(gateway.http()).await.unwrap());
    let head = "POST /grpc/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc-web-text\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut line = String::new();
    for index in 0..3_u8 {
        // The first message is cut within a group, and the next piece brings the rest of it.
        let text = BASE64.encode(message(&[index; 9]));
        for part in [&text[..5], &text[5..]] {
            stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut read = Vec::new();
        while read.len() < message(&[index; 9]).len() {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            // Header lines are none of these, and the line's end behind a chunk is not either.
            let Ok(length) = usize::from_str_radix(line.trim_end(), 16) else { continue };
            let mut chunk = vec![0; length];
            stream.read_exact(&mut chunk).await.unwrap();
            read.extend(from_text(&chunk));
        }
        assert_eq!(read, message(&[index; 9]));
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    while !rest.ends_with("0\r\n\r\n") {
        assert_ne!(stream.read_line(&mut rest).await.unwrap(), 0, "{rest}");
    }
    assert!(rest.contains(&BASE64.encode(TRAILERS)), "{rest}");
}

#[tokio::test]
async fn filters_see_grpc_and_what_they_hold_back_comes_before_the_trailers() {
    let up = Upstream::start().await;
    let config = CONFIG
        .replace("routes:", "filters:\n  upper: { component: filters/body-upper.wasm }\n  tag: { component: filters/tag.wasm, settings: { value: v1 } }\n  whole: { component: filters/body-buffer.wasm }\nroutes:\n  - { name: whole, upstream: calls, match: { path: /grpc/whole }, grpc_web: true, filters: [whole] }")
        .replace("match: { path: /grpc/* }", "match: { path: /grpc/* }\n    filters: [upper, tag]");
    let builder =
        Builder::new(&config).upstream(&up).guest(Guest::BodyUpper).guest(Guest::Tag).guest(Guest::BodyBuffer);
    let gateway = builder.start().await;
    let (sent, seen) = (BASE64.encode(message(b"hello")), [message(b"HELLO"), TRAILERS.to_vec()].concat());
    for (_, client) in clients() {
        let reply = call(&gateway, &client, "/grpc/Echo", "application/grpc-web-text+proto", sent.clone()).await;
        assert_eq!((from_text(&reply.body), reply.header("x-tag")), (seen.clone(), "v1"));
        // Which the guest answers with the length of what it read behind it.
        let reply = call(&gateway, &client, "/grpc/whole", "application/grpc-web-text+proto", sent.clone()).await;
        let body = from_text(&reply.body);
        assert!(body.starts_with(&message(b"hello")) && body.ends_with(TRAILERS), "{}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn what_no_route_translates_passes_as_it_is() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let (_, client) = &clients()[0];
    let reply = call(&gateway, client, "/grpc/plain/Echo", "application/grpc-web+proto", "as it is").await;
    assert_eq!((reply.header("x-seen-type"), reply.text()), ("application/grpc-web+proto", "as it is".to_owned()));
    // On a route that would, what is none of it; and an answer that is none.
    let reply = call(&gateway, client, "/grpc/Echo", "application/json", "{}").await;
    assert_eq!(
        (reply.header("x-seen-type"), reply.header("content-type")),
        ("application/json", "application/grpc+proto")
    );
}

#[tokio::test]
async fn the_gateways_own_faults_are_told_as_grpc_has_it() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let few = |path: &'static str, code: u16, status: &'static str, text: &'static str| (path, code, status, text);
    gateway.get("/limited/first").await;
    for (path, code, status, text) in [
        few("/nothing", 404, "12", "not found"),
        few("/away/Call", 502, "14", "upstream unavailable"),
        few("/limited/Call", 429, "8", "too many requests"),
    ] {
        for (version, client) in clients() {
            let what = format!("{path}, {version}");
            let reply = call(&gateway, &client, path, "application/grpc", message(b"")).await;
            assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/grpc"), "{what}");
            assert_eq!((reply.header("grpc-status"), reply.header("grpc-message")), (status, text), "{what}");
            assert!(reply.body.is_empty() && !reply.header("x-request-id").is_empty(), "{what}");
            assert_eq!(reply.headers.contains_key("retry-after"), code == 429, "{what}");
            let id = reply.header("x-request-id").to_owned();
            let line = gateway.logged(|line| line["id"] == id).await;
            assert_eq!(line["status"], code, "{what}: {line}");

            let lines = format!("grpc-status:{status}\r\ngrpc-message:{text}\r\n");
            let reply = call(&gateway, &client, path, "application/grpc-web", message(b"")).await;
            assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/grpc-web+proto"));
            assert_eq!((told(&reply.body), reply.header("grpc-status")), (lines.clone(), ""), "{what}");
            let reply = call(&gateway, &client, path, "application/grpc-web-text", BASE64.encode(message(b""))).await;
            assert_eq!(told(&from_text(&reply.body)), lines, "{what}");
        }
    }
    // Who does not speak it is told as ever.
    let reply = gateway.send(gateway.client().post(gateway.url("/nothing")).body("")).await;
    assert_eq!((reply.status, reply.header("grpc-status")), (StatusCode::NOT_FOUND, ""));
    gateway.settles("lockgate_requests_total", &["route=\"away\"", "5xx"], 6.0).await;
}

#[tokio::test]
async fn a_body_that_is_none_ends_the_call() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (version, client) in clients() {
        for (text, status) in [("no base64!", 3), ("AAAAAA", 3), (&*"AAAA".repeat(100), 8)] {
            // Its length is not told ahead, and its upstream waits.
            let pieces = [Ok::<_, std::io::Error>(hyper::body::Frame::data(bytes::Bytes::from(text.to_owned())))];
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
            let request = client.post(gateway.url("/hold")).header("content-type", "application/grpc-web-text");
            let reply = gateway.send(request.body(reqwest::Body::wrap(body))).await;
            let told = told(&from_text(&reply.body));
            assert!(told.starts_with(&format!("grpc-status:{status}\r\n")), "{version}, {text}: {told}");
        }
    }
}

#[tokio::test]
async fn a_page_of_another_origin_may_ask_where_the_route_says_so() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let ask = gateway.client().request(reqwest::Method::OPTIONS, gateway.url("/grpc/Echo"));
    let ask = ask.header("origin", "https://app.example").header("access-control-request-method", "POST");
    let reply = gateway.send(ask.header("access-control-request-headers", "content-type,x-grpc-web")).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    assert_eq!(reply.header("access-control-allow-headers"), "content-type,x-grpc-web");
    let sent = HeaderMap::from_iter([("origin".parse().unwrap(), "https://app.example".parse().unwrap())]);
    let request = gateway.client().post(gateway.url("/grpc/Echo")).headers(sent);
    let reply = gateway.send(request.header("content-type", "application/grpc-web").body(message(b"x"))).await;
    assert_eq!(reply.header("access-control-allow-origin"), "https://app.example");
    assert_eq!(reply.body, [message(b"x"), TRAILERS.to_vec()].concat());
}
