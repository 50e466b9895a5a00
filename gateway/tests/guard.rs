//! Rollouts that judge themselves, as an operator and a user meet them.

mod harness;

#[path = "guard/climb.rs"]
mod climb;
#[path = "guard/function.rs"]
mod function;
#[path = "guard/kill.rs"]
mod kill;

use std::sync::atomic::{AtomicUsize, Ordering};

use harness::{Gateway, Upstream};
use reqwest::Method;
use serde_json::{Value, json};

/// The canary traps on requests that have `x-bad`; the stable version does not.
const TRAP: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  auth: { component: filters/trap.wasm, settings: { phase: on_request, when: x-never } }
routes: [{ filters: [auth], upstream: app }]
rollouts:
  auth-2:
    filter: auth
    canary: { settings: { phase: on_request, when: x-bad } }
    key: [{ header: x-user-id }]
    steps: [{ weight: 20%, hold: 10m }, { weight: 100%, hold: 10m }]
"#;

const TAG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  tag-2:
    filter: tag
    canary: { settings: { value: v2 } }
    key: [{ header: x-user-id }]
    steps: [STEPS]
    guard: { failures: { tolerance: 20% }, denials: off, min_requests: 30, stalled_after: 1s }
"#;

fn tag(steps: &str) -> String {
    TAG.replace("STEPS", steps)
}

/// Asks as one user after the other, until something has happened. Returns how many requests failed, and how many there were;
/// `bad` of a hundred have `x-bad`.
async fn traffic<T>(gateway: &Gateway, bad: usize, until: impl Future<Output = T>) -> (usize, usize) {
    traffic_to(gateway, "/", bad, until).await
}

