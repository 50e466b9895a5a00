//! How a rollout moves, and what is watched while it does.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::TextError;
use crate::units::{ByteSize, Share, Weight};

/// How a rollout moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A person moves it, from this weight on.
    Weight(Weight),
    /// By itself, step by step; at least one. Shadows come first, then weights that rise.
    Steps(Box<[Step]>),
    /// Not at all: the canary is a shadow until a person decides. Filters only.
    Shadow,
}

/// A step of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the canary does.
    pub stage: Stage,
    /// How long the step lasts at least. Default: 5 min.
    pub hold: Duration,
}

/// What a canary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It serves its share.
    Serve(Weight),
    /// It serves nobody, and runs beside stable on a share of the requests.
    Shadow(Share),
}

impl Stage {
    /// Returns the canary's share of the users.
    #[must_use]
    pub const fn weight(self) -> Weight {
        match self {
            Self::Serve(weight) => weight,
            Self::Shadow(_) => Weight::ZERO,
        }
    }
}

/// What is watched of a rollout, and how much worse the canary may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Requests that fail. Default: 0.5 % more than stable's.
    pub failures: Option<FailureGuard>,
    /// How long requests take. Default: not watched.
    pub latency: Option<SlownessGuard>,
    /// Requests that the filter answers with a 4xx: how many more. Default: 1 %; none for upstreams.
    pub denials: Option<Share>,
    /// Requests with a failed call of the filter: how many more. Default: not watched.
    pub call_failures: Option<Share>,
    /// The time that a request spends in the filter. Default: not watched.
    pub call_duration: Option<SlownessGuard>,
    /// The memory of an instance at the end of a request, its median: how much more. Default: not watched.
    pub call_memory: Option<Share>,
    /// Share of the compared requests on which a shadow must do as stable did. Default: 99 %.
    pub agreement: Option<Share>,
    /// How sure a verdict is. Default: 99 %.
    pub confidence: Share,
    /// Requests that the canary must have had at a step before it climbs. Default: 500.
    pub min_requests: u64,
    /// How long a step waits for evidence, once its time is over, before the rollout is called stalled. Default: 1 h.
    pub stalled_after: Duration,
}

impl Guard {
    /// Returns whether nothing is watched of a canary that serves.
    #[must_use]
    pub const fn watches_nothing(&self) -> bool {
        self.failures.is_none()
            && self.latency.is_none()
            && self.denials.is_none()
            && self.call_failures.is_none()
            && self.call_duration.is_none()
            && self.call_memory.is_none()
    }
}

/// Requests that fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureGuard {
    /// How much larger the canary's share may be.
    pub tolerance: Share,
    /// What counts; at least one. Default: [`FailureKind::DEFAULT`].
    pub of: Vec<FailureKind>,
}

/// A time that must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlownessGuard {
    /// Which quantile. Default: 99 %.
    pub quantile: Share,
    /// How much longer the canary's may be, relative to stable's. Default: 10 %.
    pub tolerance: Share,
}

/// What counts as a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The gateway had no answer of the target to give, and it was not the client's fault.
    GatewayErrors,
    /// The upstream answered with a 5xx.
    Upstream5xx,
    /// A filter of the chain failed, even if it is `open`.
    FilterFailures,
    /// The client got this status, 400 to 599.
    Status(u16),
    /// The client got a status of this class, 4 or 5.
    Class(u8),
}

impl FailureKind {
    /// What counts unless it is said otherwise.
    pub const DEFAULT: [Self; 4] = [Self::GatewayErrors, Self::Upstream5xx, Self::FilterFailures, Self::Class(5)];
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GatewayErrors => f.write_str("gateway_errors"),
            Self::Upstream5xx => f.write_str("upstream_5xx"),
            Self::FilterFailures => f.write_str("filter_failures"),
            Self::Status(status) => status.fmt(f),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

/// `gateway_errors`, `upstream_5xx`, `filter_failures`, `503`, `5xx`.
///
/// # Errors
///
/// Any other word, and statuses that are no errors.
impl FromStr for FailureKind {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text.trim() {
            "gateway_errors" => Ok(Self::GatewayErrors),
            "upstream_5xx" => Ok(Self::Upstream5xx),
            "filter_failures" => Ok(Self::FilterFailures),
            "4xx" => Ok(Self::Class(4)),
            "5xx" => Ok(Self::Class(5)),
            other => match other.parse() {
                Ok(status @ 400..=599) => Ok(Self::Status(status)),
                _ => Err(TextError::new(
                    "`gateway_errors`, `upstream_5xx`, `filter_failures`, `4xx`, `5xx`, or a status from 400 to 599",
                )),
            },
        }
    }
}

/// What happens when a canary is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// Stable serves everybody, and the version goes into quarantine.
    RollBack,
    /// The rollout stays where it is until a person decides.
    Pause,
}

/// Who decides about a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// This gateway.
    Local,
    /// Whoever sets the weight by the API.
    External,
}

/// How a canary runs that is a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowLimits {
    /// Share of the requests that it is tried on, in [`Plan::Shadow`]; a step has its own. Default: 10 %.
    pub sample: Share,
    /// Processor time that it may use, as a share of one core. Default: 5 %.
    pub cpu: Share,
    /// Bytes of a body that are kept for it. Default: 64 KiB.
    pub body: ByteSize,
}
