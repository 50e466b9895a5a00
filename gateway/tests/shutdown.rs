//! The end of a gateway: what is in flight finishes, nothing else is waited for.

mod harness;

use std::time::{Duration, Instant};

use harness::{Gateway, Upstream};
use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::net::TcpStream;

const CONFIG: &str = r#"
server: { drain: 30s }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

/// Far below `server.drain`, far above what ending takes.
const PROMPTLY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    // Leaves an idle connection behind on either side.
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    let asked = Instant::now();
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() < PROMPTLY, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn an_idle_http2_connection_holds_nobody_up() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    assert_eq!(client.get(gateway.url("/")).send().await.unwrap().status(), StatusCode::OK);
    let asked = Instant::now();
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() < PROMPTLY, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_request_in_flight_is_answered_and_the_gateway_ends_right_after_it() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let slow = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.signal(Signal::TERM);
    gateway.says("draining").await;

    let ready = gateway.admin(reqwest::Method::GET, "/readyz", None).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    let alive = gateway.admin(reqwest::Method::GET, "/healthz", None).await;
    assert_eq!(alive.status, StatusCode::OK);
    // What waits in the kernel's queue is still taken.
    while TcpStream::connect(gateway.http()).await.is_ok() {}

    let asked = Instant::now();
    up.release(1);
    assert_eq!(slow.await.unwrap().unwrap().text().await.unwrap(), "held\n");
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() < PROMPTLY, "{:?}", asked.elapsed());
    assert_eq!(gateway.logged(|line| line["path"] == "/hold").await["status"], 200);
}

#[tokio::test]
async fn the_drain_has_a_deadline() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(&CONFIG.replace("30s", "300ms"), &up).await;
    let slow = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    assert!(slow.await.unwrap().is_err());
    gateway.says("the drain's deadline passed").await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let slow = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.signal(Signal::TERM);
    gateway.says("draining").await;
    let asked = Instant::now();
    gateway.signal(Signal::INT);
    assert!(gateway.ended().await.success());
    assert!(asked.elapsed() < PROMPTLY, "{:?}", asked.elapsed());
    assert!(slow.await.unwrap().is_err());
}

#[tokio::test]
async fn sigquit_without_a_successor_is_refused_and_traffic_goes_on() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    gateway.signal(Signal::QUIT);
    gateway.says("SIGQUIT refused: no successor is waiting").await;
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    let ready = gateway.admin(reqwest::Method::GET, "/readyz", None).await;
    assert_eq!(ready.status, StatusCode::OK);
}
