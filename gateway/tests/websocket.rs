//! Connections that become tunnels: the handshake is a request like any other, then bytes pass, and a drain has a
//! deadline of its own for them.

mod harness;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use harness::tls::Authority;
use harness::{Builder, Gateway, Upstream};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const CONFIG: &str = r#"
server: { watch: false, drain: 1s, DRAIN limits: { tunnel_idle_timeout: IDLE, read_timeout: 2s } }
listeners:
  - { address: "127.0.0.1:0" }
  - { address: "127.0.0.2:0", tls: { certificates: [{ cert: default.pem, key: default.key }] } }
upstreams: { app: ["${ECHO}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 }, limits: { deadline: 1s } } }
routes:
  - { upstream: app, filters: [tag] }
  - { name: closed, match: { path: "/closed/*" }, upstream: app, upgrades: [] }
"#;

/// A server that sends back what it is sent.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // As far away as a server on a network is. Pingora ends a tunnel whose 101 comes before it has looked at the
                // end of the request's body, which on a busy machine happens only to a server that is this near.
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

async fn start(drain: &str, idle: &str) -> Gateway {
    let up = echo().await;
    let config = CONFIG.replace("DRAIN", drain).replace("IDLE", idle);
    let builder = Builder::new(&config).variable("ECHO", &up.to_string()).guest(lockgate_guests::Guest::Tag);
    Authority::new().issue(&["example.com"]).write(builder.path(), "default");
    builder.start().await
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(stream: S, path: &str) -> WebSocketStream<S> {
    let request = format!("ws://example.com{path}").into_client_request().unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.expect("a handshake");
    // The filters have seen it.
    assert_eq!(response.headers()["x-tag"], "v1");
    socket
}

async fn is_echoed<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, message: Message) {
    socket.send(message.clone()).await.expect("the tunnel is open");
    assert_eq!(socket.next().await.expect("an echo").expect("an echo"), message);
}

#[tokio::test]
async fn messages_pass_in_the_clear_and_over_tls() {
    let up = echo().await;
    let config = CONFIG.replace("DRAIN", "").replace("IDLE", "1m");
    let builder = Builder::new(&config).variable("ECHO", &up.to_string()).guest(lockgate_guests::Guest::Tag);
    let authority = Authority::new();
    authority.issue(&["example.com"]).write(builder.path(), "default");
    let gateway = builder.start().await;
    let mut clear = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/chat").await;
    let address = gateway.listener("127.0.0.2:0").await;
    let secure = authority.client().alpn(&["http/1.1"]).handshake(address, "example.com").await.unwrap();
    let mut secure = connect(secure, "/chat").await;
    is_echoed(&mut clear, Message::text("hello")).await;
    is_echoed(&mut secure, Message::text("hello")).await;
    is_echoed(&mut secure, Message::binary(vec![7; 300_000])).await;
    gateway.settles("lockgate_tunnels", &[], 2.0).await;
    // Longer than a request may be silent.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    is_echoed(&mut clear, Message::text("still there")).await;
    clear.close(None).await.unwrap();
    while clear.next().await.is_some() {}
    let line = gateway.logged(|line| line["status"] == 101).await;
    assert_eq!((&line["path"], &line["filters"][0]["name"]), (&"/chat".into(), &"tag".into()));
    while gateway.metric("lockgate_tunnels", &[]).await > 1.0 {}
    gateway.settles("lockgate_tunnels_total", &[], 2.0).await;
}

#[tokio::test]
async fn what_a_route_does_not_list_is_asked_for_in_vain() {
    let up = Upstream::start().await;
    let config = CONFIG.replace("DRAIN", "").replace("IDLE", "1m");
    let builder = Builder::new(&config).variable("ECHO", &up.address.to_string()).guest(lockgate_guests::Guest::Tag);
    Authority::new().issue(&["example.com"]).write(builder.path(), "default");
    let gateway = builder.start().await;
    for (path, protocol, seen) in [("/", "websocket", "websocket"), ("/closed/", "websocket", ""), ("/", "other", "")] {
        let mut client = TcpStream::connect(gateway.http()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains("body_hash") {
            let count = client.read(&mut piece).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..count]);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let upgrade = answer.split_once("\"upgrade\":\"").map_or("", |(_, rest)| rest.split('"').next().unwrap());
        assert_eq!(upgrade, seen, "{answer}");
    }
    gateway.settles("lockgate_tunnels_total", &[], 0.0).await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let gateway = start("", "2s").await;
    let mut socket = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/idle").await;
    is_echoed(&mut socket, Message::text("hello")).await;
    while let Some(Ok(_)) = socket.next().await {}
    assert_eq!(gateway.logged(|line| line["path"] == "/idle").await["error"]["kind"], "tunnel_idle");
}

#[tokio::test]
async fn a_drain_waits_for_tunnels_by_their_own_deadline_and_then_ends_them() {
    let mut gateway = start("drain_tunnels: 3s,", "1m").await;
    let mut socket = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/long").await;
    is_echoed(&mut socket, Message::text("hello")).await;
    let asked = Instant::now();
    gateway.signal(Signal::TERM);
    gateway.says("draining").await;
    // Longer than requests have.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    is_echoed(&mut socket, Message::text("still there")).await;
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() > Duration::from_millis(2_900), "{:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    while let Some(Ok(_)) = socket.next().await {}
    gateway.says("the drain's deadline for tunnels passed").await;
    assert_eq!(gateway.logged(|line| line["path"] == "/long").await["error"]["kind"], "tunnel_cut");
}

#[tokio::test]
async fn a_drain_is_over_as_soon_as_the_last_tunnel_is() {
    let mut gateway = start("drain_tunnels: 1m,", "1m").await;
    let mut socket = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/short").await;
    is_echoed(&mut socket, Message::text("hello")).await;
    gateway.signal(Signal::TERM);
    gateway.says("draining").await;
    is_echoed(&mut socket, Message::text("last words")).await;
    socket.close(None).await.unwrap();
    let asked = Instant::now();
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_tunnel_stays_with_the_predecessor_through_an_upgrade_and_new_ones_go_to_the_successor() {
    let mut gateway = start("drain_tunnels: 1m,", "1m").await;
    let mut old = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/old").await;
    is_echoed(&mut old, Message::text("hello")).await;
    let _successor = gateway.upgrade().await;
    is_echoed(&mut old, Message::text("still there")).await;
    // What waits in the kernel's queue when the predecessor stops is still its own.
    let mut new = loop {
        let socket = connect(TcpStream::connect(gateway.http()).await.unwrap(), "/new").await;
        if gateway.metric("lockgate_tunnels", &[]).await == 1.0 {
            break socket;
        }
    };
    old.close(None).await.unwrap();
    assert!(gateway.ended().await.success());
    is_echoed(&mut new, Message::text("hello")).await;
}
