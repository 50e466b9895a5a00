//! Key-value stores: what is granted of them, and where the one is that outlives the process.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::{Either, OneOrMany};
use super::written::{Name, Written};
use crate::units::Secret;

/// Names of spaces, or one of them.
pub(crate) type Spaces = OneOrMany<Written<Name>>;

/// A word, or a map with the details.
pub(crate) type StoreForm = Either<StoreWord, StoreMap>;

/// A key-value store.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum StoreWord {
    /// A file in `state_dir`.
    Embedded,
}

/// A key-value store on a server.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KeyValueStore")]
pub(crate) struct StoreMap {
    /// The server's address, `redis://user:password@host:6379/0`; Redis 5 or later. It is kept secret. Gateways with the
    /// same address and number share what is kept under the same names.
    pub(crate) redis: Written<Secret>,
}
