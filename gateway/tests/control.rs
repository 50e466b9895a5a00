//! The control plane, without a data plane: what reloads, decisions, failures and restarts do to what serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockgate::control::reload::Draft;
use lockgate::control::snapshot::{Route, Snapshot};
use lockgate::control::version::Version;
use lockgate::control::watch::Fingerprint;
use lockgate::control::{
    Actor, Asked, Cause, Control, LogProgress, Options, Refusal, Reloaded, RolloutView, StartError,
};
use lockgate::track::Track;
use lockgate_guests::Guest;
use tempfile::TempDir;

/// One filter that falls back, with a canary at 5 %.
const CANARY: &str = r#"
server: { watch: false, threads: 1, instances: 16, instance_memory: 16MiB, drain: 30s }
listeners: [ "127.0.0.1:0" ]
upstreams:
  app: [ "127.0.0.1:1" ]
  app-2: [ "127.0.0.1:2" ]
filters:
  tag:
    component: tag.wasm
    settings: { value: v1 }
    on_failure: { fall-back: { failures: 3, window: 30s } }
routes:
  - name: all
    filters: [ tag ]
    upstream: app
rollouts:
  tag-2:
    filter: tag
    canary: { settings: { value: v2 } }
    weight: 5%
    key: [ { header: x-user-id } ]
"#;

/// A folder with a configuration, and a control plane that serves it.
struct Plane {
    dir: TempDir,
    control: Control,
}

fn actor() -> Actor {
    Actor::new("test")
}

fn options(dir: &Path) -> Options {
    Options {
        config: dir.join("lockgate.yaml"),
        deciding: true,
        bind: Arc::new(|_| Ok(())),
        progress: Arc::new(LogProgress),
    }
}

impl Plane {
    async fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::copy(Guest::Tag.path(), dir.path().join("tag.wasm")).expect("the guest is built");
        fs::write(dir.path().join("lockgate.yaml"), config).expect("it can be written");
        let control = started(Control::start(options(dir.path())).await);
        Self { dir, control }
    }

    /// Ends the control plane after its last write, as a kill would, and starts another one.
    async fn restart(self) -> Self {
        let Self { dir, control } = self;
        control.stop_deciding().await;
        drop(control);
        let control = started(Control::start(options(dir.path())).await);
        Self { dir, control }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, config: &str) {
        fs::write(self.path("lockgate.yaml"), config).expect("it can be written");
    }

    async fn reload(&self) -> Result<Reloaded, Refusal> {
        self.control.reload(Cause::Api, actor()).await
    }

    /// Replaces the configuration, which has to be accepted.
    async fn accept(&self, config: &str) -> Reloaded {
        self.write(config);
        self.reload().await.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn rollout(&self) -> RolloutView {
        only(&self.control.status().rollouts)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.control.cell().current()
    }

    /// Has a version fail as often as it takes to be quarantined, and waits for what follows.
    async fn fail(&self, version: &Version) {
        let before = self.control.status().generation;
        for _ in 0..3 {
            version.failed();
        }
        self.until("the quarantine", || self.control.status().generation > before).await;
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what} does not come"));
    }

    fn metrics(&self) -> Vec<String> {
        self.control.metrics().render(self.control.host()).lines().map(ToOwned::to_owned).collect()
    }
}

fn only<T: Clone>(items: &[T]) -> T {
    assert_eq!(items.len(), 1);
    items[0].clone()
}

