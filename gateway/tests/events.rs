//! Events: what happens, as those who follow hear of it.

mod harness;

use std::process::Stdio;
use std::time::Duration;

use harness::{Gateway, Upstream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 5%, key: [client_ip] }
"#;

/// A stream of events, read as a browser reads it.
struct Following {
    response: reqwest::Response,
    text: String,
}

#[derive(Debug)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

impl Following {
    async fn start(gateway: &Gateway, after: Option<u64>) -> Self {
        let mut request = gateway.client().get(gateway.admin_url("/api/v1/events"));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let mut following = Self { response, text: String::new() };
        assert!(following.block().await.unwrap().contains(": following"));
        following
    }

    /// The lines up to the next empty one; none at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let piece = tokio::time::timeout(Duration::from_secs(60), self.response.chunk()).await;
            self.text.push_str(&String::from_utf8_lossy(&piece.expect("something happens").unwrap()?));
        }
    }

    async fn next(&mut self) -> Event {
        loop {
            let block = self.block().await.expect("the stream goes on");
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(id), Some(name), Some(data)) = (field("id:"), field("event:"), field("data:")) {
                let (id, data) = (id.parse().unwrap(), serde_json::from_str(data).unwrap());
                return Event { id, name: name.to_owned(), data };
            }
        }
    }
}

#[tokio::test]
async fn a_move_is_told_when_it_is_in_force() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut following = Following::start(&gateway, None).await;
    let weight = Some(json!({ "weight": "100%" }));
    gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", weight).await;
    let event = following.next().await;
    assert_eq!((event.name.as_str(), &event.data["action"]), ("move", &json!("set-weight")));
    assert_eq!(event.data["subject"], "rollout tag-2");
    assert_eq!(event.data["id"], event.id);
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");

    let why = Some(json!({ "why": "logins fail" }));
    gateway.admin(Method::POST, "/api/v1/rollouts/tag-2/rollback", why).await;
    let event = following.next().await;
    assert_eq!((event.name.as_str(), &event.data["action"]), ("quarantine", &json!("quarantine")));
    let event = following.next().await;
    assert_eq!((event.name.as_str(), &event.data["action"]), ("move", &json!("roll-back")));
    assert!(event.data["text"].as_str().unwrap().contains("logins fail"), "{event:?}");
    assert_eq!(gateway.get("/").await.header("x-tag"), "v1");
}

#[tokio::test]
async fn a_refused_reload_is_told_with_its_problems_and_an_accepted_one_with_its_generation() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut following = Following::start(&gateway, None).await;
    gateway.write_config(&CONFIG.replace("value: v1", "valu: v1"));
    gateway.reload().await;
    let event = following.next().await;
    assert_eq!((event.name.as_str(), &event.data["action"]), ("reload", &json!("refused")));
    assert!(event.data["text"].as_str().unwrap().contains("valu"), "{event:?}");
    gateway.write_config(&CONFIG.replace("value: v1", "value: v3"));
    gateway.reload().await;
    // The watcher may have been faster than the call.
    let event = loop {
        let event = following.next().await;
        if event.data["action"] == "reload" {
            break event;
        }
    };
    assert!(event.data["text"].as_str().unwrap().contains("generation 2"), "{event:?}");
}

#[tokio::test]
async fn an_old_snapshot_that_a_request_holds_is_told_to_drain_and_to_be_drained() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut following = Following::start(&gateway, None).await;
    let held = tokio::spawn(gateway.client().get(gateway.url("/hold")).send());
    up.holding(1).await;
    gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", Some(json!({ "weight": "9%" }))).await;
    assert_eq!(following.next().await.name, "move");
    let event = following.next().await;
    assert_eq!((event.name.as_str(), &event.data["action"]), ("drain", &json!("draining")));
    assert!(event.data["text"].as_str().unwrap().contains("1 request"), "{event:?}");
    up.release(1);
    held.await.unwrap().unwrap();
    assert_eq!(following.next().await.data["action"], "drained");
}

#[tokio::test]
async fn who_was_cut_off_is_told_what_it_missed() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut following = Following::start(&gateway, None).await;
    for weight in ["1%", "2%", "3%"] {
        gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", Some(json!({ "weight": weight }))).await;
    }
    let seen = following.next().await.id;
    drop(following);
    let mut again = Following::start(&gateway, Some(seen)).await;
    for weight in ["2%", "3%"] {
        let event = again.next().await;
        assert!(event.data["text"].as_str().unwrap().contains(weight), "{event:?}");
    }
    let wrong = gateway.client().get(gateway.admin_url("/api/v1/events")).header("last-event-id", "x").send().await;
    assert_eq!(wrong.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn streams_end_with_the_gateway_and_do_not_hold_it_up() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let mut following = Following::start(&gateway, None).await;
    gateway.signal(rustix::process::Signal::TERM);
    while following.block().await.is_some() {}
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn the_command_prints_a_line_for_each_event() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut command = gateway.command();
    let mut child = command
        .args(["events", "--admin", &gateway.admin_url("")])
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It follows from some moment on: moves until it says one.
    let moving = async {
        for weight in (1..100).cycle() {
            let weight = Some(json!({ "weight": format!("{weight}%") }));
            gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", weight).await;
        }
    };
    let line = tokio::select! {
        line = lines.next_line() => line.unwrap().unwrap(),
        () = moving => unreachable!("moves without end"),
    };
    assert!(line.contains("rollout tag-2: set-weight"), "{line}");
}
