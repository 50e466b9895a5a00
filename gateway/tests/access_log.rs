//! What the access log says, where it goes, and what it leaves out.

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::Value;

fn config(access_log: &str) -> String {
    format!(
        r#"
server: {{ access_log: {access_log} }}
upstreams: {{ app: ["${{UPSTREAM}}"], gone: ["127.0.0.1:1"] }}
routes:
  - {{ name: app, upstream: app }}
  - {{ name: gone, match: {{ path: /gone }}, upstream: gone }}
"#
    )
}

async fn start(access_log: &str, up: &Upstream) -> Gateway {
    Gateway::start(&config(access_log), up).await
}

/// A text line that holds something; waits for it.
async fn line(gateway: &Gateway, part: &str) -> String {
    let holds = |line: &Value| line.as_str().is_some_and(|line| line.contains(part));
    gateway.logged(holds).await.as_str().unwrap().to_owned()
}

/// Waits until a file has so many lines, and returns them.
async fn lines_of(file: &Path, count: usize) -> Vec<String> {
    let wait = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            // Nothing tells that a file has grown.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the lines are written")
}

#[tokio::test]
async fn a_template_says_what_it_was_asked_for_and_a_dash_for_what_is_not_there() {
    let up = Upstream::start().await;
    let template = r#"'{method} "{target}" {status} {route} {upstream}@{upstream_address} {upstream_track} {attempts} {request_header:x-tenant} {response_header:x-upstream} {error} {tls_version} {{{protocol}}} {user_agent}'"#;
    let gateway = start(&format!("{{ format: {template} }}"), &up).await;
    let request = gateway.client().get(gateway.url("/a/b?c=d&token=s3cret")).header("x-tenant", "a\"b");
    gateway.send(request.header("user-agent", "probe/1")).await;
    let line = line(&gateway, "/a/b").await;
    let expected = format!(
        r#"GET "/a/b?c=d&token=***" 200 app app@{} stable 1 a\x22b upstream - - {{HTTP/1.1}} probe/1"#,
        up.address
    );
    assert_eq!(line, expected);
}

