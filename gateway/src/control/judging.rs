//! Judges the rollouts that are under way: what was counted since the last look goes to the judge of each, and its verdict
//! becomes what [`crate::control::rollout::step`] is asked with. Pure, but for the counters that it reads.
//!
//! A *case* is what is known about one stay at one weight, named by the moment when it began. Another step is another
//! stay: "not worse" has to be shown anew there, and what speaks for "worse" is kept. Cases are written down every few
//! seconds, so that a process that was killed goes on with what was known; what it loses is a few seconds of counting, in
//! which both tracks lose alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockgate_config::model::{self, Decider, FailureKind};
use lockgate_config::units::Weight;
use lockgate_judge::{Conclusion, Evidence, Guard, Judge, Latencies, Period, Reading, Signal, Verdict};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::control::choose;
use crate::control::facts::Facts;
use crate::control::rollout::{self, State, Versions};
use crate::control::state::Saved;
use crate::control::time::Timestamp;
use crate::proxy::counts::{CALL_UNIT, Counts, MEMORY_UNIT_BYTES, Totals};
use crate::shadow;
use crate::track::Track;

/// The counts of rollouts, kept over snapshots for as long as a rollout is about the same versions.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<String, Counter>>);

#[derive(Debug)]
struct Counter {
    versions: Versions,
    failures: Vec<FailureKind>,
    began: Timestamp,
    counts: Arc<Counts>,
}

impl Counters {
    /// Returns the counts of a rollout, new ones where it moves something else now; none where nobody judges it.
    pub fn of(&self, facts: &Facts, saved: &Saved, index: usize) -> Option<Arc<Counts>> {
        let config = &facts.config.rollouts[index];
        let state = choose::state(facts, saved, index).filter(|state| state.is_under_way())?;
        if config.guard.is_none() && config.decider == Decider::Local {
            return None;
        }
        let failures = config.guard.as_ref().and_then(|guard| guard.failures.as_ref());
        let failures = failures.map_or(FailureKind::DEFAULT.as_slice(), |failures| &failures.of);
        let mut counters = self.0.lock();
        let known = counters.get(&*config.name);
        if let Some(counter) =
            known.filter(|counter| counter.versions == state.versions && counter.failures == failures)
        {
            return Some(Arc::clone(&counter.counts));
        }
        let counts = Arc::new(Counts::new(failures));
        let counter = Counter {
            versions: state.versions.clone(),
            failures: failures.to_vec(),
            began: Timestamp::now(),
            counts: Arc::clone(&counts),
        };
        counters.insert(config.name.to_string(), counter);
        Some(counts)
    }

    /// Returns the counts of a rollout, and since when they count.
    pub fn get(&self, rollout: &str) -> Option<(Arc<Counts>, Timestamp)> {
        self.0.lock().get(rollout).map(|counter| (Arc::clone(&counter.counts), counter.began))
    }

    /// Forgets the rollouts that are gone.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|rollout, _| is_there(rollout));
    }
}

/// What is known about the rollouts under way, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cases(BTreeMap<String, Case>);

#[derive(Debug, Serialize, Deserialize)]
struct Case {
    versions: Versions,
    /// [`State::since`]
    since: Timestamp,
    judge: Judge,
    /// Requests of the canary in this stay.
    requests: u64,
    /// What was counted up to the last look, by this process.
    #[serde(skip)]
    seen: Seen,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    tracks: [Totals; 2],
    shadow: shadow::tally::Counts,
}

/// What a look at a rollout has shown.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What the judge says.
    pub verdict: Verdict,
    /// What follows from it: at 100 %, where nobody is left to compare with, it is not the judge's word.
    pub conclusion: rollout::Conclusion,
    /// A sentence for each signal on which the conclusion rests.
    pub findings: Vec<String>,
    /// A sentence for each of the others.
    pub others: Vec<String>,
    /// What the verdict is about: [`State::since`].
    pub since: Timestamp,
    /// When it was looked.
    pub at: Timestamp,
}

