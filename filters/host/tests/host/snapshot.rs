//! `configure` runs once, and its memory is where every instance begins; where that cannot be, it runs in each.

use std::time::{Duration, Instant};

use lockgate_guests::Guest;
use lockgate_host::{LoadError, Progress, Stage};
use parking_lot::Mutex;

use crate::{Recorder, get, header, host, pass, setup};

#[derive(Default)]
struct Stages(Mutex<Vec<Stage>>);

impl Progress for Stages {
    fn stage(&self, _filter: &str, stage: Stage) {
        self.0.lock().push(stage);
    }
}

#[tokio::test]
async fn configure_does_not_run_again() {
    let filter = setup(Guest::SlowConfigure).settings(r#"{"duration_ms": 1500}"#).load();
    assert_eq!(filter.snapshotted(), Ok(()));
    let began = Instant::now();
    for _ in 0..3 {
        let mut exchange = get("/");
        crate::respond(&mut exchange);
        crate::acquire(&filter).on_response(&mut exchange).await.expect("goes on");
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_guest_that_holds_a_handle_is_configured_in_each_instance() {
    let filter = setup(Guest::PrintlnConfigure).load();
    let reason = filter.snapshotted().expect_err("it printed in `configure`");
    assert!(reason.contains("printed or opened"), "{reason}");
    let sink = Recorder::bound_to(&filter);
    for _ in 0..2 {
        let mut exchange = get("/");
        pass(&filter, &mut exchange).await;
        assert_eq!(header(&exchange.request.headers, "x-printed"), "1");
        let lines = sink.take();
        let expected = [
            " stable configure Info: configured",
            "request-1 stable on-request Info: requested",
            "request-1 stable on-request Info: and printed",
        ];
        assert_eq!(lines, expected);
    }
}

#[tokio::test]
async fn the_reason_against_a_snapshot_survives_in_the_cache() {
    let first = setup(Guest::PrintlnConfigure).settings("{}").load();
    let stages = Stages::default();
    let again = host().load(&setup(Guest::PrintlnConfigure).settings("{}").0, &stages).expect("loads");
    assert_eq!(stages.0.lock().first(), Some(&Stage::CacheHit));
    assert_eq!(again.snapshotted(), first.snapshotted());
}

#[test]
fn the_steps_of_a_load_are_told_in_order() {
    let stages = Stages::default();
    let spec = setup(Guest::Tag).settings(r#"{"value": "told in order"}"#).0;
    host().load(&spec, &stages).expect("loads");
    let told = std::mem::take(&mut *stages.0.lock());
    let bytes = spec.component.len() as u64;
    let expected = [Stage::Compiling { bytes }, Stage::Configuring, Stage::Snapshotting, Stage::Probing];
    assert_eq!(told[..told.len() - 1], expected);
    assert!(matches!(told.last(), Some(Stage::Ready { .. })));
}

#[test]
fn what_configure_complains_about_is_the_error() {
    let error = setup(Guest::FailingConfigure).settings(r#"{"even": 3}"#).refused();
    assert!(matches!(&error, LoadError::Configure(text) if text.contains('3')), "{error:?}");
    let error = setup(Guest::Tag).settings(r#"{"valeu": "v1"}"#).refused();
    assert!(matches!(&error, LoadError::Configure(text) if text.contains("valeu")), "{error:?}");
    let error = setup(Guest::Trap).settings(r#"{"phase": "configure"}"#).refused();
    assert!(matches!(&error, LoadError::ConfigureFailed(_)), "{error:?}");
}

#[tokio::test]
async fn instances_of_one_snapshot_agree_with_its_declarations() {
    let filter = setup(Guest::Counter).named("declared-once").load();
    let again = setup(Guest::Counter).named("declared-once").load();
    assert_eq!(filter.declarations(), again.declarations(), "from `configure`, and from the cache");
}
