//! Why a rollout is where it is: its steps, what is left of the one under way, and what the judge knows, as numbers and in
//! sentences. And what a decider elsewhere needs: the bare counts.

use std::time::Duration;

use lockgate_config::model::{Decider, OnBad};
use lockgate_config::units::format_duration;
use lockgate_judge::{Arm, Evidence, latency};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::judging::{Looked, in_its_unit, sentence};
use crate::control::quarantine::Why;
use crate::control::rollout::{Phase, Stage, State};
use crate::control::time::Timestamp;
use crate::proxy::counts::{CALL_UNIT, Counts, MEMORY_UNIT_BYTES, Totals};
use crate::track::Track;

/// Why a rollout is where it is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WhyView {
    /// The rollout.
    pub rollout: String,
    /// `waiting`, `idle`, `shadowing`, `ramping`, `stalled`, `paused`, `promoted`, `rolled-back` or `abandoned`.
    pub state: &'static str,
    /// The canary's share in force, as `5%`.
    pub weight: String,
    /// The step under way, from 1; none without steps.
    pub step: Option<usize>,
    /// The steps in the file.
    pub steps: Vec<StepView>,
    /// What is left of the time of the step under way; none where it does not climb by itself.
    pub hold_left_seconds: Option<f64>,
    /// What the judge said when it looked last; none where nobody judges it, or not yet.
    pub verdict: Option<VerdictView>,
    /// All of it in sentences, the most important first.
    pub sentences: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StepView {
    /// `5%`, or `shadow 10%`.
    pub stage: String,
    /// The canary's share of the users, 0 to 1.
    pub weight: f64,
    /// Share of the requests that a shadow is tried on, 0 to 1; none where it is no shadow.
    pub shadow: Option<f64>,
    /// How long it lasts at least.
    pub hold_seconds: f64,
}

/// What the judge said.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct VerdictView {
    /// `worse`, `not-worse` or `undecided`.
    pub conclusion: &'static str,
    /// For each signal.
    pub evidence: Vec<EvidenceView>,
    /// When it looked, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub decided_at: Timestamp,
}

/// What one signal shows. Shares are 0 to 1, times in seconds, memory in bytes.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EvidenceView {
    /// `failures`, `latency`, `denials`, `call_failures`, `call_duration`, `call_memory` or `disagreement`.
    pub signal: String,
    /// None where the canary is held to a fixed bound.
    pub stable: Option<ArmView>,
    /// The canary.
    pub canary: ArmView,
    /// By how much the canary's is larger: absolute for a share, relative for a quantile.
    pub estimate: f64,
    /// Where that lies, with the guard's confidence.
    pub interval: [f64; 2],
    /// What it may be at most.
    pub threshold: f64,
    /// Of this signal alone: `worse`, `not-worse` or `undecided`.
    pub conclusion: String,
    /// All of it in a sentence.
    pub sentence: String,
}

/// One track.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ArmView {
    /// Requests that were counted.
    pub requests: u64,
    /// Those that went bad; none for a quantile.
    pub events: Option<u64>,
    /// The share, or the quantile.
    pub value: f64,
    /// Where that lies.
    pub interval: [f64; 2],
}

/// What a gateway has counted of a rollout.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CountsView {
    /// The rollout.
    pub rollout: String,
    /// The stable version's label, or the upstream's name.
    pub stable_version: String,
    /// The canary's label, or the upstream's name.
    pub canary_version: String,
    /// The canary's share in force, as `5%`.
    pub weight: String,
    /// Since when it counts, as RFC 3339 in UTC: another time than at the last look means that it began anew.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Stable's.
    pub stable: TrackCounts,
    /// The canary's.
    pub canary: TrackCounts,
}

/// What was counted on one track. Counts only grow.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TrackCounts {
    /// Requests that were split by a key, of each key a few within ten seconds.
    pub requests: u64,
    /// Those that failed, as the guard has it.
    pub failures: u64,
    /// Those that the filter itself answered with a 4xx.
    pub denials: u64,
    /// Those with a failed call of the filter.
    pub call_failures: u64,
    /// How long they took: pairs of an upper bound in seconds and a count, without those of nothing.
    pub latency_seconds: Vec<(f64, u64)>,
    /// The time that they spent in the filter.
    pub call_duration_seconds: Vec<(f64, u64)>,
    /// The memory of the filter's instance in bytes.
    pub call_memory_bytes: Vec<(f64, u64)>,
}

/// What is asked about.
#[derive(Debug)]
pub(super) struct About<'a> {
    pub(super) rollout: &'a lockgate_config::model::Rollout,
    pub(super) state: &'a State,
    pub(super) looked: Option<&'a Looked>,
    pub(super) now: Timestamp,
}

/// Returns why a rollout is where it is.
pub(super) fn why(about: &About<'_>) -> WhyView {
    let About { rollout, state, looked, now } = *about;
    let looked = looked.filter(|looked| looked.since == state.since);
    WhyView {
        rollout: rollout.name.to_string(),
        state: state.word(),
        weight: state.weight_in_effect().to_string(),
        step: step(state),
        steps: steps(state),
        hold_left_seconds: state.hold_left(now).map(|left| left.as_secs_f64()),
        verdict: looked.map(verdict),
        sentences: sentences(about, looked),
    }
}

/// Returns the step under way, counted from 1.
pub(super) fn step(state: &State) -> Option<usize> {
    state.climb.as_ref().map(|climb| climb.step + 1)
}

