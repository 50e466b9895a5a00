//! What judges conclude of tracks whose chances are known, with fixed seeds.

use std::sync::Arc;

use lockgate_judge::{Conclusion, Guard, GuardError, Judge, Latencies, Missing, Period, PeriodError, Reading, Signal};

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    const fn chance(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn share(&mut self, requests: u64, chance: f64) -> Reading {
        Reading::Share { requests, events: (0..requests).filter(|_| self.chance() < chance).count() as u64 }
    }

    /// Around 10 ms, with a long tail.
    fn latencies(&mut self, requests: u64, factor: f64) -> Reading {
        let normal = |random: &mut Self| (0..12).map(|_| random.chance()).sum::<f64>() - 6.0;
        let micros = (0..requests).map(|_| (10_000.0 * factor * (0.3 * normal(self)).exp()) as u64);
        Reading::Quantile(micros.collect())
    }
}

fn failures(tolerance: f64) -> Signal {
    Signal::Share { name: Arc::from("failures"), tolerance }
}

fn latency() -> Signal {
    Signal::Quantile { name: Arc::from("latency"), quantile: 0.99, tolerance: 0.1 }
}

fn judge(signals: Vec<Signal>) -> Judge {
    Judge::new(Guard { signals, confidence: 0.99, min_requests: 500 }).expect("the guard is sound")
}

/// Looks at a judge after every second of 1,900 stable and 100 canary requests; returns the seconds until it concludes.
fn seconds_until(
    judge: &mut Judge,
    conclusion: Conclusion,
    most: u64,
    mut second: impl FnMut(u64) -> (Reading, Reading),
) -> Option<u64> {
    (1..=most).find(|at| {
        let (stable, canary) = second(*at);
        judge.observe(&Period { stable: vec![stable], canary: vec![canary] }).expect("it is of the guard");
        // Searching the intervals takes most of the time.
        if conclusion == Conclusion::Worse { judge.is_worse() } else { judge.verdict().conclusion == conclusion }
    })
}

#[test]
fn a_canary_that_fails_five_times_as_often_is_worse_within_seconds() {
    let mut random = Random(1);
    let mut judge = judge(vec![failures(0.005)]);
    let second = |_| (random.share(1_900, 0.01), random.share(100, 0.05));
    let seconds = seconds_until(&mut judge, Conclusion::Worse, 60, second).expect("it is found");
    assert!(seconds <= 6, "{seconds}");
}

#[test]
fn a_canary_like_stable_is_not_worse_within_minutes_and_again_in_each_step() {
    let mut random = Random(2);
    let mut judge = judge(vec![failures(0.005)]);
    for _ in 0..3 {
        let second = |_| (random.share(1_900, 0.01), random.share(100, 0.01));
        let seconds = seconds_until(&mut judge, Conclusion::NotWorse, 600, second).expect("it is shown");
        assert!((20..400).contains(&seconds), "{seconds}");
        judge.begin_step();
        assert_eq!(judge.verdict().conclusion, Conclusion::Undecided);
    }
}

#[test]
fn at_the_edge_of_the_tolerance_at_most_the_promised_share_is_called_worse_or_not_worse() {
    let mut random = Random(3);
    let mut called = [0; 2];
    for _ in 0..400 {
        for (called, wanted) in called.iter_mut().zip([Conclusion::Worse, Conclusion::NotWorse]) {
            let mut judge = judge(vec![failures(0.02)]);
            // An uneven cut, and a share that drifts: neither matters.
            let second = |at: u64| {
                let (stable, canary) = (20 + at % 7 * 13, 8 + at % 5 * 6);
                let chance = 0.05 + 0.04 * (at as f64 / 20.0).sin();
                (random.share(stable, chance), random.share(canary, chance + 0.02))
            };
            *called += usize::from(seconds_until(&mut judge, wanted, 300, second).is_some());
        }
    }
    // One in a hundred is promised; of 400, four. More than ten would have a chance of one in 400.
    assert!(called.iter().all(|called| *called <= 10), "{called:?}");
}

