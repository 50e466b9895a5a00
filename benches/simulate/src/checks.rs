//! What the judge is compared with, on the same requests.

/// Looks at the canary's share of failures once an interval, against a fixed bound, and gives up at so many bad looks:
/// what Flagger and Argo Rollouts do with a metric of their examples.
#[derive(Clone, Copy)]
pub(crate) struct Fixed {
    pub(crate) name: &'static str,
    pub(crate) share_max: f64,
    pub(crate) interval_seconds: u64,
    /// The look that ends the rollout.
    pub(crate) bad_looks: u32,
}

/// Flagger's documentation: at least 99 % succeed, every minute, `threshold: 5`.
pub(crate) const FLAGGER: Fixed =
    Fixed { name: "Flagger's example", share_max: 0.01, interval_seconds: 60, bad_looks: 5 };

/// Argo Rollouts' documentation: at least 95 % succeed, every five minutes, `failureLimit: 3`: the fourth is one too many.
pub(crate) const ARGO: Fixed = Fixed { name: "Argo's example", share_max: 0.05, interval_seconds: 300, bad_looks: 4 };

/// One that was told what only the simulation knows: stable's share, and the tolerance.
pub(crate) const TOLD: Fixed = Fixed { name: "told the edge", share_max: 0.015, interval_seconds: 60, bad_looks: 5 };

pub(crate) const ALL: [Fixed; 3] = [FLAGGER, ARGO, TOLD];

/// A check under way.
#[derive(Clone, Copy)]
pub(crate) struct Looking {
    check: Fixed,
    requests: u64,
    failures: u64,
    bad: u32,
    /// The second at which it gave up.
    pub(crate) gave_up: Option<u64>,
}

impl Looking {
    pub(crate) const fn new(check: Fixed) -> Self {
        Self { check, requests: 0, failures: 0, bad: 0, gave_up: None }
    }

    pub(crate) const fn count(&mut self, failed: bool) {
        self.requests += 1;
        self.failures += failed as u64;
    }

    /// Called as each second ends.
    pub(crate) fn second(&mut self, second: u64) {
        if self.gave_up.is_some() || !second.is_multiple_of(self.check.interval_seconds) {
            return;
        }
        if self.requests > 0 && self.failures as f64 > self.check.share_max * self.requests as f64 {
            self.bad += 1;
        }
        (self.requests, self.failures) = (0, 0);
        if self.bad >= self.check.bad_looks {
            self.gave_up = Some(second);
        }
    }
}

/// Wald's sequential probability ratio test of two known shares: no test with its error rates needs fewer requests on
/// average. It is told both; the judge is told neither.
#[derive(Clone, Copy)]
pub(crate) struct Sprt {
    log_ratio: f64,
    on_failure: f64,
    on_success: f64,
    bound: f64,
    requests: u64,
    /// The request at which it decided, and whether for the worse share.
    pub(crate) decided: Option<(u64, bool)>,
}

impl Sprt {
    pub(crate) fn new(edge: f64, worse: f64, error: f64) -> Self {
        Self {
            log_ratio: 0.0,
            on_failure: (worse / edge).ln(),
            on_success: ((1.0 - worse) / (1.0 - edge)).ln(),
            bound: ((1.0 - error) / error).ln(),
            requests: 0,
            decided: None,
        }
    }

    pub(crate) fn count(&mut self, failed: bool) {
        if self.decided.is_none() {
            self.requests += 1;
            self.log_ratio += if failed { self.on_failure } else { self.on_success };
            if self.log_ratio.abs() >= self.bound {
                self.decided = Some((self.requests, self.log_ratio > 0.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_check_gives_up_at_its_last_bad_look() {
        let mut looking = Looking::new(TOLD);
        for second in 1..=1_000 {
            (0..100).for_each(|request| looking.count(request < 2));
            looking.second(second);
        }
        assert_eq!(looking.gave_up, Some(300));
    }

    #[test]
    fn walds_test_decides_by_the_ratio() {
        let mut sprt = Sprt::new(0.015, 0.05, 0.01);
        (0..4).for_each(|_| sprt.count(true));
        assert_eq!(sprt.decided, Some((4, true)));
    }
}
