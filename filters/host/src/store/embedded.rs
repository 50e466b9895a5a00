//! The store in a file: SQLite in WAL mode, which takes writers one after the other, of however many processes.
//!
//! One thread has the connection. It takes all operations that wait, up to [`BATCH_MAX`], into one transaction, and
//! answers when that is on its way to the disk: the end of the process loses nothing that was answered, the end of the
//! machine perhaps the last moments.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{ENTRY_BYTES, Operation, Quota, Reply, StoreError, expires};

/// Operations in one transaction: their answers wait for each other.
const BATCH_MAX: usize = 256;
/// Operations that wait for the thread; who comes later waits outside.
const QUEUE_MAX: usize = 4_096;
/// How long another process's transaction is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// Keys that one listing tells.
const LISTED_MAX: i64 = 1_000;

/// What keys are of: the kinds of entries do not see each other.
const VALUE: i64 = 0;
const COUNTER: i64 = 1;

/// The layout's number, in `user_version`.
const LAYOUT: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (
    space TEXT NOT NULL,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    value NOT NULL,
    bytes INTEGER NOT NULL,
    expires INTEGER,
    PRIMARY KEY (space, kind, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiring ON entries (space, expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS spaces (
    space TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,
    entries INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 1;
";

#[derive(Debug)]
pub(super) struct Embedded {
    file: PathBuf,
    /// The thread's, which is started by the first operation.
    queue: OnceLock<mpsc::Sender<Job>>,
}

struct Job {
    space: Arc<str>,
    operation: Operation,
    answer: oneshot::Sender<Result<Reply, StoreError>>,
}

impl Embedded {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, queue: OnceLock::new() }
    }

    pub(super) fn is_there(&self) -> bool {
        self.file.exists()
    }

    pub(super) async fn run(&self, space: &Arc<str>, operation: Operation) -> Result<Reply, StoreError> {
        let queue = self.queue.get_or_init(|| start(self.file.clone()));
        let (answer, answered) = oneshot::channel();
        let gone = || StoreError("its thread ended".into());
        queue.send(Job { space: Arc::clone(space), operation, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Starts the thread, which ends with the last sender. Where no thread is to be had, the queue is closed.
fn start(file: PathBuf) -> mpsc::Sender<Job> {
    let (sender, mut jobs) = mpsc::channel(QUEUE_MAX);
    let run = move || {
        let mut connection = None;
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while jobs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            match serve(&mut connection, &file, &batch) {
                Ok(replies) => {
                    for (job, reply) in batch.drain(..).zip(replies) {
                        // Whoever asked may be gone.
                        let _ = job.answer.send(Ok(reply));
                    }
                }
                Err(problem) => {
                    // A file that was removed, or a disk that was full: the next batch begins anew.
                    connection = None;
                    let error = StoreError(format!("`{}`: {problem}", file.display()));
                    for job in batch.drain(..) {
                        let _ = job.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("key-value".into()).spawn(run) {
        tracing::error!(%error, "the key-value store's thread cannot be started");
    }
    sender
}

/// Does a batch in one transaction: all of it or nothing.
fn serve(connection: &mut Option<Connection>, file: &Path, batch: &[Job]) -> Result<Vec<Reply>, String> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(open(file)?),
    };
    transact(connection, batch).map_err(|error| error.to_string())
}

fn transact(connection: &mut Connection, batch: &[Job]) -> rusqlite::Result<Vec<Reply>> {
    let writes = batch.iter().any(|job| writes(&job.operation));
    // To begin as a reader and write later would fail where another process wrote in between.
    let behavior = if writes { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
    let transaction = connection.transaction_with_behavior(behavior)?;
    let now = now_ms();
    let in_space = |job: &Job| In { on: &transaction, space: &job.space, now }.apply(&job.operation);
    let replies = batch.iter().map(in_space).collect::<rusqlite::Result<Vec<_>>>()?;
    transaction.commit()?;
    Ok(replies)
}

const fn writes(operation: &Operation) -> bool {
    use Operation::{Counter, Get, List, Measure};
    !matches!(operation, Get { .. } | Counter { .. } | List { .. } | Measure)
}

fn open(file: &Path) -> Result<Connection, String> {
    // SQLite would make it readable by all, and gives the files beside it the same mode.
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(file);
    made.map_err(|error| error.to_string())?;
    let prepared = || -> rusqlite::Result<(Connection, i64)> {
        let connection = Connection::open(file)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
        let layout = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if layout == 0 {
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        Ok((connection, layout))
    };
    let (connection, layout) = prepared().map_err(|error| error.to_string())?;
    if layout > LAYOUT {
        return Err("it was written by a later version of the gateway".to_owned());
    }
    Ok(connection)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A transaction, seen from a space.
struct In<'a> {
    on: &'a Transaction<'a>,
    space: &'a str,
    now: i64,
}

impl In<'_> {
    fn apply(&self, operation: &Operation) -> rusqlite::Result<Reply> {
        Ok(match operation {
            Operation::Get { keys } => {
                let values = keys.iter().map(|key| self.alive(VALUE, key));
                Reply::Values(values.collect::<rusqlite::Result<_>>()?)
            }
            Operation::Counter { key } => self.alive(COUNTER, key)?.map_or(Reply::Absent, Reply::Number),
            Operation::Set { entries, ttl, quota } => {
                for (key, value) in entries {
                    if !self.set(key, value, expires(self.now, *ttl), *quota)? {
                        return Ok(Reply::Full);
                    }
                }
                Reply::Done
            }
            Operation::Delete { keys } => {
                for key in keys {
                    self.delete(key)?;
                }
                Reply::Done
            }
            Operation::Increment { key, by, ttl, quota } => self.increment(key, *by, *ttl, *quota)?,
            Operation::Add { key, by, quota } => self.add(key, *by, *quota)?,
            Operation::Swap { key, expected, value, quota } => {
                if self.alive::<Vec<u8>>(VALUE, key)? != *expected {
                    return Ok(Reply::Conflict);
                }
                if self.set(key, value, None, *quota)? { Reply::Done } else { Reply::Full }
            }
            Operation::List { cursor } => self.list(cursor.as_deref())?,
            Operation::Measure => {
                let (bytes, entries) = self.held()?;
                Reply::Use { bytes: bytes.cast_unsigned(), entries: entries.cast_unsigned() }
            }
        })
    }

    /// Returns what has not expired.
    fn alive<T: FromSql>(&self, kind: i64, key: &str) -> rusqlite::Result<Option<T>> {
        self.on
            .prepare_cached(
                "SELECT value FROM entries
                 WHERE space = ?1 AND kind = ?2 AND key = ?3 AND (expires IS NULL OR expires > ?4)",
            )?
            .query_row(params![self.space, kind, key, self.now], |row| row.get(0))
            .optional()
    }

    /// False where it does not fit.
    fn set(&self, key: &str, value: &[u8], expires: Option<i64>, quota: Quota) -> rusqlite::Result<bool> {
        let bytes = cost(key, value.len());
        let fits = self.make_room(VALUE, key, bytes, quota)?;
        if fits {
            self.put(VALUE, key, value, bytes, expires)?;
        }
        Ok(fits)
    }

    fn delete(&self, key: &str) -> rusqlite::Result<()> {
        let freed: Option<i64> = self
            .on
            .prepare_cached("DELETE FROM entries WHERE space = ?1 AND kind = ?2 AND key = ?3 RETURNING bytes")?
            .query_row(params![self.space, VALUE, key], |row| row.get(0))
            .optional()?;
        freed.map_or(Ok(()), |freed| self.grow(-freed, -1))
    }

    fn increment(&self, key: &str, by: i64, ttl: Option<Duration>, quota: Quota) -> rusqlite::Result<Reply> {
        let held: Option<(i64, Option<i64>)> = self
            .on
            .prepare_cached("SELECT value, expires FROM entries WHERE space = ?1 AND kind = ?2 AND key = ?3")?
            .query_row(params![self.space, COUNTER, key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let bytes = cost(key, 0);
        let (value, until) = match held {
            Some((value, until)) if until.is_none_or(|until| self.now < until) => (value.saturating_add(by), until),
            Some(_) => (by, expires(self.now, ttl)),
            None if self.make_room(COUNTER, key, bytes, quota)? => (by, expires(self.now, ttl)),
            None => return Ok(Reply::Full),
        };
        self.put(COUNTER, key, value, bytes, until)?;
        Ok(Reply::Number(value))
    }

    fn add(&self, key: &str, by: i64, quota: Quota) -> rusqlite::Result<Reply> {
        let sum = match self.alive::<Vec<u8>>(VALUE, key)? {
            None => by,
            Some(held) => match number(&held) {
                Some(held) => held.saturating_add(by),
                None => return Ok(Reply::Conflict),
            },
        };
        let fits = self.set(key, sum.to_string().as_bytes(), None, quota)?;
        Ok(if fits { Reply::Number(sum) } else { Reply::Full })
    }

    fn list(&self, after: Option<&str>) -> rusqlite::Result<Reply> {
        // The empty text is a key as well, and comes before all others.
        let from = if after.is_some() { "key > ?2" } else { "key >= ?2" };
        let mut statement = self.on.prepare_cached(&format!(
            "SELECT key FROM entries
             WHERE space = ?1 AND kind = {VALUE} AND {from} AND (expires IS NULL OR expires > ?3)
             ORDER BY key LIMIT {LISTED_MAX}"
        ))?;
        let keys = statement.query_map(params![self.space, after.unwrap_or_default(), self.now], |row| row.get(0))?;
        let keys = keys.collect::<rusqlite::Result<Vec<String>>>()?;
        let next = keys.last().filter(|_| keys.len() as i64 == LISTED_MAX).cloned();
        Ok(Reply::Keys(keys, next))
    }

    /// Counts an entry that is to have `bytes` in the place of what the key has, if it fits, perhaps after what has
    /// expired is gone.
    fn make_room(&self, kind: i64, key: &str, bytes: i64, quota: Quota) -> rusqlite::Result<bool> {
        let most = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
        for swept in [false, true] {
            let there: Option<i64> = self
                .on
                .prepare_cached("SELECT bytes FROM entries WHERE space = ?1 AND kind = ?2 AND key = ?3")?
                .query_row(params![self.space, kind, key], |row| row.get(0))
                .optional()?;
            let (used, entries) = self.held()?;
            let (grows, more) = (bytes - there.unwrap_or(0), i64::from(there.is_none()));
            let fits = (grows <= 0 || used + grows <= most(quota.bytes))
                && (more == 0 || entries + more <= most(quota.entries));
            if fits {
                self.grow(grows, more)?;
                return Ok(true);
            }
            if !swept {
                self.sweep()?;
            }
        }
        Ok(false)
    }

    /// Removes what has expired.
    fn sweep(&self) -> rusqlite::Result<()> {
        let (freed, fewer): (i64, i64) = self
            .on
            .prepare_cached("SELECT coalesce(sum(bytes), 0), count(*) FROM entries WHERE space = ?1 AND expires <= ?2")?
            .query_row(params![self.space, self.now], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.on
            .prepare_cached("DELETE FROM entries WHERE space = ?1 AND expires <= ?2")?
            .execute(params![self.space, self.now])?;
        self.grow(-freed, -fewer)
    }

    /// Returns the bytes and the entries that the space holds.
    fn held(&self) -> rusqlite::Result<(i64, i64)> {
        let held = self
            .on
            .prepare_cached("SELECT bytes, entries FROM spaces WHERE space = ?1")?
            .query_row(params![self.space], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(held.unwrap_or_default())
    }

    fn put(&self, kind: i64, key: &str, value: impl ToSql, bytes: i64, expires: Option<i64>) -> rusqlite::Result<()> {
        self.on
            .prepare_cached(
                "INSERT OR REPLACE INTO entries (space, kind, key, value, bytes, expires)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![self.space, kind, key, value, bytes, expires])
            .map(drop)
    }

    fn grow(&self, bytes: i64, entries: i64) -> rusqlite::Result<()> {
        if (bytes, entries) == (0, 0) {
            return Ok(());
        }
        self.on
            .prepare_cached(
                "INSERT INTO spaces (space, bytes, entries) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes, entries = entries + excluded.entries",
            )?
            .execute(params![self.space, bytes, entries])
            .map(drop)
    }
}

/// Returns what an entry counts.
fn cost(key: &str, value_bytes: usize) -> i64 {
    i64::try_from(ENTRY_BYTES).unwrap_or(i64::MAX) + length(key.len()) + length(value_bytes)
}

fn length(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX / 4)
}

/// Reads a number as this store writes it, and as Redis takes it: no sign but `-`, no zero before other digits.
fn number(value: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == value).then_some(number)
}
