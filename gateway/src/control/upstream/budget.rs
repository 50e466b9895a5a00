//! What further attempts may cost. Each request pays a share into a purse, each further attempt takes a whole unit out: so
//! an upstream in trouble gets that share more requests, and not several times as many. (The scheme is that of Finagle's
//! `RetryBudget`.)

use std::sync::atomic::{AtomicI64, Ordering};

use lockgate_config::units::Share;

/// One further attempt, in the unit of [`Share::basis_points`].
const ATTEMPT: i64 = 10_000;

/// Attempts that a purse holds from the start, so that little traffic gets its retries as well.
const RESERVE: i64 = 10;

/// Attempts that a purse holds at most: what was saved up in a quiet hour must not be spent in one second.
const FULL: i64 = 100;

/// A purse of further attempts.
#[derive(Debug)]
pub struct Budget {
    paid_in: i64,
    purse: AtomicI64,
}

impl Budget {
    /// Returns a purse into which each request pays a share of an attempt.
    pub fn new(share: Share) -> Self {
        Self { paid_in: i64::from(share.basis_points()), purse: AtomicI64::new(RESERVE * ATTEMPT) }
    }

    /// Pays a request's share in. Two atomic operations at most.
    pub fn request(&self) {
        if self.purse.load(Ordering::Relaxed) < FULL * ATTEMPT {
            self.purse.fetch_add(self.paid_in, Ordering::Relaxed);
        }
    }

    /// Takes an attempt out; returns whether it was there.
    pub fn take(&self) -> bool {
        let take = |purse: i64| (purse >= ATTEMPT).then(|| purse - ATTEMPT);
        self.purse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_a_share_of_the_requests_and_a_reserve() {
        let budget = Budget::new(Share::from_basis_points(2_000).unwrap());
        let mut attempts = 0;
        for _ in 0..1_000 {
            budget.request();
            attempts += i64::from(budget.take());
        }
        assert_eq!(attempts, RESERVE + 200);
    }

    #[test]
    fn quiet_hours_are_not_saved_up() {
        let budget = Budget::new(Share::FULL);
        (0..10_000).for_each(|_| budget.request());
        let attempts = (0..1_000).filter(|_| budget.take()).count();
        assert_eq!(attempts as i64, FULL);
    }
}
