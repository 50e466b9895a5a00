//! The *world*: users who send requests, each on a track, and what becomes of these.

/// SplitMix64 (Steele, Lea, Flood, 2014): small, fast, and the same everywhere.
pub(crate) struct Random(u64);

/// Spreads a number over 64 bits.
pub(crate) const fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) const fn new(seed: u64, run: u64) -> Self {
        Self(mix(mix(seed).wrapping_add(run)))
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// In `0..1`.
    pub(crate) const fn chance(&mut self) -> f64 {
        unit(self.next())
    }
}

/// Maps 64 bits to `0..1`.
pub(crate) const fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Draws users by Zipf's law, where the n-th is n times rarer than the first: Walker's alias method, two look-ups a draw.
pub(crate) struct Zipf {
    columns: Vec<(u32, u32)>,
}

impl Zipf {
    pub(crate) fn new(users: u32) -> Self {
        let total: f64 = (1..=users).map(|rank| f64::from(rank).recip()).sum();
        let mut heights: Vec<f64> = (1..=users).map(|rank| f64::from(users) / f64::from(rank) / total).collect();
        let mut columns: Vec<(u32, u32)> = (0..users).map(|user| (u32::MAX, user)).collect();
        let (mut low, mut high): (Vec<u32>, Vec<u32>) = (0..users).partition(|user| heights[*user as usize] < 1.0);
        while let (Some(poor), Some(rich)) = (low.pop(), high.last().copied()) {
            columns[poor as usize] = ((heights[poor as usize] * f64::from(u32::MAX)) as u32, rich);
            heights[rich as usize] -= 1.0 - heights[poor as usize];
            if heights[rich as usize] < 1.0 {
                high.pop();
                low.push(rich);
            }
        }
        Self { columns }
    }

    pub(crate) fn users(&self) -> u64 {
        self.columns.len() as u64
    }

    pub(crate) fn draw(&self, random: &mut Random) -> u64 {
        let bits = random.next();
        let column = ((bits >> 32) * self.users()) >> 32;
        let (height, alias) = self.columns[column as usize];
        if (bits as u32) < height { column } else { u64::from(alias) }
    }
}

/// Requests a second, of all users.
pub(crate) const RATE: u64 = 2_000;

/// The canary's share, as the split has it: of keys.
pub(crate) const WEIGHT: f64 = 0.05;

/// Users of the Zipf world; the first sends a tenth of all requests.
pub(crate) const USERS: u32 = 20_000;

/// How long a window of the cap is, and what it admits of a key.
pub(crate) const WINDOW_SECONDS: u64 = 10;
pub(crate) const LIMIT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_user_sends_half_as_much_as_the_first() {
        let (zipf, mut random) = (Zipf::new(1_000), Random::new(1, 1));
        let mut drawn = [0_u32; 1_000];
        (0..1_000_000).for_each(|_| drawn[zipf.draw(&mut random) as usize] += 1);
        for rank in [2, 3, 10] {
            let ratio = f64::from(drawn[0]) / f64::from(drawn[rank - 1]);
            assert!((ratio / rank as f64 - 1.0).abs() < 0.05, "{rank}: {ratio}");
        }
    }
}
