//! The binary is replaced again and again under load, in the clear, over TLS and with HTTP/2. No request fails, and each
//! process keeps its WebSockets for as long as their rule says, whatever else it waits for.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use harness::tls::Authority;
use harness::{Builder, Gateway, Load, Successor, Upstream};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// Upgrades, one after the other.
const UPGRADES: usize = 10;

const CONFIG: &str = r#"
server: { watch: false, drain: 20s, drain_tunnels: 3s }
listeners:
  - { address: "127.0.0.1:0" }
  - { address: "127.0.0.2:0", tls: { certificates: [{ cert: default.pem, key: default.key }] } }
upstreams: { app: ["${UPSTREAM}"], sockets: ["${ECHO}"] }
routes:
  - { upstream: app }
  - { match: { path: /socket }, upstream: sockets }
"#;

/// A server that sends back what it is sent.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // As far away as a server on a network is. Pingora ends a tunnel whose 101 comes before it has looked at
                // the end of the request's body.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() || socket.send(message).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

type Socket = WebSocketStream<TcpStream>;

async fn is_echoed(socket: &mut Socket) {
    socket.send(Message::text("hello")).await.expect("the tunnel is open");
    assert_eq!(socket.next().await.expect("an echo").expect("an echo"), Message::text("hello"));
}

/// A WebSocket to the process that answers the operator now.
async fn socket_to_the_newest(gateway: &Gateway) -> Socket {
    // What waits in the kernel's queue when a process stops to accept is still its own.
    loop {
        let stream = TcpStream::connect(gateway.http()).await.unwrap();
        let request = "ws://example.com/socket".into_client_request().unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
        is_echoed(&mut socket).await;
        if gateway.metric("lockgate_tunnels", &[]).await == 1.0 {
            return socket;
        }
    }
}

#[tokio::test]
async fn upgrades_in_a_row_fail_no_request_and_end_websockets_by_their_rule() {
    let (up, authority) = (Upstream::start().await, Arc::new(Authority::new()));
    let builder = Builder::new(CONFIG).upstream(&up).variable("ECHO", &echo().await.to_string());
    authority.issue(&["example.com"]).write(builder.path(), "default");
    let mut gateway = builder.start().await;
    let secure = gateway.listener("127.0.0.2:0").await;
    let mut load = Load::new();
    load.plain("kept", 2, Method::GET, &gateway.url("/text/a"), true);
    load.plain("new", 2, Method::GET, &gateway.url("/text/a"), false);
    load.tls("h2", 2, &authority, secure, "example.com");
    load.tls("http/1.1", 2, &authority, secure, "example.com");
    let goes_on = async |load: &Load| {
        for kind in ["kept", "new", "h2", "http/1.1"] {
            load.goes_on(kind, 20).await;
        }
    };

    let mut serving: Option<Successor> = None;
    let mut newest = socket_to_the_newest(&gateway).await;
    let mut older = Vec::new();
    for _ in 0..UPGRADES {
        goes_on(&load).await;
        let next = gateway.upgrade().await;
        if let Some(ended) = serving.replace(next) {
            // It ends by itself, and its number may be another process's by then.
            std::mem::forget(ended);
        }
        // Its process has no listener any more, and still has this.
        is_echoed(&mut newest).await;
        older.push(std::mem::replace(&mut newest, socket_to_the_newest(&gateway).await));
    }
    goes_on(&load).await;
    for mut socket in older {
        while let Some(Ok(_)) = socket.next().await {}
    }
    is_echoed(&mut newest).await;
    load.ends_without_a_failure().await;
    assert!(gateway.ended().await.success());
    let is_cut = |line: &&Value| line["path"] == "/socket" && line["error"]["kind"] == "tunnel_cut";
    let told = async {
        while gateway.access_log().iter().filter(is_cut).count() < UPGRADES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("each process ends its tunnel, and says so");
}

#[tokio::test]
async fn a_websocket_ends_by_its_deadline_where_an_idle_connection_may_stay_longer() {
    let up = Upstream::start().await;
    let config = CONFIG.replace("drain_tunnels: 3s", "drain_tunnels: 1s");
    let builder = Builder::new(&config).upstream(&up).variable("ECHO", &echo().await.to_string());
    Authority::new().issue(&["example.com"]).write(builder.path(), "default");
    let gateway = builder.start().await;
    let mut idle = TcpStream::connect(gateway.http()).await.unwrap();
    idle.write_all(b"GET /text/kept HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nkept") {
        assert!(idle.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let mut socket = socket_to_the_newest(&gateway).await;

    let _successor = gateway.upgrade().await;
    tokio::select! {
        biased;
        _ = idle.read_buf(&mut answer) => panic!("the idle connection was closed first"),
        () = async { while let Some(Ok(_)) = socket.next().await {} } => {}
    }
    gateway.logged(|line| line["error"]["kind"] == "tunnel_cut").await;
}

#[tokio::test]
async fn a_websocket_that_a_drain_ends_is_counted_and_requests_go_on() {
    let up = Upstream::start().await;
    let config = CONFIG.replace("drain_tunnels: 3s", "drain_tunnels: 1s");
    let builder = Builder::new(&config).upstream(&up).variable("ECHO", &echo().await.to_string());
    Authority::new().issue(&["example.com"]).write(builder.path(), "default");
    let mut gateway = builder.start().await;
    let mut socket = socket_to_the_newest(&gateway).await;
    let held = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;

    gateway.signal(Signal::TERM);
    while let Some(Ok(_)) = socket.next().await {}
    gateway.settles("lockgate_tunnels_cut_total", &[], 1.0).await;
    up.release(1);
    assert_eq!(held.await.unwrap().unwrap().text().await.unwrap(), "held\n");
    assert!(gateway.ended().await.success());
}
