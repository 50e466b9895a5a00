//! The moves.

use lockgate_config::units::Weight;

use super::{Climb, Conclusion, Effect, Event, Phase, Plan, Refused, Rules, State, Step, Versions};
use crate::control::quarantine::Why;
use crate::control::time::Timestamp;

/// Returns what becomes of a state when something happens. No effects mean that nothing had to change: asking twice for
/// the same thing is no error, and leaves no trace.
///
/// # Errors
///
/// An event that the state does not allow; the state stays.
pub fn step(state: &State, event: Event, now: Timestamp) -> Result<Step, Refused> {
    match event {
        Event::Declared { versions, plan, quarantined } => Ok(declared(state, versions, &plan, quarantined, now)),
        Event::SetWeight { weight, pausing } => match state.refusal() {
            Some(refused) => Err(refused),
            None => Ok(set_weight(state, weight, pausing, now)),
        },
        Event::Promote => match state.refusal() {
            Some(Refused::Promoted) => Ok(state.unchanged()),
            Some(refused) => Err(refused),
            None => Ok(state.ended("promote", Phase::Promoted, None, now)),
        },
        Event::RollBack(why) => match state.refusal() {
            // The first reason stays.
            Some(Refused::RolledBack(_)) => Ok(state.unchanged()),
            Some(Refused::Promoted) | None => {
                Ok(state.ended("roll-back", Phase::RolledBack { why: why.clone() }, Some(why), now))
            }
            Some(refused) => Err(refused),
        },
        Event::Abandon(why) => match state.refusal() {
            Some(Refused::Abandoned(_)) => Ok(state.unchanged()),
            Some(Refused::RolledBack(_) | Refused::Unapproved(_)) | None => {
                Ok(state.ended("abandon", Phase::Abandoned { why: why.clone() }, Some(why), now))
            }
            Some(refused) => Err(refused),
        },
        Event::Pause(why) => match state.refusal() {
            Some(refused) => Err(refused),
            None if state.climb.is_none() => Err(Refused::ByHand),
            // The first reason stays.
            None if state.paused.is_some() => Ok(state.unchanged()),
            None => Ok(state.noted("pause", State { paused: Some(why.clone()), ..state.clone() }, Some(why))),
        },
        Event::Resume { quarantined } => match state.refusal() {
            None if state.paused.is_some() => Ok(state.resumed("resume", now)),
            None => Ok(state.unchanged()),
            Some(Refused::RolledBack(_)) => match quarantined {
                Some(version) => Err(Refused::Quarantined(version)),
                None => Ok(state.resumed("resume", now)),
            },
            Some(refused) => Err(refused),
        },
        Event::Approved if state.waits() => Ok(state.resumed("approve", now)),
        Event::Approved => Ok(state.unchanged()),
        // A verdict about what is over does nothing.
        Event::Judged { since, .. } if since != state.since || !state.is_under_way() => Ok(state.unchanged()),
        Event::Judged { conclusion, evidence, rules, .. } => Ok(judged(state, conclusion, evidence, rules, now)),
    }
}

impl State {
    fn refusal(&self) -> Option<Refused> {
        if self.moves_nothing() {
            return Some(Refused::Same);
        }
        match &self.phase {
            Phase::Ramping => None,
            Phase::Promoted => Some(Refused::Promoted),
            Phase::RolledBack { why } if self.waits() => Some(Refused::Unapproved(why.clone())),
            Phase::RolledBack { why } => Some(Refused::RolledBack(why.clone())),
            Phase::Abandoned { why } => Some(Refused::Abandoned(why.clone())),
        }
    }

    fn unchanged(&self) -> Step {
        (self.clone(), Vec::new())
    }

    /// Returns a next state that is to be saved and recorded, and served where requests move.
    fn noted(&self, action: &'static str, next: Self, why: Option<Why>) -> Step {
        let mut effects =
            vec![Effect::Save, Effect::Record { action, before: self.to_string(), after: next.to_string(), why }];
        if next.is_promoted() && !self.is_promoted() {
            effects.push(Effect::Supersede);
        }
        let serves = |state: &Self| {
            (state.is_under_way(), state.is_promoted(), state.weight_in_effect(), state.shadow_in_effect())
        };
        if serves(self) != serves(&next) || self.versions != next.versions {
            effects.push(Effect::Swap);
        }
        (next, effects)
    }

    fn ended(&self, action: &'static str, phase: Phase, why: Option<Why>, now: Timestamp) -> Step {
        let climb = self.climb.clone().map(|climb| Climb { stalled: false, ..climb });
        self.noted(action, Self { phase, since: now, paused: None, climb, ..self.clone() }, why)
    }

    /// Goes on with the weight that it had; the time of the step, and the evidence, begin anew.
    fn resumed(&self, action: &'static str, now: Timestamp) -> Step {
        let climb = self.climb.clone().map(|climb| Climb { stalled: false, step: climb.at(self.weight), ..climb });
        self.noted(action, Self { phase: Phase::Ramping, since: now, paused: None, climb, ..self.clone() }, None)
    }
}

