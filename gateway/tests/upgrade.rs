//! The binary is replaced under load, and nobody notices.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Gateway, Successor, Upstream};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The filter has time: a busy machine is not what is tested.
const CONFIG: &str = r#"
server: { drain: 20s }
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 }, limits: { deadline: 1s } } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 0%, key: [{ header: x-user-id }] }
"#;

/// Sends requests until it is told to stop, over new and kept connections, and counts.
struct Load {
    stop: Arc<AtomicBool>,
    answered: watch::Sender<usize>,
    tasks: JoinSet<Vec<String>>,
}

impl Load {
    fn on(gateway: &Gateway) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        for kept in [true, true, false, false] {
            let (stop, answered, url) = (stop.clone(), answered.clone(), gateway.url("/"));
            let idle = if kept { usize::MAX } else { 0 };
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(idle).build().unwrap();
            tasks.spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match client.get(&url).send().await {
                        Ok(response) if response.status() == StatusCode::OK => match response.bytes().await {
                            Ok(_) => answered.send_modify(|answered| *answered += 1),
                            Err(error) => failures.push(format!("{error:?}")),
                        },
                        Ok(response) => failures.push(response.status().to_string()),
                        Err(error) => failures.push(format!("{error:?}")),
                    }
                }
                failures
            });
        }
        Self { stop, answered, tasks }
    }

    /// Waits for so many more answers.
    async fn goes_on(&self, more: usize) {
        let mut answered = self.answered.subscribe();
        let until = *answered.borrow() + more;
        answered.wait_for(|answered| *answered >= until).await.expect("its sender is here");
    }

    async fn failures(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        while let Some(of_one) = self.tasks.join_next().await {
            failures.extend(of_one.unwrap());
        }
        failures
    }
}

#[tokio::test]
async fn an_upgrade_under_load_fails_no_request_and_loses_no_state() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let weight = Some(json!({ "weight": "100%" }));
    let reply = gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", weight).await;
    assert!(reply.status.is_success(), "{}", reply.text());
    let load = Load::on(&gateway);
    load.goes_on(200).await;

    let (status, said) = gateway.cli(&["upgrade"]).await;
    assert!(status.success(), "{said}");
    let successor = Successor::in_words(&said);
    assert_ne!(successor.0, gateway.pid());
    load.goes_on(200).await;
    assert!(gateway.ended().await.success());
    load.goes_on(200).await;
    assert_eq!(load.failures().await, Vec::<String>::new());

    // The same addresses, the admin's too, and what was decided before.
    assert_eq!(gateway.get_with("/", "x-user-id", "42").await.header("x-tag"), "v2");
    let rollouts = gateway.admin(Method::GET, "/api/v1/rollouts", None).await;
    assert_eq!(rollouts.text().matches("\"weight\":\"100%\"").count(), 1, "{}", rollouts.text());
    // It decides, and can be replaced in its turn.
    let reply = gateway.admin(Method::POST, "/api/v1/rollouts/tag-2/promote", None).await;
    assert!(reply.status.is_success(), "{}", reply.text());
    let (status, said) = gateway.cli(&["upgrade"]).await;
    assert!(status.success(), "{said}");
    let third = Successor::in_words(&said);
    assert_ne!(third.0, successor.0);
    assert_eq!(gateway.get_with("/", "x-user-id", "42").await.header("x-tag"), "v2");
}

#[tokio::test]
async fn a_request_in_flight_survives_an_upgrade() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let slow = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    let (status, said) = gateway.cli(&["upgrade"]).await;
    assert!(status.success(), "{said}");
    let _successor = Successor::in_words(&said);
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    up.release(1);
    assert_eq!(slow.await.unwrap().unwrap().text().await.unwrap(), "held\n");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_kept_alive_connection_outlives_an_upgrade_by_one_response() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let mut client = TcpStream::connect(gateway.http()).await.unwrap();
    client.write_all(b"GET /text/one HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let first = read_until(&mut client, "one").await;
    assert!(!first.to_ascii_lowercase().contains("connection: close"), "{first}");

    let (status, said) = gateway.cli(&["upgrade"]).await;
    assert!(status.success(), "{said}");
    let _successor = Successor::in_words(&said);
    // The successor serves before its predecessor drains.
    gateway.says("\"draining\"").await;
    client.write_all(b"GET /text/two HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let second = read_until(&mut client, "two").await;
    assert!(second.to_ascii_lowercase().contains("connection: close"), "{second}");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_successor_that_cannot_load_leaves_everything_as_it_was() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&CONFIG.replace("drain: 20s", "drain: 20s, watch: false"), &up).await;
    std::fs::write(gateway.path().join("filters/tag.wasm"), b"not a component").unwrap();
    let (status, said) = gateway.cli(&["upgrade"]).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the gateway that ran goes on serving"), "{said}");
    assert!(said.contains("filters/tag.wasm"), "{said}");
    assert_still_serves(&gateway).await;
}

#[tokio::test]
async fn a_binary_that_ends_at_once_leaves_everything_as_it_was() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let (status, said) = gateway.cli(&["upgrade", "--binary", "/bin/false"]).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the new process ended before it took over: exit status: 1"), "{said}");
    let (status, said) = gateway.cli(&["upgrade", "--binary", "/nowhere/lockgate"]).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("`/nowhere/lockgate` cannot be started"), "{said}");
    assert_still_serves(&gateway).await;
}

#[tokio::test]
async fn a_successor_that_dies_with_the_sockets_leaves_everything_as_it_was() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    gateway.says("serving").await;
    // A successor in name: it asks, takes the sockets, and never serves.
    let socket = gateway.path().join("state/upgrade.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(
        &mut stream,
        b"{\"say\":\"take_over\",\"pid\":1,\"version\":\"0\",\"on_signal\":false}\n",
    )
    .unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut stream, &mut first).unwrap();
    drop(stream);
    gateway.says("the hand-over failed; this process goes on serving").await;
    assert_still_serves(&gateway).await;
}

#[tokio::test]
async fn sigquit_hands_over_to_a_successor_that_waits() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let mut successor = gateway.command();
    successor.arg("run").arg("--config").arg(gateway.path().join("lockgate.yaml")).arg("--takeover=on-signal");
    let successor = successor.spawn().unwrap();
    gateway.says("a successor is ready").await;
    assert_still_serves(&gateway).await;

    gateway.signal(Signal::QUIT);
    assert!(gateway.ended().await.success());
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    drop(successor);
}

#[tokio::test]
async fn a_second_gateway_with_the_same_state_is_refused() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut second = gateway.command();
    second.arg("run").arg("--config").arg(gateway.path().join("lockgate.yaml"));
    let output = second.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {} already serves", gateway.pid())), "{said}");
    assert_still_serves(&gateway).await;
}

/// It answers, accepts, and decides.
async fn assert_still_serves(gateway: &Gateway) {
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    assert_eq!(gateway.admin(Method::GET, "/readyz", None).await.status, StatusCode::OK);
    let weight = Some(json!({ "weight": "1%" }));
    let reply = gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", weight).await;
    assert!(reply.status.is_success(), "{}", reply.text());
}

async fn read_until(client: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).ends_with(end) {
        let mut piece = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(30), client.read(&mut piece)).await;
        let n = read.expect("the gateway answers").expect("the connection holds");
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
