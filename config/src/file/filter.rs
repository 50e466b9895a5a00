//! `filters`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::Either;
use super::grants::{Folder, OutboundForm, RequireApproval};
use super::key_value::Spaces;
use super::written::{FilePath, Timeout, Whole, Written};
use crate::units::ByteSize;

/// A step in a chain, in its stable version.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// The component's file. A relative path starts at the folder of this file.
    pub(crate) component: Written<FilePath>,
    /// What the filter is told when it is loaded, as JSON. The filter itself says what it understands.
    #[serde(default)]
    #[schemars(extend("x-default" = "`{}`"))]
    pub(crate) settings: Option<serde_json::Value>,
    /// What the filter may touch beside the request. Nothing, unless it is said here.
    #[serde(default)]
    pub(crate) grants: Grants,
    /// How long an instance lives. `request`: each request gets a fresh one, kept for all its phases. `reused`: one
    /// serves many requests, one after the other.
    #[serde(default = "request")]
    pub(crate) isolation: IsolationForm,
    /// What becomes of a request when the filter fails. `closed`: it is answered with 503. `open`: it goes on as if
    /// the filter were not there. `fall-back`: 503, and after a few failures the version is quarantined and the last
    /// good one serves.
    #[serde(default = "closed")]
    pub(crate) on_failure: FailureForm,
    /// What the filter may use up.
    #[serde(default)]
    pub(crate) limits: FilterLimits,
    /// Whether a version that may do more than the one that serves waits for `lockgate approve`.
    #[serde(default)]
    #[schemars(extend("x-default" = "as `server.require_approval`"))]
    pub(crate) require_approval: Option<RequireApproval>,
}

/// What a filter may touch.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Grants {
    /// Where it may send HTTP requests: scheme, host (`*.` stands for one or more labels) and perhaps port; or a map with
    /// that as `to`, and with what narrows or widens it. Addresses that are not public (loopback, private, link-local and
    /// such) are refused, whatever the name that leads to them, unless the host is written as an address or `addresses`
    /// lists it. Redirects are not followed: whoever follows one asks again. `upstream:NAME` is an upstream of this file, which the component reaches
    /// as `http://NAME.upstream`, with its balancing, health, retries and TLS. Grants add up.
    pub(crate) outbound: Vec<OutboundForm>,
    /// Of a function: folders of this machine that it sees, and nothing beside them.
    pub(crate) folders: Vec<Folder>,
    /// Spaces in the store that `server.key_value` names, which outlives the process; functions open them as buckets.
    /// `default` is its own, the same for all its versions; any other name is a space that it shares with everyone who is
    /// granted that name. Without one, a filter's keys and values are in the memory of this process and lost with it, and
    /// a function has none. A filter can have one, and with it may wait, so that it cannot export `on-response-body`.
    pub(crate) key_value: Spaces,
}

/// A word, or a map with the details.
pub(crate) type IsolationForm = Either<IsolationWord, IsolationMap>;

pub(super) const fn request() -> IsolationForm {
    Either::Short(IsolationWord::Request)
}

/// How long an instance lives.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum IsolationWord {
    /// One request.
    Request,
    /// Many requests.
    Reused,
}

/// How long an instance lives, with the details.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Isolation")]
pub(crate) struct IsolationMap {
    /// Many requests.
    pub(crate) reused: Reused,
}

/// When an instance that serves many requests is replaced.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reused {
    /// After so many requests; those of functions after up to an eighth fewer, so that they do not all end together.
    pub(crate) requests: Written<Whole<1, { u32::MAX }>>,
    /// When its memory has grown beyond this.
    #[schemars(extend("x-default" = "half of `limits.memory`"))]
    pub(crate) memory: Option<Written<ByteSize>>,
}

impl Default for Reused {
    fn default() -> Self {
        Self { requests: Written(Whole(10_000)), memory: None }
    }
}

/// A word, or a map with the details.
pub(crate) type FailureForm = Either<FailureWord, FailureMap>;

const fn closed() -> FailureForm {
    Either::Short(FailureWord::Closed)
}

/// What becomes of a request when the filter fails.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(crate) enum FailureWord {
    /// It is answered with 503.
    Closed,
    /// It goes on as if the filter were not there.
    Open,
    /// 503, and the last good version serves after a few failures.
    FallBack,
}

/// What becomes of a request when the filter fails, with the details.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(rename = "OnFailure")]
pub(crate) struct FailureMap {
    /// 503, and the last good version serves after a few failures.
    pub(crate) fall_back: FallBack,
}

/// When a failing version is quarantined.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FallBack {
    /// After so many failures …
    pub(crate) failures: Written<Whole<1, 1_000_000>>,
    /// … within this time.
    pub(crate) window: Written<Timeout>,
}

impl Default for FallBack {
    fn default() -> Self {
        Self { failures: Written(Whole(5)), window: Written(Timeout(Duration::from_secs(30))) }
    }
}

/// What a filter may use up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FilterLimits {
    /// Time of one call. At most 1s, or 60s with a grant to wait for, `outbound` or `key_value`: without, the call
    /// holds a thread.
    #[schemars(extend("x-default" = "`10ms`, or `5s` with a grant to wait for, `outbound` or `key_value`"))]
    pub(crate) deadline: Option<Written<Timeout>>,
    /// Time to take in the settings, when it is loaded.
    pub(crate) configure_deadline: Written<Timeout>,
    /// Memory of one instance. At most `server.instance_memory`.
    #[schemars(extend("x-default" = "`16MiB`, or `server.instance_memory` where that is less"))]
    pub(crate) memory: Option<Written<ByteSize>>,
    /// Elements of an instance's tables, together.
    pub(crate) table_elements: Written<Whole<1, 10_000_000>>,
    /// Bytes that one call of the gateway's functions may copy.
    pub(crate) copy: Written<ByteSize>,
    /// Instances that may live at the same time, each version for itself. At most `server.instances`.
    #[schemars(extend("x-default" = "`256`, or `server.instances` where that is less"))]
    pub(crate) instances: Option<Written<Whole<1, 100_000>>>,
    /// Bytes of a body that are held back for a filter that wants it whole. A longer one is answered with 413.
    pub(crate) body: Written<ByteSize>,
    /// Size of its key-value store: keys, values, and 64 bytes for each entry. What does not fit is refused.
    pub(crate) key_value: Written<ByteSize>,
    /// Entries of its key-value store. What does not fit is refused.
    pub(crate) key_value_entries: Written<Whole<1, 100_000_000>>,
}

impl Default for FilterLimits {
    fn default() -> Self {
        Self {
            deadline: None,
            configure_deadline: Written(Timeout(Duration::from_secs(10))),
            memory: None,
            table_elements: Written(Whole(20_000)),
            copy: Written(ByteSize::mib(4)),
            instances: None,
            body: Written(ByteSize::mib(1)),
            key_value: Written(ByteSize::mib(1)),
            key_value_entries: Written(Whole(100_000)),
        }
    }
}