#[test]
fn an_outage_of_both_tracks_is_not_the_canarys_fault() {
    for seed in 10..30 {
        let mut random = Random(seed);
        let mut judge = judge(vec![failures(0.005)]);
        let second = |at: u64| {
            let chance = if (100..160).contains(&at) { 0.6 } else { 0.01 };
            (random.share(1_900, chance), random.share(100, chance))
        };
        assert_eq!(seconds_until(&mut judge, Conclusion::Worse, 300, second), None);
    }
}

#[test]
fn a_canary_that_turns_bad_after_an_hour_is_found_within_seconds() {
    let mut random = Random(4);
    let mut judge = judge(vec![failures(0.005)]);
    let mut second = |at| (random.share(1_900, 0.01), random.share(100, if at > 3_600 { 0.05 } else { 0.01 }));
    assert_eq!(seconds_until(&mut judge, Conclusion::Worse, 3_600, &mut second), None);
    let seconds = seconds_until(&mut judge, Conclusion::Worse, 60, |_| second(3_601)).expect("it is found");
    assert!(seconds <= 15, "{seconds}");
    let shown = judge.verdict().evidence.remove(0);
    assert!(shown.canary.requests < 3_000, "counts are of the time in which it was bad: {shown}");
    assert!(shown.canary.value.estimate > 0.03, "{shown}");
}

#[test]
fn a_slower_tail_is_found_and_an_equal_one_is_cleared() {
    let mut random = Random(5);
    let mut slow = judge(vec![latency()]);
    let second = |_| (random.latencies(1_900, 1.0), random.latencies(100, 1.25));
    let seconds = seconds_until(&mut slow, Conclusion::Worse, 600, second).expect("it is found");
    assert!(seconds < 200, "{seconds}");
    let mut equal = judge(vec![latency()]);
    let second = |_| (random.latencies(1_900, 1.0), random.latencies(100, 1.0));
    let seconds = seconds_until(&mut equal, Conclusion::NotWorse, 2_000, second).expect("it is shown");
    assert!(seconds < 1_500, "{seconds}");
}

#[test]
fn a_tail_at_the_edge_of_the_tolerance_is_called_worse_as_rarely_as_promised() {
    let mut random = Random(6);
    let called = (0..60).filter(|_| {
        let mut judge = judge(vec![latency()]);
        let second = |_| (random.latencies(190, 1.0), random.latencies(10, 1.1));
        seconds_until(&mut judge, Conclusion::Worse, 200, second).is_some()
    });
    // 0.6 are promised at most.
    assert!(called.count() <= 3);
}

#[test]
fn a_share_against_a_bound_needs_no_stable() {
    for (chance, wanted) in [(0.05, Conclusion::Worse), (0.002, Conclusion::NotWorse)] {
        let mut random = Random(7);
        let mut judge = judge(vec![Signal::AtMost { name: Arc::from("disagreement"), threshold: 0.01 }]);
        let second = |_| (Reading::Share { requests: 0, events: 0 }, random.share(20, chance));
        assert!(seconds_until(&mut judge, wanted, 300, second).is_some(), "{chance}");
        assert!(judge.verdict().evidence[0].stable.is_none());
    }
}

#[test]
fn it_takes_one_bad_signal_to_be_worse_and_all_good_ones_not_to_be() {
    let mut random = Random(8);
    let mut judge = judge(vec![failures(0.02), Signal::Share { name: Arc::from("denials"), tolerance: 0.02 }]);
    let mut second = |denials| {
        let stable = vec![random.share(1_900, 0.01), random.share(1_900, 0.1)];
        Period { stable, canary: vec![random.share(100, 0.01), random.share(100, denials)] }
    };
    while judge.verdict().evidence[0].conclusion != Conclusion::NotWorse {
        judge.observe(&second(0.1)).expect("it is of the guard");
    }
    assert_eq!(judge.verdict().conclusion, Conclusion::Undecided, "denials are close to the tolerance for longer");
    while judge.verdict().conclusion != Conclusion::Worse {
        judge.observe(&second(0.5)).expect("it is of the guard");
    }
    let conclusions = judge.verdict().evidence.into_iter().map(|evidence| evidence.conclusion).collect::<Vec<_>>();
    assert_eq!(conclusions, [Conclusion::NotWorse, Conclusion::Worse]);
}

