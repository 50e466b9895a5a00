//! The request's half of shadowing: keeps what the stable version of a filter was given and what it did, for the requests
//! that its rollout's shadow is tried on. Whoever is not sampled pays for a hash on routes with a shadow, and for nothing
//! else. What is sampled pays for copies of headers; bodies are shared, not copied.

use std::time::Instant;

use lockgate_host::{Effects, Exchange, Notes, Phase};

use crate::control::snapshot::{Link, Route};
use crate::shadow::capture::{Call, Capture, Decided};
use crate::track::{Track, Tracks};

/// What is kept of one request, for each filter of its chain that has a shadow to try. Made for sampled requests only.
#[derive(Debug)]
pub struct Captures(Vec<(usize, Capture)>);

impl Captures {
    /// Decides for a request whether anything is kept of it. Only stable's calls are: whoever gets the canary itself needs
    /// no shadow.
    pub fn sample(route: &Route, links: &[Link], tracks: Tracks, id: &str, now: Instant) -> Option<Box<Self>> {
        if !route.shadowed {
            return None;
        }
        let sampled = |(index, link): (usize, &Link)| {
            let shadow = link.shadow.as_ref()?;
            let stable = link.versions.on(tracks).1 == Track::Stable;
            (stable && shadow.samples(id, now)).then(|| (index, Capture::new(shadow.options().body.bytes())))
        };
        let captures: Vec<_> = links.iter().enumerate().filter_map(sampled).collect();
        (!captures.is_empty()).then(|| Box::new(Self(captures)))
    }

    /// Returns where the effects of a filter's instance go.
    pub fn effects(captures: Option<&Self>, index: usize) -> Effects {
        match captures {
            Some(captures) if captures.of(index).is_some() => Effects::Noted,
            _ => Effects::Real,
        }
    }

    /// Keeps the exchange that a filter is about to be given, if its calls are kept.
    pub fn before(captures: Option<&Self>, index: usize, exchange: &Exchange) -> Option<Box<Exchange>> {
        captures?.of(index).filter(|capture| capture.goes_on()).map(|_| Box::new(exchange.clone()))
    }

    /// Keeps a call of a filter.
    pub fn keep(&mut self, index: usize, call: Call) {
        if let Some((_, capture)) = self.0.iter_mut().find(|(known, _)| *known == index) {
            capture.add(call);
        }
    }

    /// Keeps that stable has no such phase where the canary has: it left everything as it was.
    pub fn pass(&mut self, index: usize, link: &Link, phase: Phase, exchange: &Exchange) {
        let takes_part = link.shadow.as_ref().is_some_and(|shadow| shadow.takes_part(phase));
        if takes_part && let Some(before) = Self::before(Some(self), index, exchange) {
            let (notes, decided, after) = (Notes::default(), Decided::Continue, before.clone());
            self.keep(index, Call { phase, before, piece: None, notes, decided, after });
        }
    }

    /// Hands all of it to the shadows. Called when the request is over; waits for nothing.
    pub fn hand_over(self, links: &[Link]) {
        for (index, capture) in self.0 {
            if let Some(shadow) = links.get(index).and_then(|link| link.shadow.as_ref()) {
                shadow.submit(capture);
            }
        }
    }

    fn of(&self, index: usize) -> Option<&Capture> {
        self.0.iter().find(|(known, _)| *known == index).map(|(_, capture)| capture)
    }
}
