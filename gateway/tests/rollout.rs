//! Rollouts, as an operator and a user meet them.

mod harness;

use std::collections::BTreeMap;

use harness::{Gateway, Upstream};

const CANARY: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
  other: { component: filters/tag.wasm, settings: { value: other, append: true } }
routes: [{ filters: [other, tag], upstream: app }]
rollouts:
  tag-v2:
    filter: tag
    canary: { settings: { value: v2 } }
    weight: 20%
    key: [{ header: x-user-id }, client_ip]
    override: { trusted: [127.0.0.0/8] }
"#;

/// The version that each of so many users gets.
async fn versions(gateway: &Gateway, users: usize) -> BTreeMap<usize, String> {
    let mut versions = BTreeMap::new();
    for user in 0..users {
        let reply = gateway.get_with("/", "x-user-id", &format!("user-{user}")).await;
        versions.insert(user, reply.header("x-tag").to_owned());
    }
    versions
}

fn on_canary(versions: &BTreeMap<usize, String>) -> Vec<usize> {
    versions.iter().filter(|(_, version)| *version == "v2").map(|(user, _)| *user).collect()
}

async fn lockgate(gateway: &Gateway, arguments: &[&str]) -> String {
    let (status, said) = gateway.cli(arguments).await;
    assert!(status.success(), "{arguments:?}: {said}");
    said
}

/// Invariants 5 and 6.
#[tokio::test]
async fn ten_thousand_users_split_twenty_to_eighty_and_raising_the_weight_moves_nobody_back() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CANARY, &up).await;

    let first = versions(&gateway, 10_000).await;
    let canary = on_canary(&first);
    assert!((1_900..=2_100).contains(&canary.len()), "{}", canary.len());
    let counted = gateway.metric("lockgate_rollout_requests_total", &["track=\"canary\""]).await;
    assert_eq!(counted, canary.len() as f64);
    // Another filter of the chain is not touched.
    let others = gateway.metric_or_zero("lockgate_filter_calls_total", &["filter=\"other\"", "track=\"canary\""]).await;
    assert_eq!(others, 0.0);

    lockgate(&gateway, &["rollout", "set", "tag-v2", "35%"]).await;
    let second = versions(&gateway, 2_000).await;
    assert!(canary.iter().filter(|user| **user < 2_000).all(|user| second[user] == "v2"));
    let raised = on_canary(&second).len();
    assert!((620..=780).contains(&raised), "{raised}");

    lockgate(&gateway, &["rollout", "promote", "tag-v2"]).await;
    assert_eq!(on_canary(&versions(&gateway, 200).await).len(), 200);
}

/// Invariant 5.
#[tokio::test]
async fn a_user_stays_on_its_track_across_restarts() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CANARY, &up).await;
    let before = versions(&gateway, 300).await;
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(versions(&gateway, 300).await, before);
}

#[tokio::test]
async fn after_a_rollback_nobody_is_on_the_canary_and_a_reload_does_not_bring_it_back() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CANARY, &up).await;
    lockgate(&gateway, &["rollout", "rollback", "tag-v2"]).await;
    assert!(on_canary(&versions(&gateway, 200).await).is_empty());
    assert!(gateway.reload().await.status.is_success());
    assert!(on_canary(&versions(&gateway, 200).await).is_empty());
    gateway.settles("lockgate_rollout_weight_ratio", &["rollout=\"tag-v2\""], 0.0).await;

    // Another digest is another rollout.
    gateway.write_config(&CANARY.replace("value: v2", "value: v3"));
    assert!(gateway.reload().await.status.is_success());
    let versions = versions(&gateway, 200).await;
    assert!(versions.values().any(|version| version == "v3"), "{versions:?}");
}

#[tokio::test]
async fn a_weight_set_by_hand_survives_kill_9() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CANARY, &up).await;
    lockgate(&gateway, &["rollout", "set", "tag-v2", "0.01%"]).await;
    lockgate(&gateway, &["rollout", "set", "tag-v2", "61.5%"]).await;
    let before = versions(&gateway, 300).await;
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(versions(&gateway, 300).await, before);
    gateway.settles("lockgate_rollout_weight_ratio", &["rollout=\"tag-v2\""], 0.615).await;
    let audit = std::fs::read_to_string(gateway.path().join("state/audit.log"))
        .or_else(|_| std::fs::read_to_string(gateway.path().join("state/audit.jsonl")));
    let audit = audit.expect("an audit log");
    assert!(audit.contains("61.5"), "{audit}");
}

#[tokio::test]
async fn a_trusted_peer_chooses_its_track_and_reaches_a_canary_at_zero() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&CANARY.replace("weight: 20%", "weight: 0%"), &up).await;
    assert_eq!(gateway.get("/").await.header("x-tag"), "v1");
    let reply = gateway.get_with("/", "x-lockgate-track", "canary").await;
    assert_eq!(reply.header("x-tag"), "v2");
    assert_eq!(reply.seen().header("x-lockgate-track"), "");
}

#[tokio::test]
async fn a_peer_that_is_not_trusted_chooses_nothing_whatever_it_says_of_itself() {
    let up = Upstream::start().await;
    let config = CANARY.replace("weight: 20%", "weight: 0%").replace("127.0.0.0/8", "192.0.2.0/24");
    // Also where its word about clients is believed, as that of a proxy is: a track is asked for by who is connected.
    for proxies in ["", "server: { trusted_proxies: [127.0.0.0/8] }\n"] {
        let gateway = Gateway::start(&format!("{proxies}{config}"), &up).await;
        for forwarded in [None, Some("192.0.2.7"), Some("192.0.2.7, 127.0.0.1")] {
            let mut request = gateway.client().get(gateway.url("/")).header("x-lockgate-track", "canary");
            if let Some(forwarded) = forwarded {
                request = request.header("x-forwarded-for", forwarded);
            }
            let reply = gateway.send(request).await;
            assert_eq!(reply.header("x-tag"), "v1", "{proxies}{forwarded:?}");
            assert_eq!(reply.seen().header("x-lockgate-track"), "", "{proxies}{forwarded:?}");
        }
    }
}

