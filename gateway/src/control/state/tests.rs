//! Crashes between two steps, damaged copies, secrets: what is saved must come back, or be said to be lost.

use std::os::unix::fs::PermissionsExt;

use lockgate_host::OutboundGrant;

use super::*;
use crate::control::quarantine::{Entry, Held, Why};

fn version(component: &[u8]) -> VersionId {
    VersionId::of(component, "{}", &Grants::default())
}

fn kept(component: &[u8]) -> Kept {
    Kept {
        version: version(component),
        component: "filters/auth.wasm".into(),
        settings: Secret::new(r#"{"key":"s3cret"}"#.to_owned()),
        grants: Grants { outbound: vec![OutboundGrant::new(true, "api.example.com", 443)], ..Grants::default() },
        since: Timestamp::from_millis(1),
    }
}

fn saved(weight: &str) -> Saved {
    let versions = rollout::Versions { stable: "v1".to_owned(), canary: "v2".to_owned() };
    let weight = weight.parse().expect("a weight");
    let (state, _) = rollout::State::begin(versions, &rollout::Plan::ByHand(weight), None, Timestamp::from_millis(1));
    let why = Why::Failures { failures: 5, window_ms: 30_000 };
    Saved {
        rollouts: [("auth-1.5".to_owned(), state)].into(),
        quarantine: vec![Entry { held: Held::filter("auth", &version(b"bad")), why, since: Timestamp::from_millis(2) }]
            .into(),
        filters: [("auth".to_owned(), History { serving: Some(kept(b"new")), last_good: vec![kept(b"old")] })].into(),
        approvals: Approvals::default(),
    }
}

fn locked(dir: &Path) -> Store {
    let mut store = Store::open(dir).expect("a folder");
    store.lock().expect("nobody else has it");
    store
}

/// Keeps a state as the control loop does.
fn keep(store: &mut Store, saved: &Saved) {
    store.save(saved, &[entry()]).expect("it can be written");
    store.confirm(saved);
}

fn entry() -> AuditEntry {
    AuditEntry {
        time: Timestamp::from_millis(3),
        actor: "gateway".to_owned(),
        action: "step".to_owned(),
        subject: "rollout auth-1.5".to_owned(),
        before: "ramping 5%".to_owned(),
        after: "ramping 20%".to_owned(),
        why: Some(Why::Guard { findings: vec!["failures: not worse".to_owned()], others: Vec::new() }),
    }
}

fn restored(dir: &Path) -> Restored {
    locked(dir).restore().expect("it can be read")
}

#[test]
fn what_was_saved_is_restored_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    assert_eq!(restored(dir.path()).saved, Saved::default());
    keep(&mut locked(dir.path()), &saved("0.01%"));
    let found = restored(dir.path());
    assert_eq!(found.saved, saved("0.01%"));
    assert_eq!((found.trouble, found.entries), (None, Vec::new()));
}

#[test]
fn secrets_can_be_read_by_the_owner_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("state");
    keep(&mut locked(&state), &saved("5%"));
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for name in COPIES {
        assert_eq!(mode(&state.join(name)), 0o600);
    }
    assert!(!format!("{:?}", saved("5%")).contains("s3cret"));
}

#[test]
fn a_crash_at_any_step_of_a_save_leaves_the_state_before_or_after() {
    let next = [encode(3, &saved("20%"), &[entry()]), encode(4, &saved("20%"), &[])];
    // The temporary file has any length; the rename of the first copy has happened or not; the same for the second.
    for renamed in 0..=2 {
        for length in (0..next[1].len()).step_by(97) {
            let dir = tempfile::tempdir().expect("a folder");
            keep(&mut locked(dir.path()), &saved("5%"));
            for (name, next) in COPIES.iter().zip(&next).take(renamed) {
                fs::write(dir.path().join(name), next).expect("it can be written");
            }
            if let (Some(name), Some(next)) = (COPIES.get(renamed), next.get(renamed)) {
                fs::write(dir.path().join(format!("{name}.tmp")), &next[..length]).expect("it can be written");
            }
            let found = restored(dir.path());
            assert_eq!(found.saved, if renamed == 0 { saved("5%") } else { saved("20%") });
            // Between the two copies, nobody knows what the audit log has.
            assert_eq!(found.entries, if renamed == 1 { vec![entry()] } else { Vec::new() });
            assert_eq!(found.trouble, None);
            let mut store = locked(dir.path());
            store.restore().expect("it can be read");
            keep(&mut store, &saved("30%"));
            drop(store);
            assert_eq!(restored(dir.path()).saved, saved("30%"));
        }
    }
}

