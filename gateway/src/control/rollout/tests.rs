//! What a rollout does, and what it never does.

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_000);
const LATER: Timestamp = Timestamp::from_millis(2_000);

fn percent(text: &str) -> Weight {
    text.parse().expect("a weight")
}

fn versions(stable: &str, canary: &str) -> Versions {
    Versions { stable: stable.to_owned(), canary: canary.to_owned() }
}

fn begun() -> State {
    State::begin(versions("v1", "v2"), &Plan::ByHand(percent("5%")), None, NOW).0
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

fn set(weight: &str) -> Event {
    Event::SetWeight { weight: percent(weight), pausing: Some(person()) }
}

fn declare(stable: &str, canary: &str, weight: &str) -> Event {
    Event::Declared { versions: versions(stable, canary), plan: Plan::ByHand(percent(weight)), quarantined: None }
}

#[test]
fn a_rollout_begins_with_the_files_weight() {
    let state = begun();
    assert_eq!(state.to_string(), "ramping 5%");
    assert!(state.is_under_way() && !state.differs_from_file());
}

#[test]
fn a_weight_set_by_hand_overlays_the_file_until_the_files_weight_changes() {
    let moved = after(&begun(), set("20%"));
    assert!(moved.differs_from_file());
    let same_file = after(&moved, declare("v1", "v2", "5%"));
    assert_eq!(same_file.weight, percent("20%"));
    let other_weight = after(&moved, declare("v1", "v2", "10%"));
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
    let moved = after(&begun(), set("20%"));
    let back = after(&moved, Event::RollBack(person()));
    let bad = Event::Resume { quarantined: Some("v2".to_owned()) };
    assert_eq!(back.weight_in_effect(), Weight::ZERO);
    assert_eq!(after(&back, Event::Resume { quarantined: None }).to_string(), "ramping 20%");
    assert_eq!(step(&back, bad, LATER), Err(Refused::Quarantined("v2".to_owned())));
    assert_eq!(step(&back, set("1%"), LATER), Err(Refused::RolledBack(person())));
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
    let (state, _) = State::begin(versions("v1", "v2"), &Plan::ByHand(percent("5%")), Some(failures()), NOW);
    assert_eq!(state.to_string(), "rolled back: 5 calls failed within 30s");
}

#[test]
fn a_canary_that_nobody_has_let_in_waits_until_somebody_does() {
    let why = Why::Unapproved { name: "auth".to_owned(), gains: "see the variable TOKEN".to_owned() };
    let (waiting, _) = State::begin(versions("v1", "v2"), &Plan::ByHand(percent("5%")), Some(why.clone()), NOW);
    assert_eq!(waiting.to_string(), "waits for approval: it may see the variable TOKEN, and what serves may not");
    assert_eq!((waiting.word(), waiting.weight_in_effect()), ("waiting", Weight::ZERO));
    assert!(!waiting.differs_from_file());
    for event in [set("1%"), Event::Promote, Event::RollBack(person()), Event::Resume { quarantined: None }] {
        assert_eq!(step(&waiting, event, LATER), Err(Refused::Unapproved(why.clone())));
    }
    assert_eq!(after(&waiting, declare("v1", "v2", "10%")).word(), "waiting");
    assert_eq!(after(&waiting, Event::Abandon(person())).word(), "abandoned");
    let begun = after(&waiting, Event::Approved);
    assert_eq!((begun.to_string(), begun.since), ("ramping 5%".to_owned(), LATER));
    let (_, effects) = step(&begun, Event::Approved, LATER).expect("once is enough");
    assert_eq!(effects, Vec::new());
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
    let moved = after(&begun(), set("0.01%"));
    for state in [begun(), after(&moved, Event::Promote), after(&moved, Event::RollBack(failures())), moved] {
        let text = serde_json::to_string(&state).expect("a state is JSON");
        assert_eq!(serde_json::from_str::<State>(&text).expect("it was just written"), state, "{text}");
    }
}

fn steps(stages: &[&str]) -> Plan {
    Plan::Steps(stages.iter().map(|stage| PlanStep { stage: stage_of(stage), hold_ms: HOLD_MS }).collect())
}

fn stage_of(text: &str) -> Stage {
    match text.strip_prefix("shadow ") {
        Some(sample) => Stage::Shadow(sample.parse().expect("a share")),
        None => Stage::Weight(percent(text)),
    }
}

const HOLD_MS: u64 = 60_000;

const RULES: Rules = Rules { pause: false, stalled_after: Duration::from_secs(600) };

fn climbing(stages: &[&str]) -> State {
    State::begin(versions("v1", "v2"), &steps(stages), None, NOW).0
}

fn evidence() -> Why {
    Why::Guard { findings: vec!["failures: 5% of 1,000 requests, 1% of stable's".to_owned()] }
}

fn judged_at(state: &State, conclusion: Conclusion, after_ms: u64) -> (State, Vec<Effect>) {
    let event = Event::Judged { since: state.since, conclusion, evidence: evidence(), rules: RULES };
    step(state, event, Timestamp::from_millis(state.since.millis() + after_ms)).expect("a verdict is never refused")
}

#[test]
fn a_step_is_left_when_its_time_is_over_and_the_canary_is_not_worse() {
    let state = climbing(&["1%", "5%", "100%"]);
    assert_eq!(state.to_string(), "ramping 1%, step 1 of 3");
    assert_eq!(judged_at(&state, Conclusion::NotWorse, HOLD_MS - 1), (state.clone(), Vec::new()));
    assert_eq!(judged_at(&state, Conclusion::Undecided, HOLD_MS), (state.clone(), Vec::new()));
    let (second, effects) = judged_at(&state, Conclusion::NotWorse, HOLD_MS);
    assert_eq!(second.to_string(), "ramping 5%, step 2 of 3");
    assert!(effects.contains(&Effect::Swap));
    assert!(!second.differs_from_file(), "climbing the file's steps is what the file says");
}

#[test]
fn the_last_step_ends_in_a_promotion() {
    let state = climbing(&["1%", "100%"]);
    let (last, _) = judged_at(&state, Conclusion::NotWorse, HOLD_MS);
    let (promoted, effects) = judged_at(&last, Conclusion::NotWorse, HOLD_MS);
    assert!(promoted.is_promoted());
    let recorded = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Record { action: "promote", why: Some(why), .. } if *why == evidence()));
    assert!(recorded && effects.contains(&Effect::Supersede), "{effects:?}");
}

