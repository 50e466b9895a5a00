//! What is told of each thing, as the admin API has it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::control::approvals::Waiting;
use crate::control::drain::DrainingView;
use crate::control::history::Latency;
use crate::control::time::Timestamp;
use crate::control::version::label_of;
use crate::control::why::StepView;
use crate::metrics::CallSummary;
use crate::track::Track;

/// The state of everything.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Swaps of the snapshot since the start, the first one included.
    pub generation: u64,
    /// Since the start.
    pub uptime_seconds: u64,
    /// Whether this process decides: watches, judges and writes state. A process that is being replaced does not.
    pub deciding: bool,
    /// What was wrong with the state directory at the start, and what was done about it.
    pub state_trouble: Option<String>,
    /// The last attempt to load the configuration.
    pub last_reload: LastReload,
    /// In the configuration's order.
    pub routes: Vec<RouteView>,
    /// In the configuration's order.
    pub filters: Vec<FilterView>,
    /// In the configuration's order.
    pub functions: Vec<FunctionView>,
    /// In the configuration's order.
    pub upstreams: Vec<UpstreamView>,
    /// In the configuration's order.
    pub rollouts: Vec<RolloutView>,
    /// Of filters, functions and upstreams, by name and version.
    pub quarantine: Vec<QuarantineView>,
    /// Versions that may do more than what serves, and wait to be let in.
    pub approvals: Vec<ApprovalView>,
    /// Old snapshots that requests still read, the oldest first.
    pub draining: Vec<DrainingView>,
    /// The artifact cache since the start.
    pub cache: CacheView,
}

/// The artifact cache since the start.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CacheView {
    /// Artifacts that were found.
    pub hits: u64,
    /// Artifacts that had to be made.
    pub misses: u64,
    /// Artifacts that were found but not trusted, by why.
    pub rejects: BTreeMap<String, u64>,
    /// Time spent compiling, configuring and snapshotting.
    pub compile_seconds: f64,
}

/// An attempt to load the configuration.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LastReload {
    /// When it ended, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// What caused it: `start`, `file`, `signal`, `api`.
    pub cause: &'static str,
    /// Who: `cli by uid 1000`, `api 127.0.0.1`, `signal`, `file`, `gateway`.
    pub actor: String,
    /// `swapped`, `unchanged` or `refused`.
    pub outcome: &'static str,
    /// Why it was refused: all problems, each at its place in the file.
    pub problems: Option<String>,
}

/// A route.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RouteView {
    /// Its name.
    pub name: String,
    /// `api.example.com`, `*.example.com`; none means any.
    pub hosts: Vec<String>,
    /// `/exact`, `/users/{id}`, `/prefix/*`.
    pub path: String,
    /// None means any.
    pub methods: Vec<String>,
    /// `name`, or `name: value`; all of them must hold.
    pub headers: Vec<String>,
    /// In the order of the request, middleware by the names of their functions.
    pub filters: Vec<String>,
    /// The upstream that answers, unless a filter chooses another; none where something else does.
    pub upstream: Option<String>,
    /// The function that answers; none where something else does.
    pub function: Option<String>,
    /// What a filter may choose.
    pub alternatives: Vec<String>,
    /// The folder whose files answer.
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Where requests are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// The status that is always answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<u16>,
}

/// A filter.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FilterView {
    /// Its name.
    pub name: String,
    /// `closed`, `open` or `fall-back`.
    pub on_failure: &'static str,
    /// `request` or `reused`.
    pub isolation: &'static str,
    /// The label of the version that serves the stable track.
    pub serving: String,
    /// What is wrong with it: its stable version is in quarantine, and what serves instead.
    pub trouble: Option<String>,
    /// The versions that are loaded; of older ones, only metrics remain.
    pub versions: Vec<VersionView>,
    /// Labels of the versions that it can fall back to, the best first.
    pub last_good: Vec<String>,
}

