//! A *turn* is what an instance is doing for whom: one request's id and track, its use of the processor, its lines, and
//! what the host has refused it. Store, hooks and printers share it; it is renewed for each request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::folders::Folder;
use super::{FunctionLimits, LogSink};
use crate::engine::EPOCH;
use crate::error::{CallError, CallErrorKind, backtrace};
use crate::memory::Alive;
use crate::outbound::{Access, Upstreams};
use crate::sink::{CallInfo, Level, Phase};
use crate::state::LOG_LINE_BYTES_MAX;
use crate::store::Space;
use crate::wasi::{Line, Print};

/// Log lines of one request.
const LOG_LINES_MAX: u32 = 256;

/// What all instances of one loaded function share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) vars: Vec<(String, String)>,
    /// What it reads by `wasi:config`.
    pub(super) config: Vec<(String, String)>,
    /// The spaces of the key-value store that it may open, by the names that it opens them by.
    pub(super) spaces: Vec<(String, Space)>,
    pub(super) limits: FunctionLimits,
    pub(super) folders: Vec<Folder>,
    /// Where it may send requests; none where nothing is granted.
    pub(super) access: Option<Access>,
    pub(super) sink: OnceLock<Arc<LogSink>>,
    pub(super) alive: Alive,
}

/// What an instance is doing, and for whom.
pub(super) struct Turn {
    pub(super) shared: Arc<Shared>,
    /// What the times below are counted from.
    epoch: Instant,
    /// None is due at `u64::MAX`: the answer is there, or it is for others to come.
    deadline_ns: AtomicU64,
    answered: AtomicBool,
    polled_ns: AtomicU64,
    /// In earlier polls of this request.
    busy_ns: AtomicU64,
    saying: Mutex<Saying>,
    refused: Mutex<Option<CallError>>,
    upstreams: Mutex<Option<Arc<dyn Upstreams>>>,
}

struct Saying {
    request_id: Arc<str>,
    track: &'static str,
    lines: u32,
    stdout: Line,
    stderr: Line,
}

/// A deadline that is put off.
pub(super) struct Waiting {
    began_ns: u64,
    deadline_ns: u64,
}

/// What becomes of a guest that is found running at the end of an epoch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// It was only just given the thread.
    Run,
    /// It lets others have the thread.
    Yield,
    /// It has used up what it may.
    Cut,
}

