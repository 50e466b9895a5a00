//! Moves a rollout from state to state. A *state* says who serves: stable and canary by weight, the canary everybody
//! (promoted), or stable everybody (rolled back, abandoned). This module is pure: no clock, no task, no file, no log.
//! [`step`] takes what happened and answers with the next state and the effects that the control loop carries out.
//!
//! File and state. The file says what a rollout begins with. What was decided later (a weight, a step, a promotion, a
//! rollback) overlays it for as long as the file's stable and canary are the versions it was decided about, and a weight
//! only for as long as the file's weight is the one it was set over. Changing either starts anew. Where the file's steps
//! change on the way, nobody is moved by that: the rollout stays at its weight, and goes on to the first step above it.
//!
//! Up and down. A *step* is left upwards when its time is over and the judge says that the canary is not worse; everything
//! is taken back at any moment when it says that it is. A verdict is about one stay at one weight, which it names by the
//! moment of its beginning: one that comes too late finds another moment there, and does nothing. Hence no move is made
//! twice, whatever was in flight when the process ended.

mod plan;
mod step;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use lockgate_config::units::{Share, Weight, format_duration};
use serde::{Deserialize, Serialize};

use crate::control::quarantine::Why;
use crate::control::time::Timestamp;

pub use self::plan::{Climb, Plan, Stage, Step as PlanStep};
pub use self::step::step;

/// What a rollout moves, by digests: a state is about these two and no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The file's stable version.
    pub stable: String,
    /// The file's canary version.
    pub canary: String,
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it is about.
    pub versions: Versions,
    /// The weight that the file begins with, when it was last read.
    #[serde(deserialize_with = "plan::weight")]
    pub weight_in_file: Weight,
    /// The canary's share while ramping; otherwise, the one to go on with.
    #[serde(deserialize_with = "plan::weight")]
    pub weight: Weight,
    /// Who serves.
    pub phase: Phase,
    /// Since when the rollout is in this phase with this weight: what a verdict is about.
    pub since: Timestamp,
    /// How far it has come, where the file has steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub climb: Option<Climb>,
    /// The sample, where the file has nothing but a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "plan::some_share")]
    pub shadow: Option<Share>,
    /// Why it stays where it is until somebody resumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Why>,
}

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Stable and canary, by weight.
    Ramping,
    /// The canary, everybody.
    Promoted,
    /// Stable, everybody, until the rollout is resumed; or, where the canary waits for approval, until it is let in.
    RolledBack {
        /// Why.
        why: Why,
    },
    /// Stable, everybody, until the file names other versions.
    Abandoned {
        /// Why.
        why: Why,
    },
}

/// What happens to a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The file was read, at start or at a reload.
    Declared {
        /// What the rollout moves now.
        versions: Versions,
        /// How it moves.
        plan: Plan,
        /// Why the canary is in quarantine, where it is.
        quarantined: Option<Why>,
    },
    /// Somebody sets the weight.
    SetWeight {
        /// The canary's share.
        weight: Weight,
        /// Why a rollout that climbs by itself does not go on; none where whoever sets the weight decides anyway.
        pausing: Option<Why>,
    },
    /// A person promotes the canary.
    Promote,
    /// A person, or the quarantine, rolls back.
    RollBack(Why),
    /// A person gives it up.
    Abandon(Why),
    /// A person stops the climb.
    Pause(Why),
    /// A person lets a paused rollout go on, or takes a rolled-back one up again.
    Resume {
        /// The canary's label, where it is in quarantine.
        quarantined: Option<String>,
    },
    /// A person has let in what it waited for.
    Approved,
    /// The judge has looked.
    Judged {
        /// What the verdict is about: [`State::since`].
        since: Timestamp,
        /// What it says.
        conclusion: Conclusion,
        /// On what evidence.
        evidence: Why,
        /// What follows from it.
        rules: Rules,
    },
}

/// What a verdict says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// The canary is worse than the tolerance.
    Worse,
    /// The canary is not worse than the tolerance.
    NotWorse,
    /// There is too little evidence for either.
    Undecided,
}

impl Conclusion {
    /// Returns `worse`, `not-worse` or `undecided`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::NotWorse => "not-worse",
            Self::Undecided => "undecided",
        }
    }
}

/// What follows from a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether a canary that is worse is left where it is.
    pub pause: bool,
    /// How long a step waits for evidence, once its time is over, before it is called stalled.
    pub stalled_after: Duration,
}

