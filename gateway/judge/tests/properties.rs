//! What holds for every history of counts.

use std::sync::Arc;

use lockgate_judge::{Conclusion, Guard, Judge, Latencies, Period, Reading, Signal, Verdict};
use proptest::prelude::*;

fn guard() -> Guard {
    let name = Arc::<str>::from;
    Guard {
        signals: vec![
            Signal::Share { name: name("failures"), tolerance: 0.005 },
            Signal::Quantile { name: name("latency"), quantile: 0.9, tolerance: 0.1 },
            Signal::AtMost { name: name("disagreement"), threshold: 0.01 },
        ],
        confidence: 0.99,
        min_requests: 100,
    }
}

fn judge() -> Judge {
    Judge::new(guard()).expect("the guard is sound")
}

/// Counts that are usual, and counts that are not.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..40_u64, 4 => 0..5_000_u64, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn share() -> impl Strategy<Value = Reading> {
    (count(), prop_oneof![3 => 0.0..0.05, 1 => 0.0..=1.0, 1 => Just(0.0), 1 => Just(1.0)]).prop_map(
        |(requests, share)| {
            let events = (requests as f64 * share) as u64;
            Reading::Share { requests, events: events.min(requests) }
        },
    )
}

fn latencies() -> impl Strategy<Value = Reading> {
    prop::collection::vec((0..1345_u16, count()), 0..6).prop_map(|counts| Reading::Quantile(Latencies(counts)))
}

fn track() -> impl Strategy<Value = Vec<Reading>> {
    (share(), latencies(), share()).prop_map(|(failures, latency, disagreement)| vec![failures, latency, disagreement])
}

fn period() -> impl Strategy<Value = Period> {
    (track(), track()).prop_map(|(stable, canary)| Period { stable, canary })
}

fn check_invariants(verdict: &Verdict) {
    for evidence in &verdict.evidence {
        let arms = evidence.stable.iter().chain([&evidence.canary]).map(|arm| arm.value);
        for interval in arms.chain([evidence.difference]) {
            let ends = [interval.low, interval.estimate, interval.high];
            assert!(ends.iter().all(|end| end.is_finite()), "{evidence:?}");
            assert!(interval.low <= interval.high, "{evidence:?}");
        }
        for p in [evidence.p_worse, evidence.p_not_worse] {
            assert!((0.0..=1.0).contains(&p), "{evidence:?}");
        }
        assert_eq!(evidence.missing.is_some(), evidence.conclusion == Conclusion::Undecided, "{evidence:?}");
        let sentence = evidence.to_string();
        assert!(!sentence.contains("NaN") && !sentence.contains("inf"), "{sentence}");
    }
    let any_worse = verdict.evidence.iter().any(|evidence| evidence.conclusion == Conclusion::Worse);
    let all_good = verdict.evidence.iter().all(|evidence| evidence.conclusion == Conclusion::NotWorse);
    assert_eq!(verdict.conclusion == Conclusion::Worse, any_worse);
    assert_eq!(verdict.conclusion == Conclusion::NotWorse, all_good);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_history_leads_to_numbers_and_to_one_conclusion(periods in prop::collection::vec(period(), 1..20)) {
        let mut judge = judge();
        let mut was_worse = false;
        for (index, period) in periods.iter().enumerate() {
            judge.observe(period).expect("it is of the guard");
            if index % 7 == 6 {
                judge.begin_step();
            }
            let verdict = judge.verdict();
            check_invariants(&verdict);
            assert_eq!(judge.is_worse(), verdict.conclusion == Conclusion::Worse);
            assert!(judge.is_worse() || !was_worse, "what is shown to be worse stays so");
            was_worse = judge.is_worse();
        }
    }

    #[test]
    fn a_judge_that_was_saved_goes_on_exactly_where_it_was(
        before in prop::collection::vec(period(), 0..12),
        after in prop::collection::vec(period(), 0..6),
    ) {
        let mut judge = judge();
        before.iter().for_each(|period| judge.observe(period).expect("it is of the guard"));
        let saved = serde_json::to_string(&judge).expect("it can be saved");
        let mut restored: Judge = serde_json::from_str(&saved).expect("it can be read");
        assert_eq!(restored, judge);
        for period in &after {
            judge.observe(period).expect("it is of the guard");
            restored.observe(period).expect("it is of the guard");
        }
        assert_eq!(restored, judge);
        assert_eq!(restored.verdict(), judge.verdict());
    }

    #[test]
    fn the_order_within_a_period_does_not_matter(
        history in prop::collection::vec(period(), 0..6),
        mut counts in prop::collection::vec((0..1345_u16, 1..50_u64), 1..8),
    ) {
        let mut last = Period {
            stable: guard().signals.iter().map(Reading::none).collect(),
            canary: guard().signals.iter().map(Reading::none).collect(),
        };
        let mut judges = [judge(), judge()];
        for judge in &mut judges {
            history.iter().for_each(|period| judge.observe(period).expect("it is of the guard"));
            last.canary[1] = Reading::Quantile(Latencies(counts.clone()));
            last.stable[1] = Reading::Quantile(Latencies(counts.clone()));
            judge.observe(&last).expect("it is of the guard");
            counts.reverse();
        }
        assert_eq!(judges[0].verdict(), judges[1].verdict());
    }

    #[test]
    fn more_failures_of_the_canary_speak_more_for_worse_and_less_for_not_worse(
        history in prop::collection::vec((20..3_000_u64, 8..300_u64, 0.0..0.05, 0.0..0.05), 1..20),
        stable in 8..3_000_u64,
        canary in 8..300_u64,
        of_stable in 0.0..1.0,
        of_canary in 0.0..0.99,
    ) {
        let guard = Guard { signals: guard().signals[..1].to_vec(), ..guard() };
        let period = |stable: (u64, u64), canary: (u64, u64)| Period {
            stable: vec![Reading::Share { requests: stable.0, events: stable.1 }],
            canary: vec![Reading::Share { requests: canary.0, events: canary.1 }],
        };
        let of = |requests: u64, share: f64| (requests, (requests as f64 * share) as u64);
        let mut judge = Judge::new(guard).expect("the guard is sound");
        for (stable, canary, of_stable, of_canary) in history {
            judge.observe(&period(of(stable, of_stable), of(canary, of_canary))).expect("it is of the guard");
        }
        prop_assume!(!judge.is_worse());
        let evidence_of = |stable: (u64, u64), canary: (u64, u64)| {
            let mut judge = judge.clone();
            judge.observe(&period(stable, canary)).expect("it is of the guard");
            let evidence = judge.verdict().evidence.remove(0);
            (evidence.p_worse, evidence.p_not_worse)
        };
        let (stable, canary) = (of(stable, of_stable), of(canary, of_canary));
        let now = evidence_of(stable, canary);
        let canary_fails_more = evidence_of(stable, (canary.0, canary.1 + 1));
        assert!(canary_fails_more.0 <= now.0 && canary_fails_more.1 >= now.1, "{now:?} {canary_fails_more:?}");
        let stable_fails_more = evidence_of((stable.0, stable.1.saturating_add(1).min(stable.0)), canary);
        assert!(stable_fails_more.0 >= now.0 && stable_fails_more.1 <= now.1, "{now:?} {stable_fails_more:?}");
    }
}
