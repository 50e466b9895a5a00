//! The addresses of an upstream as they were last found, and the choice among them. A pool is immutable; what changes is
//! in its members, which the next pool takes over where their address stays.

use std::net::SocketAddr;
use std::sync::Arc;

use lockgate_config::units::Share;
use pingora_ketama::{Bucket, Continuum};

use super::member::Member;

/// Addresses, with everything that a choice needs.
pub struct Pool {
    /// Ordered by address.
    members: Box<[Arc<Member>]>,
    /// Indices of members, each as often as its weight, spread as evenly as can be.
    schedule: Box<[u16]>,
    /// For choosing by a key.
    ring: Option<Continuum>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("members", &self.members).finish_non_exhaustive()
    }
}

/// How one request chooses.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// Whose turn it is.
    Turn,
    /// The less busy of two.
    Load,
    /// The owner of a key's hash.
    Key(u64),
}

/// What a choice depends on beside the pool.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// How to choose.
    pub by: By,
    /// A count that goes up with each choice.
    pub turn: usize,
    /// Now, in milliseconds since the upstream was made.
    pub now_ms: u64,
    /// How long a member that came back gets less.
    pub slow_start_ms: u64,
    /// Share of usable members below which all are used.
    pub panic: Share,
    /// Addresses that this request has tried already.
    pub tried: &'a [SocketAddr],
    /// Whether members are passed over that have no room.
    pub with_room: bool,
}

impl Pool {
    /// Returns a pool. With `ring`, keys can be asked for.
    pub fn new(mut members: Vec<Arc<Member>>, ring: bool) -> Self {
        members.sort_by_key(|member| member.address);
        members.dedup_by_key(|member| member.address);
        // The schedule's indices are 16 bits wide.
        members.truncate(usize::from(u16::MAX));
        let buckets: Vec<Bucket> = members.iter().map(|member| Bucket::new(member.address, member.weight)).collect();
        let ring = (ring && !buckets.is_empty()).then(|| Continuum::new(&buckets));
        Self { schedule: schedule(&members), members: members.into(), ring }
    }

    /// Returns the members, ordered by address.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Returns the member with an address.
    pub fn find(&self, address: &SocketAddr) -> Option<&Arc<Member>> {
        let index = self.members.binary_search_by_key(address, |member| member.address).ok()?;
        self.members.get(index)
    }

    /// Returns how many members can be given requests.
    pub fn usable(&self, now_ms: u64) -> usize {
        self.members.iter().filter(|member| member.is_usable(now_ms)).count()
    }

    /// Chooses a member for a request: first one that it has not tried, then one that it has. None where no member is
    /// usable. Allocates nothing; as long as the first candidate is usable, it looks at no other.
    pub fn choose(&self, draw: &Draw<'_>) -> Option<&Arc<Member>> {
        let has_room = |member: &Member| !draw.with_room || member.has_room();
        let chosen = self.choose_among(draw, |member| !draw.tried.contains(&member.address) && has_room(member));
        if chosen.is_none() && !draw.tried.is_empty() { self.choose_among(draw, has_room) } else { chosen }
    }

    fn choose_among(&self, draw: &Draw<'_>, admit: impl Fn(&Member) -> bool) -> Option<&Arc<Member>> {
        // Decided at the first member that is not usable: most requests never meet one.
        let mut panicking = None;
        let mut fits = |member: &Member| {
            admit(member)
                && (member.is_usable(draw.now_ms) || *panicking.get_or_insert_with(|| self.is_panicking(draw)))
        };
        match (draw.by, &self.ring) {
            (By::Key(hash), Some(ring)) => ring
                .node_iter(&hash.to_le_bytes())
                .filter_map(|address| self.find(address))
                // The ring has no end, and members with little weight are far apart on it.
                .take(self.members.len().saturating_mul(64))
                .find(|member| fits(member))
                .or_else(|| self.walk(draw, draw.turn, &mut fits)),
            (By::Load, _) => {
                let first = self.walk(draw, spread(draw.turn) as usize, &mut fits)?;
                let second = self.walk(draw, spread(draw.turn ^ usize::MAX) as usize, &mut fits)?;
                Some(if load(second, draw) < load(first, draw) { second } else { first })
            }
            (By::Turn | By::Key(_), _) => self.walk(draw, draw.turn, &mut fits),
        }
    }

