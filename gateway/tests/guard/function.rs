//! What a guard knows of functions: their own answers, failures and time, beside whole requests.

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Gateway, Upstream};
use super::{audited, rollout, traffic_to, why};

/// At `/gate`, the canary turns everybody away.
const GATE: &str = r#"
functions:
  fn: { component: filters/function.wasm, vars: { VERSION: v1 } }
routes: [{ function: fn }]
rollouts:
  fn-2:
    function: fn
    canary: { vars: { VERSION: v1, GATE: shut } }
    key: [{ header: x-user-id }]
    steps: [{ weight: 40%, hold: 10m }, 100%]
    guard: { failures: off, min_requests: 30, calls: { failures: 10%, duration: { quantile: 50%, tolerance: 100% } } }
"#;

async fn quarantine(gateway: &Gateway) -> Value {
    gateway.admin(Method::GET, "/api/v1/quarantine", None).await.json()
}

#[tokio::test]
async fn a_function_that_turns_everybody_away_is_taken_back_and_comes_back_by_a_persons_word_only() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(GATE, &up).await;
    traffic_to(&gateway, "/gate", 0, gateway.says("\"roll-back\"")).await;
    let back = audited(&gateway, "roll-back").await;
    assert!(back[0]["why"]["findings"][0].as_str().is_some_and(|found| found.starts_with("denials: ")), "{back:?}");
    let view = rollout(&gateway, "fn-2").await;
    let held = quarantine(&gateway).await;
    assert_eq!((&held[0]["subject"], &held[0]["version"]), (&json!("function fn"), &view["canary"]), "{held}");
    gateway.settles("lockgate_function_quarantined", &["function=\"fn\""], 1.0).await;
    let of_function = audited(&gateway, "quarantine").await;
    assert_eq!(of_function[0]["subject"], format!("function fn {}", view["canary"].as_str().expect("a label")));

    // Neither a file with another stable version nor one that is told of it anew brings it back.
    let gate =
        async |path: &str, user: usize| gateway.get_with(path, "x-user-id", &format!("user-{user}")).await.status;
    let other = GATE.replacen("VERSION: v1", "VERSION: v0", 1);
    for config in [&other, &other[..other.find("rollouts:").expect("there are some")].to_owned(), &other] {
        gateway.write_config(config);
        assert!(gateway.reload().await.status.is_success());
        for user in 0..50 {
            assert_eq!(gate("/gate", user).await, 200);
        }
    }
    assert_eq!(rollout(&gateway, "fn-2").await["state"], "rolled-back");

    let (status, refused) = gateway.cli(&["rollout", "resume", "fn-2"]).await;
    let label = held[0]["version"].as_str().expect("a label");
    assert!(!status.success() && refused.contains(&format!("lockgate quarantine release {label}")), "{refused}");
    for arguments in [&["quarantine", "release", label][..], &["rollout", "resume", "fn-2"]] {
        let (status, said) = gateway.cli(arguments).await;
        assert!(status.success(), "{arguments:?}: {said}");
    }
    assert_eq!(rollout(&gateway, "fn-2").await["state"], "ramping");
    assert_eq!(gateway.metric_or_zero("lockgate_function_quarantined", &[]).await, 0.0);
}

/// The canary may not fetch what stable may.
const FETCH: &str = r#"
functions:
  fn: { component: filters/function.wasm, grants: { outbound: ["http://${UPSTREAM}"] } }
routes: [{ function: fn }]
rollouts:
  fn-2:
    function: fn
    canary: { grants: { outbound: [] } }
    key: [{ header: x-user-id }]
    steps: [{ weight: 40%, hold: 10m }, 100%]
    guard: { failures: off, denials: off, min_requests: 30, calls: { failures: 10% } }
"#;

#[tokio::test]
async fn a_function_whose_calls_fail_is_taken_back_by_what_is_known_of_its_calls() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(FETCH, &up).await;
    let path = format!("/fetch?{}", up.address);
    let (failed, asked) = traffic_to(&gateway, &path, 0, gateway.says("\"roll-back\"")).await;
    assert!(failed > 0 && failed < asked, "{failed} of {asked}");
    let back = audited(&gateway, "roll-back").await;
    let found = back[0]["why"]["findings"][0].as_str().unwrap_or_default();
    assert!(found.starts_with("call_failures: ") && found.contains("against 0 %"), "{back:?}");
    assert_eq!(gateway.get_with(&path, "x-user-id", "user-1").await.status, 200);
}

#[tokio::test]
async fn of_a_functions_calls_the_time_is_compared() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(GATE, &up).await;
    let compared = async {
        loop {
            let why = why(&gateway, "fn-2").await;
            let evidence = why["verdict"]["evidence"].as_array().cloned().unwrap_or_default();
            let duration = evidence.into_iter().find(|one| one["signal"] == "call_duration");
            if let Some(duration) = duration.filter(|one| one["canary"]["requests"].as_u64() > Some(30)) {
                return duration;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = std::cell::RefCell::new(Value::Null);
    // Away from the gate, the canary does as stable does.
    traffic_to(&gateway, "/", 0, async { found.replace(compared.await) }).await;
    let found = found.into_inner();
    for track in ["stable", "canary"] {
        let seconds = found[track]["value"].as_f64().expect("a time");
        assert!(seconds > 0.0 && seconds < 1.0, "{found}");
    }
}
