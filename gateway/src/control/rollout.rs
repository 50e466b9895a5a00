//! Moves a rollout from state to state. A *state* says who serves: stable and canary by weight, the canary everybody
//! (promoted), or stable everybody (rolled back). This module is pure: no clock, no task, no file, no log. [`step`] takes
//! what happened and answers with the next state and the effects that the control loop carries out.
//!
//! File and state. The file says what a rollout begins with. What people decided later (a weight, a promotion, a rollback)
//! overlays it for as long as the file's stable and canary are the versions it was decided about, and a weight only for
//! as long as the file's weight is the one it was set over. Changing either starts anew.
//!
//! A judge that raises weights by itself will be one more source of the same events, with a phase of its own where it
//! has to wait.

use std::fmt;

use lockgate_config::units::Weight;
use serde::{Deserialize, Deserializer, Serialize};

use crate::control::quarantine::Why;
use crate::control::time::Timestamp;

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
    /// The weight in the file, when it was last read.
    #[serde(deserialize_with = "weight")]
    pub weight_in_file: Weight,
    /// The canary's share while ramping; otherwise, the one to go on with.
    #[serde(deserialize_with = "weight")]
    pub weight: Weight,
    /// Who serves.
    pub phase: Phase,
    /// Since when the rollout is in this phase with this weight.
    pub since: Timestamp,
}

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Stable and canary, by weight.
    Ramping,
    /// The canary, everybody.
    Promoted,
    /// Stable, everybody.
    RolledBack {
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
        /// The file's weight.
        weight: Weight,
        /// Why the canary is in quarantine, where it is.
        quarantined: Option<Why>,
    },
    /// A person sets the weight.
    SetWeight(Weight),
    /// A person promotes the canary.
    Promote,
    /// A person, or the quarantine, rolls back.
    RollBack(Why),
    /// A person takes a rolled-back rollout up again.
    Resume {
        /// Whether the canary is in quarantine.
        quarantined: bool,
    },
}

/// What the control loop has to do for a step, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the state down.
    Save,
    /// Write an entry to the audit log.
    Record {
        /// `begin`, `set-weight`, `promote`, `roll-back` or `resume`.
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
    /// The canary is in quarantine.
    Quarantined,
    /// Stable and canary are the same version.
    Same,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promoted => f.write_str("it is promoted: the canary serves everybody; roll it back first"),
            Self::RolledBack(why) => write!(f, "it was rolled back ({why}); resume it first"),
            Self::Quarantined => f.write_str("its canary is in quarantine; release the version first"),
            Self::Same => f.write_str("its stable and canary are the same version; there is nothing to move"),
        }
    }
}

/// A state, and what has to be done to be in it.
pub type Step = (State, Vec<Effect>);

impl State {
    /// Returns the state of a rollout that the file has just brought.
    pub fn begin(versions: Versions, weight: Weight, quarantined: Option<Why>, now: Timestamp) -> Step {
        let phase = quarantined.map_or(Phase::Ramping, |why| Phase::RolledBack { why });
        let state = Self { versions, weight_in_file: weight, weight, phase, since: now };
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

    /// Returns whether the state overlays the file.
    pub fn differs_from_file(&self) -> bool {
        match self.phase {
            Phase::Ramping => self.weight != self.weight_in_file,
            Phase::Promoted => true,
            Phase::RolledBack { .. } => self.weight_in_file != Weight::ZERO,
        }
    }

    /// Returns the canary's share of the requests.
    pub fn weight_in_effect(&self) -> Weight {
        match self.phase {
            Phase::Ramping if self.moves_nothing() => Weight::ZERO,
            Phase::Ramping => self.weight,
            Phase::Promoted => Weight::FULL,
            Phase::RolledBack { .. } => Weight::ZERO,
        }
    }

    /// Returns the state in a word: `idle`, `ramping`, `promoted`, `rolled-back`.
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Ramping if self.weight_in_effect() == Weight::ZERO => "idle",
            Phase::Ramping => "ramping",
            Phase::Promoted => "promoted",
            Phase::RolledBack { .. } => "rolled-back",
        }
    }

    /// Returns why it was rolled back, where it was.
    pub fn why(&self) -> Option<&Why> {
        match &self.phase {
            Phase::RolledBack { why } => Some(why),
            Phase::Ramping | Phase::Promoted => None,
        }
    }

    fn refusal(&self) -> Option<Refused> {
        if self.moves_nothing() {
            return Some(Refused::Same);
        }
        match &self.phase {
            Phase::Ramping => None,
            Phase::Promoted => Some(Refused::Promoted),
            Phase::RolledBack { why } => Some(Refused::RolledBack(why.clone())),
        }
    }

    fn moved(&self, action: &'static str, phase: Phase, weight: Weight, now: Timestamp) -> Step {
        let next = Self { phase, weight, since: now, ..self.clone() };
        let mut effects = vec![
            Effect::Save,
            Effect::Record { action, before: self.to_string(), after: next.to_string(), why: next.why().cloned() },
        ];
        if next.is_promoted() && !self.is_promoted() {
            effects.push(Effect::Supersede);
        }
        effects.push(Effect::Swap);
        (next, effects)
    }
}

