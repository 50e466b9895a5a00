//! The store on a Redis server. Each operation is a script, which the server runs by itself: nobody else sees the space
//! between its reads and its writes.
//!
//! A space has three keys, on one node of a cluster: a hash of its entries (`v:KEY`, `c:KEY`), a sorted set of those that
//! expire, and the sum of their bytes. Redis' own expiry would take entries away without their bytes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, Script, ScriptInvocation};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;

use super::{ENTRY_BYTES, Operation, Quota, Reply, StoreError};

/// To connect, and for one operation.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What all scripts begin with.
const PRELUDE: &str = "
local entries, expiring, bytes = KEYS[1], KEYS[2], KEYS[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function there(of) return redis.call('HEXISTS', entries, of) == 1 end

local function cost(of, length)
  if string.sub(of, 1, 2) == 'c:' then length = 0 end
  return ENTRY_BYTES + #of - 2 + length
end

local function alive(of)
  local ends = redis.call('ZSCORE', expiring, of)
  return not ends or now < tonumber(ends)
end

local function get(of)
  if alive(of) then return redis.call('HGET', entries, of) end
  return false
end

local function forget(of)
  if there(of) then
    redis.call('DECRBY', bytes, cost(of, redis.call('HSTRLEN', entries, of)))
    redis.call('HDEL', entries, of)
    redis.call('ZREM', expiring, of)
  end
end

local function expire(of, ttl)
  redis.call('ZREM', expiring, of)
  if ttl ~= '' then redis.call('ZADD', expiring, now + tonumber(ttl), of) end
end

local function room(of, length, bytes_max, entries_max)
  for attempt = 1, 2 do
    local held, more = 0, 1
    if there(of) then held, more = cost(of, redis.call('HSTRLEN', entries, of)), 0 end
    local grows = cost(of, length) - held
    local used = tonumber(redis.call('GET', bytes) or '0')
    local fits = grows <= 0 or used + grows <= tonumber(bytes_max)
    if fits and (more == 0 or redis.call('HLEN', entries) < tonumber(entries_max)) then
      if grows ~= 0 then redis.call('INCRBY', bytes, grows) end
      return true
    end
    if attempt == 1 then
      for _, gone in ipairs(redis.call('ZRANGEBYSCORE', expiring, '-inf', now)) do forget(gone) end
    end
  end
  return false
end

local function put(of, value, ttl, bytes_max, entries_max)
  if not room(of, #value, bytes_max, entries_max) then return false end
  redis.call('HSET', entries, of, value)
  expire(of, ttl)
  return true
end

local function add(of, by)
  local sum = redis.pcall('HINCRBY', entries, of, by)
  if type(sum) == 'table' and sum.err then
    if not string.find(sum.err, 'overflow') then return false end
    local down = string.sub(by, 1, 1) == '-'
    redis.call('HSET', entries, of, down and '-9223372036854775808' or '9223372036854775807')
  end
  return redis.call('HGET', entries, of)
end
";

/// `FIELD …`
const GET: &str = "
local values = {}
for index, of in ipairs(ARGV) do values[index] = get(of) end
return values";

/// `TTL BYTES_MAX ENTRIES_MAX (FIELD VALUE) …`
const SET: &str = "
for index = 4, #ARGV, 2 do
  if not put(ARGV[index], ARGV[index + 1], ARGV[1], ARGV[2], ARGV[3]) then return 'full' end
end
return 'done'";

/// `FIELD …`
const DELETE: &str = "
for _, of in ipairs(ARGV) do forget(of) end
return 'done'";

/// `FIELD BY TTL BYTES_MAX ENTRIES_MAX`. Sums go back as texts: a number of Lua's has 53 bits.
const INCREMENT: &str = "
local of, by, ttl = ARGV[1], ARGV[2], ARGV[3]
if not there(of) then
  if not room(of, 0, ARGV[4], ARGV[5]) then return 'full' end
  expire(of, ttl)
elseif not alive(of) then
  redis.call('HSET', entries, of, '0')
  expire(of, ttl)
end
return add(of, by) or 'conflict'";

/// `FIELD BY BYTES_MAX ENTRIES_MAX`
const ADD: &str = "
local of, by = ARGV[1], ARGV[2]
if not alive(of) then forget(of) end
if not there(of) then
  if put(of, by, '', ARGV[3], ARGV[4]) then return by end
  return 'full'
end
local before = redis.call('HSTRLEN', entries, of)
local sum = add(of, by)
if not sum then return 'conflict' end
if #sum ~= before then redis.call('INCRBY', bytes, #sum - before) end
return sum";

/// `FIELD EXPECTED? EXPECTED VALUE BYTES_MAX ENTRIES_MAX`
const SWAP: &str = "
local of, expected = ARGV[1], false
if ARGV[2] == '1' then expected = ARGV[3] end
if get(of) ~= expected then return 'conflict' end
if put(of, ARGV[4], '', ARGV[5], ARGV[6]) then return 'done' end
return 'full'";

/// `CURSOR`
const LIST: &str = "
local page = redis.call('HSCAN', entries, ARGV[1], 'MATCH', 'v:*', 'COUNT', 500)
local keys = {}
for index = 1, #page[2], 2 do
  local of = page[2][index]
  if alive(of) then keys[#keys + 1] = string.sub(of, 3) end
end
return {page[1], keys}";

const MEASURE: &str = "return {tonumber(redis.call('GET', bytes) or '0'), redis.call('HLEN', entries)}";

#[derive(Debug)]
pub(super) struct Redis {
    server: Arc<Server>,
    /// With a thread of its own: a connection is driven by the runtime that made it, and whoever asks first may ask from
    /// one that does not last. None where no thread is to be had.
    runtime: OnceLock<Option<Runtime>>,
}

struct Server {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    get: Script,
    set: Script,
    delete: Script,
    increment: Script,
    add: Script,
    swap: Script,
    list: Script,
    measure: Script,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Redis {
    pub(super) fn new(url: &str) -> Result<Self, StoreError> {
        let client =
            Client::open(url).map_err(|error| StoreError(format!("its address is none ({:?})", error.kind())))?;
        let script =
            |body: &str| Script::new(&(PRELUDE.to_owned() + body).replace("ENTRY_BYTES", &ENTRY_BYTES.to_string()));
        let server = Server {
            client,
            connection: OnceCell::new(),
            get: script(GET),
            set: script(SET),
            delete: script(DELETE),
            increment: script(INCREMENT),
            add: script(ADD),
            swap: script(SWAP),
            list: script(LIST),
            measure: script(MEASURE),
        };
        Ok(Self { server: Arc::new(server), runtime: OnceLock::new() })
    }

    pub(super) async fn run(&self, space: &Arc<str>, operation: Operation) -> Result<Reply, StoreError> {
        let gone = || StoreError("its thread ended".into());
        let runtime = self.runtime.get_or_init(start).as_ref().ok_or_else(gone)?;
        let (server, space) = (Arc::clone(&self.server), Arc::clone(space));
        let asked = runtime.spawn(async move { server.ask(&space, operation).await });
        asked.await.map_err(|_| gone())?.map_err(|error| StoreError(format!("Redis: {error}")))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // What is dropped on a thread of another runtime may not wait there.
        if let Some(Some(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn start() -> Option<Runtime> {
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("key-value").enable_all().build();
    runtime.inspect_err(|error| tracing::error!(%error, "the key-value store's thread cannot be started")).ok()
}

impl Server {
    async fn ask(&self, space: &str, operation: Operation) -> Result<Reply, RedisError> {
        // Connects again by itself.
        let mut connection = self.connection.get_or_try_init(|| self.connect()).await?.clone();
        let keys = ["entries", "expiring", "bytes"].map(|part| format!("lockgate:{{{space}}}:{part}"));
        let begin = |script| Asking::new(script, &keys);
        match operation {
            Operation::Get { keys } => {
                let asking = keys.iter().fold(begin(&self.get), |asking, key| asking.field('v', key));
                Ok(Reply::Values(asking.0.invoke_async(&mut connection).await?))
            }
            Operation::Counter { key } => {
                let asking = begin(&self.get).field('c', &key);
                let (counter,): (Option<i64>,) = asking.0.invoke_async(&mut connection).await?;
                Ok(counter.map_or(Reply::Absent, Reply::Number))
            }
            Operation::Set { entries, ttl, quota } => {
                let asking = begin(&self.set).ttl(ttl).quota(quota);
                let asking = entries.iter().fold(asking, |asking, (key, value)| asking.field('v', key).arg(&value[..]));
                asking.word(&mut connection).await
            }
            Operation::Delete { keys } => {
                let asking = keys.iter().fold(begin(&self.delete), |asking, key| asking.field('v', key));
                asking.word(&mut connection).await
            }
            Operation::Increment { key, by, ttl, quota } => {
                begin(&self.increment).field('c', &key).arg(by).ttl(ttl).quota(quota).word(&mut connection).await
            }
            Operation::Add { key, by, quota } => {
                begin(&self.add).field('v', &key).arg(by).quota(quota).word(&mut connection).await
            }
            Operation::Swap { key, expected, value, quota } => {
                let asking = begin(&self.swap).field('v', &key).arg(i64::from(expected.is_some()));
                let asking = asking.arg(expected.as_deref().unwrap_or_default()).arg(&value[..]).quota(quota);
                asking.word(&mut connection).await
            }
            Operation::List { cursor } => {
                // It may be anything: it comes from a guest.
                let cursor: u64 = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
                let asking = begin(&self.list).arg(cursor);
                let (next, keys): (u64, Vec<String>) = asking.0.invoke_async(&mut connection).await?;
                Ok(Reply::Keys(keys, (next != 0).then(|| next.to_string())))
            }
            Operation::Measure => {
                let (bytes, entries) = begin(&self.measure).0.invoke_async(&mut connection).await?;
                Ok(Reply::Use { bytes, entries })
            }
        }
    }

    async fn connect(&self) -> Result<ConnectionManager, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1);
        ConnectionManager::new_with_config(self.client.clone(), config).await
    }
}

/// A script with its arguments so far.
struct Asking<'s>(ScriptInvocation<'s>);

impl<'s> Asking<'s> {
    fn new(script: &'s Script, keys: &[String; 3]) -> Self {
        let mut asking = script.prepare_invoke();
        for key in keys {
            asking.key(key);
        }
        Self(asking)
    }

    fn arg(mut self, argument: impl redis::ToRedisArgs) -> Self {
        self.0.arg(argument);
        self
    }

    /// The name that a key has in the hash.
    fn field(self, kind: char, key: &str) -> Self {
        self.arg(format!("{kind}:{key}"))
    }

    fn ttl(self, ttl: Option<Duration>) -> Self {
        self.arg(ttl.map(|ttl| ttl.as_millis().to_string()).unwrap_or_default())
    }

    fn quota(self, quota: Quota) -> Self {
        self.arg(quota.bytes).arg(quota.entries)
    }

    /// Asks for a word or a number.
    async fn word(self, connection: &mut ConnectionManager) -> Result<Reply, RedisError> {
        let word: String = self.0.invoke_async(connection).await?;
        Ok(match &*word {
            "done" => Reply::Done,
            "full" => Reply::Full,
            "conflict" => Reply::Conflict,
            number => number.parse().map_or(Reply::Conflict, Reply::Number),
        })
    }
}
