//! What an operator looks at the gateway with: `lockgate top` and `lockgate doctor`.

mod harness;

use harness::{Builder, Gateway, Upstream};
use serde_json::Value;

const CONFIG: &str = r#"
server: { instances: 100, instance_memory: 8MiB, limits: { connections: 100 } }
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ name: app, filters: [tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 25%, key: [{ header: x-user-id }] }
"#;

/// Runs `lockgate doctor` in a gateway's folder, with its file.
async fn doctor(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let mut command = gateway.command();
    command.args(["doctor", "--config", "lockgate.yaml"]).args(arguments);
    let output = command.output().await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn finding<'a>(findings: &'a Value, subject: &str) -> &'a Value {
    let found = findings.as_array().unwrap().iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("nothing about {subject} in {findings:#}"))
}

#[tokio::test]
async fn top_tells_what_happened_since_it_looked_first() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let before = gateway.metric("lockgate_requests_total", &[]).await;
    assert_eq!(before, 0.0);
    let load = async {
        loop {
            gateway.get("/").await;
        }
    };
    let (status, said) = tokio::select! {
        said = gateway.cli(&["top", "--once", "--every", "1"]) => said,
        () = load => unreachable!("it goes on for ever"),
    };
    assert!(status.success(), "{said}");
    let row = |name: &str| {
        let row = said.lines().find(|line| line.split_whitespace().next() == Some(name));
        row.unwrap_or_else(|| panic!("no {name} in\n{said}")).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let app = row("app");
    assert!(app[1].parse::<f64>().unwrap() > 0.0 && app[2] == "0%", "{said}");
    assert!(row("tag")[3].parse::<f64>().unwrap() > 0.0, "{said}");
    assert_eq!(row("tag-2")[1..3], ["ramping", "25%"], "{said}");
    let upstreams = said.split("Upstreams").nth(1).unwrap();
    assert!(upstreams.contains("1/1"), "{said}");
}

#[tokio::test]
async fn top_says_that_there_is_no_gateway_before_it_draws() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let output = gateway.command().args(["top", "--admin", "127.0.0.1:1"]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("no gateway answers at `127.0.0.1:1`"), "{said}");
    let (status, said) = gateway.cli(&["top"]).await;
    assert!(!status.success() && said.contains("no terminal"), "{said}");
}

#[tokio::test]
async fn doctor_finds_a_machine_that_is_ready() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let (healthy, said) = doctor(&gateway, &["--json"]).await;
    assert!(healthy, "{said}");
    let findings: Value = serde_json::from_str(&said).unwrap();
    for subject in
        ["configuration", "open files", "memory maps", "clock", "state", "cache", "components", "upstream app"]
    {
        assert_eq!(finding(&findings, subject)["verdict"], "good", "{findings:#}");
    }
}

#[tokio::test]
async fn doctor_says_what_is_wrong_and_what_to_do() {
    let up = Upstream::start().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::start(CONFIG, &up).await;
    let config = format!(
        r#"
server: {{ instances: 100, instance_memory: 8MiB, access_log: {{ file: logs/access.log }} }}
listeners: ["{}"]
tracing: {{ otlp: "http://127.0.0.1:1" }}
upstreams: {{ app: ["${{UPSTREAM}}", "127.0.0.1:1"], gone: ["127.0.0.1:1"] }}
filters: {{ tag: {{ component: filters/nobody.wasm }} }}
routes: [{{ filters: [tag], upstream: app }}]
"#,
        taken.local_addr().unwrap()
    );
    gateway.write_config(&config);
    let (healthy, said) = doctor(&gateway, &["--json"]).await;
    assert!(!healthy);
    let findings: Value = serde_json::from_str(&said).unwrap();
    let expected = [
        ("upstream app", "doubtful", "1 of 2 endpoints can be reached"),
        ("upstream gone", "bad", "none of 1 endpoint can be reached"),
        ("collector", "doubtful", "cannot be reached"),
        ("access log", "bad", "logs"),
        ("files", "bad", "filters/nobody.wasm"),
    ];
    for (subject, verdict, part) in expected {
        let finding = finding(&findings, subject);
        assert_eq!(finding["verdict"], verdict, "{findings:#}");
        assert!(finding["what"].as_str().unwrap().contains(part), "{finding}");
        assert!(!finding["advice"].as_str().unwrap().is_empty());
    }
    let listener = format!("listener {}", taken.local_addr().unwrap());
    assert_eq!(finding(&findings, &listener)["verdict"], "bad");

    let (_, text) = doctor(&gateway, &[]).await;
    assert!(text.contains("BAD   upstream gone: none of 1 endpoint can be reached\n"), "{text}");
}

#[tokio::test]
async fn doctor_of_a_file_that_is_wrong_says_what_is_wrong_with_it() {
    let builder = Builder::new("");
    std::fs::write(builder.path().join("lockgate.yaml"), "routes: 5\n").unwrap();
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lockgate"))
        .args(["doctor", "--config", "lockgate.yaml"])
        .current_dir(builder.path())
        .output();
    let output = command.await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("BAD   configuration: ") && said.contains("invalid value `5`"), "{said}");
}
