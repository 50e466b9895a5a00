//! TLS on listeners: which certificate, who the client is, what is refused, and that certificates change.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::tls::{Authority, Connected, handshake};
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use rcgen::{DnType, SanType, date_time_ymd};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONFIG: &str = r#"
server: { watch: false, limits: { read_timeout: 2s } }
listeners:
  - address: "127.0.0.1:0"
    tls:
      certificates: [{ cert: default.pem, key: default.key }]
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

const LISTENER: &str = "127.0.0.1:0";

/// A gateway with a certificate for `example.com`.
async fn start(config: &str, authority: &Authority, up: &Upstream) -> (Gateway, SocketAddr) {
    let builder = Builder::new(config).upstream(up);
    authority.issue(&["example.com"]).write(builder.path(), "default");
    authority.write(&builder.path().join("clients.pem"));
    let gateway = builder.start().await;
    let address = gateway.listener(LISTENER).await;
    (gateway, address)
}

async fn handshakes(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric("lockgate_tls_handshakes_total", &[&format!("outcome=\"{outcome}\"")]).await
}

#[tokio::test]
async fn both_protocols_are_spoken_and_the_upstream_is_told_https() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let (gateway, address) = start(CONFIG, &authority, &up).await;
    let mut http2 = authority.client().connect(address, "example.com").await;
    assert!(http2.is_http2());
    assert_eq!(http2.get("/a").await.unwrap().seen().header("x-forwarded-proto"), "https");
    let mut http1 = authority.client().alpn(&["http/1.1"]).connect(address, "example.com").await;
    assert!(!http1.is_http2());
    for _ in 0..2 {
        assert_eq!(http1.get("/b").await.unwrap().seen().header("x-forwarded-proto"), "https");
    }
    // Longer than any buffer on the way, both ways of framing.
    for connected in [&mut http1, &mut http2] {
        assert_eq!(connected.get("/bytes/3000000").await.unwrap().body.len(), 3_000_000);
    }
    // A connection outlives the deadline for a header by far.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(http2.get("/d").await.unwrap().status, StatusCode::OK);
    let mut older = authority.client().tls_1_2().alpn(&[]).connect(address, "example.com").await;
    assert_eq!(older.get("/c").await.unwrap().status, StatusCode::OK);
    let line = gateway.logged(|line| line["path"] == "/c").await;
    assert_eq!(line["tls"], serde_json::json!({ "version": "1.2", "server_name": "example.com" }));
    let line = gateway.logged(|line| line["path"] == "/a").await;
    assert_eq!((&line["tls"]["version"], &line["protocol"]), (&"1.3".into(), &"HTTP/2".into()));
    assert_eq!(handshakes(&gateway, "ok").await, 3.0);
}

#[tokio::test]
async fn the_certificate_is_that_of_the_host_that_is_asked_for() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG.replace(
        "[{ cert: default.pem, key: default.key }]",
        "[{ cert: default.pem, key: default.key }, { cert: org.pem, key: org.key }, { cert: api.pem, key: api.key }]",
    );
    let builder = Builder::new(&config).upstream(&up);
    for (name, hosts) in [("default", &["example.com"][..]), ("org", &["*.example.org"]), ("api", &["api.example.org"])]
    {
        authority.issue(hosts).write(builder.path(), name);
    }
    let gateway = builder.start().await;
    let address = gateway.listener(LISTENER).await;
    for (host, name) in [
        ("example.com", "example.com"),
        ("www.example.org", "*.example.org"),
        ("WWW.Example.org", "*.example.org"),
        ("api.example.org", "api.example.org"),
    ] {
        assert_eq!(authority.client().connect(address, host).await.names, [name], "{host}");
    }
    // The default's names do not fit, which is for the client to see.
    assert!(authority.client().handshake(address, "a.b.example.org").await.is_err());
    assert!(authority.client().handshake(address, "other.net").await.is_err());
    while handshakes(&gateway, "refused").await < 2.0 {}
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate_and_by_nothing_that_it_says() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG.replace("    tls:", "    tls:\n      client_auth: { ca: clients.pem, mode: optional }");
    let (gateway, address) = start(&config, &authority, &up).await;
    let issued = authority.issue_with(&["reports.example.com"], |params| {
        params.distinguished_name.push(DnType::CommonName, "reports");
        params.subject_alt_names.push(SanType::URI("spiffe://example.com/reports".try_into().unwrap()));
    });
    let lie = [("x-forwarded-client-cert", "Hash=0;Subject=\"CN=admin\"")];
    let mut known = authority.client().certificate(&issued).connect(address, "example.com").await;
    let seen = known.get_with("/known", &lie).await.unwrap().seen();
    let told = seen.header("x-forwarded-client-cert");
    let shown = r#"DNS="reports.example.com";URI="spiffe://example.com/reports""#;
    assert!(told.ends_with(shown) && told.contains("CN=reports") && !told.contains("admin"), "{told}");
    let line = gateway.logged(|line| line["path"] == "/known").await;
    let names = serde_json::json!(["DNS:reports.example.com", "URI:spiffe://example.com/reports"]);
    assert_eq!(line["tls"]["client"]["names"], names);

    let mut stranger = authority.client().connect(address, "example.com").await;
    let seen = stranger.get_with("/stranger", &lie).await.unwrap().seen();
    assert_eq!(seen.header("x-forwarded-client-cert"), "");

    // A wrong certificate is worse than none.
    let other = Authority::new().issue(&["reports.example.com"]);
    let wrong = authority.client().certificate(&other).try_connect(address, "example.com").await;
    assert!(match wrong {
        Ok(mut connected) => connected.get("/").await.is_err(),
        Err(_) => true,
    });
    while handshakes(&gateway, "bad_client_certificate").await < 1.0 {}
}

