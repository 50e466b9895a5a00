//! What a configuration means.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockgate_config::model::*;
use lockgate_config::problem::{Report, Source};
use lockgate_config::units::{ByteSize, Weight};
use lockgate_config::{Warnings, load, parse};
use proptest::prelude::*;

fn read(text: &str) -> Result<Config, Report> {
    let source = Source { file: "lockgate.yaml".into(), text: text.into() };
    let env = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
    parse(source, Path::new("/etc/lockgate"), &env)
}

fn config(text: &str) -> Config {
    read(text).unwrap_or_else(|report| panic!("{report}"))
}

fn messages(text: &str) -> Vec<String> {
    let report = read(text).expect_err("it has a problem");
    report.problems.into_iter().map(|problem| problem.message).collect()
}

/// The smallest file, and more lines.
fn with(more: &str) -> String {
    format!("{}{more}", include_str!("../examples/minimal.yaml"))
}

#[test]
fn the_smallest_file_has_all_the_defaults() {
    let config = config(include_str!("../examples/minimal.yaml"));
    assert!(config.server.threads >= 1 && config.server.watch);
    assert_eq!(config.server.state_dir, Path::new("/etc/lockgate/state"));
    assert_eq!(config.server.cache_size, ByteSize::gib(1));
    assert_eq!(config.server.drain, Duration::from_secs(30));
    assert_eq!(config.server.limits.idle_timeout, Duration::from_secs(75));
    assert_eq!(config.listeners, [Listener::new(ListenAddress::Tcp("0.0.0.0:8080".parse().unwrap()))]);
    assert_eq!(config.admin.address, ListenAddress::Tcp("127.0.0.1:9901".parse().unwrap()));
    let [upstream] = config.upstreams.as_slice() else { panic!("{config:?}") };
    assert_eq!((&*upstream.name, upstream.retries.attempts, upstream.keepalive_connections), ("app", 1, 128));
    assert_eq!(upstream.timeouts.connect, Duration::from_secs(5));
    let [route] = config.routes.as_slice() else { panic!("{config:?}") };
    assert_eq!((&*route.name, &route.matcher.path), ("/*", &PathPattern::Prefix("/".into())));
    assert!(matches!(route.target, Target::Upstream { upstream: 0, .. }));
}

#[test]
fn a_filter_has_the_defaults_that_fit_its_grants() {
    let config = config(&with(
        "filters:\n  plain: { component: a.wasm }\n  asks: { component: /b.wasm, grants: { outbound: [\"https://b.example\"] } }\n",
    ));
    let [plain, asks] = config.filters.as_slice() else { panic!("{config:?}") };
    assert_eq!(plain.version.component, Path::new("/etc/lockgate/a.wasm"));
    assert_eq!(plain.version.settings.reveal(), "{}");
    assert_eq!(plain.policy.limits.deadline, Duration::from_millis(10));
    assert_eq!(plain.policy.limits.memory, ByteSize::mib(16));
    assert_eq!((plain.policy.isolation, plain.policy.on_failure), (Isolation::Request, FailureMode::Closed));
    assert_eq!(asks.version.component, Path::new("/b.wasm"));
    assert_eq!(asks.policy.limits.deadline, Duration::from_secs(5));
    assert_eq!(asks.version.grants.outbound[0].port, 443);
}