#[tokio::test]
async fn the_combined_format_is_what_analysers_of_web_servers_logs_read() {
    let up = Upstream::start().await;
    let gateway = start("{ format: combined }", &up).await;
    let request = gateway.client().get(gateway.url("/page?key=k")).header("referer", "http://a/?token=t");
    gateway.send(request.header("user-agent", "probe/1")).await;
    let line = line(&gateway, "/page").await;
    let (before, rest) = line.split_once('[').unwrap();
    let (time, rest) = rest.split_once(']').unwrap();
    assert_eq!(before, "127.0.0.1 - - ");
    assert!(time.len() == 26 && time.ends_with(" +0000"), "{time}");
    let (request, rest) = rest.split_at(r#" "GET /page?key=*** HTTP/1.1" 200 "#.len());
    assert_eq!(request, r#" "GET /page?key=*** HTTP/1.1" 200 "#);
    let (bytes, rest) = rest.split_once(' ').unwrap();
    assert!(bytes.parse::<u64>().is_ok_and(|bytes| bytes > 0), "{bytes}");
    assert_eq!(rest, r#""http://a/?token=***" "probe/1""#);
}

#[tokio::test]
async fn a_file_is_private_and_opened_anew_where_somebody_moved_it_away() {
    let up = Upstream::start().await;
    let gateway = start("{ file: access.log }", &up).await;
    let file = gateway.path().join("access.log");
    gateway.get("/first").await;
    assert!(lines_of(&file, 1).await[0].contains("/first"));
    // The umask may take more away.
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777 & !0o640, 0);

    let moved = gateway.path().join("access.log.1");
    std::fs::rename(&file, &moved).unwrap();
    gateway.get("/between").await;
    assert!(lines_of(&moved, 2).await[1].contains("/between"));
    gateway.signal(Signal::USR1);
    gateway.says("opening the access log anew").await;
    gateway.get("/after").await;
    let lines = lines_of(&file, 1).await;
    assert!(lines.len() == 1 && lines[0].contains("/after"), "{lines:?}");
    assert_eq!(lines_of(&moved, 2).await.len(), 2);
    gateway.settles("lockgate_access_log_dropped_total", &[], 0.0).await;
}

#[tokio::test]
async fn a_reload_moves_the_log_and_one_that_could_not_be_written_is_refused() {
    let up = Upstream::start().await;
    let gateway = start("stdout", &up).await;
    gateway.get("/first").await;
    gateway.logged(|line| line["path"] == "/first").await;

    gateway.write_config(&config("{ file: nowhere/access.log }"));
    let refused = gateway.reload().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.text().contains("`nowhere` is no folder"), "{}", refused.text());

    gateway.write_config(&config("{ file: access.log }"));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    gateway.get("/second").await;
    assert!(lines_of(&gateway.path().join("access.log"), 1).await[0].contains("/second"));
    assert!(gateway.access_log().iter().all(|line| line["path"] != "/second"));
}

#[tokio::test]
async fn of_many_requests_a_share_is_logged_and_those_that_failed_all_are() {
    let up = Upstream::start().await;
    let mut gateway = start("{ sample: 10% }", &up).await;
    for _ in 0..200 {
        gateway.get("/fine").await;
    }
    for _ in 0..5 {
        assert_eq!(gateway.get("/gone").await.status, StatusCode::BAD_GATEWAY);
        gateway.get("/status/503").await;
    }
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    let lines = gateway.whole_access_log().await;
    let failed = |line: &&Value| line["status"].as_u64() >= Some(500);
    let (bad, fine): (Vec<_>, Vec<_>) = lines.iter().partition(failed);
    assert_eq!(bad.len(), 10);
    assert!(bad.iter().all(|line| line["sample"] == 1.0), "{bad:?}");
    // With chances of one in a million each it would be outside: binomial, 200 draws of 10 %.
    assert!((3..=44).contains(&fine.len()), "{}", fine.len());
    assert!(fine.iter().all(|line| line["sample"] == 0.1), "{fine:?}");
}

#[tokio::test]
async fn a_line_of_json_has_what_was_asked_for_and_no_secret() {
    let up = Upstream::start().await;
    let log = "{ query: true, headers: [X-Tenant, Cookie, X-Card], redact: { headers: [cookie, x-card], query: [pin], client: true } }";
    let gateway = start(log, &up).await;
    let request = gateway.client().get(gateway.url("/pay?pin=1234&token=t"));
    let request = request.header("x-tenant", "acme").header("cookie", "sid=1").header("x-card", "4111");
    gateway.send(request).await;
    let line = gateway.logged(|line| line["path"] == "/pay").await;
    assert_eq!(line["query"], "pin=***&token=t");
    assert_eq!(line["headers"], serde_json::json!({ "x-tenant": "acme", "cookie": "***", "x-card": "***" }));
    assert_eq!(line["client"], "127.0.0.0");
    assert_eq!(line.get("sample"), None);
    for secret in ["1234", "sid=1", "4111"] {
        assert!(!line.to_string().contains(secret), "{line}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_one_is_a_reason_not_to_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("access.log")).unwrap();
    let head =
        "listeners: [\"127.0.0.1:0\"]\nadmin: { address: \"127.0.0.1:0\" }\nupstreams: { app: [\"127.0.0.1:1\"] }\n";
    let rest = "server: { access_log: { file: access.log } }\nroutes: [{ upstream: app }]\n";
    std::fs::write(dir.path().join("lockgate.yaml"), format!("{head}{rest}")).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_lockgate"))
        .args(["run", "--config", "lockgate.yaml"])
        .current_dir(dir.path())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("`access.log` is a folder"), "{said}");
    assert!(said.contains("server.access_log.file"), "{said}");
}

#[tokio::test]
async fn a_whole_line_of_a_request_on_canaries() {
    let up = Upstream::start().await;
    let config = r#"
server: { access_log: { query: true, headers: [x-tenant, authorization] } }
upstreams: { app: ["127.0.0.1:1"], app-2: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
  set: { component: filters/read-set.wasm }
routes: [{ name: app, filters: [set, tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 100%, key: [client_ip] }
  app-2: { upstream: app, canary: app-2, weight: 100%, key: [client_ip] }
"#;
    let gateway = Gateway::start(config, &up).await;
    let request = gateway.client().post(gateway.url("/text/hello?a=b&token=s3cret")).body("body");
    let request = request.header("x-tenant", "acme").header("authorization", "Bearer s3cret");
    gateway.send(request.header("user-agent", "probe/1")).await;

    let mut line = gateway.logged(|line| line["path"] == "/text/hello").await;
    let took = line["duration_ms"].as_f64().unwrap();
    let header = line["upstream"]["header_ms"].as_f64().unwrap();
    let spent: Vec<f64> =
        line["filters"].as_array().unwrap().iter().map(|filter| filter["us"].as_f64().unwrap()).collect();
    assert!(spent.iter().all(|us| *us > 0.0) && header > 0.0, "{line}");
    assert!(took >= header + spent.iter().sum::<f64>() / 1_000.0, "the parts fit into the whole: {line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    assert_eq!(line["host"], gateway.http().to_string());
    assert_eq!(line["upstream"]["address"], up.address.to_string());
    let tag = &line["filters"][1];
    assert_ne!(tag["version"], line["filters"][0]["version"]);
    for place in ["/time", "/id", "/host", "/bytes_sent", "/duration_ms", "/upstream/address", "/upstream/header_ms"]
        .into_iter()
        .chain(["/filters/0/version", "/filters/0/us", "/filters/1/version", "/filters/1/us"])
    {
        *line.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = "…".into();
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&line).unwrap(), @r#"
    {
      "time": "…",
      "id": "…",
      "client": "127.0.0.1",
      "method": "POST",
      "host": "…",
      "path": "/text/hello",
      "query": "a=b&token=***",
      "protocol": "HTTP/1.1",
      "user_agent": "probe/1",
      "headers": {
        "x-tenant": "acme",
        "authorization": "***"
      },
      "status": 200,
      "bytes_received": 4,
      "bytes_sent": "…",
      "duration_ms": "…",
      "route": "app",
      "upstream": {
        "name": "app-2",
        "track": "canary",
        "address": "…",
        "attempts": 1,
        "header_ms": "…"
      },
      "filters": [
        {
          "name": "set",
          "version": "…",
          "track": "stable",
          "outcome": "continue",
          "us": "…"
        },
        {
          "name": "tag",
          "version": "…",
          "track": "canary",
          "outcome": "continue",
          "us": "…"
        }
      ],
      "generation": 1
    }
    "#);
}

/// What the operator keeps out of the file, it keeps out of what is said, whatever goes wrong.
#[tokio::test]
async fn a_secret_is_in_no_line_and_in_no_answer() {
    let (setting, token) = ("hunter2-of-the-settings", "hunter2-of-the-operator");
    let config = r#"
server: { watch: false, access_log: { query: true, headers: [authorization, x-tenant] } }
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: "${SETTING}" } }
  trap: { component: filters/trap.wasm, settings: { phase: on_request, when: "x-${SETTING}" } }
  other: { component: filters/read-set.wasm }
routes: [{ name: app, filters: [trap, other, tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: "${SETTING}-2" } }, weight: 50%, key: [client_ip] }
"#;
    let up = Upstream::start().await;
    let mut builder = Builder::new(config).upstream(&up).variable("SETTING", setting).token(token);
    for guest in [Guest::Tag, Guest::Trap, Guest::ReadSet] {
        builder = builder.guest(guest);
    }
    let mut gateway = builder.start().await;
    let answered = gateway.get("/").await;
    assert!(answered.header("x-tag").starts_with(setting), "the filter has it: {answered:?}");
    let failed = gateway.get_with("/", &format!("x-{setting}"), "1").await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE);
    gateway.says("filter failed").await;

    let call = |method: Method, path: &str| {
        gateway.client().request(method, gateway.admin_url(path)).bearer_auth(token).send()
    };
    for (wrong, said) in [
        (config.replace("weight: 50%", "wieght: 50%"), "`wieght`"),
        // The filter's own complaint quotes what it got.
        (config.replace("value: \"${SETTING}\"", "value: v, append: \"${SETTING}\""), "`append`"),
        (config.replace("phase: on_request", "phase: \"${SETTING}\""), "`phase`"),
        (config.replace("read-set.wasm }", "read-set.wasm, settings: { no: \"${SETTING}\" } }"), "filter `other`"),
    ] {
        gateway.write_config(&wrong);
        let refused = harness::Reply::read(call(Method::POST, "/api/v1/reload").await.unwrap()).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text());
        assert!(refused.text().contains(said), "{said}: {}", refused.text());
        assert!(!refused.text().contains("hunter2"), "{}", refused.text());
    }

    let description: Value = call(Method::GET, "/openapi.json").await.unwrap().json().await.unwrap();
    let mut answers = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        // What never ends says what the audit log does.
        if item.get("get").is_some() && path != "/api/v1/events" {
            let path = path.replace("{rollout}", "tag-2");
            let answer = call(Method::GET, &path).await.unwrap().text().await.unwrap();
            assert!(!answer.contains("hunter2"), "{path}: {answer}");
            answers += 1;
        }
    }
    assert!(answers > 8, "{answers}");

    gateway.signal(Signal::TERM);
    gateway.ended().await;
    let logged = gateway.whole_log().await;
    assert!(logged.iter().any(|line| line.to_string().contains("filter failed")), "{logged:?}");
    let printed = gateway.whole_access_log().await;
    assert_eq!(printed.len(), 2);
    for line in logged.iter().chain(&printed) {
        assert!(!line.to_string().contains("hunter2"), "{line}");
    }
}