#[tokio::test]
async fn a_client_without_a_certificate_is_turned_away_where_one_is_required() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG.replace("    tls:", "    tls:\n      client_auth: { ca: clients.pem }");
    let (gateway, address) = start(&config, &authority, &up).await;
    let issued = authority.issue(&["reports.example.com"]);
    let mut known = authority.client().certificate(&issued).connect(address, "example.com").await;
    assert_eq!(known.get("/").await.unwrap().status, StatusCode::OK);
    let stranger = authority.client().try_connect(address, "example.com").await;
    assert!(match stranger {
        Ok(mut connected) => connected.get("/").await.is_err(),
        Err(_) => true,
    });
    while handshakes(&gateway, "no_client_certificate").await < 1.0 {}
    assert_eq!(up.requests(), 1);
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_kind_and_hold_up_nobody() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let settings = "    tls:\n      handshake_timeout: 300ms\n      min_version: 1.3\n      alpn: [http/1.1]";
    let (gateway, address) = start(&CONFIG.replace("    tls:", settings), &authority, &up).await;
    // Says nothing, for as long as the test runs.
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    drop(TcpStream::connect(address).await.unwrap());
    assert!(authority.client().tls_1_2().handshake(address, "example.com").await.is_err());
    assert!(authority.client().alpn(&["h2"]).handshake(address, "example.com").await.is_err());
    let mut fine = authority.client().connect(address, "example.com").await;
    assert_eq!(fine.get("/").await.unwrap().status, StatusCode::OK);
    for kind in ["timeout", "not_tls", "closed", "version", "alpn"] {
        while handshakes(&gateway, kind).await < 1.0 {}
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_told_where_the_configuration_names_them() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let (gateway, _) = start(CONFIG, &authority, &up).await;
    let write = |name: &str, text: &str| std::fs::write(gateway.path().join(name), text).unwrap();
    let good = authority.issue(&["a.example.com"]);
    good.write(gateway.path(), "good");
    authority
        .issue_with(&["old.example.com"], |params| params.not_after = date_time_ymd(2021, 2, 3))
        .write(gateway.path(), "old");
    authority
        .issue_with(&["early.example.com"], |params| params.not_before = date_time_ymd(2999, 1, 1))
        .write(gateway.path(), "early");
    authority.issue(&[]).write(gateway.path(), "nameless");
    write("empty.pem", "");
    write("cut.key", &good.key[..good.key.len() / 2]);

    for (pair, message) in [
        ("cert: gone.pem, key: good.key", "cannot read certificate `gone.pem`: No such file"),
        ("cert: good.pem, key: gone.key", "cannot read key `gone.key`: No such file"),
        ("cert: empty.pem, key: good.key", "`empty.pem` holds no certificate"),
        ("cert: good.pem, key: good.pem", "key `good.pem` holds no private key"),
        ("cert: good.pem, key: cut.key", "key `cut.key` is cut off in the middle of a private key"),
        ("cert: good.pem, key: default.key", "`default.key` is not the key of certificate `good.pem`"),
        ("cert: old.pem, key: old.key", "certificate `old.pem` expired at 2021-02-03T00:00:00.000Z"),
        ("cert: early.pem, key: early.key", "certificate `early.pem` is not valid before 2999-01-01T00:00:00.000Z"),
        ("cert: nameless.pem, key: nameless.key", "certificate `nameless.pem` names no host"),
    ] {
        let more = format!("key: default.key }}, {{ {pair} }}]");
        gateway.write_config(&CONFIG.replace("key: default.key }]", &more));
        let (status, told) = gateway.cli(&["check"]).await;
        assert_eq!(status.code(), Some(2), "{told}");
        assert!(told.contains(&format!("error: {message}")), "{told}");
        assert!(told.contains("path: listeners[0].tls.certificates[1].") && told.contains("hint: "), "{told}");
        let reply = gateway.reload().await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{pair}");
        assert!(reply.text().contains(message), "{}", reply.text());
        assert!(!told.contains("PRIVATE KEY-----\n"), "{told}");
    }
    gateway.settles("lockgate_generation", &[], 1.0).await;
}

