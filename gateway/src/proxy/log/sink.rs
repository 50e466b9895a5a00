//! The buffer of lines, and the thread that writes it out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// Bytes of lines that wait to be written: seconds of a busy gateway.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(5);

/// Where lines go.
pub trait Out: Send + 'static {
    /// Writes whole lines. What it cannot write is lost, and counted.
    ///
    /// # Errors
    /// They could not be written, or not all of them.
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;

    /// Lets go of what is open, which somebody has moved away, and goes on where it belongs.
    fn reopen(&mut self);
}

/// Takes lines.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    writing: bool,
    reopen: bool,
    closed: bool,
}

impl AccessLog {
    /// Starts the thread that writes lines out.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(mut out: impl Out, dropped: IntCounter) -> io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), more: Condvar::new(), dropped });
        let log = Self(Arc::clone(&shared));
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut lines = Vec::new();
            loop {
                let closed = {
                    let mut waiting = shared.waiting.lock();
                    waiting.writing = false;
                    shared.more.notify_all();
                    while waiting.lines.is_empty() && !waiting.closed && !waiting.reopen {
                        shared.more.wait(&mut waiting);
                    }
                    waiting.closed
                };
                if !closed {
                    std::thread::sleep(GATHER);
                }
                let reopen = {
                    let mut waiting = shared.waiting.lock();
                    std::mem::swap(&mut waiting.lines, &mut lines);
                    waiting.writing = true;
                    if lines.is_empty() && waiting.closed {
                        waiting.writing = false;
                        shared.more.notify_all();
                        return;
                    }
                    std::mem::take(&mut waiting.reopen)
                };
                // First: what was gathered since the file was moved belongs to the new one.
                if reopen {
                    out.reopen();
                }
                if !lines.is_empty() && out.write(&lines).is_err() {
                    shared.dropped.inc_by(lines.iter().filter(|byte| **byte == b'\n').count() as u64);
                }
                lines.clear();
            }
        })?;
        Ok(log)
    }

    /// Appends a line.
    pub(super) fn append(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + line.len() > WAITING_BYTES_MAX || waiting.closed {
            drop(waiting);
            self.0.dropped.inc();
            return;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.more.notify_all();
        }
    }

    /// Has what is open opened anew. Returns at once.
    pub fn reopen(&self) {
        self.0.waiting.lock().reopen = true;
        self.0.more.notify_all();
    }

    /// Writes out what waits, and takes no more. Returns when all has been written.
    pub fn close(&self) {
        let mut waiting = self.0.waiting.lock();
        waiting.closed = true;
        self.0.more.notify_all();
        while waiting.writing || !waiting.lines.is_empty() {
            self.0.more.wait(&mut waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Written {
        files: Arc<Mutex<Vec<Vec<u8>>>>,
        full: bool,
    }

    impl Out for Written {
        fn write(&mut self, lines: &[u8]) -> io::Result<()> {
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut files = self.files.lock();
            if files.is_empty() {
                files.push(Vec::new());
            }
            files.last_mut().unwrap().extend_from_slice(lines);
            Ok(())
        }

        fn reopen(&mut self) {
            self.files.lock().push(Vec::new());
        }
    }

    fn start(out: &Written) -> (AccessLog, IntCounter) {
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        (AccessLog::start(out.clone(), dropped.clone()).unwrap(), dropped)
    }

    #[test]
    fn everything_appended_before_the_close_is_written_and_nothing_after() {
        let written = Written::default();
        let (log, dropped) = start(&written);
        log.append(b"one\n");
        log.append(b"two\n");
        log.close();
        log.append(b"three\n");
        assert_eq!(*written.files.lock(), [b"one\ntwo\n"]);
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn lines_behind_a_reopening_are_in_the_new_file() {
        let written = Written::default();
        let (log, dropped) = start(&written);
        log.reopen();
        while written.files.lock().is_empty() {
            std::thread::yield_now();
        }
        log.append(b"one\n");
        log.close();
        assert_eq!(*written.files.lock(), [b"one\n"]);
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (log, dropped) = start(&Written { full: true, ..Written::default() });
        log.append(b"one\n");
        log.append(b"two\n");
        log.close();
        assert_eq!(dropped.get(), 2);
    }
}