/// What the control loop has to do for a step, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the state down.
    Save,
    /// Put the canary into quarantine.
    Quarantine(Why),
    /// Write an entry to the audit log.
    Record {
        /// `begin`, `approve`, `set-weight`, `step`, `stall`, `pause`, `resume`, `promote`, `roll-back`, `abandon` or `change-plan`.
        action: &'static str,
        /// The state before, in words; empty where there was none.
        before: String,
        /// The state after, in words.
        after: String,
        /// Why, where it is more than somebody's wish.
        why: Option<Why>,
    },
    /// The stable version was replaced, and not because it was bad: remember it as a last good one.
    Supersede,
    /// Requests move: build a snapshot and swap.
    Swap,
}

/// Why an event is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The canary already serves everybody.
    Promoted,
    /// The rollout was rolled back.
    RolledBack(Why),
    /// The rollout was given up.
    Abandoned(Why),
    /// The canary waits for a person to let it in.
    Unapproved(Why),
    /// The canary is in quarantine.
    Quarantined(String),
    /// Stable and canary are the same version.
    Same,
    /// Nothing moves that could be paused.
    ByHand,
}

impl Refused {
    /// Returns the refusal in words, with the command that helps.
    pub fn explain(&self, rollout: &str) -> String {
        match self {
            Self::Promoted => format!(
                "it is promoted: the canary serves everybody; roll it back first: `lockgate rollout rollback {rollout}`"
            ),
            Self::RolledBack(why) => {
                format!("it was rolled back ({why}); resume it first: `lockgate rollout resume {rollout}`")
            }
            Self::Unapproved(why) => format!(
                "it waits for approval ({why}); let its version in first: `lockgate approve {}`",
                why.unapproved().unwrap_or(rollout)
            ),
            Self::Abandoned(why) => format!(
                "it was abandoned ({why}), which is its end; give it another canary in the file, or remove it there"
            ),
            Self::Quarantined(version) => format!(
                "its canary is in quarantine; release the version first: `lockgate quarantine release {version}`"
            ),
            Self::Same => "its stable and canary are the same version; there is nothing to move".to_owned(),
            Self::ByHand => format!(
                "it has no steps, and moves only when somebody sets its weight: `lockgate rollout set {rollout} 5%`"
            ),
        }
    }
}

/// A state, and what has to be done to be in it.
pub type Step = (State, Vec<Effect>);

impl State {
    /// Returns the state of a rollout that the file has just brought.
    pub fn begin(versions: Versions, plan: &Plan, quarantined: Option<Why>, now: Timestamp) -> Step {
        let phase = quarantined.map_or(Phase::Ramping, |why| Phase::RolledBack { why });
        let weight = plan.weight();
        let state = Self {
            versions,
            weight_in_file: weight,
            weight,
            phase,
            since: now,
            climb: plan.climb(),
            shadow: plan.shadow(),
            paused: None,
        };
        let why = state.why().cloned();
        let effects = vec![
            Effect::Save,
            Effect::Record { action: "begin", before: String::new(), after: state.to_string(), why },
            Effect::Swap,
        ];
        (state, effects)
    }

    /// Returns whether requests are split, so that a snapshot needs the canary.
    pub fn is_under_way(&self) -> bool {
        self.phase == Phase::Ramping && !self.moves_nothing()
    }

    /// Returns whether the canary serves everybody.
    pub fn is_promoted(&self) -> bool {
        self.phase == Phase::Promoted
    }

    /// Returns whether stable and canary are the same version: a file that is halfway to its next state.
    pub fn moves_nothing(&self) -> bool {
        self.versions.stable == self.versions.canary
    }

    /// Returns whether the file has steps or a shadow for it, and no weight.
    pub fn moves_by_itself(&self) -> bool {
        self.climb.is_some() || self.shadow.is_some()
    }

    /// Returns whether the state overlays the file. Climbing the file's steps does not.
    pub fn differs_from_file(&self) -> bool {
        match (&self.phase, &self.climb) {
            (Phase::Ramping, Some(climb)) => {
                climb.current().is_some_and(|step| step.stage.weight() != self.weight) || self.paused.is_some()
            }
            (Phase::Ramping, None) => self.weight != self.weight_in_file,
            (Phase::Promoted, _) => true,
            // The file says what is to be; what is missing is a person's word, which no file says.
            (Phase::RolledBack { .. }, _) if self.waits() => false,
            (Phase::RolledBack { .. } | Phase::Abandoned { .. }, _) => {
                self.weight_in_file != Weight::ZERO || self.moves_by_itself()
            }
        }
    }