impl Turn {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        let saying =
            Saying { request_id: "".into(), track: "", lines: 0, stdout: Line::default(), stderr: Line::default() };
        Arc::new(Self {
            shared,
            epoch: Instant::now(),
            deadline_ns: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            polled_ns: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            saying: Mutex::new(saying),
            refused: Mutex::new(None),
            upstreams: Mutex::new(None),
        })
    }

    /// Begins a request.
    pub(super) fn begin(&self, track: &'static str, request_id: Arc<str>, upstreams: Option<Arc<dyn Upstreams>>) {
        *self.upstreams.lock() = upstreams;
        let deadline = self.now_ns().saturating_add(nanos(self.shared.limits.deadline));
        self.deadline_ns.store(deadline, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.busy_ns.store(0, Ordering::Relaxed);
        *self.refused.lock() = None;
        let mut saying = self.saying.lock();
        saying.request_id = request_id;
        saying.track = track;
        saying.lines = 0;
    }

    /// Returns what the request reaches upstreams by.
    pub(super) fn upstreams(&self) -> Option<Arc<dyn Upstreams>> {
        self.upstreams.lock().clone()
    }

    /// Ends a request: logs what was printed without a line break at its end, and lets go of what belongs to it.
    pub(super) fn end(&self) {
        *self.upstreams.lock() = None;
        let mut saying = self.saying.lock();
        let left = [(Level::Info, saying.stdout.take()), (Level::Warn, saying.stderr.take())];
        for (level, line) in left.into_iter().filter_map(|(level, line)| Some((level, line?))) {
            self.say(&mut saying, level, &line);
        }
    }

    /// Takes note that the response's header is there: its deadline is met.
    pub(super) fn has_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
        self.deadline_ns.store(u64::MAX, Ordering::Relaxed);
    }

    /// Takes note that the guest waits for what is behind it, and returns what [`Self::waited`] wants to know. What
    /// others take is not its own: meanwhile no deadline runs.
    pub(super) fn waits(&self) -> Waiting {
        Waiting { began_ns: self.now_ns(), deadline_ns: self.deadline_ns.swap(u64::MAX, Ordering::Relaxed) }
    }

    /// Takes note that it waits no longer.
    pub(super) fn waited(&self, waiting: &Waiting) {
        if self.answered.load(Ordering::Relaxed) {
            return;
        }
        let deadline = waiting.deadline_ns.saturating_add(self.now_ns().saturating_sub(waiting.began_ns));
        self.deadline_ns.store(deadline, Ordering::Relaxed);
    }

    /// Returns when the answer is due; none while nothing is.
    pub(super) fn due(&self) -> Option<Instant> {
        let deadline = self.deadline_ns.load(Ordering::Relaxed);
        (deadline != u64::MAX).then(|| self.epoch + Duration::from_nanos(deadline))
    }

    /// Takes note that the guest is given the thread.
    pub(super) fn poll_begins(&self) -> u64 {
        let now = self.now_ns();
        self.polled_ns.store(now, Ordering::Relaxed);
        now
    }

    /// Takes note that the guest gives the thread back.
    pub(super) fn poll_ends(&self, began_ns: u64) {
        let spent = self.now_ns().saturating_sub(began_ns);
        self.busy_ns.fetch_add(spent, Ordering::Relaxed);
    }

    /// Returns for how long this request has kept a thread busy.
    pub(super) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed))
    }

    /// Decides about a guest that is found running at the end of an epoch.
    pub(super) fn tick(&self) -> Tick {
        let now = self.now_ns();
        let running = now.saturating_sub(self.polled_ns.load(Ordering::Relaxed));
        let limits = &self.shared.limits;
        if running.saturating_add(self.busy_ns.load(Ordering::Relaxed)) > nanos(limits.cpu) {
            self.refuse(CallErrorKind::Cpu, format!("it kept a thread busy for more than {:?}", limits.cpu));
            return Tick::Cut;
        }
        if now > self.deadline_ns.load(Ordering::Relaxed) {
            self.refuse(CallErrorKind::Deadline, late(limits.deadline));
            return Tick::Cut;
        }
        if running < nanos(EPOCH) { Tick::Run } else { Tick::Yield }
    }

    /// Takes note of something that the guest was refused: where the guest then fails, that is why.
    pub(super) fn refuse(&self, kind: CallErrorKind, message: impl Into<String>) {
        self.refused.lock().get_or_insert(CallError::new(kind, message));
    }

    /// Sorts an error of Wasmtime's; `limit` is what the limiter has said no to.
    pub(super) fn failure(&self, error: &wasmtime::Error, limit: Option<CallErrorKind>) -> CallError {
        let sorted = CallError::from_wasmtime(error, limit);
        match (sorted.kind, self.refused.lock().take()) {
            (CallErrorKind::Deadline, Some(refused)) => {
                CallError::new(refused.kind, refused.message + &backtrace(error))
            }
            (CallErrorKind::Trap, Some(refused)) => {
                CallError::new(refused.kind, format!("{}; it ended with: {}", refused.message, sorted.message))
            }
            _ => sorted,
        }
    }

    /// Returns why a guest that gave no answer gave none.
    pub(super) fn no_answer(&self, otherwise: String) -> CallError {
        match self.refused.lock().take() {
            Some(refused) => CallError::new(refused.kind, format!("{}; {otherwise}", refused.message)),
            None => CallError::new(CallErrorKind::NoResponse, otherwise),
        }
    }

    /// Returns why a program failed that ended with a status.
    pub(super) fn exited(&self, status: i32) -> CallError {
        let message = format!("it exited with status {status}");
        match self.refused.lock().take() {
            Some(refused) => CallError::new(refused.kind, format!("{}; {message}", refused.message)),
            None => CallError::new(CallErrorKind::Exit, message),
        }
    }

    /// Logs a line of the host's own about the guest.
    pub(super) fn log(&self, level: Level, line: &str) {
        self.say(&mut self.saying.lock(), level, line);
    }

    fn say(&self, saying: &mut Saying, level: Level, line: &str) {
        saying.lines = saying.lines.saturating_add(1);
        if saying.lines > LOG_LINES_MAX {
            self.shared.alive.drop_line();
            return;
        }
        let line = &line[..line.floor_char_boundary(LOG_LINE_BYTES_MAX)];
        let call = CallInfo { request_id: &saying.request_id, track: saying.track, phase: Phase::Handle };
        match self.shared.sink.get() {
            Some(sink) => sink(&call, level, line),
            None => tracing::info!(function = &*self.shared.name, "{line}"),
        }
    }

    fn now_ns(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }
}

impl Print for Arc<Turn> {
    fn print(&self, level: Level, bytes: &[u8]) {
        let mut saying = self.saying.lock();
        let page = if level == Level::Warn { &mut saying.stderr } else { &mut saying.stdout };
        let mut finished = Vec::new();
        page.feed(bytes, |line| finished.push(line));
        for line in finished {
            self.say(&mut saying, level, &line);
        }
    }
}

/// Returns the message for an answer that did not come in time.
pub(super) fn late(deadline: Duration) -> String {
    format!("it gave no answer within {deadline:?}")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