#[test]
fn a_plan_that_does_not_reach_everybody_waits_for_a_person_at_its_end() {
    let state = climbing(&["50%"]);
    assert_eq!(judged_at(&state, Conclusion::NotWorse, 10 * HOLD_MS), (state.clone(), Vec::new()));
    assert!(after(&state, Event::Promote).is_promoted());
}

#[test]
fn a_worse_canary_is_taken_back_at_once_and_its_version_stays_away() {
    let state = climbing(&["5%", "100%"]);
    let (back, effects) = judged_at(&state, Conclusion::Worse, 1);
    assert_eq!((back.word(), back.weight_in_effect()), ("rolled-back", Weight::ZERO));
    assert_eq!(effects[..2], [Effect::Save, Effect::Quarantine(evidence())]);
    // What comes too late is about what is over.
    let late = Event::Judged { since: state.since, conclusion: Conclusion::Worse, evidence: evidence(), rules: RULES };
    assert_eq!(step(&back, late, LATER), Ok((back, Vec::new())));
}

#[test]
fn a_rollout_that_may_only_be_paused_stays_where_it_is() {
    let state = climbing(&["5%", "100%"]);
    let rules = Rules { pause: true, ..RULES };
    let event = Event::Judged { since: state.since, conclusion: Conclusion::Worse, evidence: evidence(), rules };
    let (paused, effects) = step(&state, event.clone(), LATER).expect("a verdict is never refused");
    assert_eq!((paused.word(), paused.weight_in_effect()), ("paused", percent("5%")));
    assert!(!effects.contains(&Effect::Swap) && !effects.contains(&Effect::Quarantine(evidence())));
    assert_eq!(step(&paused, event, LATER), Ok((paused.clone(), Vec::new())));
    assert_eq!(judged_at(&paused, Conclusion::NotWorse, HOLD_MS), (paused, Vec::new()));
}

#[test]
fn a_verdict_about_a_step_that_was_left_does_nothing() {
    let state = climbing(&["1%", "5%", "100%"]);
    let verdict = |since| Event::Judged { since, conclusion: Conclusion::NotWorse, evidence: evidence(), rules: RULES };
    let now = Timestamp::from_millis(NOW.millis() + HOLD_MS);
    let (second, _) = step(&state, verdict(state.since), now).expect("a verdict is never refused");
    let later = Timestamp::from_millis(now.millis() + 10 * HOLD_MS);
    assert_eq!(step(&second, verdict(state.since), later), Ok((second, Vec::new())));
}