#[test]
fn settings_are_handed_over_expanded_and_kept_as_written() {
    let config = config(&with(
        "filters:\n  a:\n    component: a.wasm\n    settings: { key: \"${SECRET}\", z: 1, b: [1.5, null] }\n",
    ));
    let version = &config.filters[0].version;
    assert_eq!(version.settings.reveal(), r#"{"key":"hunter2","z":1,"b":[1.5,null]}"#);
    assert_eq!(version.settings_written["key"], "${SECRET}");
    assert_eq!((version.settings_place.line, version.settings_place.column), (10, 5));
    assert_eq!(&*version.settings_place.path, "filters.a.settings");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_canary_takes_from_stable_what_it_leaves_out() {
    let config = config(&with(concat!(
        "  - { upstream: app, match: { path: /a }, filters: [a] }\n",
        "filters:\n  a: { component: a.wasm, settings: { x: 1 }, grants: { outbound: [\"http://b\"] } }\n",
        "rollouts:\n  a-2: { filter: a, canary: { settings: { x: 2 } }, weight: 0.07%, key: [{ header: X-Id }, path] }\n",
    )));
    let [rollout] = config.rollouts.as_slice() else { panic!("{config:?}") };
    let RolloutSubject::Filter { filter: 0, canary } = &rollout.subject else { panic!("{rollout:?}") };
    let stable = &config.filters[0].version;
    assert_eq!((&canary.component, &canary.grants), (&stable.component, &stable.grants));
    assert_eq!(canary.settings.reveal(), r#"{"x":2}"#);
    assert_eq!(Some(rollout.weight()), Weight::from_basis_points(7));
    assert_eq!(rollout.key, [KeyPart::Header("x-id".into()), KeyPart::Path]);
    assert_eq!((&*rollout.salt, &rollout.overriding), ("a-2", &None));
}

#[test]
fn a_route_may_be_more_special_than_another_without_being_its_duplicate() {
    let config = config(&with(
        "  - { upstream: app, match: { host: a.b } }\n  - { upstream: app, match: { methods: [GET] } }\n  - { upstream: app, match: { path: /a/ } }\n  - { upstream: app, match: { path: /a/* } }\n",
    ));
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["/*", "a.b/*", "GET /*", "/a/", "/a/*"]);
}

#[test]
fn a_problem_is_told_once_and_what_follows_from_it_is_not() {
    let filter =
        "filters:\n  a: { component: 5 }\n  b: { component: b.wasm, isolation: reused, limits: { memory: lots } }\n";
    let more = "  - { upstream: app, filters: [a, b], match: { path: nowhere } }\n";
    let rollout = "rollouts:\n  a-2: { filter: a, canary: { component: c.wasm }, weight: 1% }\n";
    let messages = messages(&with(&format!("{more}{filter}{rollout}")));
    assert_eq!(messages, ["invalid value `nowhere`", "invalid value `5`", "invalid value `lots`"]);
}

#[test]
fn a_chain_and_its_rollouts_are_bounded() {
    let names = |count: usize| (0..count).map(|n| format!("f{n}")).collect::<Vec<_>>();
    let filters: String = names(65).iter().map(|name| format!("  {name}: {{ component: a.wasm }}\n")).collect();
    let chain =
        |count| format!("  - {{ upstream: app, match: {{ path: /a }}, filters: [{}] }}\n", names(count).join(", "));
    config(&with(&format!("{}filters:\n{filters}", chain(64))));
    assert_eq!(messages(&with(&format!("{}filters:\n{filters}", chain(65)))), ["the chain is too long"]);

    let rollouts: String = names(64)
        .iter()
        .map(|name| format!("  {name}: {{ filter: {name}, canary: {{ component: b.wasm }}, weight: 1% }}\n"))
        .collect();
    let upstreams = "  app: { upstream: app, canary: next, weight: 1% }\n";
    let text = with(&format!("{}filters:\n{filters}rollouts:\n{rollouts}", chain(64)))
        .replace("routes:", "  next: [\"127.0.0.1:1\"]\nroutes:");
    config(&text);
    assert_eq!(messages(&format!("{text}{upstreams}")), ["the route `/a` meets too many rollouts"]);
}

#[test]
fn a_file_that_cannot_be_read_is_reported() {
    let report = load(Path::new("/nowhere/lockgate.yaml")).expect_err("it is not there").to_string();
    assert!(report.starts_with("error: cannot read `/nowhere/lockgate.yaml`: No such file"), "{report}");
    assert!(report.ends_with("\n1 problem in /nowhere/lockgate.yaml"), "{report}");
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/filters.yaml");
    let loaded = load(&file).unwrap_or_else(|report| panic!("{report}"));
    let expected: PathBuf = file.with_file_name("filters").join("access.wasm");
    assert_eq!(loaded.config.filters[0].version.component, expected);
    assert_eq!(loaded.source.file, file);
}

#[test]
fn a_mark_of_utf_8_is_no_character_of_the_file() {
    config(&format!("\u{feff}{}", with("")));
    let report = read("\u{feff}listener: []").expect_err("a typo");
    let place = &report.problems.iter().find(|it| it.place.line == 1).expect("it has a place").place;
    assert_eq!((place.column, place.length), (1, 8));
    assert!(report.to_string().contains("\n1 | listener: []\n  | ^^^^^^^^ "), "{report}");
}

#[test]
fn a_later_problem_finds_its_place() {
    let text =
        "server: { threads: \"${N}\", drain: 5s }\nlisteners:\n  - 127.0.0.1:80\n  - { address: \"[::1]:80\" }\n";
    let source = Source { file: "lockgate.yaml".into(), text: text.into() };
    let place = |path: &str| {
        let place = source.place_of(path);
        (place.line, place.column, place.length)
    };
    assert_eq!(place("server.drain"), (1, 28, 5));
    assert_eq!(place("listeners[0]"), (3, 5, 12));
    assert_eq!(place("listeners[1].address"), (4, 7, 7));
    assert_eq!(place("admin.address"), (0, 0, 0));
    assert_eq!(&*source.place_of("admin.address").path, "admin.address");
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in "(?s).{0,200}") {
        if let Err(report) = read(&text) {
            prop_assert!(!report.problems.is_empty());
            drop(report.to_string());
        }
    }

    /// A file with everything, and a piece of it replaced: by a piece from elsewhere, or by characters of YAML.
    #[test]
    fn no_slip_makes_parsing_panic(
        at in 0.0..1.0_f64,
        length in 0..30_usize,
        from in 0.0..1.0_f64,
        taken in 0..60_usize,
        typed in "[-a-z:{}\\[\\]\"'&*!|>%@$#,. \n\t0-9ä]{0,8}",
    ) {
        let full: Vec<char> = include_str!("../examples/full.yaml").chars().collect();
        let index = |share: f64| (share * full.len() as f64) as usize;
        let (at, from) = (index(at), index(from));
        let end = (at + length).min(full.len());
        let piece = &full[from..(from + taken).min(full.len())];
        let text: String = full[..at].iter().chain(piece).copied().chain(typed.chars()).chain(full[end..].iter().copied()).collect();
        if let Err(report) = read(&text) {
            prop_assert!(!report.problems.is_empty());
            let lines = text.lines().count() as u32;
            for problem in &report.problems {
                prop_assert!(problem.place.line <= lines + 1, "{report}");
            }
            drop(report.to_string());
        }
    }
}

#[test]
fn where_the_gateway_is_reached_can_be_told_from_a_file_that_is_wrong_elsewhere() {
    let dir = std::env::temp_dir().join(format!("lockgate-config-admin-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("lockgate.yaml");
    std::fs::write(&file, "listeners: []\nadmin: { address: \"127.0.0.1:9999\" }\nroutes: [{ upstream: nowhere }]\n")
        .unwrap();
    assert!(lockgate_config::load(&file).is_err());
    let admin = lockgate_config::load_admin(&file).unwrap();
    assert_eq!(admin.address.to_string(), "127.0.0.1:9999");
    std::fs::write(&file, "admin: { address: nonsense }\n").unwrap();
    assert!(lockgate_config::load_admin(&file).unwrap_err().to_string().contains("nonsense"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_is_right_and_hardly_meant_so_is_told() {
    let text = format!(
        "{MINIMAL}rollouts:
  elsewhere: {{ upstream: app, canary: other, weight: 1%, decider: external }}
  endless: {{ filter: tag, canary: {{ settings: 2 }}, steps: [{{ weight: 0.01%, hold: 1s }}, 50%], guard: {{ stalled_after: 1s }} }}
"
    );
    let source = Source { file: "lockgate.yaml".into(), text: text.into() };
    let config = parse(source.clone(), Path::new("/"), &|_| None).unwrap_or_else(|report| panic!("{report}"));
    insta::assert_snapshot!(Warnings::of(&config, &source), @r"
    warning: `elsewhere` never moves by itself
      --> lockgate.yaml:6:58
    6 |   elsewhere: { upstream: app, canary: other, weight: 1%, decider: external }
      |                                                          ^^^^^^^
      = path: rollouts.elsewhere.decider
    hint: whoever decides reads `GET /api/v1/rollouts/elsewhere/counts` of every gateway, and sets the weight with `PUT /api/v1/rollouts/elsewhere/weight` on each

    warning: `endless` never ends by itself: the last step is `50%`
      --> lockgate.yaml:7:52
    7 | …: tag, canary: { settings: 2 }, steps: [{ weight: 0.01%, hold: 1s }, 50%], guard: { stalled_afte…
      |                                  ^^^^^
      = path: rollouts.endless.steps
    hint: add `100%`, after which the canary is promoted; or promote it yourself

    warning: step 1 of `endless`, 0.01%, is hardly ever left
      --> lockgate.yaml:7:60
    7 | …anary: { settings: 2 }, steps: [{ weight: 0.01%, hold: 1s }, 50%], guard: { stalled_after: 1s } …
      |                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^ needs about 921 requests of the canary, 4605171 a second in all, within 2s
      = path: rollouts.endless.steps[0]
    hint: begin with more, or lower `min_requests` or raise a `tolerance`
    ");
}

const MINIMAL: &str = "listeners: [\"127.0.0.1:0\"]
upstreams: { app: [\"127.0.0.1:1\"], other: [\"127.0.0.1:2\"] }
filters: { tag: { component: tag.wasm } }
routes: [{ filters: [tag], upstream: app }]
";