#[tokio::test]
async fn an_expired_certificate_that_serves_already_stands_in_the_way_of_nothing() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let builder = Builder::new(CONFIG).upstream(&up);
    authority
        .issue_with(&["example.com"], |params| params.not_after = date_time_ymd(2021, 2, 3))
        .write(builder.path(), "default");
    let gateway = builder.start().await;
    gateway.says("certificate `default.pem` expired at 2021-02-03").await;
    assert_eq!(
        gateway.metric("lockgate_certificate_expiry_timestamp_seconds", &["certificate=\"default.pem\""]).await,
        1_612_310_400.0
    );
    gateway.write_config(&CONFIG.replace("read_timeout: 2s", "read_timeout: 3s"));
    assert!(gateway.reload().await.status.is_success());
    authority.issue(&["example.com"]).write(gateway.path(), "default");
    assert!(gateway.reload().await.status.is_success());
    let address = gateway.listener(LISTENER).await;
    let mut renewed = authority.client().connect(address, "example.com").await;
    assert_eq!(renewed.get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_renewed_certificate_is_noticed_and_a_half_written_pair_is_waited_out() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let (gateway, address) = start(&CONFIG.replace("watch: false", "watch: true"), &authority, &up).await;
    let renewed = authority.issue(&["example.com", "www.example.com"]);
    std::fs::write(gateway.path().join("default.pem"), &renewed.cert).unwrap();
    gateway.says("is not the key of certificate").await;
    assert_eq!(authority.client().connect(address, "example.com").await.names, ["example.com"]);
    std::fs::write(gateway.path().join("default.key"), &renewed.key).unwrap();
    gateway.says("reloaded").await;
    assert_eq!(authority.client().connect(address, "example.com").await.names, ["example.com", "www.example.com"]);
}

#[tokio::test]
async fn sessions_are_resumed_across_reloads_that_do_not_concern_them() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let (gateway, address) = start(CONFIG, &authority, &up).await;
    let config = authority.client().config();
    let connect = async || {
        let stream = handshake(config.clone(), address, "example.com").await.expect("a handshake");
        let mut connected = Connected::over(stream, "example.com").await.expect("a connection");
        // The tickets come with the first answer.
        connected.get("/").await.expect("an answer");
        connected.resumed
    };
    assert!(!connect().await);
    assert!(connect().await);
    gateway.write_config(&CONFIG.replace("read_timeout: 2s", "read_timeout: 3s"));
    assert!(gateway.reload().await.status.is_success());
    assert!(connect().await);
    // With a new certificate everybody has to look at it.
    authority.issue(&["example.com"]).write(gateway.path(), "default");
    assert!(gateway.reload().await.status.is_success());
    assert!(!connect().await);
}

#[tokio::test]
async fn clients_are_sent_to_https_and_told_to_come_there_at_once() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG
        .replace("    tls:", "    tls:\n      hsts: { days: 2, include_subdomains: true, preload: true }")
        .replace("upstreams:", "  - { address: \"127.0.0.2:0\", redirect_to_https: 8443 }\nupstreams:");
    let (gateway, address) = start(&config, &authority, &up).await;
    let clear = gateway.listener("127.0.0.2:0").await;
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let request = client.post(format!("http://{clear}/a/../b?c=d%20e")).header("host", "example.com:8080");
    let reply = gateway.send(request).await;
    assert_eq!(reply.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(reply.header("location"), "https://example.com:8443/b?c=d%20e");
    assert_eq!(reply.header("strict-transport-security"), "");
    assert_eq!(up.requests(), 0);
    let mut connected = authority.client().connect(address, "example.com").await;
    for path in ["/", "/status/404"] {
        let reply = connected.get(path).await.unwrap();
        assert_eq!(reply.header("strict-transport-security"), "max-age=172800; includeSubDomains; preload");
    }
}

