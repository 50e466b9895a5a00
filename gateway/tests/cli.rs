//! The command line: what it says, and how it ends.

mod harness;

use std::path::Path;
use std::process::{Command, Output};

use harness::{Gateway, Upstream};
use lockgate_guests::Guest;

fn lockgate(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_lockgate"))
        .current_dir(dir)
        .args(arguments)
        .env_remove("RUST_BACKTRACE")
        .env("LOCKGATE_LOG", "error")
        .output()
        .unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Checks a configuration, and returns how that ended.
fn check(config: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("lockgate.yaml"), config).unwrap();
    for guest in Guest::ALL {
        let name = format!("{}.wasm", guest.name());
        if config.contains(&name) {
            std::fs::copy(guest.path(), dir.path().join(name)).unwrap();
        }
    }
    lockgate(dir.path(), &["check", "lockgate.yaml"])
}

#[test]
fn a_right_file_is_said_to_be_right() {
    let (code, said) = check(
        r#"
listeners: ["127.0.0.1:0"]
upstreams: { app: ["127.0.0.1:3000"] }
filters: { tag: { component: tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts: { tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 5% } }
"#,
    );
    assert_eq!(code, Some(0), "{said}");
    insta::assert_snapshot!(said, @"`lockgate.yaml` is right: 1 route, 1 filter in 2 versions, 1 rollout");
}

#[test]
fn all_that_is_wrong_with_a_file_is_said_at_once() {
    let (code, said) = check(
        r#"listeners: ["127.0.0.1:0"]
upstreams: { app: ["127.0.0.1:3000"] }
routes:
  - upstream: ap
rollouts:
  next: { upstream: app, canary: app, wieght: 5% }
"#,
    );
    assert_eq!(code, Some(2), "{said}");
    insta::assert_snapshot!(said, @r"
    error: there is no upstream `ap`
      --> lockgate.yaml:4:15
    4 |   - upstream: ap
      |               ^^
      = path: routes[0].upstream
    hint: did you mean `app`?

    error: canary and stable are the same upstream
      --> lockgate.yaml:6:34
    6 |   next: { upstream: app, canary: app, wieght: 5% }
      |                                  ^^^
      = path: rollouts.next.canary
    hint: name another one; a rollout moves from one to the other

    error: unknown field `wieght`
      --> lockgate.yaml:6:39
    6 |   next: { upstream: app, canary: app, wieght: 5% }
      |                                       ^^^^^^ expected one of `filter`, `function`, `upstream`, `canary`, `weight`, `steps`, `guard`, `on_bad`, `decider`, `mode`, `shadow`, `link`, `key`, `salt`, `override`
      = path: rollouts.next.wieght
    hint: did you mean `weight`?

    3 problems in lockgate.yaml
    ");
}

#[test]
fn components_that_are_refused_are_shown_where_they_are_named() {
    let (code, said) = check(
        r#"listeners: ["127.0.0.1:0"]
upstreams: { app: ["127.0.0.1:3000"] }
filters:
  even: { component: failing-configure.wasm, settings: { even: 3 } }
  core: { component: core-module.wasm }
  gone: { component: nowhere.wasm }
routes: [{ filters: [even, core, gone], upstream: app }]
"#,
    );
    assert_eq!(code, Some(2), "{said}");
    insta::assert_snapshot!(said, @r"
    error: filter `even` refuses its settings: `even`: 3 is odd; try 4
      --> lockgate.yaml:4:46
    4 |   even: { component: failing-configure.wasm, settings: { even: 3 } }
      |                                              ^^^^^^^^
      = path: filters.even.settings

    error: component `core-module.wasm` is a core module, not a component; build for wasm32-wasip2, or wrap it with `wasm-tools component new`
      --> lockgate.yaml:5:22
    5 |   core: { component: core-module.wasm }
      |                      ^^^^^^^^^^^^^^^^
      = path: filters.core.component

    error: cannot read component `nowhere.wasm`: No such file or directory (os error 2)
      --> lockgate.yaml:6:22
    6 |   gone: { component: nowhere.wasm }
      |                      ^^^^^^^^^^^^
      = path: filters.gone.component
    hint: paths are relative to the configuration file's folder

    3 problems in lockgate.yaml
    ");
}

#[test]
fn a_dump_has_the_defaults_and_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let config = "listeners: [\"127.0.0.1:0\"]\nadmin: { token: s3cret }\nupstreams: { app: [\"127.0.0.1:1\"] }\nroutes: [{ upstream: app }]\n";
    std::fs::write(dir.path().join("lockgate.yaml"), config).unwrap();
    let (code, said) = lockgate(dir.path(), &["check", "--dump"]);
    assert_eq!(code, Some(0), "{said}");
    let dump: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(dump["admin"]["address"], "127.0.0.1:9901");
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn help_teaches() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = lockgate(dir.path(), &["--help"]);
    assert_eq!(code, Some(0));
    for word in [
        "run",
        "check",
        "compile",
        "inspect",
        "status",
        "reload",
        "rollout",
        "explain",
        "quarantine",
        "cache",
        "top",
        "doctor",
        "upgrade",
        "demo",
        "completions",
        "serve",
        "Examples:",
        "Exit codes:",
        "LOCKGATE_ADMIN_TOKEN",
    ] {
        assert!(said.contains(word), "`{word}` is not in {said}");
    }
    let (code, said) = lockgate(dir.path(), &["rollout", "--help"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("lockgate rollout set auth-1.5 5%"), "{said}");
}

#[test]
fn the_version_says_what_was_built() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = lockgate(dir.path(), &["--version"]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with("lockgate 0.1.0 (commit "), "{said}");
    assert!(said.contains("Wasmtime 48."), "{said}");
    assert!(said.contains(lockgate_host::CONTRACT), "{said}");
}

#[test]
fn a_wrong_command_line_and_a_missing_file_end_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        &["walk"][..],
        &["rollout", "set", "a", "5"],
        &["explain", "a"],
        &["run"],
        &["check", "nowhere.yaml"],
        &["rollout", "list", "--admin", "somewhere"],
    ] {
        let (code, said) = lockgate(dir.path(), wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
}

#[test]
fn a_gateway_that_is_not_there_ends_with_1_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let (code, said) = lockgate(dir.path(), &["status", "--admin", "127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(said, @"
    error: no gateway answers at `127.0.0.1:1`: Connection refused (os error 111)
    hint: start one with `lockgate run`, or say where it is with --config or --admin
    ");
}

#[test]
fn a_component_is_described() {
    let (code, said) = lockgate(Path::new("/"), &["inspect", &Guest::Tag.path().display().to_string()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("phases          on-request, on-response\n"), "{said}");
    assert!(said.contains("contract        lockgate:filter@0.1.0\n"), "{said}");
    let (code, said) = lockgate(Path::new("/"), &["inspect", &Guest::CoreModule.path().display().to_string()]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn completions_know_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let (code, said) = lockgate(dir.path(), &["completions", shell]);
        assert_eq!(code, Some(0));
        assert!(said.contains("quarantine"), "{shell}");
    }
}

#[test]
fn a_check_prints_its_answer_and_nothing_else_and_logs_what_it_compiles() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(Guest::Tag.path(), dir.path().join("tag.wasm")).unwrap();
    let config = "listeners: [\"127.0.0.1:0\"]\nupstreams: { app: [\"127.0.0.1:1\"] }\n\
        filters: { tag: { component: tag.wasm, settings: { value: v1 } } }\nroutes: [{ filters: [tag], upstream: app }]\n";
    std::fs::write(dir.path().join("other.yaml"), config).unwrap();
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_lockgate"))
            .args(["check", "--config", "other.yaml"])
            .current_dir(dir.path())
            .env_remove("LOCKGATE_LOG")
            .env("LOCKGATE_LOG_FORMAT", "json")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "`other.yaml` is right: 1 route, 1 filter in 1 version, 0 rollouts\n"
        );
        String::from_utf8(output.stderr).unwrap()
    };
    let logged = check();
    let line: serde_json::Value = serde_json::from_str(&logged).unwrap_or_else(|error| panic!("{error}: {logged}"));
    assert_eq!((&line["message"], &line["filter"]), (&"compiling".into(), &"tag".into()), "{line}");
    assert_eq!(check(), "", "what is in the cache takes no time");
}

#[test]
fn the_readmes_configuration_is_right() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, rest) = readme.split_once("```yaml\n").unwrap();
    let (config, _) = rest.split_once("```").unwrap();
    let (code, said) = check(config);
    assert_eq!(code, Some(0), "{said}");
    insta::assert_snapshot!(said, @"`lockgate.yaml` is right: 1 route, 1 filter in 2 versions, 1 rollout");
}

