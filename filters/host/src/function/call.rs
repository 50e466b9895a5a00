//! A [`Call`] is one request's guest at work. Whoever asks it for the response drives the guest, on its own task: what is
//! written is handed out at once, and a guest that writes faster than it is read waits. Dropping a call ends the guest.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::coop::unconstrained;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use super::turn::{Turn, late};
use crate::error::{CallError, CallErrorKind};

/// What a guest answers with: a response, or the name of an error.
pub(super) type Answer = Result<http::Response<WasiBody>, String>;

/// A guest at work.
pub(super) type Guest = Pin<Box<dyn Future<Output = Result<(), CallError>> + Send>>;

/// A request that a function is answering.
pub struct Call {
    turn: Arc<Turn>,
    guest: State,
    answer: Option<oneshot::Receiver<Answer>>,
    deadline: Pin<Box<Sleep>>,
    body: Option<WasiBody>,
    /// Its answer has no body, whatever length it names.
    head: bool,
    /// The body may come from elsewhere, and so go on after its guest.
    outlived: bool,
    length: Option<u64>,
    sent: u64,
}

enum State {
    Running(Guest),
    Ended(Result<(), CallError>),
}

/// What became of a guest whose response has been handed out.
#[derive(Debug)]
pub enum Settled {
    /// It has ended.
    Ended(Result<(), CallError>),
    /// It goes on after its response.
    Running(Tail),
}

/// A guest that goes on after its response, for as long as it may take until its header. Dropping it ends the guest.
pub struct Tail {
    turn: Arc<Turn>,
    guest: Guest,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("function", &self.turn.shared.name)
            .field("answered", &self.answer.is_none())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("function", &self.turn.shared.name).finish_non_exhaustive()
    }
}