#[tokio::test]
async fn trailers_of_grpc_come_through_from_end_to_end() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG.replace("app: [\"${UPSTREAM}\"]", "app: { endpoints: [\"${UPSTREAM}\"], protocol: h2c }");
    let (_gateway, address) = start(&config, &authority, &up).await;
    let mut client = authority.client().connect(address, "example.com").await;
    assert_eq!(client.trailers("/trailers").await["grpc-status"], "7");
}

#[tokio::test]
async fn trailers_come_through_a_middleware_as_well() {
    let (up, authority) = (Upstream::start().await, Authority::new());
    let config = CONFIG
        .replace("app: [\"${UPSTREAM}\"]", "app: { endpoints: [\"${UPSTREAM}\"], protocol: h2c }")
        .replace("upstream: app", "filters: [{ function: mid }], upstream: app")
        .replace("routes:", "experimental: [wasi-0.3]\nfunctions: { mid: { component: \"${MIDDLEWARE}\" } }\nroutes:");
    let component = Guest::Middleware.path();
    let builder = Builder::new(&config).upstream(&up).variable("MIDDLEWARE", &component.display().to_string());
    authority.issue(&["example.com"]).write(builder.path(), "default");
    let gateway = builder.start().await;
    let mut client = authority.client().connect(gateway.listener(LISTENER).await, "example.com").await;
    assert_eq!(client.trailers("/trailers").await["grpc-status"], "7");
}

#[tokio::test]
async fn trailers_of_a_function_and_of_a_service_reach_the_client() {
    for (guest, filters) in
        [(Guest::Function, ""), (Guest::Service, ""), (Guest::Function, "filters: [{ function: mid }], ")]
    {
        let (up, authority) = (Upstream::start().await, Authority::new());
        let config = CONFIG.replace("upstream: app", &format!("{filters}function: fn")).replace(
            "routes:",
            "experimental: [wasi-0.3]\nfunctions:\n  fn: { component: \"${FUNCTION}\" }\n  \
             mid: { component: \"${MIDDLEWARE}\" }\nroutes:",
        );
        let path = |guest: Guest| guest.path().display().to_string();
        let builder = Builder::new(&config).upstream(&up).variable("FUNCTION", &path(guest));
        let builder = builder.variable("MIDDLEWARE", &path(Guest::Middleware));
        authority.issue(&["example.com"]).write(builder.path(), "default");
        let gateway = builder.start().await;
        let mut client = authority.client().connect(gateway.listener(LISTENER).await, "example.com").await;
        assert_eq!(client.trailers("/trailers").await["x-last"], "word", "{} {filters}", guest.name());
    }
}

#[tokio::test]
async fn an_upgrade_under_load_fails_no_request_over_tls() {
    let (up, authority) = (Upstream::start().await, Arc::new(Authority::new()));
    let (mut gateway, address) = start(CONFIG, &authority, &up).await;
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = [&["h2"][..], &["http/1.1"], &["h2"], &["http/1.1"]]
        .into_iter()
        .map(|alpn| {
            let (authority, over, answered) = (authority.clone(), over.clone(), answered.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let mut connected = authority.client().alpn(alpn).connect(address, "example.com").await;
                    for number in 0..20 {
                        match connected.get("/text/a").await {
                            Ok(reply) => assert_eq!(reply.text(), "a"),
                            // It was told that the connection ends, and has sent nothing: another one will do.
                            Err(error) if number > 0 && (error.is_canceled() || error.is_closed()) => break,
                            Err(error) => panic!("request {number} by {alpn:?}: {error:?}"),
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let goes_on = async || {
        let until = answered.load(Ordering::Relaxed) + 100;
        while answered.load(Ordering::Relaxed) < until {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    goes_on().await;
    let _successor = gateway.upgrade().await;
    goes_on().await;
    assert!(gateway.ended().await.success());
    goes_on().await;
    over.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request fails");
    }
}