#[test]
fn a_corrupted_copy_is_set_aside_and_the_other_one_used() {
    for (corrupt, other) in [(COPIES[0], COPIES[1]), (COPIES[1], COPIES[0])] {
        let dir = tempfile::tempdir().expect("a folder");
        keep(&mut locked(dir.path()), &saved("5%"));
        let whole = fs::read_to_string(dir.path().join(corrupt)).expect("it was just written");
        fs::write(dir.path().join(corrupt), whole.replace("5%", "6%")).expect("it can be written");
        let found = restored(dir.path());
        assert_eq!(found.saved, saved("5%"));
        assert_eq!(found.corrupted, 1);
        let trouble = found.trouble.expect("it says so");
        assert!(trouble.contains("its checksum is wrong") && trouble.contains("nothing is lost"), "{trouble}");
        let names: Vec<_> = fs::read_dir(dir.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(names.iter().any(|name| name.starts_with(&format!("{corrupt}.corrupt-"))), "{names:?}");
        assert!(names.iter().any(|name| name == other), "{names:?}");
    }
}

#[test]
fn two_corrupted_copies_are_said_to_be_lost_and_prevent_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    keep(&mut locked(dir.path()), &saved("5%"));
    let whole = fs::read(dir.path().join(COPIES[0])).expect("it was just written");
    for length in (0..whole.len() - 1).step_by(41) {
        for name in COPIES {
            fs::write(dir.path().join(name), &whole[..length]).expect("it can be written");
        }
        let found = restored(dir.path());
        assert_eq!((found.saved, found.corrupted), (Saved::default(), 2), "cut at {length}");
        assert!(found.trouble.is_some_and(|trouble| trouble.contains("begins with the file's weight")));
    }
}

#[test]
fn another_format_is_set_aside() {
    let text = String::from_utf8(encode(1, &saved("5%"), &[])).expect("it is text");
    let other = text.replace(r#""format": 1"#, r#""format": 2"#);
    let refused = decode(other.as_bytes()).expect_err("another format");
    assert_eq!(refused, "its format is 2, and this version of lockgate reads 1");
}

#[test]
fn a_process_that_does_not_decide_leaves_everything_as_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let deciding = locked(dir.path());
    let path = dir.path().join(COPIES[0]);
    fs::write(&path, "torn").expect("it can be written");
    let mut other = Store::open(dir.path()).expect("a folder");
    assert!(matches!(other.lock(), Err(StoreError::Locked(_))));
    assert_eq!(other.restore().expect("it can be read").corrupted, 1);
    assert!(path.exists());
    drop(deciding);
    other.lock().expect("it is free now");
}

#[test]
fn components_are_kept_by_content_until_nothing_needs_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = locked(dir.path());
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    store.keep_component(&old, b"old").expect("it can be written");
    store.keep_component(&new, b"new").expect("it can be written");
    assert_eq!(&*store.component(&old).expect("it is kept"), b"old");
    store.prune_components(&[new].into());
    assert!(store.component(&old).is_err());
    assert_eq!(&*store.component(&new).expect("it is kept"), b"new");
}

#[test]
fn a_damaged_component_is_refused_and_written_again_when_it_is_at_hand() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = locked(dir.path());
    let digest = Digest::of(b"old");
    store.keep_component(&digest, b"old").expect("it can be written");
    fs::write(store.component_path(&digest), "o").expect("it can be written");
    assert!(store.component(&digest).is_err());
    store.keep_component(&digest, b"old").expect("it can be written");
    assert!(store.component(&digest).is_ok());
}

#[test]
fn a_history_remembers_what_was_good() {
    let versions = |history: &History| history.last_good.iter().map(|kept| kept.version).collect::<Vec<_>>();
    let mut history = History::default();
    history.serve(kept(b"1"), true);
    history.serve(kept(b"2"), true);
    assert_eq!(versions(&history), [version(b"1")]);
    history.serve(kept(b"3"), false);
    assert_eq!(versions(&history), [version(b"1")], "a bad version is not worth remembering");
    history.serve(kept(b"1"), true);
    assert_eq!(versions(&history), [version(b"3")], "what serves is no fall-back for itself");
    for component in [b"4", b"5", b"6", b"7"] {
        history.serve(kept(component), true);
    }
    assert_eq!(versions(&history), [version(b"6"), version(b"5"), version(b"4")]);
}
