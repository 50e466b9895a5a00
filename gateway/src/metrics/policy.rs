//! Metrics of what routes ask for that needs no filter.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec};

use super::lease::{self, Lease};
use super::{Families, Metrics, remove};

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident $word:literal;)*) => {
        /// What answered a request in the place of its target, or as it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum PolicyAnswer {
            $($(#[$doc])* $name,)*
        }

        impl PolicyAnswer {
            /// All of them, in the order of their discriminants.
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$name),*];

            /// Returns the word for logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

answers! {
    /// The client is sent elsewhere.
    Redirect "redirect";
    /// A response that is always the same.
    Respond "respond";
    /// A browser was told whether a page may ask.
    Preflight "cors_preflight";
    /// The client asks too often.
    RateLimit "rate_limit";
    /// As many requests of the route are under way as may be.
    RouteRequests "route_requests";
    /// As many requests are under way in the gateway as may be.
    GatewayRequests "gateway_requests";
}

/// What became of a mirrored request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorOutcome {
    /// It was answered.
    Answered,
    /// It was not.
    Failed,
    /// Too many were under way, here or at the upstream.
    Busy,
    /// Its body was too long.
    TooLong,
    /// It broke off.
    Incomplete,
}

impl MirrorOutcome {
    /// All of them, in the order of their discriminants.
    const ALL: [Self; 5] = [Self::Answered, Self::Failed, Self::Busy, Self::TooLong, Self::Incomplete];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::TooLong => "too_long",
            Self::Incomplete => "incomplete",
        }
    }
}

/// The families.
#[derive(Debug)]
pub(super) struct PolicyFamilies {
    answers: IntCounterVec,
    rates: IntCounterVec,
    forgotten: IntCounterVec,
    mirrored: IntCounterVec,
}

impl PolicyFamilies {
    pub(super) fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            answers: families.counters(
                "lockgate_policy_answers_total",
                "Requests that a route's policy answered, by what did.",
                &["route", "policy"],
            )?,
            rates: families.counters(
                "lockgate_rate_limit_requests_total",
                "Requests that a rate limit was asked about, by whether it let them go on.",
                &["route", "limit", "outcome"],
            )?,
            forgotten: families.counters(
                "lockgate_rate_limit_forgotten_total",
                "Keys that a rate limit forgot while they had requests to get back, since there were too many others.",
                &["route", "limit"],
            )?,
            mirrored: families.counters(
                "lockgate_mirror_requests_total",
                "Requests that were to be sent to a route's mirror as well, by what became of that.",
                &["route", "outcome"],
            )?,
        })
    }
}

/// Handles of a route's policy.
#[derive(Debug)]
pub struct PolicySeries {
    /// In the order of [`PolicyAnswer::ALL`]; none of what the route cannot answer.
    answers: [Option<IntCounter>; PolicyAnswer::ALL.len()],
    _leases: Vec<Lease>,
}

impl PolicySeries {
    /// Counts an answer.
    pub fn answered(&self, answer: PolicyAnswer) {
        if let Some(counter) = &self.answers[answer as usize] {
            counter.inc();
        }
    }
}

/// Handles of a rate limit.
#[derive(Debug)]
pub struct RateSeries {
    /// Requests that went on.
    pub admitted: IntCounter,
    /// Requests that did not.
    pub refused: IntCounter,
    /// Keys that were forgotten too early.
    pub forgotten: IntCounter,
    _lease: Lease,
}

/// Handles of a route's mirror.
#[derive(Debug)]
pub struct MirrorSeries {
    /// In the order of [`MirrorOutcome::ALL`].
    outcomes: [IntCounter; MirrorOutcome::ALL.len()],
    _lease: Lease,
}

impl MirrorSeries {
    /// Counts a request.
    pub fn count(&self, outcome: MirrorOutcome) {
        self.outcomes[outcome as usize].inc();
    }
}

impl Metrics {
    /// Returns the handles of a route's mirror.
    pub fn mirror(&self, route: &str) -> MirrorSeries {
        let labels = MirrorOutcome::ALL.map(|outcome| [route, outcome.as_str()]);
        let removes = labels.map(|labels| remove(&self.policy.mirrored, &labels));
        MirrorSeries {
            outcomes: labels.map(|labels| self.policy.mirrored.with_label_values(&labels)),
            _lease: self.leases.take(lease::Series::new(&["mirror", route], removes.into())),
        }
    }

    /// Returns the handles of a route's policy, which can give these answers.
    pub fn policy(&self, route: &str, answers: &[PolicyAnswer]) -> Arc<PolicySeries> {
        let family = &self.policy.answers;
        let labels = |answer: PolicyAnswer| [route, answer.as_str()];
        // Each for itself: what the route can answer changes with the configuration.
        let lease = |answer: &PolicyAnswer| {
            let [route, word] = labels(*answer);
            self.leases.take(lease::Series::new(&["policy", route, word], vec![remove(family, &[route, word])]))
        };
        Arc::new(PolicySeries {
            answers: PolicyAnswer::ALL
                .map(|answer| answers.contains(&answer).then(|| family.with_label_values(&labels(answer)))),
            _leases: answers.iter().map(lease).collect(),
        })
    }

    /// Returns the handles of a route's rate limit.
    pub fn rate(&self, route: &str, limit: &str) -> RateSeries {
        let outcome = |outcome| self.policy.rates.with_label_values(&[route, limit, outcome]);
        let of = [route, limit];
        let removes = ["admitted", "refused"].map(|outcome| remove(&self.policy.rates, &[route, limit, outcome]));
        let removes = removes.into_iter().chain([remove(&self.policy.forgotten, &of)]);
        RateSeries {
            admitted: outcome("admitted"),
            refused: outcome("refused"),
            forgotten: self.policy.forgotten.with_label_values(&of),
            _lease: self.leases.take(lease::Series::new(&["rate limit", route, limit], removes.collect())),
        }
    }
}
