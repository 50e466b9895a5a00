//! The key-value store that outlives the process: across requests, processes and their ends.

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::{Builder, Gateway, Successor, Upstream};
use lockgate_guests::Guest;
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A filter that counts requests, and a function that does what it is told. Both have time: a busy machine is not what is
/// tested.
const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  counter: { component: filters/counter.wasm, grants: { key_value: default }, limits: { deadline: 20s } }
functions:
  keeper: { component: filters/keeper.wasm, config: { greeting: "${GREETING:-hello}" }, grants: { key_value: [default, visits] } }
routes:
  - { match: { path: /counted/* }, filters: [counter], upstream: app }
  - { match: { path: /* }, function: keeper }
rollouts:
  keeper-2: { function: keeper, canary: { config: { greeting: hi } }, weight: 50%, key: [{ header: x-user }] }
"#;

/// Sends requests, many at a time, and returns the counts that they were told, in order. Those below `/counted` are told
/// by the filter to the upstream.
async fn counts(gateway: &Gateway, path: &str, requests: usize) -> Vec<u64> {
    let mut counts = Vec::new();
    for some in (0..requests).collect::<Vec<_>>().chunks(100) {
        let sent = some.iter().map(async |user| gateway.get_with(path, "x-user", &user.to_string()).await);
        for reply in futures_util::future::join_all(sent).await {
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            let count =
                if path.starts_with("/counted") { reply.seen().header("x-count").to_owned() } else { reply.text() };
            counts.push(count.parse().unwrap());
        }
    }
    counts.sort_unstable();
    counts
}

fn all(requests: u64) -> Vec<u64> {
    (1..=requests).collect()
}

#[tokio::test]
async fn a_thousand_parallel_increments_are_a_thousand_and_survive_a_kill() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    assert_eq!(counts(&gateway, "/counted/a", 1_000).await, all(1_000), "the filter's");
    assert_eq!(counts(&gateway, "/count?hits", 1_000).await, all(1_000), "the function's, of stable and canary");
    for track in ["stable", "canary"] {
        let calls = gateway.metric("lockgate_function_calls_total", &[&format!("track=\"{track}\"")]).await;
        assert!(calls > 300.0, "{track} had {calls}");
    }

    gateway.kill().await;
    gateway.launch().await;

    let reply = gateway.get("/counted/after").await;
    assert_eq!(reply.seen().header("x-count"), "1001");
    assert_eq!(reply.seen().header("x-last-path"), "/counted/a");
    assert_eq!(gateway.get("/count?hits").await.text(), "1001");
    let kept = std::fs::metadata(gateway.path().join("state/key-value.db")).expect("the store's file");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&kept.permissions()) & 0o777, 0o600);
}

#[tokio::test]
async fn what_was_answered_before_a_kill_under_load_is_kept() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    let url = gateway.url("/count?hits");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (client, url) = (gateway.client().clone(), url.clone());
            tokio::spawn(async move {
                let (mut sent, mut answered) = (0_u64, 0_u64);
                loop {
                    sent += 1;
                    match client.get(&url).send().await {
                        Ok(reply) if reply.status() == StatusCode::OK => answered += 1,
                        Ok(reply) => panic!("{}", reply.status()),
                        Err(_) => return (sent, answered),
                    }
                }
            })
        })
        .collect();
    while gateway.metric_or_zero("lockgate_key_value_operations_total", &["operation=\"increment\""]).await < 200.0 {
        tokio::task::yield_now().await;
    }
    gateway.kill().await;
    let (mut sent, mut answered) = (0, 0);
    for task in tasks {
        let (of_one, told) = task.await.unwrap();
        sent += of_one;
        answered += told;
    }
    gateway.launch().await;
    let kept: u64 = gateway.get("/get?hits").await.text().parse().unwrap();
    assert!((answered..=sent).contains(&kept), "{answered} were answered of {sent}, {kept} are kept");
    assert!(answered >= 100, "only {answered} were answered");
}

#[tokio::test]
async fn two_processes_count_together_during_an_upgrade() {
    let up = Upstream::start().await;
    let config = format!("server: {{ drain: 20s }}\n{CONFIG}");
    let gateway = Gateway::start(&config, &up).await;
    let (successor, mut seen): (Successor, Vec<u64>) =
        tokio::join!(gateway.upgrade(), async { counts(&gateway, "/count?hits", 600).await });
    seen.extend(counts(&gateway, "/count?hits", 100).await);
    seen.sort_unstable();
    assert_eq!(seen, all(700));
    drop(successor);
}

#[tokio::test]
async fn without_a_space_what_a_filter_keeps_is_lost_with_the_process() {
    let up = Upstream::start().await;
    let config =
        CONFIG.replace("grants: { key_value: default }, limits: { deadline: 20s }", "limits: { deadline: 1s }");
    let mut gateway = Gateway::start(&config, &up).await;
    assert_eq!(counts(&gateway, "/counted/a", 10).await, all(10));
    let memory = ["store=\"memory\"", "space=\"filter/counter\""];
    gateway.settles("lockgate_key_value_entries", &memory, 2.0).await;
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(counts(&gateway, "/counted/a", 1).await, [1]);
}

#[tokio::test]
async fn metrics_tell_operations_sizes_and_what_did_not_fit() {
    let up = Upstream::start().await;
    let tight = "limits: { key_value_entries: 2 }, grants: { key_value: [default, visits] } }\nroutes";
    let config = CONFIG.replace("grants: { key_value: [default, visits] } }\nroutes", tight);
    let gateway = Gateway::start(&config, &up).await;
    for (path, said) in [("/set?a=1", "set"), ("/count?b", "1"), ("/get?a", "1"), ("/in/visits/set?a=12345", "set")] {
        assert_eq!(gateway.get(path).await.text(), said, "{path}");
    }
    let reply = gateway.get("/set?c=1").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "the guest says so");
    assert!(reply.text().starts_with("other: it does not fit"), "{}", reply.text());
    let own = ["store=\"shared\"", "space=\"function/keeper\""];
    gateway.settles("lockgate_key_value_entries", &own, 2.0).await;
    gateway.settles("lockgate_key_value_bytes", &own, 132.0).await;
    gateway.settles("lockgate_key_value_refused_total", &own, 1.0).await;
    gateway.settles("lockgate_key_value_bytes", &["space=\"shared/visits\""], 70.0).await;
    for (operation, outcome, count) in [
        ("set", "done", 2.0),
        ("set", "full", 1.0),
        ("increment", "done", 1.0),
        ("get", "done", 1.0),
        ("get", "failed", 0.0),
    ] {
        let labels = [format!("operation=\"{operation}\""), format!("outcome=\"{outcome}\"")];
        let counted = gateway.metric("lockgate_key_value_operations_total", &[&labels[0], &labels[1]]).await;
        assert_eq!(counted, count, "{operation} {outcome}");
    }
    assert!(gateway.metric("lockgate_key_value_wait_seconds_total", &["operation=\"set\""]).await > 0.0);
}

#[tokio::test]
async fn a_function_reads_its_configuration_and_speaks_in_the_log() {
    let up = Upstream::start().await;
    let builder = Builder::new(CONFIG).upstream(&up).guest(Guest::Counter).guest(Guest::Keeper);
    let gateway = builder.variable("GREETING", "good day").start().await;
    let told = |reply: harness::Reply| reply.text();
    let mut greetings: Vec<_> = Vec::new();
    for user in 0..20 {
        greetings.push(told(gateway.get_with("/config", "x-user", &user.to_string()).await));
    }
    greetings.sort();
    greetings.dedup();
    assert_eq!(greetings, [r#"greeting=good day Some("good day") None"#, r#"greeting=hi Some("hi") None"#]);
    gateway.get_with("/log?word", "x-request-id", "request-of-mine").await;
    let line = gateway.says("billing: word").await;
    let text = line.to_string();
    for part in ["\"function\":\"keeper\"", "\"track\":\"", "\"request_id\":\"", "\"level\":\"INFO\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    gateway.write_config(&CONFIG.replace("${GREETING:-hello}", "bonjour"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    let again = told(gateway.get_with("/config", "x-user", "0").await);
    assert!(again.contains("bonjour") || again.contains("hi"), "{again}");
}

/// A server on a port of its own.
struct Redis {
    process: Child,
    url: String,
    port: u16,
    dir: TempDir,
}

impl Redis {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let process = Self::launch(port, dir.path()).await;
        Self { process, url: format!("redis://127.0.0.1:{port}/1"), port, dir }
    }

    /// Ends as in a power failure, and comes back with what it had written.
    async fn restart(&mut self) {
        self.process.kill().await.unwrap();
        self.process = Self::launch(self.port, self.dir.path()).await;
    }

    async fn launch(port: u16, dir: &Path) -> Child {
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "no", "--dir"])
            .arg(dir)
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("this test needs `redis-server`: `.ci/setup test` installs it as root, or `apt-get install redis-server`");
        let began = std::time::Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "redis-server does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        process
    }
}

/// Counts one more, as soon as the store can be had again. What failed was not counted.
async fn counted_again(gateway: &Gateway) -> String {
    let began = std::time::Instant::now();
    loop {
        let reply = gateway.get("/count?hits").await;
        if reply.status == StatusCode::OK {
            return reply.text();
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{}", reply.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn gateways_count_together_where_the_store_is_a_server() {
    let mut redis = Redis::start().await;
    let up = Upstream::start().await;
    let config = format!("server: {{ key_value: {{ redis: \"${{REDIS}}\" }} }}\n{CONFIG}");
    let start = || {
        let builder = Builder::new(&config).upstream(&up).guest(Guest::Counter).guest(Guest::Keeper);
        builder.variable("REDIS", &redis.url).start()
    };
    let (mut one, two) = (start().await, start().await);
    for path in ["/counted/a", "/count?hits"] {
        let (mut seen, others) = tokio::join!(counts(&one, path, 500), counts(&two, path, 500));
        seen.extend(others);
        seen.sort_unstable();
        assert_eq!(seen, all(1_000), "{path}");
    }
    one.kill().await;
    one.launch().await;
    assert_eq!(one.get("/count?hits").await.text(), "1001", "a kill loses nothing");
    one.settles("lockgate_key_value_entries", &["space=\"function/keeper\""], 1.0).await;
    assert!(!one.path().join("state/key-value.db").exists());

    redis.restart().await;
    let after = counted_again(&two).await;
    assert_eq!(after, "1002", "nor does one of the store, and nobody has to be started anew");

    redis.process.kill().await.unwrap();

    let reply = one.get("/counted/b").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    one.settles("lockgate_filter_failures_total", &["kind=\"store\""], 1.0).await;
    one.says("the key-value store failed").await;
    let reply = one.get("/count?hits").await;
    assert!(reply.text().starts_with("other: the key-value store failed"), "{}", reply.text());
    assert_eq!(one.get("/insist?a=b").await.status, StatusCode::SERVICE_UNAVAILABLE);
    one.settles("lockgate_function_failures_total", &["kind=\"store\""], 1.0).await;
}