/// Returns the steps in the file.
pub(super) fn steps(state: &State) -> Vec<StepView> {
    let steps = state.climb.iter().flat_map(|climb| &climb.steps);
    steps
        .map(|step| StepView {
            stage: step.stage.to_string(),
            weight: f64::from(step.stage.weight().basis_points()) / 10_000.0,
            shadow: match step.stage {
                Stage::Shadow(sample) => Some(sample.ratio()),
                Stage::Weight(_) => None,
            },
            hold_seconds: step.hold().as_secs_f64(),
        })
        .collect()
}

fn verdict(looked: &Looked) -> VerdictView {
    VerdictView {
        conclusion: looked.conclusion.as_str(),
        evidence: looked.verdict.evidence.iter().map(evidence).collect(),
        decided_at: looked.at,
    }
}

fn evidence(raw: &Evidence) -> EvidenceView {
    let evidence = in_its_unit(raw);
    let arm = |arm: &Arm| ArmView {
        requests: arm.requests,
        events: arm.events,
        value: arm.value.estimate,
        interval: [arm.value.low, arm.value.high],
    };
    EvidenceView {
        signal: evidence.signal.to_string(),
        stable: evidence.stable.as_ref().map(arm),
        canary: arm(&evidence.canary),
        estimate: evidence.difference.estimate,
        interval: [evidence.difference.low, evidence.difference.high],
        threshold: evidence.tolerance,
        conclusion: evidence.conclusion.to_string().replace(' ', "-"),
        sentence: sentence(raw),
    }
}

fn sentences(about: &About<'_>, looked: Option<&Looked>) -> Vec<String> {
    let About { rollout, state, now, .. } = about;
    let name = &rollout.name;
    let mut sentences = vec![match &state.phase {
        Phase::Promoted => "it is promoted: the canary's version serves everybody".to_owned(),
        Phase::RolledBack { why } if state.waits() => {
            format!("its canary waits for approval, and stable serves everybody: {why}")
        }
        Phase::RolledBack { why } => format!("it was rolled back, and stable serves everybody: {why}"),
        Phase::Abandoned { why } => format!("it was abandoned, and stable serves everybody: {why}"),
        Phase::Ramping if state.moves_nothing() => "its stable and canary are the same version".to_owned(),
        Phase::Ramping => match state.shadow_in_effect() {
            Some(sample) => format!("stable serves everybody; the canary runs beside it on {sample} of the requests"),
            None => format!("the canary serves {} of the users", state.weight),
        },
    }];
    if !state.is_under_way() {
        if let Some(name) = state.why().filter(|_| state.waits()).and_then(Why::unapproved) {
            sentences.push(format!("`lockgate approve {name}` lets it in"));
        } else if matches!(state.phase, Phase::RolledBack { .. }) {
            sentences.push(format!(
                "`lockgate rollout resume {name}` takes it up again, once its version is not in quarantine"
            ));
        }
        return sentences;
    }
    sentences.extend(
        state
            .paused
            .as_ref()
            .map(|why| format!("it is paused ({why}); `lockgate rollout resume {name}` lets it go on")),
    );
    if rollout.decider == Decider::External {
        sentences.push("it never moves by itself: its decider is elsewhere".to_owned());
    } else if let Some(climb) = &state.climb {
        let (number, count) = (climb.step + 1, climb.steps.len());
        let next = match climb.next(state.weight) {
            Some(next) => format!("then comes {}", climb.steps[next].stage),
            None if state.weight == lockgate_config::units::Weight::FULL => "then the canary is promoted".to_owned(),
            None => format!("it is the last one: `lockgate rollout promote {name}` ends it"),
        };
        sentences.push(match state.hold_left(*now) {
            Some(Duration::ZERO) => {
                format!("step {number} of {count}: its time is over; {next}, as soon as the evidence is there")
            }
            Some(left) => {
                let left = format_duration(Duration::from_secs(left.as_secs_f64().ceil() as u64));
                format!("step {number} of {count}: it lasts {left} more; {next}")
            }
            None => format!("step {number} of {count}; {next}, once it goes on"),
        });
        if state.is_stalled() {
            sentences.push("it is stalled: there is too little traffic to know more".to_owned());
        }
    } else if rollout.guard.is_some() {
        let then = match rollout.on_bad {
            OnBad::RollBack => "takes the canary back",
            OnBad::Pause => "says so",
        };
        sentences.push(format!("a person moves it; its guard {then} if it is worse"));
    } else {
        sentences.push("a person moves it, and nobody judges it: it has no guard".to_owned());
    }
    match looked {
        Some(looked) => {
            let conclusion = match looked.conclusion {
                super::rollout::Conclusion::Worse => "the canary is worse",
                super::rollout::Conclusion::NotWorse => "the canary is not worse",
                super::rollout::Conclusion::Undecided => "whether the canary is worse is not known yet",
            };
            sentences.push(conclusion.to_owned());
            sentences.extend(looked.findings.iter().cloned());
        }
        None if rollout.guard.is_some() => sentences.push("it has not been looked at yet".to_owned()),
        None => {}
    }
    sentences
}

/// Returns what was counted on a track.
pub(super) fn track_counts(counts: &Counts, track: Track) -> TrackCounts {
    let Totals { requests, failures, denials, call_failures, latency, call_duration, call_memory } = counts.read(track);
    let buckets = |counts: &[u64], unit: f64| -> Vec<(f64, u64)> {
        let filled = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (latency::bound_micros(bucket) as f64 * unit, *count)).collect()
    };
    let memory_unit = MEMORY_UNIT_BYTES as f64;
    TrackCounts {
        requests,
        failures,
        denials,
        call_failures,
        latency_seconds: buckets(&latency, 1e-6),
        call_duration_seconds: buckets(&call_duration, CALL_UNIT.as_secs_f64()),
        call_memory_bytes: buckets(&call_memory, memory_unit),
    }
}
