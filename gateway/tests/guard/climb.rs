//! The way up: what comes before the first weight, and what happens to the file in the middle.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::harness::{Gateway, Upstream};
use super::{TRAP, audited, rollout, tag, traffic, why};

/// A canary that is stable's shadow first, and then serves.
const SHADOWED: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  tag-2:
    filter: tag
    canary: CANARY
    key: [{ header: x-user-id }]
    steps: [{ shadow: 100%, hold: 1s }, { weight: 50%, hold: 0s }, { weight: 100%, hold: 0s }]
    shadow: { cpu: 100% }
    guard: { agreement: 90%, failures: { tolerance: 20% }, denials: off, min_requests: 30 }
"#;

/// Asks as one user after the other, half of them with `x-odd`, and holds that all see stable.
async fn stable_only(gateway: &Gateway, until: impl Future<Output = Value>) {
    let asking = async {
        for user in 0.. {
            let request = gateway.client().get(gateway.url("/")).header("x-user-id", format!("user-{user}"));
            let request = if user % 2 == 0 { request.header("x-odd", "1") } else { request };
            let reply = gateway.send(request).await;
            assert_eq!((reply.status.as_u16(), reply.header("x-tag")), (200, "v1"));
            assert_eq!(reply.seen().header("x-tag-request"), "v1", "so does the upstream");
        }
    };
    tokio::select! {
        _ = until => {}
        () = asking => {}
    }
}

#[tokio::test]
async fn a_shadow_that_agrees_comes_to_serve_and_is_promoted() {
    let up = Upstream::start().await;
    // The same component and settings: another grant makes another version.
    let gateway =
        Gateway::start(&SHADOWED.replace("CANARY", "{ grants: { outbound: [\"http://127.0.0.1:9\"] } }"), &up).await;
    assert_eq!(rollout(&gateway, "tag-2").await["state"], "shadowing");
    let (failed, _) = traffic(&gateway, 0, gateway.says("\"promote\"")).await;
    assert_eq!(failed, 0);
    let steps = audited(&gateway, "step").await;
    let moves: Vec<(&Value, &Value)> = steps.iter().map(|entry| (&entry["before"], &entry["after"])).collect();
    let (shadow, half, whole) =
        ("shadowing 100%, step 1 of 3", "ramping 50%, step 2 of 3", "ramping 100%, step 3 of 3");
    assert_eq!(moves, [(&json!(shadow), &json!(half)), (&json!(half), &json!(whole))]);
    let agreed = steps[0]["why"]["findings"][0].as_str().unwrap_or_default();
    assert!(agreed.starts_with("disagreement: ") && agreed.contains("not worse"), "{agreed}");
    assert_eq!(rollout(&gateway, "tag-2").await["state"], "promoted");
}

#[tokio::test]
async fn a_shadow_that_differs_never_serves_anybody() {
    let up = Upstream::start().await;
    let differs = SHADOWED.replace("CANARY", "{ settings: { value: v1, instead: { when: x-odd, value: v2 } } }");
    for (config, action, state) in [
        (differs.clone(), "\"roll-back\"", "rolled-back"),
        (format!("{differs}    on_bad: pause\n"), "\"pause\"", "paused"),
    ] {
        let gateway = Gateway::start(&config, &up).await;
        stable_only(&gateway, gateway.says(action)).await;
        let view = rollout(&gateway, "tag-2").await;
        assert_eq!((&view["state"], &view["weight"]), (&json!(state), &json!("0%")), "{view}");
        assert!(view["why"].as_str().is_some_and(|why| why.starts_with("disagreement: ")), "{view}");
        assert_eq!(audited(&gateway, "step").await, [] as [Value; 0]);
        assert_eq!(audited(&gateway, "quarantine").await.len(), usize::from(state == "rolled-back"));
        let (_, found) = gateway.cli(&["rollout", "shadow", "tag-2"]).await;
        assert!(found.contains("request-headers `x-tag-request`"), "{found}");
    }
}

#[tokio::test]
async fn a_canary_that_is_worse_stays_where_it_is_where_that_is_asked() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&format!("{TRAP}    on_bad: pause\n"), &up).await;
    traffic(&gateway, 20, gateway.says("\"pause\"")).await;
    let view = rollout(&gateway, "auth-2").await;
    assert_eq!((&view["state"], &view["weight"]), (&json!("paused"), &json!("20%")), "{view}");
    assert!(audited(&gateway, "quarantine").await.is_empty());
    assert_eq!(why(&gateway, "auth-2").await["verdict"]["conclusion"], "worse");
    // A person knows better.
    let (status, said) = gateway.cli(&["rollout", "resume", "auth-2"]).await;
    assert!(status.success() && said.contains("ramping"), "{said}");
}

