//! What [`#[filter]`](crate::filter) expands to. Not for use by hand.

use std::cell::OnceCell;
use std::hint::black_box;

use crate::bindings::imports::lockgate::filter::types;
pub use crate::bindings::{configuration, on_request, on_request_body, on_response, on_response_body};
use crate::per_request::begin_request;
use crate::stdio::end_lines;
use crate::{Declare, Filter, Outcome, Request, RequestBodyOutcome, Response, ResponseBodyOutcome, settings};

/// The one filter of a component, from `configure` on.
///
/// A cell without locks, kept in a thread-local: a component has one thread, and its filter need not be `Sync`.
#[derive(Debug)]
pub struct Slot<F> {
    filter: OnceCell<F>,
}

/// Heap that a snapshot has to spare, so that an ordinary request never has to ask for more: `memory.grow` costs an
/// instance more than all the rest of its start.
const SPARE_HEAP_BYTES: usize = 128 * 1024;

impl<F: Filter> Slot<F> {
    #[expect(clippy::new_without_default, reason = "it is made in a const context only")]
    pub const fn new() -> Self {
        Self { filter: OnceCell::new() }
    }

    pub fn configure(&self, settings: &str) -> Result<(), String> {
        let filter = ended(F::configure(settings::read(settings)?, &Declare::now()))?;
        self.filter.set(filter).map_err(|_| "it has been configured before".to_owned())?;
        // The allocator keeps what it was given once. Black boxes, or the compiler sees that nothing comes of it.
        drop(black_box(Vec::<u8>::with_capacity(black_box(SPARE_HEAP_BYTES))));
        Ok(())
    }

    pub fn on_request(&self) -> types::Outcome {
        begin_request();
        match ended(self.filter().on_request(&Request::current())) {
            Ok(Outcome::Continue) => types::Outcome::Continue,
            Ok(Outcome::Respond(answer)) => types::Outcome::Respond(answer.into()),
            Err(failure) => types::Outcome::Fail(failure.into_reason()),
        }
    }

    pub fn on_request_body(&self, chunk: Vec<u8>, end: bool) -> types::RequestBodyOutcome {
        match ended(self.filter().on_request_body(&Request::current(), chunk, end)) {
            Ok(RequestBodyOutcome::Continue) => types::RequestBodyOutcome::Continue,
            Ok(RequestBodyOutcome::Replace(bytes)) => types::RequestBodyOutcome::Replace(bytes),
            Ok(RequestBodyOutcome::Respond(answer)) => types::RequestBodyOutcome::Respond(answer.into()),
            Err(failure) => types::RequestBodyOutcome::Fail(failure.into_reason()),
        }
    }

    pub fn on_response(&self) -> types::ResponseOutcome {
        match ended(self.filter().on_response(&Request::current(), &Response::current())) {
            Ok(()) => types::ResponseOutcome::Continue,
            Err(failure) => types::ResponseOutcome::Fail(failure.into_reason()),
        }
    }

    pub fn on_response_body(&self, chunk: Vec<u8>, end: bool) -> types::ResponseBodyOutcome {
        match ended(self.filter().on_response_body(&Request::current(), &Response::current(), chunk, end)) {
            Ok(ResponseBodyOutcome::Continue) => types::ResponseBodyOutcome::Continue,
            Ok(ResponseBodyOutcome::Replace(bytes)) => types::ResponseBodyOutcome::Replace(bytes),
            Err(failure) => types::ResponseBodyOutcome::Fail(failure.into_reason()),
        }
    }

    fn filter(&self) -> &F {
        self.filter.get().expect("the gateway configures an instance before it calls it")
    }
}

/// Passes on what a phase came to, when all that it printed has been logged.
fn ended<T>(outcome: T) -> T {
    end_lines();
    outcome
}

/// Exports a filter with the named phases. For a component only: a host's linker cannot have symbols by such names, and
/// a filter's unit tests have no use for them.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($filter:ty; $($phase:ident)*) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static FILTER: $crate::glue::Slot<$filter> = const { $crate::glue::Slot::new() };
            }

            struct Component;

            impl $crate::glue::configuration::exports::lockgate::filter::configuration::Guest for Component {
                fn configure(settings: ::std::string::String) -> ::core::result::Result<(), ::std::string::String> {
                    FILTER.with(|filter| filter.configure(&settings))
                }
            }
            $crate::glue::configuration::export_configuration!(
                Component with_types_in $crate::glue::configuration
            );
            $($crate::__export_phase!($phase);)*
        };

        // Elsewhere it is in use all the same, as far as the compiler's warnings go.
        #[cfg(not(target_family = "wasm"))]
        const _: $crate::glue::Slot<$filter> = $crate::glue::Slot::new();
    };
}

// `Component` and `FILTER` below are items, which a macro's hygiene does not cover: they are those of `__export`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_phase {
    (on_request) => {
        impl $crate::glue::on_request::exports::lockgate::filter::on_request::Guest for Component {
            fn on_request() -> $crate::glue::on_request::exports::lockgate::filter::on_request::Outcome {
                FILTER.with(|filter| filter.on_request())
            }
        }
        $crate::glue::on_request::export_on_request!(Component with_types_in $crate::glue::on_request);
    };
    (on_request_body) => {
        impl $crate::glue::on_request_body::exports::lockgate::filter::on_request_body::Guest for Component {
            fn on_request_body(
                chunk: ::std::vec::Vec<u8>,
                end: bool,
            ) -> $crate::glue::on_request_body::exports::lockgate::filter::on_request_body::RequestBodyOutcome {
                FILTER.with(|filter| filter.on_request_body(chunk, end))
            }
        }
        $crate::glue::on_request_body::export_on_request_body!(
            Component with_types_in $crate::glue::on_request_body
        );
    };
    (on_response) => {
        impl $crate::glue::on_response::exports::lockgate::filter::on_response::Guest for Component {
            fn on_response() -> $crate::glue::on_response::exports::lockgate::filter::on_response::ResponseOutcome {
                FILTER.with(|filter| filter.on_response())
            }
        }
        $crate::glue::on_response::export_on_response!(Component with_types_in $crate::glue::on_response);
    };
    (on_response_body) => {
        impl $crate::glue::on_response_body::exports::lockgate::filter::on_response_body::Guest for Component {
            fn on_response_body(
                chunk: ::std::vec::Vec<u8>,
                end: bool,
            ) -> $crate::glue::on_response_body::exports::lockgate::filter::on_response_body::ResponseBodyOutcome {
                FILTER.with(|filter| filter.on_response_body(chunk, end))
            }
        }
        $crate::glue::on_response_body::export_on_response_body!(
            Component with_types_in $crate::glue::on_response_body
        );
    };
}
