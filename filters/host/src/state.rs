//! What an instance carries with it: the store's data. Host functions see nothing else.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use wasmtime::component::ResourceTable;
use wasmtime::{Result, UpdateDeadline, bail};

use crate::declare::{Declarations, MetricDeclaration};
use crate::effects::{Cell, Effects, Notes};
use crate::engine::epochs;
use crate::error::{CallError, CallErrorKind};
use crate::exchange::Exchange;
use crate::key_value::KeyValue;
use crate::memory::{Alive, Memory};
use crate::outbound::{Access, Outbound, Upstreams};
use crate::sink::{CallInfo, Level, Phase, Sink};
use crate::spec::Limits;
use crate::store::Space;
use crate::wasi::Stdio;

/// Log lines of one request.
const LOG_LINES_MAX: u32 = 64;
/// Bytes of one log line.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 16 << 10;
/// Events of one request.
const EVENTS_MAX: u32 = 16;

/// What all instances of one loaded filter share.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) settings: Arc<str>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Vec<MetricDeclaration>,
    pub(crate) key_value: Arc<KeyValue>,
    /// Where keys and values go in the place of `key_value`, where that is granted.
    pub(crate) space: Option<Space>,
    /// Where it may send requests; none where nothing is granted.
    pub(crate) access: Option<Access>,
    pub(crate) sink: OnceLock<Arc<dyn Sink>>,
    pub(crate) alive: Alive,
}

impl Shared {
    pub(crate) fn new(
        name: Arc<str>,
        settings: Arc<str>,
        limits: Limits,
        metrics: Vec<MetricDeclaration>,
        key_value: Arc<KeyValue>,
        space: Option<Space>,
        access: Option<Access>,
    ) -> Self {
        Self {
            name,
            settings,
            limits,
            metrics,
            key_value,
            space,
            access,
            sink: OnceLock::new(),
            alive: Alive::default(),
        }
    }
}

/// CPU time that a call may use after its deadline.
const OVERTIME: Duration = Duration::from_millis(2);

/// Time after its deadline at which a call ends, however little it was let run.
pub(crate) const OVERTIME_WALL: Duration = Duration::from_millis(500);

/// The data of one store.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    /// The exchange of the call; a stand-in between calls.
    pub(crate) exchange: Box<Exchange>,
    pub(crate) phase: Phase,
    pub(crate) track: &'static str,
    pub(crate) effects: Cell,
    /// When the call has to have ended. Epochs end a guest's own work; this is for host functions that sleep.
    pub(crate) deadline: Instant,
    /// CPU time of this thread when the deadline was found to have passed.
    overdue_since: Option<Duration>,
    /// CPU time of this thread at which a private call has to have ended.
    cpu_deadline: Duration,
    /// What `configure` has declared so far; only there while it runs.
    pub(crate) declarations: Option<Declarations>,
    pub(crate) stdio: Stdio,
    /// Handles to things outside, of the kinds that `wasi:http` and the fibre lane have.
    pub(crate) table: ResourceTable,
    /// By which the call's request reaches upstreams; none where nobody granted it.
    pub(crate) upstreams: Option<Arc<dyn Upstreams>>,
    /// What only filters with `wasi:http` need; made when first asked for.
    pub(crate) outbound: Option<Box<Outbound>>,
    pub(crate) memory: Memory,
    lines: u32,
    events: u32,
}

impl State {
    pub(crate) fn new(shared: Arc<Shared>, track: &'static str, effects: Effects) -> Self {
        shared.alive.begin();
        Self {
            shared,
            exchange: Box::new(Exchange::vacant()),
            phase: Phase::Start,
            track,
            effects: Cell::new(effects),
            deadline: Instant::now(),
            overdue_since: None,
            cpu_deadline: Duration::ZERO,
            declarations: None,
            stdio: Stdio::default(),
            table: ResourceTable::new(),
            upstreams: None,
            outbound: None,
            memory: Memory::default(),
            lines: 0,
            events: 0,
        }
    }

    /// Makes a used instance ready for another request.
    pub(crate) fn renew(&mut self, track: &'static str, effects: Effects) {
        self.track = track;
        self.effects = Cell::new(effects);
        if let Some(outbound) = &self.outbound {
            outbound.take_refused();
        }
        self.lines = 0;
        self.events = 0;
    }

    /// Sets when the call that begins has to have ended.
    pub(crate) fn set_deadline(&mut self, now: Instant, deadline: Duration) {
        self.deadline = now.checked_add(deadline).unwrap_or(now);
        self.overdue_since = None;
        if self.effects.is_private() {
            self.cpu_deadline = thread_time().saturating_add(deadline);
        }
    }

    /// Begins a call: sets its deadline, and what it is to find in the key-value store.
    pub(crate) fn begin(&mut self, now: Instant, deadline: Duration, shown: Option<Notes>) {
        self.set_deadline(now, deadline);
        if let Some(notes) = shown {
            self.effects.show(notes);
        }
    }