/// As [`traffic`], to a path.
async fn traffic_to<T>(gateway: &Gateway, path: &str, bad: usize, until: impl Future<Output = T>) -> (usize, usize) {
    let (users, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let client = async || {
        loop {
            let user = users.fetch_add(1, Ordering::Relaxed);
            let mut request = gateway.client().get(gateway.url(path)).header("x-user-id", format!("user-{user}"));
            if user % 100 < bad {
                request = request.header("x-bad", "1");
            }
            failed.fetch_add(usize::from(gateway.send(request).await.status != 200), Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = until => {}
        _ = async { tokio::join!(client(), client(), client(), client()) } => {}
    }
    (failed.into_inner(), users.into_inner())
}

async fn rollout(gateway: &Gateway, name: &str) -> Value {
    gateway.admin(Method::GET, &format!("/api/v1/rollouts/{name}"), None).await.json()
}

async fn why(gateway: &Gateway, name: &str) -> Value {
    gateway.admin(Method::GET, &format!("/api/v1/rollouts/{name}/why"), None).await.json()
}

/// What the audit log has of an action.
async fn audited(gateway: &Gateway, action: &str) -> Vec<Value> {
    let entries: Value = gateway.admin(Method::GET, "/api/v1/audit?last=1000", None).await.json();
    let entries = entries.as_array().expect("a list").iter();
    entries.filter(|entry| entry["action"] == action).cloned().collect()
}

#[tokio::test]
async fn a_canary_that_traps_is_taken_back_by_itself_and_stays_away() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(TRAP, &up).await;
    let (failed, asked) = traffic(&gateway, 20, gateway.says("\"roll-back\"")).await;
    // Nothing was lost but what the canary lost: a fifth of a fifth.
    assert!(failed > 0 && failed < asked / 10, "{failed} of {asked}");

    let state = rollout(&gateway, "auth-2").await;
    assert_eq!((&state["state"], &state["weight"]), (&json!("rolled-back"), &json!("0%")), "{state}");
    for user in 0..50 {
        let request = gateway.client().get(gateway.url("/")).header("x-user-id", format!("user-{user}"));
        assert_eq!(gateway.send(request.header("x-bad", "1")).await.status, 200);
    }
    let back = audited(&gateway, "roll-back").await;
    assert_eq!((back.len(), &back[0]["actor"]), (1, &json!("gateway")));
    assert_eq!(back[0]["why"]["kind"], "guard");
    // What decided is told apart from what did not: the canary denies nobody.
    let findings = |of: &str| back[0]["why"][of].as_array().cloned().unwrap_or_default();
    assert!(findings("findings").iter().all(|one| one.as_str().is_some_and(|one| one.contains(": worse"))), "{back:?}");
    assert!(findings("others").iter().all(|one| one.as_str().is_some_and(|one| !one.contains(": worse"))), "{back:?}");
    assert!(back[0]["after"].as_str().is_some_and(|after| !after.contains("denials: ")), "{back:?}");
    let (_, said) = gateway.cli(&["rollout", "why", "auth-2"]).await;
    assert!(said.contains("stable serves everybody: failures: "), "{said}");
    assert!(said.contains("the other signals did not decide that: denials: "), "{said}");

    // It comes back by a person's word only.
    assert!(gateway.reload().await.status.is_success());
    assert_eq!(rollout(&gateway, "auth-2").await["state"], "rolled-back");
    let (_, refused) = gateway.cli(&["rollout", "resume", "auth-2"]).await;
    let release = refused.split('`').find(|part| part.starts_with("lockgate quarantine release")).expect("a command");
    let arguments: Vec<&str> = release.split(' ').skip(1).collect();
    for arguments in [&arguments[..], &["rollout", "resume", "auth-2"]] {
        let (status, said) = gateway.cli(arguments).await;
        assert!(status.success(), "{arguments:?}: {said}");
    }
    assert_eq!(rollout(&gateway, "auth-2").await["state"], "ramping");
}

#[tokio::test]
async fn a_healthy_canary_climbs_its_steps_and_is_promoted() {
    let up = Upstream::start().await;
    let steps = "{ weight: 30%, hold: 1s }, { weight: 60%, hold: 0s }, { weight: 100%, hold: 0s }";
    let gateway = Gateway::start(&tag(steps), &up).await;
    let (failed, _) = traffic(&gateway, 0, gateway.says("\"promote\"")).await;
    assert_eq!(failed, 0);
    let state = rollout(&gateway, "tag-2").await;
    assert_eq!((&state["state"], &state["serving"]), (&json!("promoted"), &state["canary"]), "{state}");
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");
    let steps = audited(&gateway, "step").await;
    let after: Vec<&Value> = steps.iter().map(|entry| &entry["after"]).collect();
    assert_eq!(after, ["ramping 60%, step 2 of 3", "ramping 100%, step 3 of 3"]);
    assert!(steps.iter().all(|entry| entry["why"]["kind"] == "guard"), "{steps:?}");
    gateway.settles("lockgate_rollout_decisions_total", &["action=\"step\""], 2.0).await;
    // What is not in the file is said.
    gateway.write_config(&TAG[..TAG.find("rollouts:").expect("there are some")]);
    let (_, said) = gateway.cli(&["reload"]).await;
    assert!(said.contains("rollout `tag-2` was promoted, and is gone from the file"), "{said}");
}

#[tokio::test]
async fn without_traffic_a_rollout_holds_and_says_that_it_is_stalled() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tag("{ weight: 30%, hold: 0s }, 100%"), &up).await;
    gateway.says("\"stall\"").await;
    let state = rollout(&gateway, "tag-2").await;
    assert_eq!((&state["state"], &state["weight"]), (&json!("stalled"), &json!("30%")), "{state}");
    assert_eq!(why(&gateway, "tag-2").await["verdict"]["conclusion"], "undecided");
    gateway.settles("lockgate_rollout_held", &["reason=\"stalled\""], 1.0).await;
}

#[tokio::test]
async fn a_rollout_goes_on_where_it_was_after_kill_9_and_makes_no_move_twice() {
    let up = Upstream::start().await;
    let steps = "{ weight: 30%, hold: 0s }, { weight: 60%, hold: 24h }, 100%";
    let mut gateway = Gateway::start(&tag(steps), &up).await;
    traffic(&gateway, 0, gateway.says("\"step\"")).await;
    let evidence = gateway.path().join("state/evidence.json");
    let before = std::fs::read_to_string(&evidence).expect("it was written with the step");
    assert!(before.contains("tag-2"), "{before}");
    gateway.kill().await;
    gateway.launch().await;
    let state = rollout(&gateway, "tag-2").await;
    assert_eq!((&state["step"], &state["weight"]), (&json!(2), &json!("60%")), "{state}");
    assert_eq!(audited(&gateway, "step").await.len(), 1);
}

