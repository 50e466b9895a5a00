//! Requests under way, where their number is bounded. A *place* is a request's; what is beyond the bound is told to come
//! again instead of waiting: a queue in front of something slow only makes all of it slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts requests under way. Outlives the snapshots that use it.
#[derive(Debug, Default)]
pub struct Places(AtomicU32);

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

/// Places, and how many there are.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Requests at the same time.
    pub max: u32,
    /// Those that are.
    pub places: Arc<Places>,
}

impl Bound {
    /// Takes a place, if one is free. One atomic, and a pointer that is cloned.
    pub fn enter(&self) -> Option<Place> {
        let before = self.places.0.fetch_add(1, Ordering::Relaxed);
        // Dropped if it was one too many.
        let place = Place(Arc::clone(&self.places));
        (before < self.max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_request_is_over() {
        let bound = Bound { max: 2, places: Arc::default() };
        let first = bound.enter().unwrap();
        let second = bound.enter().unwrap();
        assert!(bound.enter().is_none() && bound.enter().is_none());
        drop(first);
        assert!(bound.enter().is_some());
        drop(second);
        assert_eq!(bound.places.0.load(Ordering::Relaxed), 0);
    }
}
