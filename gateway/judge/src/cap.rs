//! A *cap* bounds what one client can add to the counts of a window.
//!
//! Requests of one client are not independent: one that retries in a loop would count a thousand times, and could roll
//! back a good canary, or fill stable's counts with failures and hide a bad one. So the data plane asks the cap once for
//! each request of a rollout, whatever its track, and counts it for the judge only if it is admitted.
//!
//! It is an array of slots of fixed size; a key's hash says which one is its own. Keys that meet in a slot share what
//! it admits: no key is ever admitted more often than the limit, and which ones meet has nothing to do with tracks or
//! outcomes, so shares stay what they are. The price is that with more active keys than slots, requests go uncounted.
//! The other choice, to admit a key whose slot is taken, would let keys escape the cap exactly when there are many.
//!
//! What is left to one client is `limit` requests in a window. Two things make that harmless:
//!
//! - It is small beside the tolerance's part of what the canary counts in a window. With a limit of 1 in ten seconds, a
//!   tolerance of 0.5 % and 30 counted canary requests a second, one client can add a third of a percent, and cannot reach
//!   the tolerance alone.
//! - It does not come in bursts, as the judge takes requests within a block for independent. So a limit of 1 in ten
//!   seconds is better than one of 6 in a minute, all of which a storm uses up in the window's first moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// Slots are chosen by the top bits of the hash times this, 2⁶⁴ over the golden ratio: the hash may be the one that the
/// split took its bucket from, and the canary's keys must not crowd into a part of the slots.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Admits each key a few times in each window. Shared by all threads, without locks.
#[derive(Debug)]
pub struct Cap {
    /// The window in the upper half, what was admitted in it in the lower.
    slots: Box<[AtomicU64]>,
    shift: u32,
    limit: u32,
}

impl Cap {
    /// Makes one that admits each key `limit` times in a window; at least once. Slots are rounded up to a power of two,
    /// at least 2 and at most 2²⁴; each takes 8 bytes. Twice the keys that are active in a window is a good number.
    pub fn new(slots: usize, limit: u32) -> Self {
        let slots = slots.clamp(2, 1 << 24).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            shift: u64::BITS - slots.ilog2(),
            limit: limit.max(1),
        }
    }

    /// Returns whether a request counts, and counts it against its key. Windows are numbered by the caller, upwards; the
    /// number may wrap. Who comes with a window that is over already, as a thread that was held up, is counted in the
    /// slot's newer one.
    ///
    /// Costs one atomic read if the key has had its share, and one exchange more if not.
    #[inline]
    pub fn admit(&self, key_hash: u64, window: u32) -> bool {
        let index = key_hash.wrapping_mul(SPREAD) >> self.shift;
        let Some(slot) = usize::try_from(index).ok().and_then(|index| self.slots.get(index)) else { return true };
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            let (at, admitted) = unpack(seen);
            let is_newer = window.wrapping_sub(at).cast_signed() > 0;
            let next = match (admitted, is_newer) {
                (0, _) | (_, true) => pack(window, 1),
                (admitted, false) if admitted < self.limit => pack(at, admitted + 1),
                _ => return false,
            };
            // Relaxed: the slot is all there is to agree on.
            match slot.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }
}

const fn pack(window: u32, admitted: u32) -> u64 {
    (window as u64) << 32 | admitted as u64
}

const fn unpack(slot: u64) -> (u32, u32) {
    ((slot >> 32) as u32, slot as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spreads numbers as a hash would.
    const fn hash(key: u64) -> u64 {
        (key ^ (key >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(29).wrapping_mul(0x94D0_49BB_1331_11EB)
    }

    #[test]
    fn a_key_is_admitted_up_to_the_limit_in_each_window() {
        let cap = Cap::new(1024, 3);
        for window in [u32::MAX - 1, u32::MAX, 0, 1, 7] {
            let admitted = (0..100).filter(|_| cap.admit(hash(1), window)).count();
            assert_eq!(admitted, 3, "in window {window}");
        }
    }

    #[test]
    fn who_comes_late_cannot_open_an_old_window_again() {
        let cap = Cap::new(1024, 1);
        assert_eq!([5, 4, 5, 6].map(|window| cap.admit(hash(1), window)), [true, false, false, true]);
    }

    #[test]
    fn keys_that_share_a_slot_share_its_limit_and_the_others_are_unharmed() {
        let cap = Cap::new(65_536, 1);
        let admitted = (0..6_500).filter(|key| cap.admit(hash(*key), 0)).count();
        // A tenth of the slots in use: each key meets another with a probability of about 5 %.
        assert!((6_100..6_300).contains(&admitted), "{admitted}");
    }

    #[test]
    fn keys_of_a_small_part_of_the_hashes_are_spread_like_all() {
        let cap = Cap::new(1024, 1);
        let small_part = (0..).map(hash).filter(|hash| *hash < u64::MAX / 20).take(200);
        let admitted = small_part.filter(|hash| cap.admit(*hash, 0)).count();
        assert!(admitted > 165, "{admitted}");
    }

    #[test]
    fn threads_together_are_admitted_no_more_than_one_would_be() {
        let cap = Cap::new(64, 1_000);
        let admitted: usize = std::thread::scope(|scope| {
            let count = || (0..5_000).filter(|_| cap.admit(7, 1)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
        });
        assert_eq!(admitted, 1_000);
    }
}