    /// Walks the schedule from a place to the first member that fits and is warm enough; if none is, to the first that fits.
    fn walk(&self, draw: &Draw<'_>, from: usize, fits: &mut impl FnMut(&Member) -> bool) -> Option<&Arc<Member>> {
        let mut cold = None;
        for step in 0..self.schedule.len() {
            let place = from.wrapping_add(step) % self.schedule.len();
            let Some(member) = self.schedule.get(place).and_then(|index| self.members.get(usize::from(*index))) else {
                continue;
            };
            if !fits(member) {
                continue;
            }
            let warmth = if draw.slow_start_ms == 0 { 1.0 } else { member.warmth(draw.now_ms, draw.slow_start_ms) };
            if warmth >= 1.0 || (spread(from.wrapping_mul(31).wrapping_add(step)) as f64) < warmth * (u64::MAX as f64) {
                return Some(member);
            }
            cold.get_or_insert(member);
        }
        cold
    }

    /// Returns whether so few members are usable that all are used. With none at all it is better to say so at once.
    fn is_panicking(&self, draw: &Draw<'_>) -> bool {
        let usable = self.usable(draw.now_ms);
        usable > 0 && (usable as f64) < draw.panic.ratio() * self.members.len() as f64
    }
}

/// Requests under way for each unit of what a member is given.
fn load(member: &Member, draw: &Draw<'_>) -> f64 {
    let share = f64::from(member.weight) * member.warmth(draw.now_ms, draw.slow_start_ms);
    (f64::from(member.in_flight()) + 1.0) / share
}

