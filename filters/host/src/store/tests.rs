//! Both kinds of store, against each other's promises: the embedded one, and a real Redis server.

use std::process::{Child, Command, Stdio};

use super::*;

/// A server of its own, killed at the end.
struct Server {
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn redis() -> (Server, StoreOptions) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let process = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .expect(
            "this test needs `redis-server`: `.ci/setup test` installs it as root, or `apt-get install redis-server`",
        );
    let options = StoreOptions::Redis { url: format!("redis+unix://{}", socket.display()) };
    (Server { process, _dir: dir }, options)
}

fn embedded() -> (tempfile::TempDir, StoreOptions) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key-value.db");
    (dir, StoreOptions::Embedded { file })
}

async fn with_both(check: impl AsyncFn(StoreOptions)) {
    let (_dir, options) = embedded();
    check(options).await;
    let (_server, options) = redis();
    check(options).await;
}

async fn opened(options: &StoreOptions) -> Store {
    let store = Store::new(options).unwrap();
    // A server that was just started takes a moment, and tells nobody.
    for _ in 0..200 {
        if store.run(&"up".into(), Operation::Measure).await.is_ok() {
            return store;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the store does not come up: {:?}", store.run(&"up".into(), Operation::Measure).await)
}

const ROOM: Quota = Quota { bytes: 10_000, entries: 1_000 };

fn keys(keys: &[&str]) -> Vec<Box<str>> {
    keys.iter().map(|key| (*key).into()).collect()
}

fn get(key: &str) -> Operation {
    Operation::Get { keys: keys(&[key]) }
}

fn counter(key: &str) -> Operation {
    Operation::Counter { key: key.into() }
}

fn delete(key: &str) -> Operation {
    Operation::Delete { keys: keys(&[key]) }
}

fn set(key: &str, value: &[u8], ttl_ms: Option<u64>, quota: Quota) -> Operation {
    Operation::Set { entries: vec![(key.into(), value.to_vec())], ttl: ttl_ms.map(Duration::from_millis), quota }
}

fn increment(key: &str, by: i64, ttl_ms: Option<u64>) -> Operation {
    Operation::Increment { key: key.into(), by, ttl: ttl_ms.map(Duration::from_millis), quota: ROOM }
}

fn add(key: &str, by: i64) -> Operation {
    Operation::Add { key: key.into(), by, quota: ROOM }
}

fn swap(key: &str, expected: Option<&[u8]>, value: &[u8]) -> Operation {
    Operation::Swap { key: key.into(), expected: expected.map(<[u8]>::to_vec), value: value.to_vec(), quota: ROOM }
}

fn found(value: &[u8]) -> Reply {
    Reply::Values(vec![Some(value.to_vec())])
}

fn absent() -> Reply {
    Reply::Values(vec![None])
}

#[tokio::test]
async fn values_and_counters_are_apart_and_so_are_spaces() {
    with_both(async |options| {
        let (store, one, two) = (opened(&options).await, Arc::from("one"), Arc::from("two"));
        let run = async |space: &Arc<str>, operation| store.run(space, operation).await.unwrap();
        assert_eq!(run(&one, set("key", b"\0value\xff", None, ROOM)).await, Reply::Done);
        assert_eq!(run(&one, increment("key", 2, None)).await, Reply::Number(2));
        assert_eq!(run(&one, increment("key", -5, None)).await, Reply::Number(-3));
        assert_eq!(run(&one, counter("key")).await, Reply::Number(-3));
        assert_eq!(run(&one, get("key")).await, found(b"\0value\xff"));
        assert_eq!(run(&two, get("key")).await, absent());
        assert_eq!(run(&two, counter("key")).await, Reply::Absent);
        assert_eq!(run(&one, delete("key")).await, Reply::Done);
        assert_eq!(run(&one, get("key")).await, absent());
        assert_eq!(run(&one, increment("top", i64::MAX, None)).await, Reply::Number(i64::MAX));
        assert_eq!(run(&one, increment("top", 1, None)).await, Reply::Number(i64::MAX));
        assert_eq!(run(&one, increment("low", i64::MIN, None)).await, Reply::Number(i64::MIN));
        assert_eq!(run(&one, increment("low", -1, None)).await, Reply::Number(i64::MIN));
    })
    .await;
}

#[tokio::test]
async fn a_value_that_is_a_number_can_be_added_to_and_another_cannot() {
    with_both(async |options| {
        let (store, space) = (opened(&options).await, Arc::from("space"));
        let run = async |operation| store.run(&space, operation).await.unwrap();
        assert_eq!(run(add("sum", 7)).await, Reply::Number(7));
        assert_eq!(run(add("sum", -10)).await, Reply::Number(-3));
        assert_eq!(run(get("sum")).await, found(b"-3"));
        assert_eq!(run(add("sum", i64::MIN)).await, Reply::Number(i64::MIN));
        assert_eq!(run(add("sum", i64::MAX)).await, Reply::Number(-1));
        assert_eq!(run(counter("sum")).await, Reply::Absent, "a filter's counter is another thing");
        for no_number in [&b"x"[..], b"", b"+1", b"01", b" 1", b"1.5", b"9223372036854775808"] {
            run(set("word", no_number, None, ROOM)).await;
            assert_eq!(run(add("word", 1)).await, Reply::Conflict, "{no_number:?}");
            assert_eq!(run(get("word")).await, found(no_number));
        }
        // However long the number has become, what it holds is given back.
        run(Operation::Delete { keys: keys(&["sum", "word"]) }).await;
        assert_eq!(run(Operation::Measure).await, Reply::Use { bytes: 0, entries: 0 });
    })
    .await;
}

#[tokio::test]
async fn a_value_is_swapped_only_for_what_was_expected() {
    with_both(async |options| {
        let (store, space) = (opened(&options).await, Arc::from("space"));
        let run = async |operation| store.run(&space, operation).await.unwrap();
        assert_eq!(run(swap("key", Some(b""), b"x")).await, Reply::Conflict, "nothing is not an empty value");
        assert_eq!(run(swap("key", None, b"one")).await, Reply::Done);
        assert_eq!(run(swap("key", None, b"two")).await, Reply::Conflict);
        assert_eq!(run(swap("key", Some(b"on"), b"two")).await, Reply::Conflict);
        assert_eq!(run(swap("key", Some(b"one"), b"two")).await, Reply::Done);
        assert_eq!(run(get("key")).await, found(b"two"));
    })
    .await;
}

#[tokio::test]
async fn many_are_read_in_their_order_and_all_are_listed() {
    with_both(async |options| {
        let (store, space) = (opened(&options).await, Arc::from("space"));
        let run = async |operation| store.run(&space, operation).await.unwrap();
        let room = Quota { bytes: 1 << 20, entries: 10_000 };
        let written = || (0..2_500).map(|index| (format!("key-{index}"), index.to_string().into_bytes()));
        let entries = written().map(|(key, value)| (key.into(), value)).collect();
        assert_eq!(run(Operation::Set { entries, ttl: None, quota: room }).await, Reply::Done);
        run(set("", b"empty", None, room)).await;
        run(set("gone", b"", Some(0), room)).await;
        run(Operation::Increment { key: "counter".into(), by: 1, ttl: None, quota: room }).await;
        let three = Operation::Get { keys: keys(&["key-7", "nothing", "key-3", "gone"]) };
        assert_eq!(run(three).await, Reply::Values(vec![Some(b"7".to_vec()), None, Some(b"3".to_vec()), None]));
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let Reply::Keys(some, next) = run(Operation::List { cursor }).await else { panic!("keys") };
            listed.extend(some);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        // Redis may tell a key twice.
        listed.sort_unstable();
        listed.dedup();
        let mut expected: Vec<_> = written().map(|(key, _)| key).chain([String::new()]).collect();
        expected.sort_unstable();
        assert_eq!(listed, expected);
    })
    .await;
}

#[tokio::test]
async fn what_does_not_fit_changes_nothing_until_something_expires() {
    with_both(async |options| {
        let (store, space) = (opened(&options).await, Arc::from("space"));
        let run = async |operation| store.run(&space, operation).await.unwrap();
        let tight = Quota { bytes: 300, entries: 10 };
        assert_eq!(run(set("a", &[0; 100], Some(1_500), tight)).await, Reply::Done);
        assert_eq!(run(set("b", &[0; 100], None, tight)).await, Reply::Full);
        assert_eq!(run(set("a", &[0; 300], None, tight)).await, Reply::Full);
        assert_eq!(run(get("b")).await, absent());
        assert_eq!(run(increment("hits", 1, Some(1_500))).await, Reply::Number(1));
        assert_eq!(run(Operation::Measure).await, Reply::Use { bytes: 165 + 68, entries: 2 });
        // Expiry is a matter of the clock.
        tokio::time::sleep(Duration::from_millis(1_700)).await;
        assert_eq!(run(get("a")).await, absent());
        assert_eq!(run(increment("hits", 1, None)).await, Reply::Number(1), "counts from its first use again");
        assert_eq!(run(set("b", &[0; 100], None, tight)).await, Reply::Done);
        assert_eq!(run(Operation::Measure).await, Reply::Use { bytes: 165 + 68, entries: 2 });
    })
    .await;
}

#[tokio::test]
async fn no_more_entries_are_made_than_may_be_and_those_that_are_there_can_be_changed() {
    with_both(async |options| {
        let (store, space) = (opened(&options).await, Arc::from("space"));
        let run = async |operation| store.run(&space, operation).await.unwrap();
        let two = Quota { bytes: 10_000, entries: 2 };
        let three = ["a", "b", "c"].map(|key| (key.into(), b"1".to_vec()));
        let three = Operation::Set { entries: three.into(), ttl: None, quota: two };
        assert_eq!(run(three).await, Reply::Full);
        assert_eq!(run(get("b")).await, found(b"1"), "what fitted before it is there");
        assert_eq!(run(get("c")).await, absent());
        assert_eq!(run(Operation::Add { key: "c".into(), by: 1, quota: two }).await, Reply::Full);
        let counted = Operation::Increment { key: "c".into(), by: 1, ttl: None, quota: two };
        assert_eq!(run(counted.clone()).await, Reply::Full);
        assert_eq!(run(set("a", b"longer", None, two)).await, Reply::Done);
        run(delete("b")).await;
        assert_eq!(run(counted).await, Reply::Number(1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_parallel_increments_are_a_thousand() {
    with_both(async |options| {
        // Two handles, as two processes have them.
        let stores = [opened(&options).await, opened(&options).await];
        let tasks: Vec<_> = (0..2_000)
            .map(|index: usize| {
                let store = stores[index % 2].clone();
                let operation = if index % 4 < 2 { increment("hits", 1, None) } else { add("hits", 1) };
                tokio::spawn(async move { (index % 4 < 2, store.run(&"hits".into(), operation).await.unwrap()) })
            })
            .collect();
        let mut seen = [Vec::new(), Vec::new()];
        for task in tasks {
            let (counter, reply) = task.await.unwrap();
            let Reply::Number(value) = reply else { panic!("a number") };
            seen[usize::from(counter)].push(value);
        }
        for seen in &mut seen {
            seen.sort_unstable();
            assert_eq!(*seen, (1..=1_000).collect::<Vec<_>>(), "each increment saw a value of its own");
        }
        let again = opened(&options).await;
        assert_eq!(again.run(&"hits".into(), counter("hits")).await.unwrap(), Reply::Number(1_000));
        assert_eq!(again.run(&"hits".into(), get("hits")).await.unwrap(), found(b"1000"));
    })
    .await;
}

#[tokio::test]
async fn operations_are_counted_by_kind_and_outcome_and_sizes_are_told_when_asked_for() {
    let (_dir, options) = embedded();
    let store = opened(&options).await;
    let spaces = Spaces::new(store.clone());
    let (own, shared) = (spaces.granted("filter", "one", "default"), spaces.granted("filter", "one", "visits"));
    let same = spaces.granted("function", "two", "visits");
    let tight = Quota { bytes: 100, entries: 1 };
    assert!(own.set(vec![("a".into(), b"1".to_vec())], None, tight).await.unwrap());
    assert!(!own.set(vec![("b".into(), b"1".to_vec())], None, tight).await.unwrap());
    assert_eq!(shared.increment("hits", 1, None, ROOM).await.unwrap(), Some(1));
    assert_eq!(same.counter("hits").await.unwrap(), Some(1), "it is one space");
    let known = |spaces: &Spaces| {
        let sizes = spaces.sizes().into_iter();
        sizes.map(|space| (space.space, space.size, space.refused)).collect::<Vec<_>>()
    };
    let names = |own, shared| [("filter/one".to_owned(), own, 1), ("shared/visits".to_owned(), shared, 0)];
    assert_eq!(known(&spaces), names(None, None));
    spaces.measure(Duration::from_secs(10)).await;
    assert_eq!(known(&spaces), names(Some((66, 1)), Some((68, 1))));
    let counted = |operation, outcome| {
        let counts = store.counts().into_iter();
        counts.filter(|it| (it.operation, it.outcome) == (operation, outcome)).map(|it| it.count).sum::<u64>()
    };
    assert_eq!(counted(KeyValueOperation::Set, KeyValueOutcome::Done), 1);
    assert_eq!(counted(KeyValueOperation::Set, KeyValueOutcome::Full), 1);
    assert_eq!(counted(KeyValueOperation::Get, KeyValueOutcome::Done), 1);
    drop((own, shared, same));
    assert_eq!(known(&spaces), [], "spaces that nobody has are nobody's matter");
}

#[tokio::test]
async fn a_store_that_is_not_there_is_an_error_and_not_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    for options in [
        StoreOptions::Embedded { file: dir.path().join("missing/key-value.db") },
        StoreOptions::Redis { url: "redis://127.0.0.1:1".into() },
    ] {
        let store = Store::new(&options).unwrap();
        let error = store.run(&"space".into(), get("key")).await.unwrap_err();
        assert!(error.to_string().starts_with("the key-value store failed: "), "{error}");
        let failed = store.counts().into_iter().filter(|it| it.outcome == KeyValueOutcome::Failed);
        assert_eq!(failed.map(|it| it.count).sum::<u64>(), 1);
    }
    let error = Store::new(&StoreOptions::Redis { url: "http://user:hunter2@example.com".into() }).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_file_that_a_later_version_wrote_is_left_alone() {
    let (dir, options) = embedded();
    let file = dir.path().join("key-value.db");
    drop(opened(&options).await);
    rusqlite::Connection::open(&file).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
    let error = Store::new(&options).unwrap().run(&"space".into(), get("key")).await.unwrap_err();
    assert!(error.to_string().ends_with("it was written by a later version of the gateway"), "{error}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds what users said");
}