/// In words: `ramping 5%`, `idle`, `promoted`, `rolled back: 5 calls failed within 30s`.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.phase {
            Phase::Ramping if self.weight_in_effect() == Weight::ZERO => f.write_str("idle"),
            Phase::Ramping => write!(f, "ramping {}", self.weight),
            Phase::Promoted => f.write_str("promoted"),
            Phase::RolledBack { why } => write!(f, "rolled back: {why}"),
        }
    }
}

/// Returns what becomes of a state when something happens. No effects mean that nothing had to change: asking twice for
/// the same thing is no error, and leaves no trace.
///
/// # Errors
///
/// An event that the state does not allow; the state stays.
pub fn step(state: &State, event: Event, now: Timestamp) -> Result<Step, Refused> {
    match event {
        Event::Declared { versions, weight, quarantined } => Ok(declared(state, versions, weight, quarantined, now)),
        Event::SetWeight(weight) => match state.refusal() {
            Some(refused) => Err(refused),
            None if weight == state.weight => Ok((state.clone(), Vec::new())),
            None => Ok(state.moved("set-weight", Phase::Ramping, weight, now)),
        },
        Event::Promote => match state.refusal() {
            Some(Refused::Promoted) => Ok((state.clone(), Vec::new())),
            Some(refused) => Err(refused),
            None => Ok(state.moved("promote", Phase::Promoted, state.weight, now)),
        },
        Event::RollBack(why) => match state.refusal() {
            // The first reason stays.
            Some(Refused::RolledBack(_)) => Ok((state.clone(), Vec::new())),
            Some(refused @ (Refused::Same | Refused::Quarantined)) => Err(refused),
            Some(Refused::Promoted) | None => {
                Ok(state.moved("roll-back", Phase::RolledBack { why }, state.weight, now))
            }
        },
        Event::Resume { quarantined } => match state.refusal() {
            None => Ok((state.clone(), Vec::new())),
            Some(Refused::RolledBack(_)) if quarantined => Err(Refused::Quarantined),
            Some(Refused::RolledBack(_)) => Ok(state.moved("resume", Phase::Ramping, state.weight, now)),
            Some(refused) => Err(refused),
        },
    }
}