    /// Returns the canary's share of the requests.
    pub fn weight_in_effect(&self) -> Weight {
        match self.phase {
            Phase::Ramping if self.moves_nothing() => Weight::ZERO,
            Phase::Ramping => self.weight,
            Phase::Promoted => Weight::FULL,
            Phase::RolledBack { .. } | Phase::Abandoned { .. } => Weight::ZERO,
        }
    }

    /// Returns the share of the requests on which the canary runs beside stable; none where it is no shadow.
    pub fn shadow_in_effect(&self) -> Option<Share> {
        if !self.is_under_way() || self.weight != Weight::ZERO {
            return None;
        }
        match self.climb.as_ref().and_then(Climb::current).map(|step| step.stage) {
            Some(Stage::Shadow(sample)) => Some(sample),
            Some(Stage::Weight(_)) => None,
            None => self.shadow,
        }
    }

    /// Returns how much of the step's time is left; none where it does not climb, or is paused.
    pub fn hold_left(&self, now: Timestamp) -> Option<Duration> {
        let step = self.climb.as_ref().filter(|_| self.is_under_way() && self.paused.is_none())?.current()?;
        Some(step.hold().saturating_sub(self.lasted(now)))
    }

    /// Returns whether a verdict that the canary is not worse would move the rollout up now.
    pub fn may_climb(&self, now: Timestamp) -> bool {
        let ends = |climb: &Climb| climb.next(self.weight).is_some() || self.weight == Weight::FULL;
        self.hold_left(now) == Some(Duration::ZERO) && self.climb.as_ref().is_some_and(ends)
    }

    /// Returns how long it has been as it is.
    pub fn lasted(&self, now: Timestamp) -> Duration {
        Duration::from_millis(now.millis().saturating_sub(self.since.millis()))
    }

    /// Returns whether the step waits for evidence for too long.
    pub fn is_stalled(&self) -> bool {
        self.is_under_way() && self.paused.is_none() && self.climb.as_ref().is_some_and(|climb| climb.stalled)
    }

    /// Returns whether it waits for a person to let its canary in.
    pub fn waits(&self) -> bool {
        matches!(&self.phase, Phase::RolledBack { why } if why.unapproved().is_some())
    }

    /// Returns the state in a word: `waiting`, `idle`, `shadowing`, `ramping`, `stalled`, `paused`, `promoted`, `rolled-back`,
    /// `abandoned`.
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Ramping if self.moves_nothing() => "idle",
            Phase::Ramping if self.paused.is_some() => "paused",
            Phase::Ramping if self.is_stalled() => "stalled",
            Phase::Ramping if self.shadow_in_effect().is_some() => "shadowing",
            Phase::Ramping if self.weight == Weight::ZERO => "idle",
            Phase::Ramping => "ramping",
            Phase::Promoted => "promoted",
            Phase::RolledBack { .. } if self.waits() => "waiting",
            Phase::RolledBack { .. } => "rolled-back",
            Phase::Abandoned { .. } => "abandoned",
        }
    }

    /// Returns why it is paused, was rolled back or abandoned.
    pub fn why(&self) -> Option<&Why> {
        match &self.phase {
            Phase::RolledBack { why } | Phase::Abandoned { why } => Some(why),
            Phase::Ramping => self.paused.as_ref(),
            Phase::Promoted => None,
        }
    }
}

/// In words: `ramping 5%`, `ramping 5%, step 2 of 4`, `idle`, `promoted`, `rolled back: 5 calls failed within 30s`.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.phase {
            Phase::Ramping => {
                f.write_str(self.word())?;
                match self.shadow_in_effect() {
                    _ if self.moves_nothing() => return Ok(()),
                    Some(sample) => write!(f, " {sample}")?,
                    None if self.word() == "idle" => {}
                    None => write!(f, " {}", self.weight)?,
                }
                if let Some(climb) = &self.climb {
                    let at = climb.current().map(|step| self.weight.cmp(&step.stage.weight()));
                    let place = match at {
                        Some(Ordering::Greater) => "after step",
                        Some(Ordering::Less) => "before step",
                        Some(Ordering::Equal) | None => "step",
                    };
                    write!(f, ", {place} {} of {}", climb.step + 1, climb.steps.len())?;
                }
                match &self.paused {
                    Some(why) => write!(f, ": {why}"),
                    None => Ok(()),
                }
            }
            Phase::Promoted => f.write_str("promoted"),
            Phase::RolledBack { why } if self.waits() => write!(f, "waits for approval: {why}"),
            Phase::RolledBack { why } => write!(f, "rolled back: {why}"),
            Phase::Abandoned { why } => write!(f, "abandoned: {why}"),
        }
    }
}

/// Writes a step's time for people: `hold 5m`.
impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.stage, format_duration(self.hold()))
    }
}
