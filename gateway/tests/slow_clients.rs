//! Many clients that do nothing, and some that are slow on purpose, beside others who want to be served.

mod harness;

use std::time::Duration;

use futures_util::future::join_all;
use harness::{Gateway, Load, Upstream};
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Connections that have had an answer, and are kept.
const IDLE: usize = 1_000;

/// Connections whose header never ends.
const SLOW: usize = 100;

const CONFIG: &str = r#"
server: { watch: false, limits: { read_timeout: 1s, connections_per_address: 5000 } }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

/// A request on a connection that is kept.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET /text/kept HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nkept") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

/// Sends a header a byte at a time; returns what it is told.
async fn dawdle(gateway: &Gateway) -> String {
    let mut stream = TcpStream::connect(gateway.http()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        writer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
        // Fails once the gateway has closed; the reader sees that too.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = drip => unreachable!("it never ends"),
        _ = reader.read_to_end(&mut answer) => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn idle_and_slow_clients_keep_nobody_from_being_served() {
    // The gateway is started with the same limit.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut idle = Vec::new();
    while idle.len() < IDLE {
        let some = (0..50).map(async |_| {
            let mut stream = TcpStream::connect(gateway.http()).await.unwrap();
            ask(&mut stream).await;
            stream
        });
        idle.extend(join_all(some).await);
    }
    let mut load = Load::new();
    load.plain("others", 8, Method::GET, &gateway.url("/text/a"), true);

    let (told, ()) = tokio::join!(join_all((0..SLOW).map(|_| dawdle(&gateway))), load.goes_on("others", 500));

    for answer in told {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    let cut = gateway.metric("lockgate_connections_cut_total", &["reason=\"header_timeout\""]).await;
    assert_eq!(cut, SLOW as f64);
    assert!(gateway.metric("lockgate_connections", &[]).await >= IDLE as f64);
    // Those who were idle are served as well, over the connections that they have.
    join_all(idle.iter_mut().map(ask)).await;
    load.ends_without_a_failure().await;
}
