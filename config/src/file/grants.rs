//! What stands in `grants`, item by item.

use std::fmt;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::{Either, OneOrMany};
use super::written::{FilePath, GuestPath, Written};
use crate::model::OutboundGrant;
use crate::text::{Method, TextError};

/// A place, or a map with the details.
pub(crate) type OutboundForm = Either<Written<OutboundTo>, Outbound>;

/// Where requests may go.
#[derive(Clone, Debug)]
pub(crate) enum OutboundTo {
    /// To a host.
    Host(OutboundGrant),
    /// To an upstream of the file, by its name.
    Upstream(String),
}

impl OutboundTo {
    /// What stands before an upstream's name.
    const UPSTREAM: &str = "upstream:";

    pub(crate) fn parse(text: &str) -> Result<Self, TextError> {
        match text.strip_prefix(Self::UPSTREAM) {
            Some("") => Err(TextError::new("the name of an upstream behind `upstream:`")),
            Some(name) => Ok(Self::Upstream(name.to_owned())),
            None => text.parse().map(Self::Host),
        }
    }
}

impl fmt::Display for OutboundTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(grant) => grant.fmt(f),
            Self::Upstream(name) => write!(f, "{}{name}", Self::UPSTREAM),
        }
    }
}

/// Where requests may go, with the details.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outbound {
    /// Scheme, host and perhaps port; or `upstream:NAME`.
    pub(crate) to: Written<OutboundTo>,
    /// Methods that requests may have.
    #[serde(default)]
    #[schemars(extend("x-default" = "any"))]
    pub(crate) methods: OneOrMany<Written<Method>>,
    /// Networks that the host may be in although they are not public: `127.0.0.0/8`, for a name that leads to this
    /// machine.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) addresses: OneOrMany<Written<IpNet>>,
}

/// What waits for a person's word before it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum RequireApproval {
    /// Nothing does.
    #[default]
    Nothing,
    /// A version that may do more than the one that serves.
    Grants,
}

/// A folder that a function sees. Links and `..` do not lead out of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folder {
    /// The folder. A relative path starts at the folder of this file.
    pub(crate) path: Written<FilePath>,
    /// Where the function finds it.
    #[serde(rename = "as")]
    pub(crate) seen_as: Written<GuestPath>,
    /// Whether it may change what is there.
    #[serde(default = "no")]
    pub(crate) write: Written<bool>,
}

const fn no() -> Written<bool> {
    Written(false)
}