#[test]
fn without_evidence_a_step_holds_and_says_so_once() {
    let state = climbing(&["1%", "100%"]);
    let patience = HOLD_MS + 600_000;
    assert_eq!(judged_at(&state, Conclusion::Undecided, patience - 1), (state.clone(), Vec::new()));
    let (stalled, effects) = judged_at(&state, Conclusion::Undecided, patience);
    assert_eq!((stalled.to_string().as_str(), effects.len()), ("stalled 1%, step 1 of 2", 2));
    assert_eq!(judged_at(&stalled, Conclusion::Undecided, 2 * patience), (stalled.clone(), Vec::new()));
    assert_eq!(judged_at(&stalled, Conclusion::NotWorse, 2 * patience).0.to_string(), "ramping 100%, step 2 of 2");
}

#[test]
fn a_weight_set_by_hand_stops_the_climb_until_it_is_resumed_and_it_goes_on_to_the_step_above() {
    let state = climbing(&["1%", "5%", "50%", "100%"]);
    let stopped = after(&state, set("10%"));
    assert_eq!(stopped.to_string(), "paused 10%, after step 2 of 4: cli by uid 1000");
    assert_eq!(judged_at(&stopped, Conclusion::NotWorse, HOLD_MS).0, stopped);
    let resumed = after(&stopped, Event::Resume { quarantined: None });
    assert_eq!(resumed.to_string(), "ramping 10%, after step 2 of 4");
    assert_eq!(judged_at(&resumed, Conclusion::NotWorse, HOLD_MS).0.to_string(), "ramping 50%, step 3 of 4");
}

#[test]
fn whoever_decides_from_outside_sets_weights_and_pauses_nothing() {
    let state = climbing(&["1%", "5%", "100%"]);
    let set = after(&state, Event::SetWeight { weight: percent("5%"), pausing: None });
    assert_eq!(set.to_string(), "ramping 5%, step 2 of 3");
}

#[test]
fn a_shadow_serves_nobody_and_comes_before_the_first_weight() {
    let state = climbing(&["shadow 10%", "1%"]);
    assert_eq!((state.to_string().as_str(), state.weight_in_effect()), ("shadowing 10%, step 1 of 2", Weight::ZERO));
    assert_eq!(state.shadow_in_effect(), Some("10%".parse().expect("a share")));
    let (served, effects) = judged_at(&state, Conclusion::NotWorse, HOLD_MS);
    assert_eq!((served.shadow_in_effect(), served.weight_in_effect()), (None, percent("1%")));
    assert!(effects.contains(&Effect::Swap));
}

#[test]
fn a_rollout_that_is_nothing_but_a_shadow_serves_only_by_a_persons_word() {
    let plan = Plan::Shadow("10%".parse().expect("a share"));
    let (state, _) = State::begin(versions("v1", "v2"), &plan, None, NOW);
    assert_eq!(state.word(), "shadowing");
    assert_eq!(judged_at(&state, Conclusion::NotWorse, 10 * HOLD_MS).0, state);
    assert_eq!(judged_at(&state, Conclusion::Worse, 1).0.word(), "rolled-back");
    assert_eq!(after(&state, set("5%")).shadow_in_effect(), None);
}

#[test]
fn other_steps_in_the_file_move_nobody() {
    let state = judged_at(&climbing(&["1%", "5%", "100%"]), Conclusion::NotWorse, HOLD_MS).0;
    let declare = |plan| Event::Declared { versions: versions("v1", "v2"), plan, quarantined: None };
    let other = after(&state, declare(steps(&["2%", "4%", "20%", "100%"])));
    assert_eq!(other.to_string(), "ramping 5%, after step 2 of 4");
    assert_eq!(judged_at(&other, Conclusion::NotWorse, HOLD_MS).0.to_string(), "ramping 20%, step 3 of 4");
    let by_hand = after(&state, declare(Plan::ByHand(percent("3%"))));
    assert_eq!(by_hand.to_string(), "ramping 3%");
    assert_eq!(after(&by_hand, declare(steps(&["1%", "50%"]))).to_string(), "ramping 3%, after step 1 of 2");
}

#[test]
fn an_abandoned_rollout_comes_back_only_with_other_versions() {
    let state = after(&climbing(&["5%", "100%"]), Event::Abandon(person()));
    assert_eq!((state.word(), state.weight_in_effect()), ("abandoned", Weight::ZERO));
    for event in [set("5%"), Event::Promote, Event::Resume { quarantined: None }, Event::RollBack(failures())] {
        assert_eq!(step(&state, event, LATER), Err(Refused::Abandoned(person())));
    }
    let again = Event::Declared { versions: versions("v1", "v3"), plan: steps(&["5%"]), quarantined: None };
    assert_eq!(after(&state, again).word(), "ramping");
}

