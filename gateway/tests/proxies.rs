//! Proxies in front: who the client is by the PROXY protocol, by `forwarded`, and behind a Unix socket.

mod harness;

use harness::{Builder, Gateway, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

const CONFIG: &str = r#"
server: { watch: false, trusted_proxies: [127.0.0.1, 10.0.0.0/8] }
listeners:
  - { address: "127.0.0.1:0", proxy_protocol: PROXY }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

const GET: &[u8] = b"GET /who HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

async fn exchange(mut client: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, parts: &[&[u8]]) -> String {
    for part in parts {
        // Each in a packet of its own. Who is cut off may not come to say all of it; what was answered tells.
        if client.write_all(part).await.is_err() || client.flush().await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    // A reset is a close as well.
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the upstream was told of a header.
fn told<'a>(answer: &'a str, name: &str) -> &'a str {
    let start = format!("\"{name}\":\"");
    answer.split_once(&start).map_or("", |(_, rest)| rest.split('"').next().unwrap_or_default())
}

async fn cut(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("lockgate_connections_cut_total", &[&format!("reason=\"{reason}\"")]).await
}

#[tokio::test]
async fn a_proxy_header_of_either_version_says_who_the_client_is() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&CONFIG.replace("PROXY", "true"), &up).await;
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    binary.extend([192, 0, 2, 2, 10, 0, 0, 1, 0x12, 0x67, 1, 187]);
    for (parts, client) in [
        (vec![&b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n"[..], GET], "192.0.2.1"),
        (vec![b"PROXY TCP6 2001:db8::1 ::1 ", b"4711 443\r\n", GET], "2001:db8::1"),
        (vec![&binary, GET], "192.0.2.2"),
        (vec![&binary[..9], &binary[9..], GET], "192.0.2.2"),
        (vec![b"PROXY UNKNOWN\r\n", GET], "127.0.0.1"),
    ] {
        let connection = TcpStream::connect(gateway.http()).await.unwrap();
        connection.set_nodelay(true).unwrap();
        let answer = exchange(connection, &parts).await;
        assert_eq!(told(&answer, "x-forwarded-for"), client, "{answer}");
        let line = gateway.logged(|line| line["client"] == client).await;
        assert_eq!(line["path"], "/who");
    }
    let connection = TcpStream::connect(gateway.http()).await.unwrap();
    assert_eq!(exchange(connection, &[GET]).await, "");
    while cut(&gateway, "proxy_header").await < 1.0 {}
}

#[tokio::test]
async fn a_stranger_may_not_say_who_the_client_is() {
    let up = Upstream::start().await;
    let config = CONFIG.replace("PROXY", "true").replace("[127.0.0.1, ", "[127.9.9.9, ");
    let gateway = Gateway::start(&config, &up).await;
    let connection = TcpStream::connect(gateway.http()).await.unwrap();
    let answer = exchange(connection, &[b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n", GET]).await;
    assert_eq!(answer, "");
    while cut(&gateway, "untrusted_proxy").await < 1.0 {}

    gateway.write_config(&config.replace("proxy_protocol: true", "proxy_protocol: false"));
    assert!(gateway.reload().await.status.is_success());
    let lies = b"GET /who HTTP/1.1\r\nhost: a\r\nforwarded: for=192.0.2.1\r\nx-forwarded-for: 192.0.2.1\r\nconnection: close\r\n\r\n";
    let answer = exchange(TcpStream::connect(gateway.http()).await.unwrap(), &[lies]).await;
    assert_eq!((told(&answer, "x-forwarded-for"), told(&answer, "forwarded")), ("127.0.0.1", ""), "{answer}");
}

#[tokio::test]
async fn the_standard_header_is_believed_of_a_trusted_proxy_and_continued() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&CONFIG.replace("PROXY", "false"), &up).await;
    let reply = gateway.get_with("/standard", "forwarded", "for=192.0.2.7;proto=https, for=10.1.2.3").await;
    assert_eq!(reply.seen().header("forwarded"), "for=192.0.2.7;proto=https, for=10.1.2.3, for=127.0.0.1;proto=http");
    assert_eq!(gateway.logged(|line| line["path"] == "/standard").await["client"], "192.0.2.7");
}

#[tokio::test]
async fn a_unix_socket_is_a_listener_like_any_other_and_goes_with_it() {
    let up = Upstream::start().await;
    let config = CONFIG.replace("PROXY", "false").replace("upstreams:", "  - unix:http.sock\nupstreams:");
    let mut gateway = Builder::new(&config).upstream(&up).start().await;
    let socket = gateway.path().join("http.sock");
    let request = b"GET /unix HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.9\r\nconnection: close\r\n\r\n";
    let answer = exchange(UnixStream::connect(&socket).await.unwrap(), &[request]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(told(&answer, "x-forwarded-for"), "192.0.2.9");
    assert_eq!(gateway.logged(|line| line["path"] == "/unix").await["client"], "192.0.2.9");

    gateway.write_config(&CONFIG.replace("PROXY", "false"));
    assert!(gateway.reload().await.status.is_success());
    gateway.says("stopped listening").await;
    assert!(!socket.exists());
    gateway.write_config(&config);
    assert!(gateway.reload().await.status.is_success());
    let answer = exchange(UnixStream::connect(&socket).await.unwrap(), &[GET]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.ended().await.success());
    assert!(!socket.exists());
}
