//! Listeners: what they speak, how long they wait, and that they follow the configuration.

mod harness;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{Gateway, Upstream};
use reqwest::{StatusCode, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const CONFIG: &str = r#"
server: { watch: false, drain: 5s, limits: { read_timeout: 300ms, idle_timeout: 1s } }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

/// A port that nobody listens on, most probably.
async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Replaces the listeners of a running gateway's file.
fn write_listeners(gateway: &Gateway, listeners: &str) {
    gateway.write_config(CONFIG);
    let path = gateway.path().join("lockgate.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("listeners: [\"127.0.0.1:0\"]", &format!("listeners: {listeners}"))).unwrap();
}

async fn status(address: SocketAddr) -> Option<StatusCode> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(format!("http://{address}/")).send().await.ok().map(|reply| reply.status())
}

#[tokio::test]
async fn a_reload_adds_and_removes_listeners() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let more = free_port().await;
    write_listeners(&gateway, &format!(r#"["127.0.0.1:0", "{more}"]"#));
    assert!(gateway.reload().await.status.is_success());
    gateway.says(&more.to_string()).await;
    assert_eq!(status(more).await, Some(StatusCode::OK));
    assert_eq!(status(gateway.http()).await, Some(StatusCode::OK));

    write_listeners(&gateway, r#"["127.0.0.1:0"]"#);
    assert!(gateway.reload().await.status.is_success());
    gateway.says("stopped listening").await;
    // The port is closed when the accept loop has ended, a moment later.
    while TcpStream::connect(more).await.is_ok() {}
    assert_eq!(status(gateway.http()).await, Some(StatusCode::OK));
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_refuses_the_reload_whole() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (more, taken) = (free_port().await, taken.local_addr().unwrap());
    write_listeners(&gateway, &format!(r#"["{more}", "{taken}"]"#));
    let reply = gateway.reload().await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(reply.text().contains(&format!("cannot listen on `{taken}`: another process does")), "{}", reply.text());
    assert_eq!(status(gateway.http()).await, Some(StatusCode::OK));
    assert_eq!(status(more).await, None);
}

#[tokio::test]
async fn http2_by_prior_knowledge_is_understood_where_a_listener_takes_it() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let reply = client.get(gateway.url("/")).send().await.unwrap();
    assert_eq!((reply.status(), reply.version()), (StatusCode::OK, Version::HTTP_2));

    write_listeners(&gateway, "[{ address: \"127.0.0.1:0\", h2c: false }]");
    assert!(gateway.reload().await.status.is_success());
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    assert!(client.get(gateway.url("/")).send().await.is_err());
    assert_eq!(status(gateway.http()).await, Some(StatusCode::OK));
}

#[tokio::test]
async fn a_request_shorter_than_the_http2_preface_is_answered() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1."), "{answer}");
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_headers_is_cut_off() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for begins in [&b""[..], b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n"] {
        let mut client = TcpStream::connect(gateway.http()).await.unwrap();
        let began = Instant::now();
        client.write_all(begins).await.unwrap();
        let (mut reader, mut writer) = client.split();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                // Fails once the gateway has closed; the reader sees that too.
                if !begins.is_empty() && writer.write_all(if begins[0] == b'G' { b"x" } else { b"" }).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut answer = Vec::new();
        tokio::select! {
            () = trickle => unreachable!("it trickles for ever"),
            // A reset is a close as well.
            _ = reader.read_to_end(&mut answer) => {}
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{begins:?} took {:?}", began.elapsed());
    }
    assert_eq!(status(gateway.http()).await, Some(StatusCode::OK));
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_counted_while_it_is_open() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"GET /text/a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 4096];
    assert!(client.read(&mut answer).await.unwrap() > 0);
    gateway.settles("lockgate_connections", &[], 1.0).await;
    while client.read(&mut answer).await.unwrap() > 0 {}
    while gateway.metric("lockgate_connections", &[]).await > 0.0 {}
    gateway.settles("lockgate_connections_total", &[], 1.0).await;
}