const CONFIG: &str = r#"
server: { watch: false }
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts: { tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 0%, key: [{ header: x-user-id }] } }
"#;

#[tokio::test]
async fn a_rollout_is_driven_from_the_command_line() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let run = async |arguments: &[&str]| {
        let (status, said) = gateway.cli(arguments).await;
        assert!(status.success(), "{arguments:?}: {said}");
        said
    };
    let tag = async || gateway.get_with("/", "x-user-id", "42").await.header("x-tag").to_owned();
    assert!(run(&["rollout", "set", "tag-2", "100%"]).await.contains("100%"));
    assert_eq!(tag().await, "v2");
    assert!(run(&["explain", "tag-2", "42"]).await.contains("track:      canary"));
    assert!(run(&["rollout", "list"]).await.contains("tag-2 differs from the file"));
    let checked = run(&["check"]).await;
    assert!(checked.contains("the state of the rollouts overlays it") && checked.contains("weight: 100%"), "{checked}");
    run(&["rollout", "rollback", "tag-2", "--why", "a test"]).await;
    assert_eq!(tag().await, "v1");
    run(&["rollout", "resume", "tag-2"]).await;
    run(&["rollout", "promote", "tag-2"]).await;
    assert_eq!(tag().await, "v2");
    assert!(run(&["rollout", "export"]).await.contains("settings: {\"value\":\"v2\"}"));
    assert!(run(&["status"]).await.contains("promoted"));
    assert!(run(&["quarantine", "list"]).await.contains("nothing is in quarantine"));
    let cached = run(&["cache", "list"]).await;
    assert!(cached.contains("2 artifacts in the cache") && cached.matches(" tag ").count() == 2, "{cached}");
    let status: serde_json::Value = serde_json::from_str(&run(&["status", "--json"]).await).unwrap();
    assert_eq!(status["rollouts"][0]["state"], "promoted");
}

#[tokio::test]
async fn a_reload_that_is_refused_shows_the_file_and_ends_with_2() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let (status, said) = gateway.cli(&["reload"]).await;
    assert!(status.success() && said.starts_with("unchanged"), "{said}");
    gateway.write_config(&CONFIG.replace("upstream: app", "upstream: ap"));
    let (status, said) = gateway.cli(&["reload", "--admin", &gateway.admin_url("")]).await;
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("error: there is no upstream `ap`"), "{said}");
    gateway.write_config(&CONFIG.replace("value: v1", "value: v3"));
    let (status, said) = gateway.cli(&["reload"]).await;
    assert!(status.success() && said.starts_with("reloaded: generation 2, 1 filter version loaded"), "{said}");
}