impl Call {
    pub(super) fn new(
        turn: Arc<Turn>,
        guest: Guest,
        answer: oneshot::Receiver<Answer>,
        head: bool,
        outlived: bool,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep(turn.shared.limits.deadline));
        Self {
            turn,
            guest: State::Running(guest),
            answer: Some(answer),
            deadline,
            body: None,
            head,
            outlived,
            length: None,
            sent: 0,
        }
    }

    /// Returns the header of the response, once. Its `content-length`, where there is one, is a number, and holds. May be
    /// dropped and asked anew.
    ///
    /// # Errors
    ///
    /// The guest failed, ended without an answer, or took longer than its deadline.
    pub async fn response(&mut self) -> Result<http::response::Parts, CallError> {
        poll_fn(|context| self.poll_response(context)).await
    }

    /// Returns the next piece of the response's body, or its trailers; none at its end. May be dropped and asked anew.
    ///
    /// # Errors
    ///
    /// The guest failed before the body was whole, or the body is not of the length that the header names.
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, CallError>> {
        poll_fn(|context| self.poll_frame(context)).await
    }

    /// Returns the next piece as [`Self::frame`] does, if it is there already. The guest is given the thread once.
    pub async fn frame_now(&mut self) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        poll_fn(|context| Poll::Ready(self.poll_frame(context))).await
    }

    /// Returns what the guest does now that its response has been handed out.
    pub async fn settle(mut self) -> Settled {
        poll_fn(|context| {
            self.poll_guest(context);
            Poll::Ready(())
        })
        .await;
        match self.guest {
            State::Ended(ended) => Settled::Ended(ended),
            State::Running(guest) => Settled::Running(Tail { turn: self.turn, guest }),
        }
    }

    /// Returns for how long the request has kept a thread busy.
    pub fn busy(&self) -> Duration {
        self.turn.busy()
    }

    fn poll_guest(&mut self, context: &mut Context<'_>) {
        if let State::Running(guest) = &mut self.guest
            && let Poll::Ready(ended) = poll(&self.turn, guest, context)
        {
            self.guest = State::Ended(ended);
        }
    }

    fn poll_response(&mut self, context: &mut Context<'_>) -> Poll<Result<http::response::Parts, CallError>> {
        self.poll_guest(context);
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Err(CallError::new(CallErrorKind::NoResponse, "the response was taken already")));
        };
        // Only the guest can have put it there, and that has just had its turn: there is nothing to be woken by.
        let answer = match answer.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) if matches!(self.guest, State::Running(_)) => {
                let Some(due) = self.turn.due() else { return Poll::Pending };
                if self.deadline.deadline().into_std() < due {
                    self.deadline.as_mut().reset(due.into());
                }
                ready!(self.deadline.as_mut().poll(context));
                let late = late(self.turn.shared.limits.deadline);
                return Poll::Ready(Err(CallError::new(CallErrorKind::Deadline, late)));
            }
            Err(_) => return Poll::Ready(Err(self.ended_without())),
        };
        self.answer = None;
        self.turn.has_answered();
        Poll::Ready(match answer {
            Ok(response) => self.begin_response(response),
            Err(code) => Err(self.turn.no_answer(format!("it answered with the error {code}"))),
        })
    }

    fn begin_response(&mut self, response: http::Response<WasiBody>) -> Result<http::response::Parts, CallError> {
        let (parts, body) = response.into_parts();
        let refuse = |kind, problem: String| Err(CallError::new(kind, problem));
        if !(200..600).contains(&parts.status.as_u16()) {
            let problem = format!("it answered with status {}; it must be 200 to 599", parts.status.as_u16());
            return refuse(CallErrorKind::InvalidResponse, problem);
        }
        let bodiless = self.head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match length(&parts.headers) {
            Ok(length) => self.length = length.filter(|_| !bodiless),
            Err(problem) => return refuse(CallErrorKind::ContentLength, problem),
        }
        self.body = (!bodiless).then_some(body);
        Ok(parts)
    }

    fn ended_without(&mut self) -> CallError {
        match std::mem::replace(&mut self.guest, State::Ended(Ok(()))) {
            State::Ended(Err(error)) => error,
            _ => self.turn.no_answer("it ended without an answer".to_owned()),
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        self.poll_guest(context);
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        // Tokio would have a channel wait now and then although there is something in it, which here would be an end.
        let polled = pin!(unconstrained(poll_fn(|context| Pin::new(&mut *body).poll_frame(context)))).poll(context);
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending if self.is_left() => None,
            Poll::Pending => return Poll::Pending,
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            // Wasmtime counts with us for guests of 0.3, and lets through no more than was named.
            Some(Err(Error::HttpResponseBodySize(Some(size)))) if self.length.is_some_and(|length| size > length) => {
                self.body = None;
                return Poll::Ready(Some(Err(self.wrong_length("more"))));
            }
            broken => {
                self.body = None;
                return Poll::Ready(self.check_end(broken.is_some()).err().map(Err));
            }
        };
        if let Some(bytes) = frame.data_ref() {
            self.sent += bytes.len() as u64;
            if self.length.is_some_and(|length| self.sent > length) {
                self.body = None;
                return Poll::Ready(Some(Err(self.wrong_length("more"))));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    /// Returns whether nobody will write more of the body.
    fn is_left(&self) -> bool {
        match &self.guest {
            State::Running(_) => false,
            State::Ended(ended) => ended.is_err() || !self.outlived,
        }
    }

    /// Checks that a body which has ended is whole. What a guest that fails leaves behind is no body, even if it looks
    /// like one, unless it is of the length that was named.
    fn check_end(&mut self, broken: bool) -> Result<(), CallError> {
        if self.length.is_some_and(|length| self.sent == length) {
            return Ok(());
        }
        if let State::Ended(ended) = &mut self.guest {
            std::mem::replace(ended, Ok(()))?;
        }
        if self.length.is_some() {
            return Err(self.wrong_length("less"));
        }
        if broken {
            return Err(self.turn.no_answer("it broke its response off".to_owned()));
        }
        Ok(())
    }

    fn wrong_length(&self, how: &str) -> CallError {
        let length = self.length.unwrap_or_default();
        let problem = format!("its body has {how} than the {length} bytes that its `content-length` names");
        CallError::new(CallErrorKind::ContentLength, problem)
    }
}

impl Tail {
    /// Runs the guest to its end.
    ///
    /// # Errors
    ///
    /// It failed, or took too long.
    pub async fn run(mut self) -> Result<(), CallError> {
        let limit = self.turn.shared.limits.deadline;
        let running = poll_fn(|context| poll(&self.turn, &mut self.guest, context));
        match tokio::time::timeout(limit, running).await {
            Ok(ended) => ended,
            Err(_) => {
                let problem = format!("it was still running {limit:?} after its response");
                Err(CallError::new(CallErrorKind::Deadline, problem))
            }
        }
    }
}

/// Gives the guest the thread, and notes for how long it had it.
fn poll(turn: &Turn, guest: &mut Guest, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
    let began = turn.poll_begins();
    let polled = guest.as_mut().poll(context);
    turn.poll_ends(began);
    polled
}

/// Returns the length that a header names.
fn length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err("it named several lengths for its body".to_owned());
    }
    let digits = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(length) => Ok(Some(length)),
        None => Err(format!("its `content-length` is {value:?}, which is no length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_a_length() {
        let of = |values: &[&'static str]| {
            let headers: HeaderMap = values
                .iter()
                .map(|value| (CONTENT_LENGTH, http::HeaderValue::from_static(value)))
                .fold(HeaderMap::new(), |mut headers, (name, value)| {
                    headers.append(name, value);
                    headers
                });
            length(&headers).map_err(|_| ())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["12"]), Ok(Some(12)));
        for wrong in [&["+5"][..], &["-5"], &[""], &["5", "5"], &["99999999999999999999"], &["5, 5"]] {
            assert_eq!(of(wrong), Err(()), "{wrong:?}");
        }
    }
}