/// A function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FunctionView {
    /// Its name.
    pub name: String,
    /// `request` or `reused`.
    pub isolation: &'static str,
    /// The label of the version that serves the stable track.
    pub serving: String,
    /// The versions that are loaded; of older ones, only metrics remain.
    pub versions: Vec<FunctionVersionView>,
}

/// A loaded version of a function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FunctionVersionView {
    /// What stands for the version in metrics, logs and commands.
    pub label: String,
    /// SHA-256 of the component, in hex.
    pub component_digest: String,
    /// SHA-256 of the environment, in hex.
    pub vars_digest: String,
    /// SHA-256 of the grants, in hex.
    pub grants_digest: String,
    /// Where the component was read.
    pub component: String,
    /// What it does now: `stable`, `canary`, or `none`.
    pub role: &'static str,
    /// Instances alive, idle ones that wait for reuse included.
    pub instances: u32,
    /// Their linear memory.
    pub memory_bytes: u64,
    /// Its calls since it was loaded, on both tracks.
    pub calls: CallsView,
    /// Why it is in quarantine.
    pub quarantined: Option<String>,
}

/// A loaded version of a filter.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct VersionView {
    /// Twelve hex digits that stand for the version in metrics, logs and commands.
    pub label: String,
    /// SHA-256 of the component, in hex.
    pub component_digest: String,
    /// SHA-256 of the settings, in hex.
    pub settings_digest: String,
    /// SHA-256 of the grants, in hex.
    pub grants_digest: String,
    /// Where the component was read.
    pub component: String,
    /// What it does now: `stable`, `canary`, or `none`.
    pub role: &'static str,
    /// The phases in which it is called.
    pub phases: Vec<&'static str>,
    /// `inline`, or `fibre` where it may wait.
    pub lane: &'static str,
    /// Whether `configure` ran once, at load, and its memory was snapshotted.
    pub snapshotted: bool,
    /// Why it was not.
    pub not_snapshotted_because: Option<String>,
    /// Instances alive, idle ones that wait for reuse included.
    pub instances: u32,
    /// Their linear memory.
    pub memory_bytes: u64,
    /// Its calls since it was loaded, on both tracks.
    pub calls: CallsView,
    /// Why it is in quarantine.
    pub quarantined: Option<String>,
}

/// Calls of a version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CallsView {
    /// All of them: of a filter, one for each phase of each request.
    pub total: u64,
    /// Those that failed, by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// Half of the calls took no longer, as exactly as the metric's buckets tell; none without calls.
    pub p50_seconds: Option<f64>,
    /// Of a hundred calls, 99 took no longer.
    pub p99_seconds: Option<f64>,
}

impl CallsView {
    /// Returns what a version's summaries of both tracks come to.
    pub(super) fn of(summary: impl Fn(Track) -> Option<CallSummary>) -> Self {
        let tracks: Vec<CallSummary> = Track::ALL.into_iter().filter_map(summary).collect();
        let mut failures = BTreeMap::new();
        for (kind, count) in tracks.iter().flat_map(|summary| &summary.failures) {
            *failures.entry(*kind).or_default() += count;
        }
        let mut durations = Latency::default();
        for summary in &tracks {
            durations.bounds.clone_from(&summary.bounds);
            let counts = &mut durations.counts[Track::Stable as usize];
            counts.resize(summary.counts.len(), 0);
            counts.iter_mut().zip(&summary.counts).for_each(|(sum, count)| *sum += count);
        }
        Self {
            total: tracks.iter().map(|summary| summary.calls).sum(),
            failures,
            p50_seconds: durations.quantile(Track::Stable, 0.5),
            p99_seconds: durations.quantile(Track::Stable, 0.99),
        }
    }
}