#[tokio::test]
async fn keys_are_read_from_path_cookie_and_query() {
    let up = Upstream::start().await;
    let config = CANARY.replace("weight: 20%", "weight: 50%");
    for kind in ["path", "{ cookie: sid }", "{ query: user }"] {
        let gateway = Gateway::start(&config.replace("{ header: x-user-id }, client_ip", kind), &up).await;
        // What is no part of the key differs each time.
        let ask = async |key: &str, other: usize| {
            let request = match kind {
                "path" => gateway.client().get(gateway.url(&format!("/{key}?n={other}"))),
                "{ cookie: sid }" => {
                    let request = gateway.client().get(gateway.url(&format!("/{other}")));
                    request.header("cookie", format!("n={other}; sid={key}; sidecar=x"))
                }
                _ => gateway.client().get(gateway.url(&format!("/{other}?n={other}&user={key}"))),
            };
            gateway.send(request).await.header("x-tag").to_owned()
        };
        let mut on_canary = 0;
        for key in 0..40 {
            let key = format!("key-{key}");
            let version = ask(&key, 0).await;
            for other in 1..4 {
                assert_eq!(ask(&key, other).await, version, "{kind} {key}");
            }
            let hashed = if kind == "path" { format!("/{key}") } else { key };
            let said = lockgate(&gateway, &["explain", "tag-v2", &hashed]).await;
            let track = if version == "v2" { "track:      canary" } else { "track:      stable" };
            assert!(said.contains(track), "{kind} {hashed} got {version}: {said}");
            on_canary += usize::from(version == "v2");
        }
        // Binomial, 40 draws of one half: outside with a chance of one in a million.
        assert!((5..=35).contains(&on_canary), "{kind}: {on_canary}");
        if kind != "path" {
            for _ in 0..20 {
                assert_eq!(gateway.get("/none?other=key-1").await.header("x-tag"), "v1", "{kind}: without a key");
            }
        }
    }
}

#[tokio::test]
async fn explain_says_what_the_gateway_does() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CANARY, &up).await;
    for user in 0..50 {
        let user = format!("user-{user}");
        let got = gateway.get_with("/", "x-user-id", &user).await.header("x-tag").to_owned();
        let said = lockgate(&gateway, &["explain", "tag-v2", &user]).await;
        let expected = if got == "v2" { "canary" } else { "stable" };
        assert!(said.contains(expected), "{user} got {got}: {said}");
    }
}

#[tokio::test]
async fn rollouts_with_one_salt_send_the_same_users_to_both_canaries() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"], app-v2: ["${OTHER}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  filter: { filter: tag, canary: { settings: { value: v2 } }, weight: 30%, salt: both, key: [{ header: x-user-id }] }
  upstream: { upstream: app, canary: app-v2, weight: 30%, salt: both, key: [{ header: x-user-id }] }
"#;
    let other = Upstream::named("canary").await;
    let builder = harness::Builder::new(config).upstream(&up).variable("OTHER", &other.address.to_string());
    let gateway = builder.guest(lockgate_guests::Guest::Tag).start().await;
    let mut canary = 0;
    for user in 0..500 {
        let reply = gateway.get_with("/", "x-user-id", &format!("user-{user}")).await;
        let both = (reply.header("x-tag"), reply.header("x-upstream"));
        assert!(both == ("v1", "upstream") || both == ("v2", "canary"), "{both:?}");
        canary += usize::from(both.0 == "v2");
    }
    assert!((100..=200).contains(&canary), "{canary}");
}

/// Invariant 1: a request sees both halves of a move, or neither.
#[tokio::test]
async fn no_request_sees_half_of_a_promotion() {
    let up = Upstream::start().await;
    let config = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts: { r: { filter: tag, canary: { settings: { value: v2 } }, weight: 50%, key: [{ header: x-user-id }] } }
"#;
    let gateway = Gateway::start(config, &up).await;
    let moving = async {
        for weight in ["10%", "90%", "0%", "100%", "50%"] {
            lockgate(&gateway, &["rollout", "set", "r", weight]).await;
        }
        lockgate(&gateway, &["rollout", "promote", "r"]).await;
    };
    let asking = async {
        for user in 0..2_000 {
            let reply = gateway.get_with("/echo", "x-user-id", &format!("user-{user}")).await;
            // The request's phase and the response's phase met the same version.
            assert_eq!(reply.seen().header("x-tag-request"), reply.header("x-tag"));
        }
    };
    tokio::join!(moving, asking);
}

#[tokio::test]
async fn a_corrupted_state_file_is_set_aside_and_said_and_stable_serves() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CANARY, &up).await;
    lockgate(&gateway, &["rollout", "set", "tag-v2", "100%"]).await;
    gateway.kill().await;
    let state = gateway.path().join("state");
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(".json") && path.is_file() {
            std::fs::write(&path, b"{ not json").unwrap();
        }
    }
    gateway.launch().await;
    gateway.says("corrupt").await;
    assert!(on_canary(&versions(&gateway, 300).await).len() < 100);
    assert!(gateway.metric("lockgate_state_corruptions_total", &[]).await >= 1.0);
}
