use serde::de::DeserializeOwned;

use crate::{Declare, Outcome, Request, RequestBodyOutcome, Response, ResponseBodyOutcome, Result};

/// A filter: a type made from its settings, with a method for each phase that it takes part in.
///
/// Put [`#[filter]`](crate::filter) before the `impl`, and write only the methods that the filter needs. The gateway
/// calls the phases in the order in which they stand here; bodies come chunk by chunk, or whole where `configure`
/// [declared](Declare::request_body) so.
pub trait Filter: Sized + 'static {
    /// What the `settings` of the filter's configuration are read as. Left out together with `configure`:
    /// [`NoSettings`](crate::NoSettings).
    ///
    /// Settings that do not fit are reported to the operator with their path and the reason. Missing settings are read
    /// as an empty map. `#[serde(deny_unknown_fields)]` turns a misspelt setting into an error, too.
    type Settings: DeserializeOwned;

    /// Makes the filter when a version is loaded, once, before any request. Left out: [`Default::default`].
    ///
    /// # Errors
    ///
    /// The text is shown to the operator and the version is not loaded, so say which setting is wrong, and what would
    /// be right.
    fn configure(settings: Self::Settings, declare: &Declare) -> Result<Self, String>;

    /// Acts on the headers of a request, before they go to the target.
    ///
    /// # Errors
    ///
    /// The filter could not do its work.
    fn on_request(&self, request: &Request) -> Result<Outcome> {
        let _ = request;
        Ok(Outcome::Continue)
    }

    /// Acts on a piece of a request's body; `end` tells that nothing follows, and the last piece may be empty.
    ///
    /// # Errors
    ///
    /// The filter could not do its work.
    fn on_request_body(&self, request: &Request, chunk: Vec<u8>, end: bool) -> Result<RequestBodyOutcome> {
        let _ = (request, chunk, end);
        Ok(RequestBodyOutcome::Continue)
    }

    /// Acts on the headers of a response, before they go to the client.
    ///
    /// # Errors
    ///
    /// The filter could not do its work.
    fn on_response(&self, request: &Request, response: &Response) -> Result<()> {
        let _ = (request, response);
        Ok(())
    }

    /// Acts on a piece of a response's body; `end` tells that nothing follows, and the last piece may be empty.
    ///
    /// # Errors
    ///
    /// The filter could not do its work. The response's headers are on their way by then.
    fn on_response_body(
        &self,
        request: &Request,
        response: &Response,
        chunk: Vec<u8>,
        end: bool,
    ) -> Result<ResponseBodyOutcome> {
        let _ = (request, response, chunk, end);
        Ok(ResponseBodyOutcome::Continue)
    }
}