/// Spreads counts over all numbers: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
fn spread(count: usize) -> u64 {
    let mut z = (count as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns each member's index as often as its weight: at each place stands the one that is furthest behind its share.
fn schedule(members: &[Arc<Member>]) -> Box<[u16]> {
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight)).max(1);
    let weights: Vec<i64> = members.iter().map(|member| i64::from(member.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut places = Vec::new();
    for _ in 0..total {
        credit.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
        let Some(next) = (0..credit.len()).rev().max_by_key(|index| credit[*index]) else { break };
        credit[next] -= total;
        places.push(u16::try_from(next).unwrap_or_default());
    }
    places.into()
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::connections::Connections;
    use super::super::member::InFlight;
    use super::*;

    fn pool(weights: &[u32]) -> Pool {
        let member = |(index, weight): (usize, &u32)| {
            let address = SocketAddr::from(([127, 0, 0, 1], 1000 + index as u16));
            Arc::new(Member::new(address, *weight, "127.0.0.1".into(), 0, Connections::of_a_test(Some(2))))
        };
        Pool::new(weights.iter().enumerate().map(member).collect(), true)
    }

    fn draw(by: By, turn: usize) -> Draw<'static> {
        let panic = Share::from_basis_points(5_000).unwrap();
        Draw { by, turn, now_ms: 10_000, slow_start_ms: 0, panic, tried: &[], with_room: false }
    }

    fn counts(pool: &Pool, draws: impl Iterator<Item = Draw<'static>>) -> Vec<usize> {
        let mut counts = BTreeMap::from_iter(pool.members().iter().map(|member| (member.address, 0)));
        for draw in draws {
            *counts.entry(pool.choose(&draw).expect("a member").address).or_default() += 1;
        }
        counts.into_values().collect()
    }

    #[test]
    fn turns_go_round_by_weight() {
        let pool = pool(&[1, 2, 1]);
        assert_eq!(counts(&pool, (0..400).map(|turn| draw(By::Turn, turn))), [100, 200, 100]);
        let one_round: Vec<_> = (0..4).map(|turn| pool.choose(&draw(By::Turn, turn)).unwrap().address.port()).collect();
        assert_eq!(one_round, [1001, 1000, 1002, 1001], "the heavy one is spread out");
    }

    #[test]
    fn the_less_busy_of_two_gets_the_request() {
        let pool = pool(&[1, 1]);
        let busy: Vec<_> = (0..10).map(|_| InFlight::begin(Arc::clone(&pool.members()[0]))).collect();
        let counts = counts(&pool, (0..1_000).map(|turn| draw(By::Load, turn)));
        assert!(counts[0] < 300, "only where both draws hit it: {counts:?}");
        drop(busy);
    }

    #[test]
    fn a_key_keeps_its_member_and_moves_only_with_it() {
        let (three, four) = (pool(&[1, 1, 1]), pool(&[1, 1, 1, 1]));
        let keys = 0..10_000_u64;
        let of = |pool: &Pool, key: u64| pool.choose(&draw(By::Key(spread(key as usize)), 0)).unwrap().address;
        let moved = keys.clone().filter(|key| of(&three, *key) != of(&four, *key)).count();
        assert!((1_500..3_500).contains(&moved), "a fourth of the keys moves to the new member, not {moved} of 10,000");
        assert!(keys.clone().all(|key| of(&three, key) == of(&three, key)));
        three.members()[0].set_healthy(false, 0);
        let away: Vec<_> = keys.map(|key| of(&three, key)).collect();
        assert!(away.iter().all(|address| *address != three.members()[0].address));
    }

    #[test]
    fn what_a_request_has_tried_is_chosen_last() {
        let pool = pool(&[1, 1]);
        let tried = [pool.members()[0].address];
        for turn in 0..10 {
            let chosen = pool.choose(&Draw { tried: &tried, ..draw(By::Turn, turn) }).unwrap();
            assert_eq!(chosen.address, pool.members()[1].address);
        }
        let both = [tried[0], pool.members()[1].address];
        assert!(pool.choose(&Draw { tried: &both, ..draw(By::Turn, 0) }).is_some());
    }

    #[test]
    fn who_has_no_room_is_passed_over_where_that_matters() {
        let pool = pool(&[1, 1]);
        let full: Vec<_> = (0..2).map(|_| InFlight::begin(Arc::clone(&pool.members()[0]))).collect();
        let with_room = |by, turn| Draw { with_room: true, ..draw(by, turn) };
        for (by, turn) in (0..30).map(|turn| ([By::Turn, By::Load, By::Key(spread(turn))][turn % 3], turn)) {
            assert_eq!(pool.choose(&with_room(by, turn)).unwrap().address, pool.members()[1].address);
        }
        assert_eq!(counts(&pool, (0..10).map(|turn| draw(By::Turn, turn))), [5, 5]);
        let both: Vec<_> = (0..2).map(|_| InFlight::begin(Arc::clone(&pool.members()[1]))).collect();
        assert!(pool.choose(&with_room(By::Turn, 0)).is_none());
        drop((full, both));
    }

    #[test]
    fn below_the_panic_threshold_all_are_used_and_with_none_usable_nobody() {
        let pool = pool(&[1, 1, 1]);
        pool.members()[0].set_healthy(false, 0);
        assert_eq!(counts(&pool, (0..300).map(|turn| draw(By::Turn, turn)))[0], 0);
        pool.members()[1].set_healthy(false, 0);
        assert_eq!(counts(&pool, (0..300).map(|turn| draw(By::Turn, turn))), [100, 100, 100]);
        pool.members()[2].set_healthy(false, 0);
        assert!(pool.choose(&draw(By::Turn, 0)).is_none());
    }

    #[test]
    fn a_member_that_came_back_gets_a_growing_part_of_its_share() {
        let pool = pool(&[1, 1]);
        pool.members()[0].set_healthy(false, 0);
        pool.members()[0].set_healthy(true, 10_000);
        let at = |now_ms| {
            let draws = (0..10_000).map(move |turn| Draw { now_ms, slow_start_ms: 10_000, ..draw(By::Turn, turn) });
            counts(&pool, draws)[0]
        };
        let (cold, half, warm) = (at(10_001), at(15_000), at(20_000));
        assert!(cold < 800 && (1_500..4_000).contains(&half) && warm == 5_000, "{cold} {half} {warm}");
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_is_usable_unless_too_few_are(
            weights in proptest::collection::vec(1_u32..=100, 1..20),
            bad in proptest::collection::vec(any::<bool>(), 20),
            ejected in proptest::collection::vec(any::<bool>(), 20),
            turn in any::<usize>(),
            way in 0_usize..3,
        ) {
            let pool = pool(&weights);
            for (index, member) in pool.members().iter().enumerate() {
                member.set_healthy(!bad[index], 0);
                if ejected[index] {
                    member.eject(9_999, Duration::from_secs(1));
                }
            }
            let by = [By::Turn, By::Load, By::Key(turn as u64)][way];
            let draw = draw(by, turn);
            let usable = pool.usable(draw.now_ms);
            match pool.choose(&draw) {
                Some(member) => prop_assert!(member.is_usable(draw.now_ms) || usable * 2 < weights.len()),
                None => prop_assert_eq!(usable, 0),
            }
        }
    }
}