#[test]
fn before_the_least_number_of_requests_nothing_is_cleared() {
    let mut random = Random(9);
    let mut judge = judge(vec![failures(0.5)]);
    let second = |_| (random.share(1_900, 0.01), random.share(100, 0.01));
    assert_eq!(seconds_until(&mut judge, Conclusion::NotWorse, 60, second), Some(5));
    judge.begin_step();
    assert_eq!(judge.verdict().evidence[0].missing, Some(Missing::Requests(500)));
}

#[test]
fn evidence_is_a_sentence() {
    let share = |requests, events| Reading::Share { requests, events };
    let mut judge = judge(vec![failures(0.005), latency()]);
    let lines = |judge: &Judge| judge.verdict().to_string();
    assert_eq!(
        lines(&judge),
        "failures: no request of the canary was counted yet: undecided, 500 more canary requests are required\n\
         latency: no request of the canary was counted yet: undecided, 500 more canary requests are required"
    );
    let second = |failed, slow| {
        let latencies = |requests, slow| Reading::Quantile(Latencies(vec![(600, requests - slow), (640, slow)]));
        let stable = vec![share(1_900, 19), latencies(1_900, 19)];
        Period { stable, canary: vec![share(100, failed), latencies(100, slow)] }
    };
    for at in 0..10 {
        judge.observe(&second(1, at % 2)).expect("it is of the guard");
    }
    assert_eq!(
        lines(&judge),
        "failures: 1.00 % of 1,000 canary requests against 1.00 % of 19,000 on stable, +0 points (-1.21 to +2.37) \
         where 0.5 % is tolerated: undecided, about 4,696 more canary requests would do if all goes on like this\n\
         latency: the 99 % quantile is 22.8 ms over 1,000 canary requests against 22.8 ms over 19,000 on stable, \
         +0 % (-32.3 to +47.7) where 10 % is tolerated: undecided, about 2,786 more canary requests would do if all \
         goes on like this"
    );
    for _ in 0..10 {
        judge.observe(&second(20, 0)).expect("it is of the guard");
    }
    assert_eq!(
        lines(&judge),
        "failures: 2.73 % of 1,100 canary requests against 1.00 % of 20,900 on stable, +1.73 points (+0.50 to +4.76) \
         where 0.5 % is tolerated: worse, with a confidence of 99.5 %\n\
         latency: the 99 % quantile is 22.8 ms over 2,000 canary requests against 22.8 ms over 38,000 on stable, \
         +0 % (-32.3 to +10.0) where 10 % is tolerated: not worse, with a confidence of 99 %"
    );
}

#[test]
fn a_period_that_is_not_the_guards_is_refused_and_changes_nothing() {
    let mut judge = judge(vec![failures(0.005)]);
    let before = judge.clone();
    let good = Reading::Share { requests: 10, events: 1 };
    for (canary, problem) in [
        (vec![], PeriodError::Length { readings: 0, signals: 1 }),
        (vec![Reading::none(&latency())], PeriodError::Kind(0)),
        (vec![Reading::Share { requests: 1, events: 2 }], PeriodError::Count(0)),
    ] {
        assert_eq!(judge.observe(&Period { stable: vec![good.clone()], canary }), Err(problem));
    }
    assert_eq!(judge, before);
}

#[test]
fn a_guard_that_cannot_be_judged_by_says_why() {
    let guard = |signals, confidence| Judge::new(Guard { signals, confidence, min_requests: 0 }).map(|_| ());
    let message = |result: Result<(), GuardError>| result.expect_err("it is not sound").to_string();
    assert_eq!(message(guard(vec![], 0.99)), "a guard needs at least one signal");
    assert_eq!(message(guard(vec![failures(0.01)], 1.0)), "`confidence` must be above 50 % and below 100 %, not 100 %");
    assert_eq!(message(guard(vec![failures(0.0)], 0.99)), "`failures`: `tolerance` must be above 0 and below 1, not 0");
    assert!(guard(vec![failures(f64::NAN)], 0.99).is_err());
}
