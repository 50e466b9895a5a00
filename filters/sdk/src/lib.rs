//! Write filters for the Lockgate gateway.
//!
//! A *filter* is a step in a route's chain: it sees requests and responses as they pass, and may change, answer or
//! refuse them. A whole one:
//!
//! ```
//! use lockgate_filter::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Hello { greeting: String }
//!
//! #[filter]
//! impl Filter for Hello {
//!     type Settings = Self;
//!     fn configure(settings: Self, _: &Declare) -> Result<Self, String> { Ok(settings) }
//!     fn on_request(&self, request: &Request) -> Result<Outcome> {
//!         request.set_header("x-greeting", &self.greeting)?;
//!         Ok(Outcome::Continue)
//!     }
//! }
//! ```
//!
//! In a crate with `crate-type = ["cdylib"]`, `cargo build --release --target wasm32-wasip2` makes the component, which
//! the configuration names:
//!
//! ```yaml
//! filters:
//!   hello:
//!     component: hello.wasm
//!     settings: { greeting: good morning }
//! ```
//!
//! # What is exported
//!
//! [`#[filter]`](filter) exports the phases that the `impl` has, and no others: a phase that is not there costs a
//! request nothing. `configure` is always exported. Where a filter has none, it has no settings (any are an error) and
//! starts as its [`Default`].
//!
//! # One instance for each request
//!
//! By default every request gets an instance of its own, a copy of the memory as `configure` left it. So a filter
//! parses, sorts and compiles all it can in `configure`, and a request finds it done.
//!
//! Two things do not survive that copy. One is an open handle: a filter that opens something in `configure` (it may
//! print) is configured anew in each instance, which is slow and which `lockgate inspect` reports. The other is a
//! secret, for whatever is drawn at random in `configure` is the same in all instances. That includes the keys of
//! [`HashMap`](std::collections::HashMap)'s default hasher: with a `BTreeMap`, a sorted `Vec`, or a hasher of your own
//! choice the question does not arise.
//!
//! With `isolation: reused` one instance serves many requests, one after the other. Fields of the filter outlive a
//! request then; [`PerRequest`] is for what must not.
//!
//! # Failing
//!
//! A phase returns [`Result`]: an error (any `std::error::Error` by `?`, or [`Failure::new`]) says that the filter
//! could not do its work. The text goes to the log, and the filter's `on_failure` decides what becomes of the request.
//! To turn a request away is no failure: that is [`Outcome::Respond`].

/// What the README shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod answer;
mod bindings;
pub mod context;
mod declare;
mod error;
pub mod events;
mod filter;
#[doc(hidden)]
pub mod glue;
pub mod header;
pub mod key_value;
pub mod log;
#[cfg(feature = "outbound")]
pub mod outbound;
mod per_request;
mod request;
mod response;
mod settings;
mod stdio;

pub use answer::{Answer, Outcome, RequestBodyOutcome, ResponseBodyOutcome};
pub use declare::{BodyMode, Counter, CounterBy, Declare, Histogram, HistogramBy, Label};
pub use error::{Failure, Result};
pub use filter::Filter;
pub use lockgate_filter_macros::filter;
pub use per_request::PerRequest;
pub use request::Request;
pub use response::Response;
pub use settings::NoSettings;

/// What nearly every filter uses, [`serde::Deserialize`] for its settings included.
pub mod prelude {
    pub use crate::{
        Answer, Declare, Failure, Filter, NoSettings, Outcome, Request, RequestBodyOutcome, Response,
        ResponseBodyOutcome, Result, filter,
    };
    pub use serde::Deserialize;
}
