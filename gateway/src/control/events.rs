//! What happens, for whoever follows. A *notice* says in one sentence that something moved: a rollout, the configuration,
//! the quarantine, an old snapshot that drains. Notices are sent when what they tell of is in force, so that who reads the
//! status after one sees it there.
//!
//! The last notices are kept, in a bounded queue, so that who was cut off goes on where it was. Followers that are slower
//! than what happens lose the oldest notices; nobody waits for them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::control::audit::AuditEntry;
use crate::control::time::Timestamp;

/// Notices that are kept: hours of a busy day, and some 100 KiB.
const KEPT_MAX: usize = 256;

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A rollout moved.
    Move,
    /// The judge came to another conclusion about a rollout.
    Verdict,
    /// The configuration was read, or this process began to decide.
    Reload,
    /// A version went into quarantine, out of it, or is replaced because of it.
    Quarantine,
    /// A new version may do more than the one before, or a person has let one in that may.
    Grant,
    /// An old snapshot has requests, is late, or has none any more.
    Drain,
}

impl Kind {
    /// Returns the kind in a word, as events are named.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Verdict => "verdict",
            Self::Reload => "reload",
            Self::Quarantine => "quarantine",
            Self::Grant => "grant",
            Self::Drain => "drain",
        }
    }

    fn of(entry: &AuditEntry) -> Self {
        if matches!(&*entry.action, "grant" | "approve") && entry.before.is_empty() {
            Self::Grant
        } else if entry.subject.starts_with("rollout ") {
            Self::Move
        } else if entry.subject.starts_with("filter ") {
            Self::Quarantine
        } else {
            Self::Reload
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Notice {
    /// Microseconds since 1970, and larger than that of every earlier notice, also over restarts.
    pub id: u64,
    /// When, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// What it is about.
    pub kind: Kind,
    /// What was done: an action of the audit log, or `refused`, `unchanged`, `verdict`, `draining`, `overdue`, `drained`.
    pub action: String,
    /// To what: `rollout auth-1.5`, `configuration`, `generation 7`.
    pub subject: String,
    /// All of it in a sentence.
    pub text: String,
}

/// Something that is to be told.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) kind: Kind,
    pub(super) action: &'static str,
    pub(super) subject: String,
    pub(super) text: String,
}

/// Keeps notices, and tells followers of them. A handle; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// The last notice's id.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    kept: VecDeque<Arc<Notice>>,
    /// Not in force yet.
    pending: Vec<Notice>,
    last: u64,
}

impl Events {
    /// Takes what was written to the audit log. It is told with the next [`Self::flush`].
    pub(super) fn note(&self, entries: &[AuditEntry]) {
        let notices = entries.iter().map(|entry| Notice {
            id: 0,
            time: entry.time,
            kind: Kind::of(entry),
            action: entry.action.clone(),
            subject: entry.subject.clone(),
            text: sentence(entry),
        });
        self.0.queue.lock().pending.extend(notices);
    }

    /// Takes something that the audit log does not have. It is told with the next [`Self::flush`].
    pub(super) fn note_other(&self, Draft { kind, action, subject, text }: Draft) {
        let notice = Notice { id: 0, time: Timestamp::now(), kind, action: action.to_owned(), subject, text };
        self.0.queue.lock().pending.push(notice);
    }

    /// Tells what was taken: it is in force now.
    pub(super) fn flush(&self) {
        let mut queue = self.0.queue.lock();
        let pending = std::mem::take(&mut queue.pending);
        if pending.is_empty() {
            return;
        }
        for notice in pending {
            // The clock may stand still or be set back; ids do not.
            queue.last = (queue.last + 1).max(notice.time.millis() * 1000);
            let id = queue.last;
            if queue.kept.len() == KEPT_MAX {
                queue.kept.pop_front();
            }
            queue.kept.push_back(Arc::new(Notice { id, ..notice }));
        }
        let last = queue.last;
        drop(queue);
        self.0.latest.send_replace(last);
    }