impl Cases {
    /// Looks at a rollout that is under way and has a guard.
    pub fn look(
        &mut self,
        config: &model::Rollout,
        state: &State,
        counts: Option<&Counts>,
        shadow: Option<shadow::tally::Counts>,
        now: Timestamp,
    ) -> Option<Looked> {
        let guard = held_to(config.guard.as_ref()?, state.shadow_in_effect().is_some());
        let seen = Seen {
            tracks: Track::ALL.map(|track| counts.map(|counts| counts.read(track)).unwrap_or_default()),
            shadow: shadow.unwrap_or_default(),
        };
        let name = &*config.name;
        let known = self.0.get(name).filter(|case| {
            // What was shown to be worse stays so; who resumes it all the same wants it to be looked at anew.
            let anew = case.since != state.since && case.judge.is_worse();
            case.versions == state.versions && *case.judge.guard() == guard && !anew
        });
        match known.map(|case| case.since == state.since) {
            Some(true) => {}
            Some(false) => {
                let case = self.0.get_mut(name)?;
                case.judge.begin_step();
                (case.since, case.requests, case.seen) = (state.since, 0, seen.clone());
            }
            None => {
                // The configuration has checked what a guard must be.
                let judge = Judge::new(guard).ok()?;
                let (versions, since) = (state.versions.clone(), state.since);
                self.0.insert(name.to_owned(), Case { versions, since, judge, requests: 0, seen: seen.clone() });
            }
        }
        let case = self.0.get_mut(name)?;
        case.take(seen);
        let verdict = case.judge.verdict();
        let least = config.guard.as_ref().map_or(0, |guard| guard.min_requests);
        let alone = state.weight_in_effect() == Weight::FULL && verdict.conclusion != Conclusion::Worse;
        let (conclusion, findings, others) = if alone {
            let (conclusion, finding) = alone_at_the_top(case.requests, least);
            (conclusion, vec![finding], Vec::new())
        } else {
            let (deciding, others) = apart(&verdict);
            (conclusion(verdict.conclusion), deciding, others)
        };
        Some(Looked { verdict, conclusion, findings, others, since: state.since, at: now })
    }

    /// Forgets a rollout that is not under way.
    pub fn forget(&mut self, rollout: &str) {
        self.0.remove(rollout);
    }

    /// Forgets the rollouts that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|rollout, _| is_there(rollout));
    }

    /// Returns whether nothing is judged.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Case {
    /// Hands what was counted since the last look to the judge.
    fn take(&mut self, mut now: Seen) {
        let signals = &self.judge.guard().signals;
        let mut readings: [Vec<Reading>; 2] = Default::default();
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let requests = since(now.shadow.compared, self.seen.shadow.compared);
        let events = since(now.shadow.disagreed, self.seen.shadow.disagreed).min(requests);
        now.shadow.disagreed = self.seen.shadow.disagreed.min(now.shadow.disagreed) + events;
        let nothing = Totals::default();
        let compared = Reading::Share { requests, events };
        for track in Track::ALL {
            let now = &mut now.tracks[track as usize];
            // Counts that are lower than they were are other ones: they began with nothing.
            let before = &self.seen.tracks[track as usize];
            let before = if before.requests > now.requests { &nothing } else { before };
            let requests = since(now.requests, before.requests);
            // What happened to a request may be read before the request: it is left for the next look.
            let share = |now: &mut u64, before: u64| {
                let events = since(*now, before).min(requests);
                *now = before + events;
                Reading::Share { requests, events }
            };
            let times = |now: &[u64], before: &[u64]| {
                let mut before = before.to_vec();
                before.resize(now.len(), 0);
                Reading::Quantile(Latencies::since(now.iter().copied(), &mut before))
            };
            for signal in signals {
                readings[track as usize].push(match &**signal.name() {
                    FAILURES => share(&mut now.failures, before.failures),
                    DENIALS => share(&mut now.denials, before.denials),
                    CALL_FAILURES => share(&mut now.call_failures, before.call_failures),
                    LATENCY => times(&now.latency, &before.latency),
                    CALL_DURATION => times(&now.call_duration, &before.call_duration),
                    CALL_MEMORY => times(&now.call_memory, &before.call_memory),
                    _ if track == Track::Stable => Reading::none(signal),
                    _ => compared.clone(),
                });
            }
            if track == Track::Canary {
                self.requests = self.requests.saturating_add(requests);
            }
        }
        let [stable, canary] = readings;
        // Made for this guard, signal by signal.
        if let Err(error) = self.judge.observe(&Period { stable, canary }) {
            tracing::error!(%error, "a period was not judged");
        }
        self.seen = now;
    }
}