/// An upstream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UpstreamView {
    /// Its name.
    pub name: String,
    /// The upstream whose endpoints serve its stable track: itself, unless its canary was promoted.
    pub serving: String,
    /// `http1`, `h2c`, `h2` or `auto`.
    pub protocol: &'static str,
    /// Requests that wait for room.
    pub pending: usize,
    /// Its own addresses, as they were last resolved.
    pub endpoints: Vec<EndpointView>,
}

/// An address of an upstream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EndpointView {
    /// Address and port.
    pub address: String,
    /// Its share beside the others'.
    pub weight: u32,
    /// `usable`, `unhealthy` (its checks fail) or `ejected` (left out for a while, since its requests failed).
    pub state: &'static str,
    /// Requests under way.
    pub requests: u32,
    /// Open connections, idle ones included.
    pub connections: u32,
}

/// A rollout.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RolloutView {
    /// Its name.
    pub name: String,
    /// `filter auth` or `upstream app`.
    pub subject: String,
    /// What the canary may do that stable may not: `send POST requests to https://api.example.com:443`.
    pub gains: Vec<String>,
    /// `waiting` (for approval), `idle`, `shadowing`, `ramping`, `stalled`, `paused`, `promoted`, `rolled-back` or `abandoned`.
    pub state: &'static str,
    /// Why it waits, is paused, was rolled back or abandoned.
    pub why: Option<String>,
    /// Since when it has been so, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// The canary's share in force, as `5%`.
    pub weight: String,
    /// The canary's share in the file.
    pub weight_in_file: String,
    /// Whether the state overlays the file.
    pub differs_from_file: bool,
    /// The stable version's label, or the upstream's name.
    pub stable: String,
    /// The canary's label, or the upstream's name.
    pub canary: String,
    /// The label of the version that serves everybody, or the upstream's name; none while requests are split.
    pub serving: Option<String>,
    /// The step under way, from 1; none without steps.
    pub step: Option<usize>,
    /// The steps in the file.
    pub steps: Vec<StepView>,
    /// What is left of the time of the step under way; none where it does not climb by itself.
    pub hold_left_seconds: Option<f64>,
    /// What the judge said when it looked last: `worse`, `not-worse` or `undecided`; none where nobody judges it.
    pub verdict: Option<&'static str>,
    /// `local`, or `external` where it never moves by itself.
    pub decider: &'static str,
    /// What it shares with the rollouts that it moves together with.
    pub link: Option<String>,
    /// What is hashed, in order of preference: `header x-user-id`, `client_ip`.
    pub key: Vec<String>,
    /// What is hashed with it.
    pub salt: String,
    /// Requests since it began with these versions, or since the start of the process, by track.
    pub requests: RequestsView,
}

/// Requests by track.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct RequestsView {
    /// That got the stable version.
    pub stable: u64,
    /// That got the canary.
    pub canary: u64,
}

/// A version in quarantine.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QuarantineView {
    /// What it is a version of: `filter auth`, `function hello`; or `upstream app`, whose place another one was to take.
    pub subject: String,
    /// The version's label: what is given to release it. Of an upstream, its name and the digest of its settings.
    pub version: String,
    /// Why.
    pub why: String,
    /// Since when, as RFC 3339 in UTC.
    #[schema(value_type = String)]
    pub since: Timestamp,
}

/// A version that waits to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApprovalView {
    /// `filter` or `function`.
    pub kind: String,
    /// Its name: what is given to approve it.
    pub name: String,
    /// The version's label.
    pub version: String,
    /// What it may do that the one which serves may not.
    pub gains: Vec<String>,
    /// The rollout whose canary it is; none where it would be stable, and the file waits with it.
    pub rollout: Option<String>,
}

impl ApprovalView {
    pub(in crate::control) fn of(waiting: &Waiting) -> Self {
        let (kind, name) = waiting.subject.split_once(' ').unwrap_or_default();
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            version: label_of(&waiting.version).to_string(),
            gains: waiting.gains.iter().map(ToString::to_string).collect(),
            rollout: waiting.rollout.clone(),
        }
    }
}
