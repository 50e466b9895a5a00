//! A canary in the shadow of stable: it is compared, and nobody else notices.

mod harness;

use std::time::{Duration, Instant};

use harness::{Gateway, Reply, Upstream};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// One filter, with a canary that is its shadow. It is compared to the end, whatever is found.
fn config(filter: &str, canary: &str, shadow: &str) -> String {
    format!(
        r#"
upstreams: {{ app: ["${{UPSTREAM}}"] }}
filters:
  subject: {filter}
routes: [{{ filters: [subject], upstream: app }}]
rollouts:
  next:
    filter: subject
    canary: {canary}
    mode: shadow
    shadow: {shadow}
    guard: {{ agreement: 1% }}
"#
    )
}

/// On every request, with a whole core.
const ALL: &str = "{ sample: 100%, cpu: 100% }";

async fn shadow(gateway: &Gateway) -> Value {
    let reply = gateway.admin(Method::GET, "/api/v1/rollouts/next/shadow", None).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    serde_json::from_str(&reply.text()).expect("JSON")
}

fn sum(view: &Value, list: &str) -> u64 {
    view[list].as_array().into_iter().flatten().filter_map(|item| item["requests"].as_u64()).sum()
}

fn of(view: &Value, list: &str, name: &str) -> u64 {
    let items = view[list].as_array().into_iter().flatten();
    items
        .filter(|item| item["kind"] == name || item["reason"] == name)
        .filter_map(|item| item["requests"].as_u64())
        .sum()
}

