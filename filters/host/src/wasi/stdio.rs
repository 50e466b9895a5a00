//! What a guest prints: bytes in, log lines out. Also counts the handles that the inline lane has given out.

use std::mem;

use crate::sink::Level;
use crate::state::{LOG_LINE_BYTES_MAX, State};

/// Timers that a guest may hold at a time.
const TIMERS_MAX: usize = 256;

/// What a guest holds of the inline lane's WASI.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    handles: u32,
    stdout: Line,
    stderr: Line,
    /// Instants of the monotonic clock, in ns; none where the timer was dropped.
    timers: Vec<Option<u64>>,
}

impl Stdio {
    /// Returns how many handles are held.
    pub(crate) fn handles(&self) -> u32 {
        self.handles
    }

    pub(super) fn opened(&mut self) {
        self.handles = self.handles.saturating_add(1);
    }

    pub(super) fn closed(&mut self) {
        self.handles = self.handles.saturating_sub(1);
    }

    /// Adds a timer and returns its number; none where there are too many.
    pub(super) fn add_timer(&mut self, due_ns: u64) -> Option<u32> {
        let free = self.timers.iter().position(Option::is_none).unwrap_or(self.timers.len());
        if free >= TIMERS_MAX {
            return None;
        }
        if free == self.timers.len() {
            self.timers.push(None);
        }
        self.timers[free] = Some(due_ns);
        self.opened();
        u32::try_from(free).ok()
    }

    pub(super) fn timer(&self, number: u32) -> Option<u64> {
        self.timers.get(number as usize).copied().flatten()
    }

    pub(super) fn remove_timer(&mut self, number: u32) {
        if let Some(timer) = self.timers.get_mut(number as usize)
            && timer.take().is_some()
        {
            self.closed();
        }
    }

    /// Returns whether anything was printed since the last line break.
    pub(crate) fn has_unfinished(&self) -> bool {
        !(self.stdout.is_empty() && self.stderr.is_empty())
    }

    /// Returns what was printed since the last line break.
    pub(crate) fn take_unfinished(&mut self) -> Vec<(Level, String)> {
        let streams = [(Level::Info, &mut self.stdout), (Level::Warn, &mut self.stderr)];
        streams.into_iter().filter_map(|(level, line)| Some((level, line.take()?))).collect()
    }
}

/// A line that is being printed.
#[derive(Debug, Default)]
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Takes what was printed, and hands each line that it finishes to `finished`.
    pub(crate) fn feed(&mut self, printed: &[u8], mut finished: impl FnMut(String)) {
        for piece in printed.split_inclusive(|&byte| byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            let piece = piece.strip_suffix(b"\n").unwrap_or(piece);
            // The rest of a line that is too long anyway need not be kept.
            let room = (LOG_LINE_BYTES_MAX + 1).saturating_sub(self.0.len());
            self.0.extend_from_slice(&piece[..piece.len().min(room)]);
            if ends {
                finished(text(&self.0));
                self.0.clear();
            }
        }
    }

    /// Returns whether nothing was printed since the last line break.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what was printed since the last line break, if anything was.
    pub(crate) fn take(&mut self) -> Option<String> {
        let bytes = mem::take(&mut self.0);
        (!bytes.is_empty()).then(|| text(&bytes))
    }
}

impl State {
    /// Takes what was printed to standard output (logged as `info`) or error (`warn`).
    pub(super) fn print(&mut self, level: Level, printed: &[u8]) {
        let stream = |stdio: &mut Stdio| match level {
            Level::Warn => mem::take(&mut stdio.stderr),
            _ => mem::take(&mut stdio.stdout),
        };
        let mut line = stream(&mut self.stdio);
        line.feed(printed, |line| self.log(level, &line));
        match level {
            Level::Warn => self.stdio.stderr = line,
            _ => self.stdio.stdout = line,
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into_owned()
}
