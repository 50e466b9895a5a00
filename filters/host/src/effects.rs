//! Where the effects of an instance go. An *effect* is what a filter does besides deciding about its exchange: it writes
//! to its key-value store, logs, emits events, counts, sends requests.
//!
//! Shadowing runs a version on what another one has answered already, and nobody may notice: the effects of such an
//! instance are [`Effects::Private`]. For both to be asked the same question, the one that serves takes notes
//! ([`Effects::Noted`]) of what it finds in the key-value store, call by call, and the other one is shown just that
//! ([`Instance::show`](crate::Instance::show)): two versions that both count requests find the same count.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::key_value::KeyValue;
use crate::sink::{Level, Sink};
use crate::state::Shared;
use crate::store::Quota;

/// Bytes of keys and values that are noted in one call: beyond it the notes say that they are not complete.
const NOTED_BYTES_MAX: usize = 64 << 10;
/// What an entry counts besides its key and value, in notes and overlays.
const ENTRY_BYTES: usize = 64;
/// Log lines that a private instance keeps.
const LINES_MAX: usize = 8;
/// Bytes of each.
const LINE_BYTES_MAX: usize = 256;

/// Where the effects of an instance go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effects {
    /// To the world.
    #[default]
    Real,
    /// To the world; and what the instance finds in the key-value store is noted.
    Noted,
    /// Nowhere. Writes to the key-value store go to an overlay of the instance's own, log lines are kept for who asks,
    /// events and metrics are dropped, and outbound requests are denied. Deadlines are in processor time, since such an
    /// instance runs on a thread that steps back for all others.
    Private,
}

/// What an instance found in its key-value store during one call, before it changed anything there itself.
#[derive(Debug, Default)]
pub struct Notes {
    values: HashMap<Box<str>, Option<Box<[u8]>>>,
    counters: HashMap<Box<str>, i64>,
    bytes: usize,
    incomplete: bool,
}

impl Notes {
    /// Returns whether everything is in them; false where it was more than 64 KiB.
    pub fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Returns what they hold, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        self.bytes += ENTRY_BYTES + bytes;
        self.incomplete |= self.bytes > NOTED_BYTES_MAX;
        !self.incomplete
    }

    fn value(&mut self, key: &str, find: impl FnOnce() -> Option<Vec<u8>>) {
        if self.incomplete || self.values.contains_key(key) {
            return;
        }
        let found = find();
        if self.has_room(key.len() + found.as_ref().map_or(0, Vec::len)) {
            self.values.insert(key.into(), found.map(Vec::into_boxed_slice));
        }
    }

    fn counter(&mut self, key: &str, before: i64) {
        if !self.incomplete && !self.counters.contains_key(key) && self.has_room(key.len()) {
            self.counters.insert(key.into(), before);
        }
    }
}

/// What a private instance kept to itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Its first log lines, each cut to 256 bytes.
    pub lines: Vec<(Level, String)>,
    /// It wanted to send a request that its grants cover, and was not let: what it did from then on says little.
    pub outbound_denied: bool,
}

/// What a store holds for its [`Effects`].
#[derive(Debug)]
pub(crate) enum Acting {
    Real,
    Noted(Box<Notes>),
    Private(Box<Private>),
}

/// The effects of a private instance.
#[derive(Debug, Default)]
pub(crate) struct Private {
    /// In front of the store's values; none where it was deleted.
    values: HashMap<Box<str>, Option<Box<[u8]>>>,
    /// In front of the store's counters.
    counters: HashMap<Box<str>, i64>,
    bytes: u64,
    lines: Vec<(Level, String)>,
    /// Shared with what stands in the way of outbound requests.
    outbound_denied: Arc<AtomicBool>,
}

impl Private {
    fn fits(&self, bytes: usize, quota: Quota) -> bool {
        // Entries are not counted: most of them are in the store as well, and each has bytes.
        self.bytes + (ENTRY_BYTES + bytes) as u64 <= quota.bytes
    }