fn declared(state: &State, versions: Versions, weight: Weight, quarantined: Option<Why>, now: Timestamp) -> Step {
    if versions != state.versions {
        return State::begin(versions, weight, quarantined, now);
    }
    if weight == state.weight_in_file {
        return (state.clone(), Vec::new());
    }
    // The weight that was set by hand was set over another one: the file's word is the newer.
    let next = State { weight_in_file: weight, weight, ..state.clone() };
    if next.phase == Phase::Ramping && state.weight != weight {
        let (mut next, effects) = state.moved("set-weight", Phase::Ramping, weight, now);
        next.weight_in_file = weight;
        return (next, effects);
    }
    (next, vec![Effect::Save])
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Weight, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);
    const LATER: Timestamp = Timestamp::from_millis(2_000);

    fn percent(text: &str) -> Weight {
        text.parse().expect("a weight")
    }

    fn versions(stable: &str, canary: &str) -> Versions {
        Versions { stable: stable.to_owned(), canary: canary.to_owned() }
    }

    fn begun() -> State {
        State::begin(versions("v1", "v2"), percent("5%"), None, NOW).0
    }

    fn person() -> Why {
        Why::Person { by: "cli by uid 1000".to_owned(), reason: None }
    }

    fn failures() -> Why {
        Why::Failures { failures: 5, window_ms: 30_000 }
    }

    fn after(state: &State, event: Event) -> State {
        step(state, event, LATER).expect("the event is allowed").0
    }

    fn declare(stable: &str, canary: &str, weight: &str) -> Event {
        Event::Declared { versions: versions(stable, canary), weight: percent(weight), quarantined: None }
    }

    #[test]
    fn a_rollout_begins_with_the_files_weight() {
        let state = begun();
        assert_eq!(state.to_string(), "ramping 5%");
        assert!(state.is_under_way() && !state.differs_from_file());
    }

    #[test]
    fn a_weight_set_by_hand_overlays_the_file_until_the_files_weight_changes() {
        let set = after(&begun(), Event::SetWeight(percent("20%")));
        assert!(set.differs_from_file());
        let same_file = after(&set, declare("v1", "v2", "5%"));
        assert_eq!(same_file.weight, percent("20%"));
        let other_weight = after(&set, declare("v1", "v2", "10%"));
        assert_eq!(other_weight.weight, percent("10%"));
        assert!(!other_weight.differs_from_file());
    }

    #[test]
    fn a_promotion_overlays_the_file_until_a_digest_changes() {
        let promoted = after(&begun(), Event::Promote);
        assert_eq!(promoted.weight_in_effect(), Weight::FULL);
        assert!(after(&promoted, declare("v1", "v2", "10%")).is_promoted());
        assert_eq!(after(&promoted, declare("v1", "v3", "5%")).to_string(), "ramping 5%");
        assert_eq!(after(&promoted, declare("v2", "v3", "5%")).to_string(), "ramping 5%");
    }

    #[test]
    fn a_rolled_back_rollout_goes_on_with_the_weight_it_had() {
        let set = after(&begun(), Event::SetWeight(percent("20%")));
        let back = after(&set, Event::RollBack(person()));
        assert_eq!(back.weight_in_effect(), Weight::ZERO);
        assert_eq!(after(&back, Event::Resume { quarantined: false }).to_string(), "ramping 20%");
        assert_eq!(step(&back, Event::Resume { quarantined: true }, LATER), Err(Refused::Quarantined));
        assert_eq!(step(&back, Event::SetWeight(percent("1%")), LATER), Err(Refused::RolledBack(person())));
        assert_eq!(step(&back, Event::Promote, LATER), Err(Refused::RolledBack(person())));
    }

    #[test]
    fn the_first_reason_of_a_rollback_stays() {
        let back = after(&begun(), Event::RollBack(failures()));
        let (again, effects) = step(&back, Event::RollBack(person()), LATER).expect("asking twice is allowed");
        assert_eq!((again.why(), effects), (Some(&failures()), Vec::new()));
    }

    #[test]
    fn a_canary_in_quarantine_begins_rolled_back() {
        let (state, _) = State::begin(versions("v1", "v2"), percent("5%"), Some(failures()), NOW);
        assert_eq!(state.to_string(), "rolled back: 5 calls failed within 30s");
    }

    #[test]
    fn a_rollout_whose_canary_became_stable_moves_nothing() {
        let state = after(&begun(), declare("v2", "v2", "5%"));
        assert!(!state.is_under_way());
        assert_eq!(step(&state, Event::Promote, LATER), Err(Refused::Same));
    }

    #[test]
    fn a_promotion_supersedes_stable_and_a_rollback_supersedes_nothing() {
        let (promoted, effects) = step(&begun(), Event::Promote, LATER).expect("a ramping rollout");
        assert!(effects.contains(&Effect::Supersede));
        let (_, effects) = step(&promoted, Event::RollBack(person()), LATER).expect("a promoted rollout");
        assert!(!effects.contains(&Effect::Supersede));
    }

    #[test]
    fn a_state_is_read_back_as_it_was_written() {
        let set = after(&begun(), Event::SetWeight(percent("0.01%")));
        for state in [begun(), after(&set, Event::Promote), after(&set, Event::RollBack(failures())), set] {
            let text = serde_json::to_string(&state).expect("a state is JSON");
            assert_eq!(serde_json::from_str::<State>(&text).expect("it was just written"), state, "{text}");
        }
    }

    fn check_invariants(before: &State, event: &Event, outcome: &Result<Step, Refused>) -> Result<(), TestCaseError> {
        let Ok((after, effects)) = outcome else {
            prop_assert!(!matches!(event, Event::Declared { .. }), "the file's word is never refused");
            return Ok(());
        };
        // Nothing moves without being saved and recorded first, and nothing is recorded that did not happen.
        prop_assert_eq!(before == after, effects.is_empty());
        prop_assert!(effects.is_empty() || effects[0] == Effect::Save);
        let recorded = effects.iter().any(|effect| matches!(effect, Effect::Record { .. }));
        let swapped = effects.last() == Some(&Effect::Swap);
        prop_assert_eq!(recorded, swapped);
        if before.weight_in_effect() != after.weight_in_effect() || before.versions != after.versions {
            prop_assert!(swapped, "requests moved without a swap");
        }
        // Only an event of the kind may promote, and what was promoted is saved from the file's weight.
        if after.is_promoted() && !before.is_promoted() {
            prop_assert_eq!(event, &Event::Promote);
        }
        if after.phase == Phase::Ramping && !matches!(before.phase, Phase::Ramping) {
            let restarted = matches!(event, Event::Declared { versions, .. } if *versions != before.versions);
            prop_assert!(restarted || *event == (Event::Resume { quarantined: false }), "started anew by {:?}", event);
        }
        match event {
            // The quarantine always has its way.
            Event::RollBack(_) => prop_assert!(after.weight_in_effect() == Weight::ZERO),
            Event::Declared { versions, weight, quarantined } => {
                prop_assert_eq!(&after.versions, versions);
                prop_assert_eq!(after.weight_in_file, *weight);
                if *versions != before.versions {
                    prop_assert_eq!(after.is_under_way(), quarantined.is_none() && !after.moves_nothing());
                    prop_assert_eq!(after.weight, *weight);
                }
            }
            _ => prop_assert_eq!(&after.versions, &before.versions),
        }
        Ok(())
    }

    fn event() -> impl Strategy<Value = Event> {
        let weight = (0_u16..=10_000).prop_map(|points| Weight::from_basis_points(points).expect("in range"));
        let some_weight = prop_oneof![Just(Weight::ZERO), Just(Weight::FULL), weight];
        let name = prop_oneof![Just("v1"), Just("v2"), Just("v3")];
        prop_oneof![
            (name.clone(), name, some_weight.clone(), any::<bool>()).prop_map(|(stable, canary, weight, bad)| {
                Event::Declared { versions: versions(stable, canary), weight, quarantined: bad.then(failures) }
            }),
            some_weight.prop_map(Event::SetWeight),
            Just(Event::Promote),
            Just(Event::RollBack(person())),
            Just(Event::RollBack(failures())),
            any::<bool>().prop_map(|quarantined| Event::Resume { quarantined }),
        ]
    }

    proptest! {
        #[test]
        fn invariants_hold_after_any_events(events in prop::collection::vec(event(), 0..60)) {
            let mut state = begun();
            for (n, event) in events.into_iter().enumerate() {
                let now = Timestamp::from_millis(2_000 + n as u64);
                let outcome = step(&state, event.clone(), now);
                check_invariants(&state, &event, &outcome)?;
                if let Ok((next, _)) = outcome {
                    state = next;
                }
            }
        }
    }
}