#[test]
fn a_rolled_back_climb_goes_on_where_it_was() {
    let second = judged_at(&climbing(&["1%", "5%", "100%"]), Conclusion::NotWorse, HOLD_MS).0;
    let back = judged_at(&second, Conclusion::Worse, 1).0;
    assert_eq!(after(&back, Event::Resume { quarantined: None }).to_string(), "ramping 5%, step 2 of 3");
}

#[test]
fn a_state_from_before_there_were_steps_is_read() {
    let text = r#"{"versions":{"stable":"v1","canary":"v2"},"weight_in_file":"5%","weight":"20%","phase":{"phase":"ramping"},"since":"2026-11-21T02:10:04.120Z"}"#;
    let state: State = serde_json::from_str(text).expect("an old state");
    assert_eq!((state.to_string().as_str(), state.climb, state.paused), ("ramping 20%", None, None));
}

#[test]
fn a_refusal_names_the_command_that_helps() {
    assert!(Refused::RolledBack(person()).explain("auth-1.5").ends_with("`lockgate rollout resume auth-1.5`"));
    assert!(Refused::Quarantined("9f2c1a".to_owned()).explain("a").ends_with("`lockgate quarantine release 9f2c1a`"));
}

fn check_invariants(before: &State, event: &Event, outcome: &Result<Step, Refused>) -> Result<(), TestCaseError> {
    let Ok((after, effects)) = outcome else {
        let refusable = !matches!(event, Event::Declared { .. } | Event::Judged { .. });
        prop_assert!(refusable, "the file's word and a verdict are never refused");
        return Ok(());
    };
    // Nothing changes without being saved first, nothing is recorded that did not happen, and requests move only with a
    // record.
    prop_assert_eq!(before == after, effects.is_empty());
    prop_assert!(effects.is_empty() || effects[0] == Effect::Save);
    let recorded = effects.iter().any(|effect| matches!(effect, Effect::Record { .. }));
    let swapped = effects.last() == Some(&Effect::Swap);
    prop_assert!(recorded || !swapped);
    let served = |state: &State| (state.weight_in_effect(), state.shadow_in_effect());
    if served(before) != served(after) || before.versions != after.versions {
        prop_assert!(swapped, "requests moved without a swap");
        prop_assert!(after.since != before.since, "a verdict about what is over would be taken for one about this");
    }
    let restarted = matches!(event, Event::Declared { versions, .. } if *versions != before.versions);
    if after.is_promoted() && !before.is_promoted() {
        let by_judge = matches!(event, Event::Judged { conclusion: Conclusion::NotWorse, .. });
        prop_assert!(
            *event == Event::Promote || (by_judge && before.weight == Weight::FULL),
            "promoted by {:?}",
            event
        );
    }
    if after.phase == Phase::Ramping && before.phase != Phase::Ramping {
        prop_assert!(restarted || matches!(event, Event::Resume { quarantined: None }), "started anew by {:?}", event);
    }
    if let Some(climb) = &after.climb {
        prop_assert!(climb.step < climb.steps.len());
    }
    prop_assert!(after.paused.is_none() || after.phase == Phase::Ramping);
    prop_assert!(after.shadow_in_effect().is_none() || after.weight_in_effect() == Weight::ZERO);
    match event {
        // The quarantine always has its way.
        Event::RollBack(_) | Event::Abandon(_) => prop_assert!(after.weight_in_effect() == Weight::ZERO),
        Event::Declared { versions, plan, quarantined } => {
            prop_assert_eq!(&after.versions, versions);
            prop_assert_eq!(after.weight_in_file, plan.weight());
            if restarted {
                prop_assert_eq!(after.is_under_way(), quarantined.is_none() && !after.moves_nothing());
                prop_assert_eq!(after.weight, plan.weight());
            } else if matches!(plan, Plan::Steps(_)) && before.climb.is_some() {
                prop_assert_eq!(after.weight_in_effect(), before.weight_in_effect(), "other steps moved somebody");
            }
        }
        Event::Judged { since, conclusion, rules, .. } => {
            prop_assert_eq!(&after.versions, &before.versions);
            let about_this = *since == before.since && before.is_under_way();
            prop_assert!(about_this || effects.is_empty());
            if about_this && *conclusion == Conclusion::Worse {
                prop_assert!(after.paused.is_some() || after.weight_in_effect() == Weight::ZERO);
                prop_assert_eq!(rules.pause, !matches!(after.phase, Phase::RolledBack { .. }));
            } else if after.phase == Phase::Ramping {
                prop_assert!(after.weight >= before.weight, "only what is worse goes down");
                let moved = after.since != before.since;
                prop_assert!(!moved || (before.paused.is_none() && *conclusion == Conclusion::NotWorse));
            }
        }
        _ => prop_assert_eq!(&after.versions, &before.versions),
    }
    Ok(())
}