    fn put(&mut self, key: &str, value: Option<Box<[u8]>>) {
        self.bytes += (ENTRY_BYTES + key.len() + value.as_ref().map_or(0, |value| value.len())) as u64;
        self.values.insert(key.into(), value);
    }
}

/// A store's effects. Behind a cell, since a host function looks at a key where it lies in the guest's memory, which is
/// the same store's.
#[derive(Debug)]
pub(crate) struct Cell(RefCell<Acting>);

impl Cell {
    pub(crate) fn new(effects: Effects) -> Self {
        Self(RefCell::new(match effects {
            Effects::Real => Acting::Real,
            Effects::Noted => Acting::Noted(Box::default()),
            Effects::Private => Acting::Private(Box::default()),
        }))
    }

    pub(crate) fn is_private(&self) -> bool {
        matches!(*self.0.borrow(), Acting::Private(_))
    }

    /// Returns where events and metrics go; none where nobody is to hear of them.
    pub(crate) fn sink<'a>(&self, shared: &'a Shared) -> Option<&'a Arc<dyn Sink>> {
        shared.sink.get().filter(|_| !self.is_private())
    }

    /// Keeps a log line. False where it is not to be kept, but to be logged.
    pub(crate) fn keep_line(&self, level: Level, message: &str) -> bool {
        let Acting::Private(private) = &mut *self.0.borrow_mut() else { return false };
        if private.lines.len() < LINES_MAX {
            let message = &message[..message.floor_char_boundary(LINE_BYTES_MAX)];
            private.lines.push((level, message.to_owned()));
        }
        true
    }

    /// Returns what is to be told of outbound requests that a grant covers; none where they may be sent.
    pub(crate) fn outbound_denied(&self) -> Option<Arc<AtomicBool>> {
        let acting = Ref::filter_map(self.0.borrow(), |acting| match acting {
            Acting::Private(private) => Some(&private.outbound_denied),
            Acting::Real | Acting::Noted(_) => None,
        });
        acting.ok().map(|denied| Arc::clone(&denied))
    }

    pub(crate) fn take_notes(&mut self) -> Notes {
        match self.0.get_mut() {
            Acting::Noted(notes) => std::mem::take(notes),
            Acting::Real | Acting::Private(_) => Notes::default(),
        }
    }

    pub(crate) fn show(&mut self, notes: Notes) {
        if let Acting::Private(private) = self.0.get_mut() {
            private.values.extend(notes.values);
            private.counters.extend(notes.counters);
        }
    }

    pub(crate) fn take_kept(&mut self) -> Kept {
        match self.0.get_mut() {
            Acting::Private(private) => Kept {
                lines: std::mem::take(&mut private.lines),
                outbound_denied: private.outbound_denied.load(Ordering::Relaxed),
            },
            Acting::Real | Acting::Noted(_) => Kept::default(),
        }
    }

    /// Returns what a private instance put in front of a store's value.
    pub(crate) fn overlaid(&self, key: &str) -> Option<Option<Vec<u8>>> {
        let Acting::Private(private) = &*self.0.borrow() else { return None };
        private.values.get(key).map(|value| value.as_deref().map(<[u8]>::to_vec))
    }

    /// Returns whether notes are taken, and the value of `key` is not among them.
    pub(crate) fn has_yet_to_note(&self, key: &str) -> bool {
        matches!(&*self.0.borrow(), Acting::Noted(notes) if !notes.incomplete && !notes.values.contains_key(key))
    }

    /// Notes what was found under `key`.
    pub(crate) fn note_value(&self, key: &str, found: &Option<Vec<u8>>) {
        if let Acting::Noted(notes) = &mut *self.0.borrow_mut() {
            notes.value(key, || found.clone());
        }
    }

    /// Notes what a counter was.
    pub(crate) fn note_counter(&self, key: &str, before: i64) {
        if let Acting::Noted(notes) = &mut *self.0.borrow_mut() {
            notes.counter(key, before);
        }
    }

    /// Keeps a value of a private instance, if it fits; none where it is for the store.
    pub(crate) fn keep_value(&self, key: &str, value: &[u8], quota: Quota) -> Option<bool> {
        let Acting::Private(private) = &mut *self.0.borrow_mut() else { return None };
        let fits = private.fits(key.len() + value.len(), quota);
        if fits {
            private.put(key, Some(value.into()));
        }
        Some(fits)
    }

    /// Keeps a deletion of a private instance. False where it is for the store.
    pub(crate) fn keep_deletion(&self, key: &str) -> bool {
        let Acting::Private(private) = &mut *self.0.borrow_mut() else { return false };
        private.put(key, None);
        true
    }

    /// Adds to a counter that a private instance keeps; none where it keeps none under `key`.
    pub(crate) fn add_to_kept(&self, key: &str, by: i64) -> Option<i64> {
        let Acting::Private(private) = &mut *self.0.borrow_mut() else { return None };
        let counter = private.counters.get_mut(key)?;
        *counter = counter.saturating_add(by);
        Some(*counter)
    }

    /// Keeps a counter of a private instance. False where it does not fit.
    pub(crate) fn keep_counter(&self, key: &str, sum: i64, quota: Quota) -> bool {
        let Acting::Private(private) = &mut *self.0.borrow_mut() else { return false };
        let fits = private.fits(key.len(), quota);
        if fits {
            private.bytes += (ENTRY_BYTES + key.len()) as u64;
            private.counters.insert(key.into(), sum);
        }
        fits
    }

    /// Returns the value of `key`.
    pub(crate) fn get(&self, store: &KeyValue, key: &str, now: Instant) -> Option<Vec<u8>> {
        match &mut *self.0.borrow_mut() {
            Acting::Real => store.get(key, now),
            Acting::Noted(notes) => {
                let found = store.get(key, now);
                notes.value(key, || found.clone());
                found
            }
            Acting::Private(private) => match private.values.get(key) {
                Some(value) => value.as_deref().map(<[u8]>::to_vec),
                None => store.get(key, now),
            },
        }
    }

    /// Sets `key` to `value`. False, and nothing changed, where it does not fit.
    pub(crate) fn set(
        &self,
        store: &KeyValue,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        now: Instant,
        quota: Quota,
    ) -> bool {
        match &mut *self.0.borrow_mut() {
            Acting::Real => store.set(key, value, ttl, now, quota),
            Acting::Noted(notes) => {
                notes.value(key, || store.get(key, now));
                store.set(key, value, ttl, now, quota)
            }
            // It is gone before anything in it could expire.
            Acting::Private(private) => {
                let fits = private.fits(key.len() + value.len(), quota);
                if fits {
                    private.put(key, Some(value.into()));
                }
                fits
            }
        }
    }

    /// Forgets the value of `key`.
    pub(crate) fn delete(&self, store: &KeyValue, key: &str, now: Instant) {
        match &mut *self.0.borrow_mut() {
            Acting::Real => store.delete(key),
            Acting::Noted(notes) => {
                notes.value(key, || store.get(key, now));
                store.delete(key);
            }
            Acting::Private(private) => private.put(key, None),
        }
    }

    /// Adds `by` to the counter `key` and returns what it is then. None where a new counter does not fit.
    pub(crate) fn increment(
        &self,
        store: &KeyValue,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
        now: Instant,
        quota: Quota,
    ) -> Option<i64> {
        match &mut *self.0.borrow_mut() {
            Acting::Real => store.increment(key, by, ttl, now, quota),
            Acting::Noted(notes) => {
                let sum = store.increment(key, by, ttl, now, quota)?;
                notes.counter(key, sum.saturating_sub(by));
                Some(sum)
            }
            Acting::Private(private) => {
                if let Some(counter) = private.counters.get_mut(key) {
                    *counter = counter.saturating_add(by);
                    return Some(*counter);
                }
                if !private.fits(key.len(), quota) {
                    return None;
                }
                let sum = store.counter(key, now).unwrap_or(0).saturating_add(by);
                private.bytes += (ENTRY_BYTES + key.len()) as u64;
                private.counters.insert(key.into(), sum);
                Some(sum)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Quota = Quota { bytes: 1 << 20, entries: 1_000 };

    #[test]
    fn what_is_private_lies_in_front_of_the_store_and_leaves_it_alone() {
        let (store, now) = (KeyValue::default(), Instant::now());
        store.set("kept", b"old", None, now, MAX);
        store.increment("hits", 7, None, now, MAX);
        let private = Cell::new(Effects::Private);
        assert_eq!(private.get(&store, "kept", now).as_deref(), Some(&b"old"[..]));
        assert!(private.set(&store, "kept", b"new", None, now, MAX));
        assert_eq!(private.get(&store, "kept", now).as_deref(), Some(&b"new"[..]));
        private.delete(&store, "kept", now);
        assert_eq!(private.get(&store, "kept", now), None);
        assert_eq!(private.increment(&store, "hits", 1, None, now, MAX), Some(8));
        assert_eq!(private.increment(&store, "hits", 1, None, now, MAX), Some(9));
        assert_eq!(store.get("kept", now).as_deref(), Some(&b"old"[..]));
        assert_eq!(store.counter("hits", now), Some(7));
        assert!(!private.set(&store, "large", &[0; 2_000], None, now, Quota { bytes: 1_000, ..MAX }));
        assert_eq!(private.increment(&store, "another", 1, None, now, Quota { bytes: 10, ..MAX }), None);
    }

    #[test]
    fn who_is_shown_notes_finds_what_was_found_before() {
        let (store, now) = (KeyValue::default(), Instant::now());
        store.set("last", b"/a", None, now, MAX);
        let mut noted = Cell::new(Effects::Noted);
        assert_eq!(noted.increment(&store, "hits", 1, None, now, MAX), Some(1));
        assert_eq!(noted.increment(&store, "hits", 1, None, now, MAX), Some(2));
        assert!(noted.set(&store, "last", b"/b", None, now, MAX));
        assert_eq!(noted.get(&store, "absent", now), None);
        // Others come between.
        store.increment("hits", 40, None, now, MAX);
        store.set("absent", b"here", None, now, MAX);
        let mut private = Cell::new(Effects::Private);
        private.show(noted.take_notes());
        assert_eq!(private.increment(&store, "hits", 1, None, now, MAX), Some(1));
        assert_eq!(private.get(&store, "last", now).as_deref(), Some(&b"/a"[..]));
        assert_eq!(private.get(&store, "absent", now), None);
        assert_eq!(store.get("last", now).as_deref(), Some(&b"/b"[..]));
    }

    #[test]
    fn notes_that_are_too_long_say_so() {
        let (store, now) = (KeyValue::default(), Instant::now());
        let mut noted = Cell::new(Effects::Noted);
        assert!(noted.take_notes().is_complete());
        store.set("large", &[1; NOTED_BYTES_MAX], None, now, MAX);
        noted.get(&store, "large", now);
        assert!(!noted.take_notes().is_complete());
    }

    #[test]
    fn lines_are_kept_up_to_a_bound_and_only_in_private() {
        let mut private = Cell::new(Effects::Private);
        for _ in 0..LINES_MAX + 1 {
            assert!(private.keep_line(Level::Warn, &"é".repeat(LINE_BYTES_MAX)));
        }
        let kept = private.take_kept();
        assert_eq!(kept.lines.len(), LINES_MAX);
        assert!(kept.lines.iter().all(|(_, line)| line.len() == LINE_BYTES_MAX));
        assert!(!Cell::new(Effects::Real).keep_line(Level::Warn, "to the log"));
    }
}