/// Returns the conclusion where everybody is on the canary, which is no word of the judge's, and a sentence for it.
fn alone_at_the_top(requests: u64, least: u64) -> (rollout::Conclusion, String) {
    if requests >= least {
        let finding = format!(
            "everybody is on the canary, so that nothing is left to compare it with; {requests} requests of it were counted"
        );
        (rollout::Conclusion::NotWorse, finding)
    } else {
        let finding =
            format!("everybody is on the canary; {requests} requests of it were counted, of {least} that are required");
        (rollout::Conclusion::Undecided, finding)
    }
}

/// Returns what the signals show on which a verdict rests, and what the others show: where one is worse, it matters little
/// that another has not been decided.
fn apart(verdict: &Verdict) -> (Vec<String>, Vec<String>) {
    let decides = |evidence: &&Evidence| evidence.conclusion == verdict.conclusion;
    let (deciding, others): (Vec<&Evidence>, Vec<&Evidence>) = verdict.evidence.iter().partition(decides);
    let sentences = |evidence: Vec<&Evidence>| evidence.into_iter().map(sentence).collect();
    (sentences(deciding), sentences(others))
}

const FAILURES: &str = "failures";
const LATENCY: &str = "latency";
const DENIALS: &str = "denials";
const CALL_FAILURES: &str = "call_failures";
const CALL_DURATION: &str = "call_duration";
const CALL_MEMORY: &str = "call_memory";
const DISAGREEMENT: &str = "disagreement";

/// Every signal that there may be.
pub const SIGNALS: [&str; 7] = [FAILURES, LATENCY, DENIALS, CALL_FAILURES, CALL_DURATION, CALL_MEMORY, DISAGREEMENT];

/// Which quantile of the memory of instances is compared.
const MEMORY_QUANTILE: f64 = 0.5;

/// Returns what a canary is held to: as a shadow to agreement, and to everything else where it serves.
fn held_to(guard: &model::Guard, shadow: bool) -> Guard {
    let share = |name: &str, tolerance: f64| Signal::Share { name: name.into(), tolerance };
    let slowness = |name: &str, slowness: &model::SlownessGuard| Signal::Quantile {
        name: name.into(),
        quantile: slowness.quantile.ratio(),
        tolerance: slowness.tolerance.ratio(),
    };
    let mut signals = Vec::new();
    if shadow {
        let agreement = guard.agreement.iter();
        signals.extend(agreement.map(|agreement| Signal::AtMost {
            name: DISAGREEMENT.into(),
            // In whole basis points: `1 - 0.99` is not `0.01`.
            threshold: f64::from(10_000 - agreement.basis_points()) / 10_000.0,
        }));
    } else {
        signals.extend(guard.failures.iter().map(|failures| share(FAILURES, failures.tolerance.ratio())));
        signals.extend(guard.latency.iter().map(|latency| slowness(LATENCY, latency)));
        signals.extend(guard.denials.iter().map(|tolerance| share(DENIALS, tolerance.ratio())));
        signals.extend(guard.call_failures.iter().map(|tolerance| share(CALL_FAILURES, tolerance.ratio())));
        signals.extend(guard.call_duration.iter().map(|duration| slowness(CALL_DURATION, duration)));
        signals.extend(guard.call_memory.iter().map(|tolerance| Signal::Quantile {
            name: CALL_MEMORY.into(),
            quantile: MEMORY_QUANTILE,
            tolerance: tolerance.ratio(),
        }));
    }
    Guard { signals, confidence: guard.confidence.ratio(), min_requests: guard.min_requests }
}

const fn conclusion(conclusion: Conclusion) -> rollout::Conclusion {
    match conclusion {
        Conclusion::Worse => rollout::Conclusion::Worse,
        Conclusion::NotWorse => rollout::Conclusion::NotWorse,
        Conclusion::Undecided => rollout::Conclusion::Undecided,
    }
}