fn set_weight(state: &State, weight: Weight, pausing: Option<Why>, now: Timestamp) -> Step {
    let climb = state.climb.clone().map(|climb| Climb { stalled: false, step: climb.at(weight), ..climb });
    let paused = match (&state.paused, pausing) {
        _ if climb.is_none() => None,
        // The first reason stays, unless it was another weight's.
        (Some(why), Some(_)) if weight == state.weight => Some(why.clone()),
        (_, pausing) => pausing,
    };
    if weight == state.weight && paused == state.paused {
        return state.unchanged();
    }
    // What is known stays true of a weight that stays.
    let since = if weight == state.weight { state.since } else { now };
    state.noted("set-weight", State { weight, paused, climb, since, ..state.clone() }, None)
}

fn judged(state: &State, conclusion: Conclusion, evidence: Why, rules: Rules, now: Timestamp) -> Step {
    let with = |climb: Climb| State { climb: Some(climb), ..state.clone() };
    match (conclusion, &state.climb) {
        (Conclusion::Worse, _) if rules.pause => match &state.paused {
            Some(_) => state.unchanged(),
            None => state.noted("pause", State { paused: Some(evidence.clone()), ..state.clone() }, Some(evidence)),
        },
        (Conclusion::Worse, _) => {
            let phase = Phase::RolledBack { why: evidence.clone() };
            let (next, mut effects) = state.ended("roll-back", phase, Some(evidence.clone()), now);
            effects.insert(1, Effect::Quarantine(evidence));
            (next, effects)
        }
        (Conclusion::NotWorse, Some(climb)) if state.may_climb(now) => match climb.next(state.weight) {
            Some(step) => {
                let weight = climb.steps[step].stage.weight();
                let climb = Climb { step, stalled: false, ..climb.clone() };
                state.noted("step", State { weight, since: now, ..with(climb) }, Some(evidence))
            }
            None => {
                let (next, mut effects) = state.ended("promote", Phase::Promoted, None, now);
                if let Some(Effect::Record { why, .. }) = effects.get_mut(1) {
                    *why = Some(evidence);
                }
                (next, effects)
            }
        },
        (Conclusion::Undecided, Some(climb)) if !climb.stalled && state.may_climb(now) => {
            let hold = climb.current().map(super::PlanStep::hold).unwrap_or_default();
            if state.lasted(now) < hold + rules.stalled_after {
                return state.unchanged();
            }
            state.noted("stall", with(Climb { stalled: true, ..climb.clone() }), Some(evidence))
        }
        (Conclusion::NotWorse | Conclusion::Undecided, _) => state.unchanged(),
    }
}

fn declared(state: &State, versions: Versions, plan: &Plan, quarantined: Option<Why>, now: Timestamp) -> Step {
    if versions != state.versions {
        return State::begin(versions, plan, quarantined, now);
    }
    let (before, weight_in_file) = (state.climb.as_ref().map(|climb| &climb.steps), plan.weight());
    let same = match plan {
        Plan::ByHand(weight) => before.is_none() && state.shadow.is_none() && *weight == state.weight_in_file,
        Plan::Steps(steps) => before == Some(steps),
        Plan::Shadow(_) => plan.shadow() == state.shadow,
    };
    if same {
        return state.unchanged();
    }
    let mut next = State { weight_in_file, shadow: plan.shadow(), ..state.clone() };
    match plan {
        // The weight that was set by hand was set over another one: the file's word is the newer.
        Plan::ByHand(weight) => next = State { weight: *weight, climb: None, paused: None, ..next },
        Plan::Shadow(_) => next = State { weight: Weight::ZERO, climb: None, paused: None, ..next },
        // Nobody is moved by other steps.
        Plan::Steps(steps) => {
            let step = state.climb.as_ref().map_or(0, |climb| climb.step.min(steps.len().saturating_sub(1)));
            let climb = Climb { steps: steps.clone(), step, stalled: false };
            // A rollout that has not served anybody yet begins with the first step.
            let fresh = next.phase == Phase::Ramping && state.weight == Weight::ZERO && state.climb.is_none();
            if fresh {
                next.weight = weight_in_file;
            }
            let step = climb.at(next.weight);
            next.climb = Some(Climb { step, ..climb });
        }
    }
    if next.phase != Phase::Ramping {
        return (next, vec![Effect::Save]);
    }
    let serves = |state: &State| (state.weight, state.shadow_in_effect());
    if serves(&next) == serves(state) {
        // The steps are others, or a weight that was set by hand is now the file's.
        return match plan {
            Plan::Steps(_) => state.noted("change-plan", next, None),
            Plan::ByHand(_) | Plan::Shadow(_) => (next, vec![Effect::Save]),
        };
    }
    next.since = now;
    let action = if matches!(plan, Plan::ByHand(_)) { "set-weight" } else { "change-plan" };
    state.noted(action, next, None)
}
