//! The two tracks of a rollout.

use std::fmt;

use serde::Serialize;

/// Which version a request gets from a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Track {
    /// The version that everybody had.
    Stable,
    /// The new one.
    Canary,
}

impl Track {
    /// Both, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Stable, Self::Canary];

    /// Returns `stable` or `canary`, as in configuration, metrics, logs and the override header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Some of the rollouts that a request can meet, by their slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots(u64);

impl Slots {
    /// Adds a slot. One past [`Tracks::SLOTS`] is ignored.
    pub fn insert(&mut self, slot: u8) {
        self.0 |= 1_u64.checked_shl(u32::from(slot)).unwrap_or(0);
    }

    /// Returns whether a slot is among them.
    pub const fn contains(self, slot: u8) -> bool {
        match self.0.checked_shr(slot as u32) {
            Some(shifted) => shifted & 1 == 1,
            None => false,
        }
    }

    /// Returns whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The tracks of one request in all rollouts that its route can meet, decided once, at the split. A bit for each slot:
/// a route has at most [`Tracks::SLOTS`] rollouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracks(u64);

impl Tracks {
    /// Rollouts that a route can meet at most; the configuration refuses more.
    pub const SLOTS: usize = 64;

    /// Sets the track of a slot. A slot past [`Self::SLOTS`] is ignored.
    pub fn set(&mut self, slot: u8, track: Track) {
        let bit = 1_u64.checked_shl(u32::from(slot)).unwrap_or(0);
        match track {
            Track::Stable => self.0 &= !bit,
            Track::Canary => self.0 |= bit,
        }
    }

    /// Returns whether a slot's track is the canary's.
    pub const fn is_canary(self, slot: u8) -> bool {
        match self.0.checked_shr(slot as u32) {
            Some(shifted) => shifted & 1 == 1,
            None => false,
        }
    }
}