    /// Decides about a call whose deadline has passed. On a crowded machine the thread may not have run for most of that
    /// time, and the call be nearly done, so it gets a little more, in CPU time: what loops still ends, what was kept
    /// waiting is not blamed. To count CPU time from the call's beginning instead would cost every call a system call.
    pub(crate) fn overdue(&mut self) -> UpdateDeadline {
        let used = thread_time();
        if self.effects.is_private() {
            // Nobody waits for it, and its thread may hardly be let run.
            let left = self.cpu_deadline.saturating_sub(used);
            return if left.is_zero() { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(epochs(left)) };
        }
        let since = *self.overdue_since.get_or_insert(used);
        let over = used.saturating_sub(since) >= OVERTIME || self.deadline.elapsed() >= OVERTIME_WALL;
        if over { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(1) }
    }

    /// Returns the exchange, where there is a request at all.
    pub(crate) fn request(&mut self) -> Result<&mut Exchange> {
        self.require_request("request")?;
        Ok(&mut self.exchange)
    }

    /// Returns the exchange's response, and whether its headers are on their way.
    pub(crate) fn response(&mut self) -> Result<(&mut http::response::Parts, bool)> {
        let sent = self.exchange.response_sent;
        match (self.phase, &mut self.exchange.response) {
            (Phase::OnResponse | Phase::OnResponseBody, Some(response)) => Ok((response, sent)),
            _ => bail!(
                "`lockgate:filter/response` was called in `{}`: there is no response before `on-response`",
                self.phase
            ),
        }
    }

    /// Fails where a host interface that belongs to requests is called while there is none.
    pub(crate) fn require_request(&self, interface: &str) -> Result<()> {
        if matches!(self.phase, Phase::Start | Phase::Configure) {
            bail!("`lockgate:filter/{interface}` was called in `{}`: there is no request yet", self.phase);
        }
        Ok(())
    }

    /// Returns what is being declared; fails outside of `configure`.
    pub(crate) fn declarations(&mut self) -> Result<&mut Declarations> {
        match &mut self.declarations {
            Some(declarations) => Ok(declarations),
            None => bail!("`lockgate:filter/declare` was called in `{}`: it belongs to `configure`", self.phase),
        }
    }

    /// Passes a log line on, cut to its limit; drops it where the request has had its share.
    pub(crate) fn log(&mut self, level: Level, message: &str) {
        self.lines = self.lines.saturating_add(1);
        if self.effects.keep_line(level, message) {
            return;
        }
        if self.lines > LOG_LINES_MAX {
            self.shared.alive.drop_line();
            return;
        }
        let message = &message[..message.floor_char_boundary(LOG_LINE_BYTES_MAX)];
        let call = self.call();
        match self.shared.sink.get() {
            Some(sink) => sink.log(&call, level, message),
            // Nobody listens before the filter is bound: what is said while it is loaded goes to the gateway's own log.
            None => tracing::info!(filter = &*self.shared.name, phase = self.phase.as_str(), "{message}"),
        }
    }

    /// Passes an event on; drops it where the request has had its share.
    pub(crate) fn event(&mut self, name: &str, data: &str) {
        if self.effects.is_private() {
            return;
        }
        self.events = self.events.saturating_add(1);
        if self.events > EVENTS_MAX {
            self.shared.alive.drop_line();
            return;
        }
        if let Some(sink) = self.shared.sink.get() {
            let data = &data[..data.floor_char_boundary(LOG_LINE_BYTES_MAX)];
            sink.event(&self.call(), name, data);
        }
    }

    fn call(&self) -> CallInfo<'_> {
        CallInfo { request_id: &self.exchange.id, track: self.track, phase: self.phase }
    }

    /// Sorts an error of Wasmtime's.
    pub(crate) fn failure(&self, error: &wasmtime::Error) -> CallError {
        let sorted = CallError::from_wasmtime(error, self.memory.refused);
        match (sorted.kind, self.outbound.as_ref().and_then(|outbound| outbound.take_refused())) {
            (CallErrorKind::Trap, Some(refused)) => {
                CallError::new(refused.kind, format!("{refused}; it ended with: {sorted}"))
            }
            _ => sorted,
        }
    }

    /// Returns whether the instance holds something that is not in its memory, so that a copy of the memory would be
    /// a copy of half of it.
    pub(crate) fn holds_handles(&self) -> bool {
        self.stdio.handles() > 0 || !self.table.is_empty()
    }

    /// Logs what was printed without a line break at its end.
    pub(crate) fn flush_stdio(&mut self) {
        if self.outbound.is_none() && !self.stdio.has_unfinished() {
            return;
        }
        for (level, line) in self.stdio.take_unfinished() {
            self.log(level, &line);
        }
        let printed = self.outbound.as_ref().map(|outbound| outbound.take_printed()).unwrap_or_default();
        for (level, line) in printed {
            self.log(level, &line);
        }
    }
}

/// Returns the CPU time that this thread has used.
fn thread_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

impl wasmtime::ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        self.memory.grow(&self.shared.alive, self.shared.limits.memory_bytes, current, desired)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        self.memory.grow_failed(&self.shared.alive, &error);
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        self.memory.check_table(self.shared.limits.table_elements, desired)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.memory.end(&self.shared.alive);
    }
}
