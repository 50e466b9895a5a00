//! How a rollout moves: its steps, its guard, and its shadow.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::Either;
use super::written::{Timeout, Whole, Written};
use crate::model::FailureKind;
use crate::text::TextError;
use crate::units::{ByteSize, Share, Weight};

/// A weight, `shadow`, or a map with the time that it lasts.
pub(crate) type StepForm = Either<Written<StepShort>, StepMap>;

/// A step in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepShort {
    Weight(Weight),
    Shadow,
}

impl FromStr for StepShort {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text.trim() {
            "shadow" => Ok(Self::Shadow),
            text => text.parse().map(Self::Weight),
        }
    }
}

impl fmt::Display for StepShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight(weight) => weight.fmt(f),
            Self::Shadow => f.write_str("shadow"),
        }
    }
}

/// A step, with the time that it lasts at least.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Step")]
#[derive(Default)]
pub(crate) struct StepMap {
    /// The canary's share of the keys. Either this or `shadow`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) weight: Option<Written<Weight>>,
    /// The canary serves nobody, and runs beside stable on this share of the requests. Either this or `weight`.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) shadow: Option<Written<Share>>,
    /// How long the step lasts at least, whatever the evidence says.
    #[schemars(extend("x-default" = "`5m`"))]
    pub(crate) hold: Option<Written<Duration>>,
}

/// What is watched, or `off`.
pub(crate) type OffOr<T> = Either<Off, T>;

/// Not watched.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum Off {
    /// It is not watched.
    Off,
}

/// What is watched, and how much worse the canary may be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Guard {
    /// The share of requests that fail; or `off`.
    #[schemars(extend("x-default" = "a tolerance of `0.5%`"))]
    pub(crate) failures: Option<OffOr<Failures>>,
    /// How long requests take. A high quantile needs thousands of requests before it says anything, so that it is watched
    /// only where it stands here.
    #[schemars(extend("x-default" = "not watched"))]
    pub(crate) latency: Option<OffOr<Slowness>>,
    /// The share of requests that the filter or function itself answers with a 4xx: one that turns everybody away fails
    /// nobody. Not of upstreams; or `off`.
    #[schemars(extend("x-default" = "of a filter or function, a tolerance of `1%`"))]
    pub(crate) denials: Option<OffOr<Tolerance>>,
    /// What the calls of the version itself do. Not of upstreams.
    #[schemars(extend("x-default" = "not watched"))]
    pub(crate) calls: Option<Calls>,
    /// Share of the compared requests on which a shadow must do what stable did.
    #[schemars(extend("x-default" = "`99%` where there is a shadow"))]
    pub(crate) agreement: Option<Written<Share>>,
    /// How sure a verdict is, over the whole rollout and however often it is looked at: the chance that a canary which is
    /// no worse is taken back, or that one which is worse than the tolerance climbs, is at most what is missing to 100%.
    pub(crate) confidence: Written<Share>,
    /// Requests that the canary must have had at a step before it climbs. It is taken back as soon as the evidence is
    /// there.
    pub(crate) min_requests: Written<Whole<1, 1_000_000_000>>,
    /// How long a step waits for evidence, once its time is over, before the rollout is called stalled: it holds, and says
    /// so.
    pub(crate) stalled_after: Written<Timeout>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            failures: None,
            latency: None,
            denials: None,
            calls: None,
            agreement: None,
            confidence: Written(Share::from_basis_points(9_900).unwrap_or(Share::FULL)),
            min_requests: Written(Whole(500)),
            stalled_after: Written(Timeout(Duration::from_secs(60 * 60))),
        }
    }
}

/// Requests that fail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Failures {
    /// How much larger the canary's share may be: with `0.5%`, 1.5% where stable has 1%.
    pub(crate) tolerance: Written<Share>,
    /// What counts as a failure. `gateway_errors`: the gateway had no answer of the target to give, and it was not the
    /// client's fault. `upstream_5xx`: the upstream answered so. `filter_failures`: a filter of the chain failed, even if
    /// it is `open`. A status, `503`, or a class of them, `4xx` or `5xx`: the client got it.
    pub(crate) of: Vec<Written<FailureKind>>,
}

impl Default for Failures {
    fn default() -> Self {
        Self { tolerance: Written(Share::from_basis_points(50).unwrap_or_default()), of: default_failures() }
    }
}

pub(crate) fn default_failures() -> Vec<Written<FailureKind>> {
    FailureKind::DEFAULT.into_iter().map(Written).collect()
}

/// A time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Slowness {
    /// Which quantile of it: with `99%`, the time that one request in a hundred exceeds.
    pub(crate) quantile: Written<Share>,
    /// How much longer the canary's may be: with `10%`, 220 ms where stable's is 200 ms.
    pub(crate) tolerance: Written<Share>,
}

impl Default for Slowness {
    fn default() -> Self {
        let share = |points| Written(Share::from_basis_points(points).unwrap_or_default());
        Self { quantile: share(9_900), tolerance: share(1_000) }
    }
}

/// A share.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tolerance {
    /// How much larger the canary's share may be.
    pub(crate) tolerance: Written<Share>,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { tolerance: Written(Share::from_basis_points(100).unwrap_or_default()) }
    }
}

/// What the calls of a version do.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Calls {
    /// How much larger the canary's share of requests with a failed call of this filter or function may be.
    #[schemars(extend("x-default" = "not watched"))]
    pub(crate) failures: Option<Written<Share>>,
    /// The time that a request spends in this filter, or for which it keeps a thread busy in this function: what a function
    /// waits for is not counted here, but by `latency`.
    #[schemars(extend("x-default" = "not watched"))]
    pub(crate) duration: Option<Slowness>,
    /// How much more memory an instance of the canary may have at the end of a request; the median is compared. Of filters
    /// only.
    #[schemars(extend("x-default" = "not watched"))]
    pub(crate) memory: Option<Written<Share>>,
}

/// What happens when the canary is worse.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum OnBad {
    /// Stable serves everybody, and the version goes into quarantine.
    RollBack,
    /// The rollout stays where it is until a person decides.
    Pause,
}

/// Who decides.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Decider {
    /// This gateway.
    Local,
    /// Whoever sets the weight by the API.
    External,
}

pub(crate) const fn local() -> Decider {
    Decider::Local
}

/// Whether the canary serves.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Mode {
    /// It serves its share.
    Serve,
    /// It serves nobody, and runs beside stable.
    Shadow,
}

pub(crate) const fn serve() -> Mode {
    Mode::Serve
}

/// How a canary runs that is a shadow.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Shadow {
    /// Share of the requests that it is tried on.
    pub(crate) sample: Written<Share>,
    /// Processor time that it may use, as a share of one core. Requests beyond that are not compared.
    pub(crate) cpu: Written<Share>,
    /// Bytes of a body that are kept for it. Requests with a longer one are not compared.
    pub(crate) body: Written<ByteSize>,
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            sample: Written(Share::from_basis_points(1_000).unwrap_or_default()),
            cpu: Written(Share::from_basis_points(500).unwrap_or_default()),
            body: Written(ByteSize::kib(64)),
        }
    }
}