fn started(outcome: Result<Control, StartError>) -> Control {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

fn stable(snapshot: &Snapshot) -> Arc<Version> {
    let Route { chain, .. } = &snapshot.routes[0];
    Arc::clone(&chain[0].versions.stable)
}

fn canary(snapshot: &Snapshot) -> Option<Arc<Version>> {
    let (_, canary) = snapshot.routes[0].chain[0].versions.canary.as_ref()?;
    Some(Arc::clone(canary))
}

/// Invariant: a failed reload changes nothing but the failure counter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_reload_changes_nothing_but_the_failure_counter() {
    let plane = Plane::start(CANARY).await;
    plane.control.set_weight("tag-2", "20%".parse().unwrap(), actor()).await.expect("it is under way");
    for (name, guest) in
        [("core.wasm", Guest::CoreModule), ("wrong.wasm", Guest::WrongWorld), ("even.wasm", Guest::FailingConfigure)]
    {
        fs::copy(guest.path(), plane.path(name)).expect("the guest is built");
    }
    let whole = fs::read(plane.path("tag.wasm")).expect("it is there");
    fs::write(plane.path("half.wasm"), &whole[..whole.len() / 2]).expect("it can be written");

    let unaffected = |lines: Vec<String>| -> Vec<String> {
        let affected = [
            "lockgate_reloads_total",
            "lockgate_reload_failing",
            "lockgate_cache_",
            "lockgate_compile_",
            "lockgate_pool_",
        ];
        lines.into_iter().filter(|line| !affected.iter().any(|name| line.starts_with(name))).collect()
    };
    let kept =
        || (fs::read(plane.path("state/rollouts.json")).unwrap(), fs::read(plane.path("state/audit.jsonl")).unwrap());
    let (snapshot, state, metrics) = (plane.snapshot(), kept(), unaffected(plane.metrics()));
    let rollout = serde_json::to_value(plane.rollout()).unwrap();

    let component = |name: &str| CANARY.replace("component: tag.wasm", &format!("component: {name}"));
    let cases = [
        ("rollouts: [", "config", "lockgate.yaml"),
        (&CANARY.replace("weight: 5%", "wieght: 5%"), "config", "`wieght`"),
        (&component("missing.wasm"), "config", "cannot read component `missing.wasm`"),
        (&component("half.wasm"), "load", "component `half.wasm`"),
        (&component("core.wasm"), "load", "component `core.wasm` is a core module"),
        (&component("wrong.wasm"), "load", "component `wrong.wasm` exports no interface"),
        (&component("even.wasm").replace("value: v1", "even: 3"), "load", "filter `tag` refuses its settings"),
        (&CANARY.replace("instances: 16", "instances: 17"), "restart", "`server.instances` is read at start only"),
    ];
    for (count, (config, kind, message)) in (1..).zip(cases) {
        plane.write(config);
        let refusal = plane.reload().await.expect_err(message);
        assert_eq!(refusal.kind(), kind, "{refusal}");
        assert!(refusal.to_string().contains(message), "{message}: {refusal}");
        assert!(Arc::ptr_eq(&snapshot, &plane.snapshot()), "{message}");
        assert_eq!(kept(), state, "{message}");
        assert_eq!(unaffected(plane.metrics()), metrics, "{message}");
        assert_eq!(serde_json::to_value(plane.rollout()).unwrap(), rollout, "{message}");
        let status = plane.control.status();
        assert_eq!(status.last_reload.outcome, "refused");
        assert_eq!(status.last_reload.problems, Some(refusal.to_string()));
        let counted = format!("lockgate_reloads_total{{outcome=\"refused\"}} {count}");
        assert!(plane.metrics().contains(&counted), "{counted}");
    }
    plane.write(CANARY);
    assert_eq!(plane.reload().await.expect("it is what serves"), Reloaded::Unchanged);
    assert!(plane.metrics().contains(&"lockgate_reload_failing 0".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_wrong_with_components_is_told_at_once() {
    let plane = Plane::start(CANARY).await;
    fs::copy(Guest::CoreModule.path(), plane.path("core.wasm")).expect("the guest is built");
    fs::copy(Guest::WrongWorld.path(), plane.path("wrong.wasm")).expect("the guest is built");
    let config = CANARY.replace("component: tag.wasm", "component: core.wasm");
    plane.write(&config.replace("canary: { settings: { value: v2 } }", "canary: { component: wrong.wasm }"));
    let refusal = plane.reload().await.expect_err("both are refused").to_string();
    for part in ["component `core.wasm`", "component `wrong.wasm`", "2 problems in"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }

    // What cannot be read hides nothing of what can, and what serves already is not loaded again.
    let gone = "\nfilters:\n  gone: { component: nowhere.wasm }\n  core: { component: core.wasm }";
    plane.write(&CANARY.replace("\nfilters:", gone).replace("filters: [ tag ]", "filters: [ tag, gone, core ]"));
    let loads = || plane.control.host().cache().stats().hits;
    let before = loads();
    let refusal = plane.reload().await.expect_err("two of four are refused").to_string();
    for part in ["cannot read component `nowhere.wasm`", "component `core.wasm` is a core module", "2 problems in"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    assert_eq!(loads(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_the_same_meaning_changes_nothing() {
    let plane = Plane::start(CANARY).await;
    let snapshot = plane.snapshot();
    let outcome = plane.accept(&format!("# A comment.\n{CANARY}")).await;
    assert_eq!(outcome, Reloaded::Unchanged);
    assert!(Arc::ptr_eq(&snapshot, &plane.snapshot()));
    assert_eq!(plane.control.status().last_reload.outcome, "unchanged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_did_not_change_are_reused() {
    let plane = Plane::start(CANARY).await;
    let before = stable(&plane.snapshot());
    let outcome = plane.accept(&CANARY.replace("name: all", "name: everything")).await;
    assert_eq!(outcome, Reloaded::Swapped { generation: 2, loaded: 0, reused: 2, warnings: Vec::new() });
    assert!(Arc::ptr_eq(&before, &stable(&plane.snapshot())));
    let outcome = plane.accept(&CANARY.replace("value: v2", "value: v3")).await;
    assert_eq!(outcome, Reloaded::Swapped { generation: 3, loaded: 1, reused: 1, warnings: Vec::new() });
    assert!(Arc::ptr_eq(&before, &stable(&plane.snapshot())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_component_is_another_version() {
    let plane = Plane::start(CANARY).await;
    let before = stable(&plane.snapshot());
    fs::copy(Guest::Bare.path(), plane.path("tag.wasm")).expect("the guest is built");
    assert!(matches!(plane.reload().await, Ok(Reloaded::Swapped { loaded: 2, reused: 0, .. })));
    assert_ne!(before.id(), stable(&plane.snapshot()).id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_decide_survives_a_restart_exactly() {
    let plane = Plane::start(CANARY).await;
    let control = &plane.control;
    let view = control.set_weight("tag-2", "12.34%".parse().unwrap(), actor()).await.expect("it is under way");
    assert_eq!((view.weight.as_str(), view.differs_from_file), ("12.34%", true));
    let plane = plane.restart().await;
    assert_eq!(plane.rollout().weight, "12.34%");
    assert_eq!(plane.rollout().since, view.since);

    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    let plane = plane.restart().await;
    assert_eq!(plane.rollout().state, "promoted");
    assert!(canary(&plane.snapshot()).is_none());

    plane.control.roll_back("tag-2", Some("too slow".to_owned()), actor()).await.expect("it is promoted");
    let plane = plane.restart().await;
    assert_eq!(plane.rollout().why.as_deref(), Some("test: too slow"));

    plane.control.resume("tag-2", actor()).await.expect("it is rolled back");
    let plane = plane.restart().await;
    assert_eq!(plane.rollout().weight, "12.34%");
    let actions: Vec<_> = plane.control.audit(100).into_iter().map(|entry| entry.action).collect();
    assert_eq!(
        actions,
        [
            "start",
            "begin",
            "set-weight",
            "start",
            "promote",
            "start",
            "quarantine",
            "roll-back",
            "start",
            "release",
            "resume",
            "start"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_overlays_the_file_until_a_version_changes() {
    let plane = Plane::start(CANARY).await;
    let v2 = canary(&plane.snapshot()).expect("it is under way");
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    assert_eq!(stable(&plane.snapshot()).id(), v2.id());
    plane.accept(&CANARY.replace("weight: 5%", "weight: 50%")).await;
    assert_eq!(plane.rollout().state, "promoted");

    // The promotion is committed: the same version serves on, and is not loaded again.
    let committed = CANARY.replace("value: v1", "value: v2");
    let committed = &committed[..committed.find("rollouts:").unwrap()];
    assert!(matches!(plane.accept(committed).await, Reloaded::Swapped { loaded: 0, .. }));
    assert!(Arc::ptr_eq(&stable(&plane.snapshot()), &v2));

    plane.accept(&CANARY.replace("value: v2", "value: v3")).await;
    assert_eq!(plane.rollout().state, "ramping");
    assert_eq!(plane.rollout().weight, "5%");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_upstream_serves_everybody() {
    let config =
        CANARY.replace("filter: tag\n    canary: { settings: { value: v2 } }", "upstream: app\n    canary: app-2");
    let plane = Plane::start(&config).await;
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    assert_eq!(plane.control.status().upstreams[0].serving, "app-2");
    plane.control.roll_back("tag-2", None, actor()).await.expect("it is promoted");
    assert_eq!(plane.control.status().upstreams[0].serving, "app");
}

/// Whoever rolled it back: the file brings it anew, with another stable version, and it does not serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_rolled_back_comes_back_by_no_reload_but_by_a_persons_word() {
    let of_upstream =
        CANARY.replace("filter: tag\n    canary: { settings: { value: v2 } }", "upstream: app\n    canary: app-2");
    let cases = [
        (CANARY.to_owned(), ("value: v1", "value: v0"), ("value: v2", "value: v3"), "filter tag"),
        (of_upstream, ("127.0.0.1:1", "127.0.0.1:3"), ("127.0.0.1:2", "127.0.0.1:4"), "upstream app"),
    ];
    for (config, stable, canary, subject) in cases {
        let plane = Plane::start(&config).await;
        plane.control.roll_back("tag-2", Some("logins fail".to_owned()), actor()).await.expect("it is under way");
        let held = only(&plane.control.status().quarantine);
        assert_eq!((held.subject.as_str(), held.why.as_str()), (subject, "test: logins fail"));
        let gauge = format!("version=\"{}\",why=\"person\"}} 1", held.version);
        assert!(plane.metrics().iter().any(|line| line.contains("_quarantined{") && line.ends_with(&gauge)), "{gauge}");

        let other_stable = config.replace(stable.0, stable.1);
        plane.accept(&other_stable).await;
        assert_eq!(plane.rollout().state, "rolled-back", "{subject}");
        let plane = plane.restart().await;
        assert_eq!(plane.rollout().why.as_deref(), Some("test: logins fail"), "{subject}");
        // Another digest is another version; the old one is still known.
        plane.accept(&other_stable.replace(canary.0, canary.1)).await;
        assert_eq!(plane.rollout().state, "ramping", "{subject}");
        plane.accept(&other_stable).await;
        assert_eq!(plane.rollout().state, "rolled-back", "{subject}");
        plane.control.release(&held.version, actor()).await.expect("it is in quarantine");
        plane.control.resume("tag-2", actor()).await.expect("nothing keeps it");
        assert_eq!(plane.rollout().state, "ramping", "{subject}");
        let audit = plane.control.audit(100);
        let entry =
            |action: &str| audit.iter().find(|entry| entry.action == action).expect("it is logged").subject.clone();
        assert_eq!(entry("quarantine"), format!("{subject} {}", held.version));
        assert_eq!(entry("release"), entry("quarantine"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_twice_is_no_error_and_leaves_no_trace() {
    let plane = Plane::start(CANARY).await;
    for _ in 0..2 {
        plane.control.set_weight("tag-2", "10%".parse().unwrap(), actor()).await.expect("it is under way");
    }
    for _ in 0..2 {
        plane.control.promote("tag-2", actor()).await.expect("it may be promoted");
    }
    assert_eq!(plane.control.status().generation, 3);
    assert_eq!(plane.control.audit(100).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_to_do() {
    let plane = Plane::start(CANARY).await;
    let unknown = plane.control.promote("tag-3", actor()).await.expect_err("there is none");
    assert_eq!(unknown.to_string(), "unknown rollout `tag-3`: the configuration has `tag-2`");
    let unknown = plane.control.release("0123456789ab", actor()).await.expect_err("there is none");
    assert_eq!(unknown.to_string(), "no version `0123456789ab` is in quarantine: it is empty");
    plane.control.roll_back("tag-2", None, actor()).await.expect("it is under way");
    let refused = plane.control.promote("tag-2", actor()).await.expect_err("it is rolled back");
    assert_eq!(
        refused.to_string(),
        "rollout `tag-2`: it was rolled back (test); resume it first: `lockgate rollout resume tag-2`"
    );
    let unknown = plane.control.release("0123456789ab", actor()).await.expect_err("there is another one");
    let canary = plane.rollout().canary;
    assert_eq!(unknown.to_string(), format!("no version `0123456789ab` is in quarantine: it has `{canary}`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_canary_is_rolled_back_until_a_person_says_otherwise() {
    let plane = Plane::start(CANARY).await;
    let bad = canary(&plane.snapshot()).expect("it is under way");
    plane.fail(&bad).await;
    assert_eq!(plane.rollout().state, "rolled-back");
    assert_eq!(plane.rollout().why.as_deref(), Some("3 calls failed within 30s"));
    assert!(canary(&plane.snapshot()).is_none());
    let label = bad.label().to_string();
    let gauge = format!("lockgate_filter_quarantined{{filter=\"tag\",version=\"{label}\",why=\"failures\"}} 1");
    assert!(plane.metrics().contains(&gauge), "{gauge}");

    // It does not come back by a restart, nor by a file that brings it anew.
    let plane = plane.restart().await;
    assert!(plane.metrics().contains(&gauge), "{gauge}");
    plane.accept(&CANARY[..CANARY.find("rollouts:").unwrap()]).await;
    plane.accept(CANARY).await;
    assert_eq!(plane.rollout().state, "rolled-back");
    let refused = plane.control.resume("tag-2", actor()).await.expect_err("its canary is in quarantine");
    assert!(refused.to_string().contains("release the version first"), "{refused}");

    plane.control.release(&label, actor()).await.expect("it is in quarantine");
    assert_eq!(plane.rollout().state, "rolled-back");
    plane.control.resume("tag-2", actor()).await.expect("nothing keeps it");
    let again = canary(&plane.snapshot()).expect("it is under way");
    plane.fail(&again).await;
    assert_eq!(plane.rollout().state, "rolled-back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_stable_version_is_replaced_by_the_last_good_one() {
    let alone = &CANARY[..CANARY.find("rollouts:").unwrap()];
    let plane = Plane::start(alone).await;
    let good = *stable(&plane.snapshot()).id();
    // The good component's file is gone: it has to come from the store.
    fs::copy(Guest::Bare.path(), plane.path("tag.wasm")).expect("the guest is built");
    plane.reload().await.expect("it is a component");
    let bad = stable(&plane.snapshot());
    plane.fail(&bad).await;
    plane.until("the last good version", || *stable(&plane.snapshot()).id() == good).await;
    let trouble = || only(&plane.control.status().filters).trouble;
    plane.until("its trouble", || trouble().is_some_and(|told| told.contains("the last good version"))).await;

    let plane = plane.restart().await;
    assert_eq!(*stable(&plane.snapshot()).id(), good, "from the first request on");
    plane.accept(&alone.replace("name: all", "name: everything")).await;
    assert_eq!(*stable(&plane.snapshot()).id(), good, "a reload brings nothing back");
    plane.control.release(bad.label(), actor()).await.expect("it is in quarantine");
    assert_eq!(stable(&plane.snapshot()).id(), bad.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_version_that_fails_is_rolled_back() {
    let plane = Plane::start(CANARY).await;
    let v1 = *stable(&plane.snapshot()).id();
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    let v2 = stable(&plane.snapshot());
    plane.fail(&v2).await;
    assert_eq!(plane.rollout().state, "rolled-back");
    assert_eq!(*stable(&plane.snapshot()).id(), v1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promotion_replaced_is_a_last_good_version() {
    let plane = Plane::start(CANARY).await;
    let v1 = *stable(&plane.snapshot()).id();
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    let committed = CANARY.replace("value: v1", "value: v2");
    plane.accept(&committed[..committed.find("rollouts:").unwrap()]).await;
    let plane = plane.restart().await;
    let v2 = stable(&plane.snapshot());
    plane.fail(&v2).await;
    plane.until("the last good version", || *stable(&plane.snapshot()).id() == v1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_last_good_version_the_failing_one_stays_and_says_so() {
    let plane = Plane::start(&CANARY[..CANARY.find("rollouts:").unwrap()]).await;
    let lonely = stable(&plane.snapshot());
    plane.fail(&lonely).await;
    assert_eq!(stable(&plane.snapshot()).id(), lonely.id());
    let filter = only(&plane.control.status().filters);
    assert!(filter.trouble.is_some_and(|trouble| trouble.contains("no last good version")), "it says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_can_decide_while_a_reload_takes_long() {
    let plane = Plane::start(CANARY).await;
    fs::copy(Guest::SlowConfigure.path(), plane.path("slow.wasm")).expect("the guest is built");
    let slow = "  slow:\n    component: slow.wasm\n    settings: { duration_ms: 3000 }\nroutes:";
    plane.write(&CANARY.replace("routes:", slow));
    let control = plane.control.clone();
    let reload = tokio::spawn(async move { control.reload(Cause::Api, actor()).await });
    plane.control.set_weight("tag-2", "30%".parse().unwrap(), actor()).await.expect("it is under way");
    assert!(!reload.is_finished());
    assert_eq!(plane.rollout().weight, "30%");
    assert!(matches!(reload.await.expect("it ends"), Ok(Reloaded::Swapped { loaded: 1, .. })));
    assert_eq!(plane.rollout().weight, "30%", "the reload goes by what was decided meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_asked_for_during_another_are_answered_by_one_more() {
    let plane = Plane::start(CANARY).await;
    plane.write(&CANARY.replace("name: all", "name: everything"));
    let reloads = (0..5).map(|_| {
        let control = plane.control.clone();
        tokio::spawn(async move { control.reload(Cause::Api, actor()).await })
    });
    let mut swapped = 0;
    for reload in reloads.collect::<Vec<_>>() {
        let outcome = reload.await.expect("it ends").expect("it is accepted");
        swapped += usize::from(outcome != Reloaded::Unchanged);
    }
    assert!(swapped >= 1);
    assert_eq!(plane.control.status().generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_cannot_be_bound_refuses_the_reload() {
    let plane = Plane::start(CANARY).await;
    let Plane { dir, control } = plane;
    control.stop_deciding().await;
    drop(control);
    let bind = Arc::new(|_: &[_]| Err("cannot bind `127.0.0.1:80`: permission denied".to_owned()));
    let control = started(Control::start(Options { bind, ..options(dir.path()) }).await);
    let plane = Plane { dir, control };
    plane.write(&CANARY.replace("127.0.0.1:0", "127.0.0.1:80"));
    let refusal = plane.reload().await.expect_err("it cannot be bound");
    assert_eq!(
        (refusal.kind(), refusal.to_string().as_str()),
        ("listener", "cannot bind `127.0.0.1:80`: permission denied")
    );
    assert_eq!(plane.control.listeners().borrow()[0].address.to_string(), "127.0.0.1:0");
    assert_eq!(plane.control.status().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_snapshots_drain_and_are_gone() {
    let plane = Plane::start(CANARY).await;
    let snapshot = plane.snapshot();
    let weak = Arc::downgrade(&snapshot);
    snapshot.requests.fetch_add(1, Ordering::Relaxed);
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    let draining = only(&plane.control.status().draining);
    assert_eq!((draining.generation, draining.requests), (1, 1));
    snapshot.requests.fetch_sub(1, Ordering::Relaxed);
    drop(snapshot);
    plane.until("the end of the drain", || plane.control.status().draining.is_empty()).await;
    plane.until("the reaper", || weak.strong_count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_series_of_a_version_outlive_its_last_snapshot_by_ten_minutes() {
    const LINGER: Duration = Duration::from_secs(600);
    let plane = Plane::start(CANARY).await;
    let first = plane.snapshot();
    let version = format!("version=\"{}\"", stable(&first).label());
    let of_version = || plane.metrics().iter().filter(|line| line.contains(&version)).count();
    let shown_at = |time| {
        plane.control.metrics().sweep(time);
        of_version()
    };
    // A second snapshot shares the version, and a third does without it.
    plane.accept(&CANARY.replace("name: all", "name: everything")).await;
    let second = plane.snapshot();
    assert!(Arc::ptr_eq(&stable(&first), &stable(&second)));
    plane.accept(&CANARY.replace("value: v1", "value: v3")).await;
    let all = of_version();
    assert!(all > 20, "calls, durations and failures: {all}");

    let gone = Arc::downgrade(&first);
    drop(first);
    plane.until("the reaper", || gone.strong_count() == 0).await;
    assert_eq!(shown_at(Instant::now() + 2 * LINGER), all, "a snapshot has it still");

    let (gone, before) = (Arc::downgrade(&stable(&second)), Instant::now());
    drop(second);
    plane.until("the reaper", || gone.strong_count() == 0).await;
    assert_eq!(shown_at(before + LINGER - Duration::from_secs(1)), all, "a last scrape is to see it");
    plane.until("the end of the series", || shown_at(Instant::now() + LINGER) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupted_state_prevents_no_start_and_is_told() {
    let plane = Plane::start(CANARY).await;
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    fs::write(plane.path("state/rollouts.json"), "{").expect("it can be written");
    let plane = plane.restart().await;
    assert_eq!(plane.rollout().state, "promoted", "the second copy has it");
    let trouble = plane.control.status().state_trouble.clone();
    assert!(trouble.is_some_and(|trouble| trouble.contains("nothing is lost")), "it says so");
    assert!(plane.metrics().contains(&"lockgate_state_corruptions_total 1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_a_process_did_not_live_to_log_is_logged_by_the_next_one() {
    let mut plane = Plane::start(CANARY).await;
    // The state's second copy says that the log was written: without it, nobody knows.
    let second = plane.path("state/rollouts.json.1");
    fs::remove_file(&second).expect("it was written at the start");
    fs::create_dir(&second).expect("its name is free");
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    fs::remove_dir(&second).expect("nothing could be put in its place");
    let log = plane.path("state/audit.jsonl");
    let whole = fs::read_to_string(&log).expect("it was just written");
    let torn = whole.rfind("{\"time\"").expect("an entry");
    assert!(whole[torn..].contains("promote"), "{whole}");
    fs::write(&log, &whole[..torn]).expect("it can be written");
    for _ in 0..2 {
        plane = plane.restart().await;
        let promotions = plane.control.audit(100).into_iter().filter(|entry| entry.action == "promote");
        let by: Vec<String> = promotions.map(|entry| entry.actor).collect();
        assert_eq!(by, ["test"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_decides_at_a_time() {
    let plane = Plane::start(CANARY).await;
    let second = Control::start(options(plane.dir.path())).await;
    assert!(second.is_err_and(|error| error.to_string().contains("another gateway uses the state directory")));

    // A hand-over: the second one loads, the first one stops, the second one begins with what the first one left.
    let waiting = Options { deciding: false, ..options(plane.dir.path()) };
    let successor = started(Control::start(waiting).await);
    assert!(matches!(successor.promote("tag-2", actor()).await, Err(Refusal::HandedOver)));
    plane.control.promote("tag-2", actor()).await.expect("it decides");
    plane.control.stop_deciding().await;
    assert!(matches!(plane.control.roll_back("tag-2", None, actor()).await, Err(Refusal::HandedOver)));
    successor.begin_deciding().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(only(&successor.status().rollouts).state, "promoted");
    successor.roll_back("tag-2", None, actor()).await.expect("it decides now");
    assert!(plane.control.begin_deciding().await.is_err(), "the first one cannot decide as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_noticed_and_a_half_written_one_is_tried_again() {
    let plane = Plane::start(&CANARY.replace("watch: false", "watch: true")).await;
    let whole = fs::read(Guest::Bare.path()).expect("the guest is built");
    fs::write(plane.path("tag.wasm"), &whole[..whole.len() / 3]).expect("it can be written");
    plane.until("the refusal", || plane.control.status().last_reload.outcome == "refused").await;
    fs::write(plane.path("tag.wasm"), &whole).expect("it can be written");
    plane.until("the reload", || plane.control.status().generation == 2).await;
    let reload = plane.control.status().last_reload.clone();
    assert_eq!((reload.cause, reload.outcome), ("file", "swapped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_explained_as_requests_are_split() {
    let plane = Plane::start(CANARY).await;
    plane.control.set_weight("tag-2", "50%".parse().unwrap(), actor()).await.expect("it is under way");
    let snapshot = plane.snapshot();
    let split = &snapshot.rollouts[0].split;
    for user in 0..100 {
        let key = format!("user-{user}");
        let explained = plane.control.explain("tag-2", &Asked::Key(key.clone())).expect("it is there");
        let bucket = split.bucket_of(key.as_bytes());
        assert_eq!((explained.bucket, explained.track), (Some(bucket.number()), split.track_of(bucket)));
    }
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    let explained = plane.control.explain("tag-2", &Asked::Key("user-1".to_owned())).expect("it is there");
    // As in logs and metrics: the canary's version is what the stable track gets now.
    assert_eq!(explained.track, Track::Stable);
    assert!(explained.why.contains("its canary's version serves everybody"), "{}", explained.why);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_export_brings_the_file_up_to_the_state() {
    let plane = Plane::start(CANARY).await;
    assert_eq!(plane.control.export(), "# the file says what is in force\n");
    plane.control.set_weight("tag-2", "12.5%".parse().unwrap(), actor()).await.expect("it is under way");
    insta::assert_snapshot!(plane.control.export(), @"
    rollouts:
      tag-2:
        weight: 12.5%
    ");
    let draft = Draft::read(&plane.path("lockgate.yaml"), &mut Fingerprint::default(), None).expect("it is right");
    assert_eq!(draft.overlaid().expect("it can be read"), Some(plane.control.export()), "a check says the same");
    plane.control.promote("tag-2", actor()).await.expect("it is under way");
    insta::assert_snapshot!(plane.control.export(), @r#"
    filters:
      # `tag-2` is promoted. Remove it from `rollouts`, and give the filter its canary's version.
      tag:
        settings: {"value":"v2"}
    "#);
    plane.control.roll_back("tag-2", None, actor()).await.expect("it is promoted");
    insta::assert_snapshot!(plane.control.export(), @"
    rollouts:
      # `tag-2` is rolled back (test). Remove it, give it another canary, or leave it idle.
      tag-2:
        weight: 0%
    ");
}