    /// Returns a follower. It begins after the notice with the given id, or with what happens from now on.
    pub fn follow(&self, after: Option<u64>) -> Follower {
        let latest = self.0.latest.subscribe();
        let after = after.unwrap_or_else(|| *latest.borrow());
        Follower { events: self.clone(), latest, after }
    }

    fn after(&self, id: u64) -> Option<Arc<Notice>> {
        let queue = self.0.queue.lock();
        let next = queue.kept.partition_point(|notice| notice.id <= id);
        queue.kept.get(next).cloned()
    }
}

/// Reads notices, one after the other.
#[derive(Debug)]
pub struct Follower {
    events: Events,
    latest: watch::Receiver<u64>,
    after: u64,
}

impl Follower {
    /// Waits for the next notice. Ends when the gateway does.
    pub async fn next(&mut self) -> Option<Arc<Notice>> {
        loop {
            self.latest.borrow_and_update();
            if let Some(notice) = self.events.after(self.after) {
                self.after = notice.id;
                return Some(notice);
            }
            self.latest.changed().await.ok()?;
        }
    }
}

/// Returns an entry of the audit log as a sentence: `rollout auth-1.5: set-weight, 5% → 10% (cli by uid 1000)`.
fn sentence(entry: &AuditEntry) -> String {
    let AuditEntry { time: _, actor, action, subject, before, after, why } = entry;
    let change = match (before.is_empty(), after.is_empty()) {
        (true, true) => String::new(),
        (true, false) => format!(", {after}"),
        (false, true) => format!(", {before} before"),
        (false, false) if before == after => format!(", {after}"),
        (false, false) => format!(", {before} → {after}"),
    };
    // A person's reason begins with who gave it.
    let why = why.as_ref().map(ToString::to_string).filter(|why| why != actor);
    let because = why.filter(|why| !after.contains(why.as_str())).map(|why| format!("; {why}")).unwrap_or_default();
    format!("{subject}: {action}{change} ({actor}){because}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::quarantine::Why;

    fn entry(action: &str, subject: &str) -> AuditEntry {
        AuditEntry {
            time: Timestamp::from_millis(1),
            actor: "api 127.0.0.1".to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            before: "5%".to_owned(),
            after: "10%".to_owned(),
            why: None,
        }
    }

    #[tokio::test]
    async fn nothing_is_told_before_it_is_in_force() {
        let events = Events::default();
        let mut follower = events.follow(None);
        events.note(&[entry("set-weight", "rollout a")]);
        let told = tokio::time::timeout(std::time::Duration::from_millis(20), follower.next()).await;
        assert!(told.is_err(), "{told:?}");
        events.flush();
        let notice = follower.next().await.unwrap();
        assert_eq!((notice.kind, notice.action.as_str()), (Kind::Move, "set-weight"));
        assert_eq!(notice.text, "rollout a: set-weight, 5% → 10% (api 127.0.0.1)");
    }

    #[tokio::test]
    async fn who_was_cut_off_goes_on_where_it_was_and_who_is_slow_loses_the_oldest() {
        let events = Events::default();
        let mut slow = events.follow(None);
        for number in 0..KEPT_MAX + 44 {
            events.note(&[entry("set-weight", &format!("rollout {number}"))]);
            events.flush();
        }
        let first = slow.next().await.unwrap();
        assert_eq!(first.subject, "rollout 44");
        let second = slow.next().await.unwrap();
        assert!(second.id > first.id);
        let mut again = events.follow(Some(first.id));
        assert_eq!(again.next().await.unwrap().subject, second.subject);
    }

    #[test]
    fn a_reason_stands_at_the_end() {
        let why = Why::Person { by: "api 127.0.0.1".to_owned(), reason: Some("logins fail".to_owned()) };
        let entry = AuditEntry { why: Some(why), ..entry("roll-back", "rollout a") };
        assert!(sentence(&entry).ends_with("(api 127.0.0.1); api 127.0.0.1: logins fail"), "{}", sentence(&entry));
    }
}