/// Returns what one signal shows, in the unit that it is counted in: seconds, or bytes of memory.
pub fn in_its_unit(evidence: &Evidence) -> Evidence {
    let factor = match &*evidence.signal {
        // The judge takes all quantiles for microseconds.
        CALL_DURATION => CALL_UNIT.as_secs_f64() * 1e6,
        CALL_MEMORY => MEMORY_UNIT_BYTES as f64 * 1e6,
        _ => return evidence.clone(),
    };
    let mut evidence = evidence.clone();
    for arm in evidence.stable.iter_mut().chain([&mut evidence.canary]) {
        let value = &mut arm.value;
        for number in [&mut value.estimate, &mut value.low, &mut value.high] {
            *number *= factor;
        }
    }
    evidence
}

/// Returns what one signal shows, in a sentence.
pub fn sentence(evidence: &Evidence) -> String {
    let evidence = in_its_unit(evidence);
    match (&*evidence.signal, &evidence.stable) {
        (CALL_MEMORY, Some(stable)) if evidence.canary.requests > 0 => {
            let kib = |bytes: f64| format!("{:.0} KiB", bytes / 1024.0);
            format!(
                "{CALL_MEMORY}: an instance of the canary has {} ({} requests), one of stable {} ({}), {:+.0} % where +{:.0} is tolerated: {}",
                kib(evidence.canary.value.estimate),
                evidence.canary.requests,
                kib(stable.value.estimate),
                stable.requests,
                evidence.difference.estimate * 100.0,
                evidence.tolerance * 100.0,
                evidence.conclusion
            )
        }
        _ => evidence.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockgate_config::model::{FailureGuard, OnBad, Plan, RolloutSubject, ShadowLimits};
    use lockgate_config::problem::Place;
    use lockgate_config::units::{ByteSize, Share};

    use super::*;
    use crate::control::rollout::{Event, PlanStep, Stage, step};

    fn share(text: &str) -> Share {
        text.parse().expect("a share")
    }

    fn guard() -> model::Guard {
        model::Guard {
            failures: Some(FailureGuard { tolerance: share("5%"), of: FailureKind::DEFAULT.to_vec() }),
            latency: None,
            denials: Some(share("5%")),
            call_failures: None,
            call_duration: None,
            call_memory: None,
            agreement: Some(share("99%")),
            confidence: share("99%"),
            min_requests: 100,
            stalled_after: Duration::from_secs(1),
        }
    }

    fn config() -> model::Rollout {
        model::Rollout {
            name: "r".into(),
            subject: RolloutSubject::Upstream { upstream: 0, canary: 1 },
            plan: Plan::Weight(Weight::ZERO),
            guard: Some(guard()),
            on_bad: OnBad::RollBack,
            decider: Decider::Local,
            shadow: ShadowLimits { sample: Share::ZERO, cpu: Share::ZERO, body: ByteSize(0) },
            link: None,
            key: Vec::new(),
            salt: "r".into(),
            overriding: None,
            place: Place::none(),
        }
    }

    fn state(stages: &[Stage]) -> State {
        let versions = Versions { stable: "v1".to_owned(), canary: "v2".to_owned() };
        let steps = stages.iter().map(|stage| PlanStep { stage: *stage, hold_ms: 0 }).collect();
        State::begin(versions, &rollout::Plan::Steps(steps), None, Timestamp::from_millis(1_000)).0
    }

    fn half() -> Stage {
        Stage::Weight("50%".parse().expect("a weight"))
    }

    fn totals(requests: u64, failures: u64) -> Totals {
        Totals { requests, failures, ..Totals::default() }
    }

    /// Lets a case see so many requests and failures of stable and canary, in twenty looks.
    fn judge(cases: &mut Cases, state: &State, stable: (u64, u64), canary: (u64, u64)) -> Looked {
        let now = Timestamp::from_millis(2_000);
        cases.look(&config(), state, None, None, now).expect("it has a guard");
        let case = cases.0.get_mut("r").expect("it was looked at");
        for part in 1..=20 {
            let so_far = |(requests, failures): (u64, u64)| totals(requests * part / 20, failures * part / 20);
            case.take(Seen { tracks: [so_far(stable), so_far(canary)], shadow: case.seen.shadow });
        }
        // What there is no counter for reads as nothing, which changes nothing.
        cases.look(&config(), state, None, None, now).expect("it has a guard")
    }

    #[test]
    fn a_canary_that_fails_is_worse_and_one_that_does_not_is_not() {
        let state = state(&[half()]);
        let good = judge(&mut Cases::default(), &state, (2_000, 20), (2_000, 20));
        assert_eq!(good.conclusion, rollout::Conclusion::NotWorse, "{:?}", good.findings);
        let bad = judge(&mut Cases::default(), &state, (2_000, 20), (2_000, 400));
        assert_eq!(bad.conclusion, rollout::Conclusion::Worse, "{:?}", bad.findings);
        // What denials show decided nothing, and is kept apart.
        assert!(matches!(&*bad.findings, [only] if only.starts_with("failures: ")), "{:?}", bad.findings);
        assert!(matches!(&*bad.others, [only] if only.starts_with("denials: ")), "{:?}", bad.others);
    }

    #[test]
    fn another_step_has_to_be_shown_anew() {
        let first = state(&[half(), Stage::Weight(Weight::FULL)]);
        let mut cases = Cases::default();
        let looked = judge(&mut cases, &first, (2_000, 0), (2_000, 0));
        assert_eq!(looked.conclusion, rollout::Conclusion::NotWorse);
        let second = State { since: Timestamp::from_millis(3_000), ..first };
        let looked = judge(&mut cases, &second, (0, 0), (0, 0));
        assert_eq!(looked.conclusion, rollout::Conclusion::Undecided);
    }

    #[test]
    fn what_was_worse_is_looked_at_anew_when_somebody_resumes_it() {
        let first = state(&[half()]);
        let mut cases = Cases::default();
        assert_eq!(judge(&mut cases, &first, (2_000, 0), (2_000, 900)).conclusion, rollout::Conclusion::Worse);
        let resumed = State { since: Timestamp::from_millis(3_000), ..first };
        assert_eq!(judge(&mut cases, &resumed, (0, 0), (0, 0)).conclusion, rollout::Conclusion::Undecided);
    }

    #[test]
    fn where_everybody_is_on_the_canary_enough_requests_are_enough() {
        let state = state(&[Stage::Weight(Weight::FULL)]);
        let mut cases = Cases::default();
        assert_eq!(judge(&mut cases, &state, (0, 0), (99, 0)).conclusion, rollout::Conclusion::Undecided);
        assert_eq!(judge(&mut cases, &state, (0, 0), (1, 0)).conclusion, rollout::Conclusion::NotWorse);
    }

    #[test]
    fn a_shadow_is_held_to_agreement() {
        let state = state(&[Stage::Shadow(share("10%")), half()]);
        let mut cases = Cases::default();
        let now = Timestamp::from_millis(2_000);
        let found = |compared, disagreed| Some(shadow::tally::Counts { compared, disagreed });
        let mut look = |counts| cases.look(&config(), &state, None, counts, now).expect("it has a guard").conclusion;
        assert_eq!(look(found(0, 0)), rollout::Conclusion::Undecided);
        assert_eq!(look(found(5_000, 2)), rollout::Conclusion::NotWorse);
        assert_eq!(look(found(10_000, 2_000)), rollout::Conclusion::Worse);
    }

    #[test]
    fn what_is_known_survives_a_restart() {
        let state = state(&[half()]);
        let mut cases = Cases::default();
        let before = judge(&mut cases, &state, (2_000, 20), (2_000, 20));
        let text = serde_json::to_string(&cases).expect("cases are JSON");
        let mut restored: Cases = serde_json::from_str(&text).expect("it was just written");
        let after =
            restored.look(&config(), &state, None, None, Timestamp::from_millis(2_000)).expect("it has a guard");
        assert_eq!(after.verdict, before.verdict);
        let moved = step(
            &state,
            Event::Judged {
                since: after.since,
                conclusion: after.conclusion,
                evidence: crate::control::quarantine::Why::Guard { findings: after.findings, others: after.others },
                rules: rollout::Rules { pause: false, stalled_after: Duration::ZERO },
            },
            Timestamp::from_millis(5_000),
        );
        assert_eq!(moved.map(|(state, _)| state.word()), Ok("ramping"), "the last step is left by a person");
    }
}
