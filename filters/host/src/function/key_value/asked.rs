//! What a guest asks of a space, checked: how long a key may be, how many there may be at once, how much is answered.

use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime::{Result, StoreContextMut};

use super::{Answer, Bucket, Error};
use crate::error::CallErrorKind;
use crate::function::state::State;
use crate::function::turn::Turn;
use crate::store::{Operation, Quota, Reply, Space, unexpected};

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 4 << 10;
/// Keys of one call of `batch`.
const KEYS_MAX: usize = 1_000;
/// Bytes of values, or of keys, that one call answers with.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A space, on behalf of a guest.
pub(super) struct Asked {
    pub(super) space: Space,
    turn: Arc<Turn>,
    quota: Quota,
}

impl Asked {
    pub(super) fn of(state: &State, space: &Space) -> Self {
        let turn = Arc::clone(&state.turn);
        Self { space: space.clone(), quota: turn.shared.limits.quota(), turn }
    }

    pub(super) fn bucket(store: &StoreContextMut<'_, State>, bucket: &Resource<Bucket>) -> Result<Self> {
        let state = store.data();
        Ok(Self::of(state, &state.table.get(bucket)?.0))
    }

    /// Does an operation. A store that is not to be had is remembered: if the guest fails, that is why.
    async fn run(&self, operation: Operation) -> Answer<Reply> {
        let reply = self.space.run(operation).await.inspect_err(|error| self.refuse(&error.to_string()))?;
        match reply {
            Reply::Full => {
                let Quota { bytes, entries } = self.quota;
                let problem = format!(
                    "it does not fit: `limits.key_value` is {bytes} bytes, `limits.key_value_entries` {entries}"
                );
                self.refuse(&problem);
                Err(Error::Other(problem))
            }
            reply => Ok(reply),
        }
    }

    fn refuse(&self, problem: &str) {
        self.turn.refuse(CallErrorKind::Store, problem);
    }

    pub(super) async fn get(&self, key: String) -> Answer<Option<Vec<u8>>> {
        Ok(self.get_all(vec![checked(key)?]).await?.pop().flatten())
    }

    async fn get_all(&self, keys: Vec<Box<str>>) -> Answer<Vec<Option<Vec<u8>>>> {
        match self.run(Operation::Get { keys }).await? {
            Reply::Values(values) => Ok(values),
            _ => Err(unexpected().into()),
        }
    }

    /// Returns the keys, each with its value.
    pub(super) async fn get_many(&self, keys: Vec<String>) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        let keys = checked_many(keys)?;
        // A key that is asked for twice is read once: what is read is then no more than the space holds.
        let mut asked = keys.clone();
        asked.sort_unstable();
        asked.dedup();
        let found = self.get_all(asked.clone()).await?;
        let value = |key: &str| {
            let index = asked.binary_search_by(|known| (**known).cmp(key)).ok()?;
            found.get(index)?.as_ref()
        };
        let bytes: usize = keys.iter().filter_map(|key| value(key)).map(Vec::len).sum();
        if bytes > ANSWER_BYTES_MAX {
            return Err(Error::Other(format!(
                "the values are {bytes} bytes together; the limit is {ANSWER_BYTES_MAX}"
            )));
        }
        Ok(keys.iter().map(|key| (key.to_string(), value(key).cloned())).collect())
    }

    pub(super) async fn set_many(&self, entries: Vec<(String, Vec<u8>)>) -> Answer<()> {
        check_count(entries.len())?;
        let entries = entries.into_iter().map(|(key, value)| Ok((checked(key)?, value))).collect::<Answer<_>>()?;
        self.run(Operation::Set { entries, ttl: None, quota: self.quota }).await.map(drop)
    }

    pub(super) async fn delete_many(&self, keys: Vec<String>) -> Answer<()> {
        self.run(Operation::Delete { keys: checked_many(keys)? }).await.map(drop)
    }

    pub(super) async fn list(&self, cursor: Option<String>) -> Answer<(Vec<String>, Option<String>)> {
        match self.run(Operation::List { cursor }).await? {
            Reply::Keys(keys, next) => Ok((keys, next)),
            _ => Err(unexpected().into()),
        }
    }

    /// Returns all keys, for who cannot hold the place where the next ones begin.
    pub(super) async fn list_all(&self) -> Answer<Vec<String>> {
        let (mut all, mut bytes, mut cursor) = (Vec::new(), 0, None);
        loop {
            let (keys, next) = self.list(cursor).await?;
            bytes += keys.iter().map(String::len).sum::<usize>();
            if bytes > ANSWER_BYTES_MAX {
                let problem = format!("the keys are more than {ANSWER_BYTES_MAX} bytes together");
                return Err(Error::Other(
                    problem + ": build for `wasi:keyvalue@0.2.0-draft2`, which tells some at a time",
                ));
            }
            all.extend(keys);
            cursor = next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    pub(super) async fn increment(&self, key: String, by: i64) -> Answer<i64> {
        match self.run(Operation::Add { key: checked(key)?, by, quota: self.quota }).await? {
            Reply::Number(sum) => Ok(sum),
            Reply::Conflict => Err(Error::Other("the value is no number".to_owned())),
            _ => Err(unexpected().into()),
        }
    }

    /// Returns whether the value was what was expected, and is now another.
    pub(super) async fn swap(&self, key: &str, expected: Option<Vec<u8>>, value: Vec<u8>) -> Answer<bool> {
        match self.run(Operation::Swap { key: key.into(), expected, value, quota: self.quota }).await? {
            Reply::Done => Ok(true),
            Reply::Conflict => Ok(false),
            _ => Err(unexpected().into()),
        }
    }
}

fn checked(key: String) -> Answer<Box<str>> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::Other(format!("a key of {} bytes; the limit is {KEY_BYTES_MAX}", key.len())));
    }
    Ok(key.into_boxed_str())
}

fn check_count(keys: usize) -> Answer<()> {
    if keys > KEYS_MAX {
        return Err(Error::Other(format!("{keys} keys in one call; the limit is {KEYS_MAX}")));
    }
    Ok(())
}

fn checked_many(keys: Vec<String>) -> Answer<Vec<Box<str>>> {
    check_count(keys.len())?;
    keys.into_iter().map(checked).collect()
}
