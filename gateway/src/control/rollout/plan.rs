//! The plan of a rollout, as the state keeps it: what the file said when it was last read, and how far it has come.

use std::fmt;
use std::time::Duration;

use lockgate_config::model;
use lockgate_config::units::{Share, Weight};
use serde::{Deserialize, Deserializer, Serialize};

/// How a rollout moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// By hand, from this weight on.
    ByHand(Weight),
    /// Up these steps, by itself; at least one.
    Steps(Vec<Step>),
    /// Not at all: the canary is a shadow on this share of the requests.
    Shadow(Share),
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What the canary does.
    #[serde(flatten)]
    pub stage: Stage,
    /// How long the step lasts at least, in milliseconds.
    pub hold_ms: u64,
}

/// What a canary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It serves its share of the users.
    Weight(#[serde(deserialize_with = "weight")] Weight),
    /// It serves nobody, and runs beside stable on a share of the requests.
    Shadow(#[serde(deserialize_with = "share")] Share),
}

/// How far a rollout has come up its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climb {
    /// The steps in the file, when it was last read.
    pub steps: Vec<Step>,
    /// The step under way. The weight in force may be another one: a person set it, or the file's steps have changed.
    pub step: usize,
    /// Whether the step has waited too long for evidence.
    #[serde(default)]
    pub stalled: bool,
}

impl Plan {
    /// Returns the plan that a file has for a rollout.
    pub fn of(rollout: &model::Rollout) -> Self {
        match &rollout.plan {
            model::Plan::Weight(weight) => Self::ByHand(*weight),
            model::Plan::Steps(steps) => Self::Steps(steps.iter().map(Step::of).collect()),
            model::Plan::Shadow => Self::Shadow(rollout.shadow.sample),
        }
    }

    /// Returns the weight that it begins with.
    pub fn weight(&self) -> Weight {
        match self {
            Self::ByHand(weight) => *weight,
            Self::Steps(steps) => steps.first().map_or(Weight::ZERO, |step| step.stage.weight()),
            Self::Shadow(_) => Weight::ZERO,
        }
    }

    /// Returns how far a rollout has come that begins, where it climbs.
    pub(super) fn climb(&self) -> Option<Climb> {
        match self {
            Self::Steps(steps) => Some(Climb { steps: steps.clone(), step: 0, stalled: false }),
            Self::ByHand(_) | Self::Shadow(_) => None,
        }
    }

    /// Returns the sample of a rollout that is nothing but a shadow.
    pub(super) fn shadow(&self) -> Option<Share> {
        match self {
            Self::Shadow(sample) => Some(*sample),
            Self::ByHand(_) | Self::Steps(_) => None,
        }
    }
}

impl Step {
    fn of(step: &model::Step) -> Self {
        let stage = match step.stage {
            model::Stage::Serve(weight) => Stage::Weight(weight),
            model::Stage::Shadow(sample) => Stage::Shadow(sample),
        };
        Self { stage, hold_ms: u64::try_from(step.hold.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Returns how long the step lasts at least.
    pub const fn hold(&self) -> Duration {
        Duration::from_millis(self.hold_ms)
    }
}

impl Stage {
    /// Returns the canary's share of the users.
    pub const fn weight(self) -> Weight {
        match self {
            Self::Weight(weight) => weight,
            Self::Shadow(_) => Weight::ZERO,
        }
    }
}

/// `5%`, `shadow 10%`
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(weight) => weight.fmt(f),
            Self::Shadow(sample) => write!(f, "shadow {sample}"),
        }
    }
}

impl Climb {
    /// Returns the step under way; none in a state that was written by hand.
    pub fn current(&self) -> Option<&Step> {
        self.steps.get(self.step)
    }

    /// Returns the step that comes after this weight: the next one, or where the weight is not that of the step under way,
    /// the first that is above it.
    pub fn next(&self, weight: Weight) -> Option<usize> {
        let next = match self.current() {
            Some(step) if step.stage.weight() == weight => self.step + 1,
            _ => self.steps.iter().position(|step| step.stage.weight() > weight)?,
        };
        (next < self.steps.len()).then_some(next)
    }

    /// Returns the step to which a weight belongs: the last one that is not above it.
    pub(super) fn at(&self, weight: Weight) -> usize {
        match self.current() {
            Some(step) if step.stage.weight() == weight => self.step,
            _ => self.steps.iter().rposition(|step| step.stage.weight() <= weight).unwrap_or(0),
        }
    }
}

pub(super) fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Weight, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Share, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

pub(super) fn some_share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Share>, D::Error> {
    share(deserializer).map(Some)
}