#[tokio::test]
async fn a_person_pauses_sets_resumes_and_gives_up() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tag("{ weight: 10%, hold: 24h }, 50%, 100%"), &up).await;
    let lockgate = async |arguments: &[&str]| gateway.cli(arguments).await.1;
    assert!(lockgate(&["rollout", "pause", "tag-2", "--why", "lunch"]).await.contains("lunch"));
    assert!(lockgate(&["rollout", "resume", "tag-2"]).await.contains("ramping"));
    lockgate(&["rollout", "set", "tag-2", "20%"]).await;
    let state = rollout(&gateway, "tag-2").await;
    assert_eq!((&state["state"], &state["weight"], &state["step"]), (&json!("paused"), &json!("20%"), &json!(1)));
    lockgate(&["rollout", "resume", "tag-2"]).await;
    let (_, said) = gateway.cli(&["rollout", "why", "tag-2"]).await;
    assert!(said.contains("the canary serves 20% of the users") && said.contains("then comes 50%"), "{said}");
    lockgate(&["rollout", "abandon", "tag-2"]).await;
    let refused = lockgate(&["rollout", "resume", "tag-2"]).await;
    assert!(refused.contains("which is its end"), "{refused}");
    assert_eq!(gateway.get_with("/", "x-user-id", "user-1").await.header("x-tag"), "v1");
}

#[tokio::test]
async fn with_a_decider_elsewhere_a_gateway_counts_and_obeys_and_never_moves_by_itself() {
    let up = Upstream::start().await;
    let config = tag("{ weight: 30%, hold: 0s }, 100%").replace("    guard:", "    decider: external\n    guard:");
    let gateway = Gateway::start(&config, &up).await;
    let counts = async || {
        let reply = gateway.admin(Method::GET, "/api/v1/rollouts/tag-2/counts", None).await;
        reply.json()
    };
    // A verdict that would move it.
    let judged = async {
        while why(&gateway, "tag-2").await["verdict"]["conclusion"] != "not-worse" {
            tokio::task::yield_now().await;
        }
    };
    traffic(&gateway, 0, judged).await;
    assert_eq!(rollout(&gateway, "tag-2").await["weight"], "30%");
    let counted = counts().await;
    let requests = |track: &str| counted[track]["requests"].as_u64().expect("a count");
    assert!(requests("canary") > 30 && requests("stable") > requests("canary"), "{counted}");
    let weight = Some(json!({ "weight": "40%" }));
    let moved: Value = gateway.admin(Method::PUT, "/api/v1/rollouts/tag-2/weight", weight).await.json();
    assert_eq!((&moved["state"], &moved["weight"]), (&json!("ramping"), &json!("40%")), "{moved}");
}

#[tokio::test]
async fn linked_rollouts_go_back_together() {
    let up = Upstream::start().await;
    let config = format!(
        "{}  tag-2:\n    filter: tag\n    canary: {{ settings: {{ value: v2 }} }}\n    key: [{{ header: x-user-id }}]\n    steps: [{{ weight: 20%, hold: 10m }}, {{ weight: 100%, hold: 10m }}]\n    link: winter\n",
        TRAP.replace("    steps:", "    link: winter\n    steps:")
    );
    let config =
        config.replace("filters:\n", "filters:\n  tag: { component: filters/tag.wasm, settings: { value: v1 } }\n");
    let config = config.replace("filters: [auth]", "filters: [auth, tag]");
    let gateway = Gateway::start(&config, &up).await;
    traffic(&gateway, 20, gateway.says("\"roll-back\"")).await;
    let other = rollout(&gateway, "tag-2").await;
    assert_eq!(other["state"], "rolled-back", "{other}");
    assert!(other["why"].as_str().is_some_and(|why| why.starts_with("with `auth-2`")), "{other}");
}