fn plan() -> impl Strategy<Value = Plan> {
    let percent = |points| Weight::from_basis_points(points).expect("in range");
    let hand =
        prop_oneof![Just(0_u16), Just(10_000), 0_u16..=10_000].prop_map(move |points| Plan::ByHand(percent(points)));
    let climb = (prop::collection::btree_set(1_u16..=10_000, 1..5), any::<bool>(), any::<bool>(), 0_u64..40).prop_map(
        move |(points, shadow, whole, hold_ms)| {
            let sample = Share::from_basis_points(1_000).expect("in range");
            let shadow = shadow.then_some(PlanStep { stage: Stage::Shadow(sample), hold_ms });
            let points = points.into_iter().filter(|points| *points < 10_000).chain(whole.then_some(10_000));
            let weights = points.map(|points| PlanStep { stage: Stage::Weight(percent(points)), hold_ms });
            let steps: Vec<PlanStep> = shadow.into_iter().chain(weights).collect();
            if steps.is_empty() { Plan::ByHand(Weight::ZERO) } else { Plan::Steps(steps) }
        },
    );
    prop_oneof![hand, climb.clone(), climb, Just(Plan::Shadow(Share::from_basis_points(1_000).expect("in range")))]
}

/// An event, and whether a verdict is about what is, or about what was.
fn event() -> impl Strategy<Value = (Event, bool)> {
    let some_weight = prop_oneof![Just(0_u16), Just(10_000), 0_u16..=10_000]
        .prop_map(|points| Weight::from_basis_points(points).expect("in range"));
    let name = prop_oneof![4 => Just("v1"), 4 => Just("v2"), 1 => Just("v3")];
    let conclusion = prop_oneof![
        1 => Just(Conclusion::Worse), 8 => Just(Conclusion::NotWorse), 4 => Just(Conclusion::Undecided)
    ];
    let judged = (conclusion, any::<bool>(), 0_u64..60).prop_map(|(conclusion, pause, patience)| Event::Judged {
        since: Timestamp::default(),
        conclusion,
        evidence: evidence(),
        rules: Rules { pause, stalled_after: Duration::from_millis(patience) },
    });
    let event = prop_oneof![
        2 => (name, plan(), any::<bool>()).prop_map(|(canary, plan, bad)| {
            Event::Declared { versions: versions("v1", canary), plan, quarantined: bad.then(failures) }
        }),
        2 => plan().prop_map(|plan| Event::Declared { versions: versions("v1", "v2"), plan, quarantined: None }),
        2 => (some_weight, any::<bool>()).prop_map(|(weight, pausing)| {
            Event::SetWeight { weight, pausing: pausing.then(person) }
        }),
        1 => Just(Event::Promote),
        1 => Just(Event::Approved),
        1 => Just(Event::RollBack(person())),
        1 => Just(Event::RollBack(failures())),
        1 => Just(Event::Abandon(person())),
        1 => Just(Event::Pause(person())),
        3 => any::<bool>().prop_map(|bad| Event::Resume { quarantined: bad.then(|| "v2".to_owned()) }),
        12 => judged,
    ];
    (event, prop::bool::weighted(0.9))
}

proptest! {
    #[test]
    fn invariants_hold_after_any_events(events in prop::collection::vec((event(), 1_u64..50), 0..80)) {
        let mut state = climbing(&["shadow 10%", "1%", "5%", "100%"]);
        let mut now = 2_000;
        for ((mut event, current), passed) in events {
            now += passed;
            if let Event::Judged { since, .. } = &mut event {
                *since = if current { state.since } else { NOW };
            }
            let outcome = step(&state, event.clone(), Timestamp::from_millis(now));
            check_invariants(&state, &event, &outcome)?;
            if let Ok((next, effects)) = outcome {
                // Whatever happened, it happens once: a process that ended right after it was saved finds nothing to do.
                let text = serde_json::to_string(&next).expect("a state is JSON");
                prop_assert_eq!(&serde_json::from_str::<State>(&text).expect("it was just written"), &next);
                let again = step(&next, event, Timestamp::from_millis(now));
                prop_assert!(effects.is_empty() || again.is_err() || again.is_ok_and(|(_, effects)| effects.is_empty()));
                state = next;
            }
        }
    }
}