/// What the shadow found, once all sampled requests have been compared or skipped.
async fn settled(gateway: &Gateway, sampled: u64) -> Value {
    let began = Instant::now();
    loop {
        let view = shadow(gateway).await;
        if view["compared"].as_u64().unwrap_or(0) + sum(&view, "skipped") >= sampled {
            return view;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{view:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_shadow_that_writes_a_counter_leaves_the_counter_alone() {
    for stable in [
        "{ component: filters/counter.wasm, isolation: reused }",
        "{ component: filters/counter.wasm, grants: { key_value: default }, limits: { deadline: 20s } }",
    ] {
        leaves_the_counter_alone(stable).await;
    }
}

async fn leaves_the_counter_alone(stable: &str) {
    let up = Upstream::start().await;
    let keeps = stable.contains("key_value");
    // The same component: another grant makes another version.
    let key_value = if keeps { "default" } else { "[]" };
    let canary = format!("{{ grants: {{ outbound: [\"http://127.0.0.1:9\"], key_value: {key_value} }} }}");
    let gateway = Gateway::start(&config(stable, &canary, ALL), &up).await;
    for request in 1..=50 {
        let reply = gateway.get(&format!("/{request}")).await;
        assert_eq!(reply.header("x-count"), request.to_string(), "nobody else counts");
    }
    let view = settled(&gateway, 50).await;
    assert_eq!((&view["compared"], &view["agreed"]), (&50.into(), &50.into()), "{view:#}");
    assert_eq!(view["running"], true);
    assert_eq!(gateway.get("/51").await.header("x-count"), "51");
    settled(&gateway, 51).await;
    let counted = gateway.metric("lockgate_filter_custom_requests_total", &["filter=\"subject\""]).await;
    assert_eq!(counted, 51.0, "the shadow's metrics are dropped");
    gateway.settles("lockgate_filter_calls_total", &["track=\"canary\""], 0.0).await;
    gateway.settles("lockgate_shadow_compared_total", &["verdict=\"agreed\""], 51.0).await;
    assert_eq!(up.requests(), 51);
}

#[tokio::test]
async fn a_header_that_changes_on_one_per_cent_of_the_inputs_is_found_on_one_per_cent() {
    const REQUESTS: u64 = 3_000;
    let up = Upstream::start().await;
    let config = config(
        "{ component: filters/tag.wasm, settings: { value: plain } }",
        "{ settings: { value: plain, instead: { when: x-odd, value: hidden-value } } }",
        "{ sample: 50%, cpu: 100% }",
    );
    let gateway = Gateway::start(&config, &up).await;
    for request in 0..REQUESTS {
        let reply = if request % 100 == 7 {
            gateway.get_with("/odd?key=hidden-key", "x-odd", "1").await
        } else {
            gateway.get("/even").await
        };
        assert_eq!(reply.header("x-tag"), "plain", "users see stable only");
        assert_eq!(reply.seen().header("x-tag-request"), "plain", "so does the upstream");
    }
    // How many were sampled is known only by what came of them: those that were not wait for nobody.
    let view = settled(&gateway, 1_350).await;
    let compared = view["compared"].as_u64().unwrap();
    assert!((1_350..=1_650).contains(&(compared + sum(&view, "skipped"))), "{view:#}");
    // 15 are expected; as few as 2 or as many as 28 come about once in a million runs.
    let differ = of(&view, "differences", "request-headers");
    assert!((2..=28).contains(&differ), "{view:#}");
    assert_eq!(of(&view, "differences", "response-headers"), differ);
    assert_eq!(compared - view["agreed"].as_u64().unwrap(), differ);
    let example = &view["examples"][0];
    assert_eq!((&example["path"], &example["method"]), (&"/odd".into(), &"GET".into()));
    let names: Vec<&str> =
        example["differences"].as_array().unwrap().iter().filter_map(|found| found["name"].as_str()).collect();
    assert_eq!(names, ["x-tag-request", "x-tag"]);
    assert!(!view.to_string().contains("hidden"), "{view:#}");
    let (status, said) = gateway.cli(&["rollout", "shadow", "next"]).await;
    assert!(status.success() && said.contains("request-headers `x-tag-request` in on-request"), "{said}");
}

#[tokio::test]
async fn a_canary_that_traps_or_loops_hurts_nobody_and_is_told_by_kind() {
    let up = Upstream::start().await;
    let policy = "on_failure: { fall-back: { failures: 2 } }, limits: { deadline: 20ms }";
    for (guest, kind) in [("trap", "trap"), ("spin", "deadline")] {
        let settings = |when: &str| format!("{{ settings: {{ phase: on_request, when: {when} }} }}");
        let stable = format!(
            "{{ component: filters/{guest}.wasm, settings: {{ phase: on_request, when: x-never }}, {policy} }}"
        );
        let gateway = Gateway::start(&config(&stable, &settings("x-odd"), ALL), &up).await;
        for request in 0..40 {
            let reply = match request % 4 {
                0 => gateway.get_with("/", "x-odd", "1").await,
                _ => gateway.get("/").await,
            };
            assert_eq!(reply.status, StatusCode::OK, "{guest}");
        }
        let view = settled(&gateway, 40).await;
        assert_eq!(of(&view, "differences", kind), 10, "{guest}: {view:#}");
        assert_eq!((&view["compared"], &view["agreed"]), (&40.into(), &30.into()), "{guest}: {view:#}");
        assert!(view["examples"][0]["failure"].as_str().is_some_and(|why| why.starts_with(kind)), "{view:#}");
        gateway.settles("lockgate_filter_failures_total", &[], 0.0).await;
        let quarantine = gateway.admin(Method::GET, "/api/v1/quarantine", None).await;
        assert_eq!(quarantine.text(), "[]", "{guest}: a shadow's failures put nothing into quarantine");
        let differing = ["rollout=\"next\"", &format!("kind=\"{kind}\"")];
        gateway.settles("lockgate_shadow_differences_total", &differing, 10.0).await;
    }
}

/// The median time of so many requests, and how many are sent.
async fn median(gateway: &Gateway, requests: usize) -> Duration {
    let mut took = Vec::new();
    for _ in 0..requests {
        let began = Instant::now();
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        took.push(began.elapsed());
    }
    took.sort();
    took[requests / 2]
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_requests_do_not_wait() {
    let up = Upstream::start().await;
    let stable = "{ component: filters/spin.wasm, settings: { when: x-never }, limits: { deadline: 200ms } }";
    let canary = "{ settings: { phase: on_request } }";
    let gateway = Gateway::start(&config(stable, canary, ALL), &up).await;
    // Each comparison takes 200 ms of a core; there is one thread, and room for 256.
    let took = median(&gateway, 500).await;
    let view = shadow(&gateway).await;
    assert!(of(&view, "skipped", "queue-full") > 0, "{view:#}");
    assert_eq!(view["agreed"], 0);
    assert!(took < Duration::from_millis(100), "a request waits for no shadow: {took:?}");
    let dropped = gateway.metric("lockgate_shadow_skipped_total", &["reason=\"queue-full\""]).await;
    assert!(dropped > 0.0);
}

#[tokio::test]
async fn a_shadow_stays_within_its_share_of_a_core() {
    let up = Upstream::start().await;
    let stable = "{ component: filters/spin.wasm, settings: { when: x-never }, limits: { deadline: 30ms } }";
    let canary = "{ settings: { phase: on_request } }";
    let began = Instant::now();
    let gateway = Gateway::start(&config(stable, canary, "{ sample: 100%, cpu: 10% }"), &up).await;
    // Until its share has been used up: a thread of the lowest priority may be let run late.
    let view = loop {
        for _ in 0..50 {
            assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        }
        let view = shadow(&gateway).await;
        if of(&view, "skipped", "cpu-budget") > 0 && began.elapsed() > Duration::from_secs(3) {
            break view;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{view:#}");
    };
    let used = view["cpu_seconds"].as_f64().unwrap();
    // A second ahead, and the one call during which the share was used up.
    let most = (began.elapsed().as_secs_f64() + 1.0) * 0.1 + 0.05;
    assert!(used > 0.0 && used <= most, "{used} of {most} s: {view:#}");
}

async fn post(gateway: &Gateway, body: String) -> Reply {
    gateway.send(gateway.client().post(gateway.url("/")).body(body)).await
}

#[tokio::test]
async fn bodies_are_compared_whole_and_long_ones_not_at_all() {
    let up = Upstream::start().await;
    let stable = "{ component: filters/body-upper.wasm }";
    let shadow = "{ sample: 100%, cpu: 100%, body: 64KiB }";
    let gateway = Gateway::start(&config(stable, "{ component: filters/body-buffer.wasm }", shadow), &up).await;
    assert_eq!(post(&gateway, "small".to_owned()).await.status, StatusCode::OK);
    let view = settled(&gateway, 1).await;
    for kind in ["request-body", "response-body", "request-headers"] {
        assert_eq!(of(&view, "differences", kind), 1, "{kind}: {view:#}");
    }
    post(&gateway, "large".repeat(20_000)).await;
    let view = settled(&gateway, 2).await;
    assert_eq!(of(&view, "skipped", "too-large"), 1, "{view:#}");

    let same = "{ grants: { outbound: [\"http://127.0.0.1:9\"] } }";
    let gateway = Gateway::start(&config(stable, same, shadow), &up).await;
    post(&gateway, "small".to_owned()).await;
    let view = settled(&gateway, 1).await;
    assert_eq!(view["agreed"], 1, "{view:#}");
}

#[tokio::test]
async fn what_was_found_outlives_the_shadow_and_another_sample() {
    let up = Upstream::start().await;
    let config = config("{ component: filters/tag.wasm, settings: { value: v1 } }", "{ settings: { value: v2 } }", ALL);
    let gateway = Gateway::start(&config, &up).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.header("x-tag"), "v1");
    }
    assert_eq!(settled(&gateway, 20).await["compared"], 20);
    gateway.write_config(&config.replace("sample: 100%", "sample: 0.01%"));
    assert!(gateway.reload().await.status.is_success());
    let view = shadow(&gateway).await;
    assert_eq!((&view["compared"], &view["sample"]), (&20.into(), &"0.01%".into()));
    let (status, said) = gateway.cli(&["rollout", "set", "next", "100%"]).await;
    assert!(status.success(), "{said}");
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2", "it serves");
    let view = shadow(&gateway).await;
    assert_eq!((&view["compared"], &view["running"]), (&20.into(), &false.into()));
}

#[tokio::test]
async fn a_rollout_without_a_shadow_has_nothing_to_show() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(
        &config("{ component: filters/tag.wasm, settings: { value: v1 } }", "{ settings: { value: v2 } }", ALL)
            .replace("mode: shadow", "weight: 5%")
            .replace(&format!("shadow: {ALL}"), "")
            .replace("guard: { agreement: 1% }", ""),
        &up,
    )
    .await;
    let reply = gateway.admin(Method::GET, "/api/v1/rollouts/next/shadow", None).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let (status, said) = gateway.cli(&["rollout", "shadow", "next"]).await;
    assert!(!status.success() && said.contains("has no shadow"), "{said}");
}