#[tokio::test]
async fn linked_rollouts_go_up_together() {
    let up = Upstream::start().await;
    let config = tag("{ weight: 30%, hold: 0s }, { weight: 60%, hold: 0s }, 100%")
        .replace(
            "filters:\n",
            "filters:\n  other: { component: filters/tag.wasm, settings: { value: o1, append: true } }\n",
        )
        .replace("filters: [tag]", "filters: [tag, other]");
    let second = config[config.find("  tag-2:").expect("it is there")..]
        .replace("tag-2:", "other-2:")
        .replace("filter: tag", "filter: other")
        .replace("value: v2", "value: o2, append: true");
    let linked = |rollout: &str| rollout.replace("    guard:", "    link: both\n    salt: both\n    guard:");
    let gateway = Gateway::start(&format!("{}{}", linked(&config), linked(&second)), &up).await;
    let third = async {
        while audited(&gateway, "step").await.len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    traffic(&gateway, 0, third).await;
    let steps = audited(&gateway, "step").await;
    for pair in steps.chunks(2) {
        let of: BTreeSet<&str> = pair.iter().filter_map(|entry| entry["subject"].as_str()).collect();
        assert_eq!(of, BTreeSet::from(["rollout other-2", "rollout tag-2"]), "{steps:?}");
        assert_eq!(pair[0]["after"], pair[1]["after"], "{steps:?}");
    }
}

#[tokio::test]
async fn another_plan_in_the_middle_moves_nobody_and_is_climbed_from_there() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&tag("{ weight: 30%, hold: 0s }, { weight: 60%, hold: 24h }, 100%"), &up).await;
    traffic(&gateway, 0, gateway.says("\"step\"")).await;
    let other = |hold: &str| tag(&format!("10%, {{ weight: 20%, hold: {hold} }}, {{ weight: 80%, hold: 24h }}, 100%"));
    gateway.write_config(&other("24h"));
    assert!(gateway.reload().await.status.is_success());
    let view = rollout(&gateway, "tag-2").await;
    assert_eq!(
        (&view["state"], &view["weight"], &view["step"]),
        (&json!("ramping"), &json!("60%"), &json!(2)),
        "{view}"
    );
    let changed = audited(&gateway, "change-plan").await;
    assert_eq!(changed.len(), 1, "{changed:?}");
    let said = gateway.said();
    gateway.write_config(&other("0s"));
    assert!(gateway.reload().await.status.is_success());
    traffic(&gateway, 0, gateway.says_after(said, "\"step\"")).await;
    let view = rollout(&gateway, "tag-2").await;
    assert_eq!((&view["weight"], &view["step"]), (&json!("80%"), &json!(3)), "{view}");
}

#[tokio::test]
async fn another_version_in_the_middle_begins_anew_with_nothing_known() {
    let up = Upstream::start().await;
    let config = tag("{ weight: 30%, hold: 0s }, { weight: 60%, hold: 24h }, 100%");
    let gateway = Gateway::start(&config, &up).await;
    let replaced = [
        // Stable, …
        config.replace("value: v1", "value: v0"),
        // … then the canary, in the same place, under the same name.
        config.replace("value: v1", "value: v0").replace("value: v2", "value: v3"),
    ];
    for next in replaced {
        let said = gateway.said();
        traffic(&gateway, 0, gateway.says_after(said, "\"step\"")).await;
        assert_eq!(rollout(&gateway, "tag-2").await["weight"], "60%");
        gateway.write_config(&next);
        assert!(gateway.reload().await.status.is_success());
        let view = rollout(&gateway, "tag-2").await;
        assert_eq!((&view["weight"], &view["step"]), (&json!("30%"), &json!(1)), "{view}");
        let counts = gateway.admin(reqwest::Method::GET, "/api/v1/rollouts/tag-2/counts", None).await.json();
        assert_eq!(counts["canary"]["requests"], 0, "{counts}");
    }
    let begun = audited(&gateway, "begin").await;
    assert_eq!(begun.len(), 3, "{begun:?}");
    gateway.settles("lockgate_rollout_decisions_total", &["action=\"begin\""], 3.0).await;
}
