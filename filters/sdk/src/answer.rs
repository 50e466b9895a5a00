use crate::bindings::imports::lockgate::filter::types;

/// A complete response that a filter gives instead of the target.
///
/// The gateway frames it: it sets `content-length`, and drops the body where HTTP allows none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Answer {
    /// An answer without headers and body. The status is 200 to 599.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// With one more header. The rules are those of [`Request::set_header`](crate::Request::set_header); an answer that
    /// breaks them fails the filter.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With this body in place of the one it had.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl From<Answer> for types::Response {
    fn from(answer: Answer) -> Self {
        Self { status: answer.status, headers: answer.headers, body: answer.body }
    }
}

/// What a filter decided about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Go on with the next filter of the chain, then the target.
    Continue,
    /// Answer with this; neither later filters nor the target see the request. The response phases of the filters
    /// before this one still run, this one's own do not.
    Respond(Answer),
}

/// What a filter decided about a piece of a request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestBodyOutcome {
    /// Leave it as it is.
    Continue,
    /// Put these bytes in its place (none: remove it).
    Replace(Vec<u8>),
    /// As [`Outcome::Respond`].
    Respond(Answer),
}

/// What a filter decided about a piece of a response's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseBodyOutcome {
    /// Leave it as it is.
    Continue,
    /// Put these bytes in its place (none: remove it).
    Replace(Vec<u8>),
}
