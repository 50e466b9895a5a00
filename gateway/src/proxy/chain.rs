//! Runs a chain. The request passes its filters in order, the response in reverse, and here alone it is decided what
//! becomes of a request when a filter continues, responds or fails. Free of Pingora.
//!
//! A chain keeps an instance of each filter that the request has met, from its first phase to its last. A call that
//! does its work allocates nothing here; the one vector is made when the request enters the chain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lockgate_config::model::FailureMode;
use lockgate_host::{
    BodyMode, BodyOutcome, CallError, CallErrorKind, Exchange, Instance, Outcome, Phase, Response, ResponseBodyOutcome,
    ResponseOutcome, Upstreams,
};

use sync_wrapper::SyncWrapper;

use crate::control::snapshot::Link;
use crate::metrics::{FAILED_BY_ITSELF, exports};
use crate::proxy::fault::Fault;
use crate::proxy::shadow::Captures;
use crate::proxy::trace::Calls;
use crate::shadow::capture::{Call, Decided};
use crate::track::Tracks;

/// The state of a request in its route's chain.
#[derive(Debug, Default)]
pub struct Chain {
    steps: Vec<Step>,
    /// Filters whose response phases are due: those that the request passed, and on the way back those still ahead.
    passed: usize,
    tracks: Tracks,
    /// What is kept of stable's calls; none for most requests.
    captures: Option<Box<Captures>>,
    /// By which filters reach upstreams; none where none is granted one.
    upstreams: Option<Arc<dyn Upstreams>>,
    /// What is noted of all calls for the request's trace; none for most requests.
    calls: Option<Box<Calls>>,
}

/// The state of a request in one filter.
#[derive(Debug, Default)]
pub struct Step {
    /// Pingora asks that a request's context can be shared between threads. It never is: all access is exclusive.
    instance: Option<SyncWrapper<Instance>>,
    /// Failed open: the filter is as good as not there.
    skipped: bool,
    /// What a filter that wants the whole response body has been given so far.
    held: BytesMut,
    /// The last thing that it decided.
    pub outcome: Option<&'static str>,
    /// Time spent in its calls.
    pub spent: Duration,
    /// Linear memory of its instance, when that was given back.
    pub memory_bytes: u64,
}

/// What a chain decided about a request.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Answer with this.
    Respond(Response),
    /// A filter failed, and is not `open`.
    Fail(Fault),
}

/// Why a call gave no decision.
enum Failure {
    /// It was ended.
    Call(CallError),
    /// The filter said so itself.
    Itself(String),
}

const CONTINUE: usize = 0;
const RESPOND: usize = 1;
const FAIL: usize = 2;

impl Chain {
    /// Returns the state of a request that enters a chain.
    pub fn enter(links: &[Link], tracks: Tracks, captures: Option<Box<Captures>>) -> Self {
        Self {
            steps: std::iter::repeat_with(Step::default).take(links.len()).collect(),
            passed: 0,
            tracks,
            captures,
            upstreams: None,
            calls: None,
        }
    }

    /// Notes calls from here on.
    pub fn note_calls(&mut self) {
        self.calls = Some(Box::default());
    }

    /// Adds the calls that were noted behind a middleware.
    pub fn extend_calls(&mut self, behind: Option<Box<Calls>>) {
        if let Some(behind) = behind {
            self.calls.get_or_insert_default().extend(*behind);
        }
    }

    /// Returns the calls that were noted, once.
    pub fn take_calls(&mut self) -> Option<Box<Calls>> {
        self.calls.take()
    }

    /// Lets filters reach the upstreams that they are granted.
    pub fn reach(&mut self, upstreams: Option<Arc<dyn Upstreams>>) {
        self.upstreams = upstreams;
    }

    /// Returns the state in each filter, in the order of the chain; empty where the request never entered it.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Takes the state in each filter, when the request is over.
    pub fn take_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// Adds the state in the filters behind a middleware, for the log.
    pub fn extend(&mut self, behind: Vec<Step>) {
        self.steps.extend(behind);
    }

    /// Returns how the chain wants the request's body.
    pub fn request_body(&self, links: &[Link]) -> BodyMode {
        let modes = self.active(links).map(|link| link.versions.on(self.tracks).0.filter().request_body());
        modes.max_by_key(|mode| *mode as u8).unwrap_or(BodyMode::None)
    }

    /// Returns the longest request body that every filter that wants it whole takes, in bytes.
    pub fn request_body_max(&self, links: &[Link]) -> u64 {
        self.active(links)
            .map(|link| link.versions.on(self.tracks).0.filter())
            .filter(|filter| filter.request_body() == BodyMode::Buffer)
            .map(|filter| filter.limits().body_bytes)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Returns whether a filter that the response has yet to pass acts on its body.
    pub fn acts_on_response_body(&self, links: &[Link]) -> bool {
        self.active(links.get(..self.passed).unwrap_or(links))
            .any(|link| exports(link.versions.on(self.tracks).0.filter(), Phase::OnResponseBody))
    }

    /// Filters that have not failed open.
    fn active<'a>(&self, links: &'a [Link]) -> impl Iterator<Item = &'a Link> {
        links.iter().zip(&self.steps).filter(|(_, step)| !step.skipped).map(|(link, _)| link)
    }

    /// Passes the request's headers along the chain.
    pub async fn on_request(&mut self, links: &[Link], exchange: &mut Box<Exchange>) -> Verdict {
        let mut started = Instant::now();
        for (index, link) in links.iter().enumerate() {
            if !self.has(index, link, Phase::OnRequest) {
                self.pass(index, link, Phase::OnRequest, exchange);
                self.passed = index + 1;
                continue;
            }
            let before = self.before(index, exchange);
            if before.is_some() {
                started = Instant::now();
            }
            let outcome = match self.instance(index, link) {
                Ok(instance) => instance.at(started).on_request(exchange).await,
                Err(error) => Err(error),
            };
            self.after(index, before, Phase::OnRequest, None, &outcome, exchange);
            let failure = match outcome {
                Ok(Outcome::Continue) => {
                    started = self.record(index, link, Phase::OnRequest, CONTINUE, started);
                    self.passed = index + 1;
                    continue;
                }
                Ok(Outcome::Respond(response)) => {
                    self.record(index, link, Phase::OnRequest, RESPOND, started);
                    return Verdict::Respond(response);
                }
                Ok(Outcome::Fail(text)) => Failure::Itself(text),
                Err(error) => Failure::Call(error),
            };
            if let Some(fault) = self.failed(index, link, Phase::OnRequest, started, failure, exchange) {
                return Verdict::Fail(fault);
            }
            started = Instant::now();
            self.passed = index + 1;
        }
        Verdict::Continue
    }

    /// Passes a piece of the request's body along the chain, or all of it at once.
    pub async fn on_request_body(
        &mut self,
        links: &[Link],
        exchange: &mut Box<Exchange>,
        body: &mut Bytes,
        end: bool,
    ) -> Verdict {
        let mut started = Instant::now();
        for (index, link) in links.iter().enumerate() {
            if !self.has(index, link, Phase::OnRequestBody) {
                continue;
            }
            let before = self.before(index, exchange);
            if before.is_some() {
                started = Instant::now();
            }
            let outcome = match self.instance(index, link) {
                Ok(instance) => instance.at(started).on_request_body(exchange, body.clone(), end).await,
                Err(error) => Err(error),
            };
            self.after(index, before, Phase::OnRequestBody, Some((&*body, end)), &outcome, exchange);
            let failure = match outcome {
                Ok(outcome @ (BodyOutcome::Continue | BodyOutcome::Replace(_))) => {
                    if let BodyOutcome::Replace(other) = outcome {
                        *body = other;
                    }
                    started = self.record(index, link, Phase::OnRequestBody, CONTINUE, started);
                    continue;
                }
                Ok(BodyOutcome::Respond(response)) => {
                    self.record(index, link, Phase::OnRequestBody, RESPOND, started);
                    self.passed = index;
                    return Verdict::Respond(response);
                }
                Ok(BodyOutcome::Fail(text)) => Failure::Itself(text),
                Err(error) => Failure::Call(error),
            };
            if let Some(fault) = self.failed(index, link, Phase::OnRequestBody, started, failure, exchange) {
                self.passed = index;
                return Verdict::Fail(fault);
            }
            started = Instant::now();
        }
        Verdict::Continue
    }

    /// Passes the response's headers back along the chain. After a fault, call it again with the answer to that: the
    /// filters that the fault left ahead see it.
    pub async fn on_response(&mut self, links: &[Link], exchange: &mut Box<Exchange>) -> Result<(), Fault> {
        // What a filter does on the way back must not change what the ones ahead will be given of the body: `passed` only
        // falls where a filter failed closed.
        let mut started = Instant::now();
        for (index, link) in links.iter().enumerate().take(self.passed).rev() {
            if !self.has(index, link, Phase::OnResponse) {
                self.pass(index, link, Phase::OnResponse, exchange);
                continue;
            }
            let before = self.before(index, exchange);
            if before.is_some() {
                started = Instant::now();
            }
            let outcome = match self.instance(index, link) {
                Ok(instance) => instance.at(started).on_response(exchange).await,
                Err(error) => Err(error),
            };
            self.after(index, before, Phase::OnResponse, None, &outcome, exchange);
            let failure = match outcome {
                Ok(ResponseOutcome::Continue) => {
                    started = self.record(index, link, Phase::OnResponse, CONTINUE, started);
                    continue;
                }
                Ok(ResponseOutcome::Fail(text)) => Failure::Itself(text),
                Err(error) => Failure::Call(error),
            };
            if let Some(fault) = self.failed(index, link, Phase::OnResponse, started, failure, exchange) {
                self.passed = index;
                return Err(fault);
            }
            started = Instant::now();
        }
        Ok(())
    }

    /// Passes a piece of the response's body back along the chain. The headers have been sent: after a fault there is
    /// nothing left but to cut the response off.
    pub fn on_response_body(
        &mut self,
        links: &[Link],
        exchange: &mut Box<Exchange>,
        body: &mut Bytes,
        end: bool,
    ) -> Result<(), Fault> {
        let mut started = Instant::now();
        for (index, link) in links.iter().enumerate().take(self.passed).rev() {
            if !self.has(index, link, Phase::OnResponseBody) {
                continue;
            }
            let filter = link.versions.on(self.tracks).0.filter();
            if filter.response_body() == BodyMode::Buffer {
                let held = &mut self.steps[index].held;
                held.extend_from_slice(body);
                if held.len() as u64 > filter.limits().body_bytes {
                    let whole = std::mem::take(held).freeze();
                    let failure = Failure::Itself("the response's body is longer than `limits.body`".to_owned());
                    if let Some(fault) = self.failed(index, link, Phase::OnResponseBody, started, failure, exchange) {
                        self.passed = index;
                        return Err(fault);
                    }
                    *body = whole;
                    started = Instant::now();
                    continue;
                }
                if !end {
                    *body = Bytes::new();
                    continue;
                }
                *body = std::mem::take(held).freeze();
            }
            let before = self.before(index, exchange);
            if before.is_some() {
                started = Instant::now();
            }
            let outcome = match self.instance(index, link) {
                Ok(instance) => instance.at(started).on_response_body(exchange, body.clone(), end),
                Err(error) => Err(error),
            };
            self.after(index, before, Phase::OnResponseBody, Some((&*body, end)), &outcome, exchange);
            let failure = match outcome {
                Ok(outcome @ (ResponseBodyOutcome::Continue | ResponseBodyOutcome::Replace(_))) => {
                    if let ResponseBodyOutcome::Replace(other) = outcome {
                        *body = other;
                    }
                    started = self.record(index, link, Phase::OnResponseBody, CONTINUE, started);
                    continue;
                }
                Ok(ResponseBodyOutcome::Fail(text)) => Failure::Itself(text),
                Err(error) => Failure::Call(error),
            };
            if let Some(fault) = self.failed(index, link, Phase::OnResponseBody, started, failure, exchange) {
                self.passed = index;
                return Err(fault);
            }
            started = Instant::now();
        }
        Ok(())
    }

    /// Gives the instances back: to their pools, or to be dropped.
    pub fn leave(&mut self) {
        for step in &mut self.steps {
            if let Some(mut instance) = step.instance.take() {
                step.memory_bytes = instance.get_mut().memory_bytes();
            }
        }
    }

    /// Returns what was kept for the shadows of this chain's filters, once.
    pub fn take_captures(&mut self) -> Option<Box<Captures>> {
        self.captures.take()
    }

    /// Begins to keep a call, for the few requests that a shadow is tried on.
    fn before(&self, index: usize, exchange: &Exchange) -> Option<Box<Exchange>> {
        Captures::before(self.captures.as_deref(), index, exchange)
    }

    /// Keeps a call, if it was begun.
    fn after<'a, T: 'a>(
        &mut self,
        index: usize,
        before: Option<Box<Exchange>>,
        phase: Phase,
        piece: Option<(&Bytes, bool)>,
        outcome: &'a Result<T, CallError>,
        exchange: &Exchange,
    ) where
        Decided: From<&'a Result<T, CallError>>,
    {
        let (Some(before), Some(captures)) = (before, &mut self.captures) else { return };
        let instance = self.steps.get_mut(index).and_then(|step| step.instance.as_mut());
        let notes = instance.map(|instance| instance.get_mut().take_notes()).unwrap_or_default();
        let piece = piece.map(|(piece, end)| (piece.clone(), end));
        let (decided, after) = (Decided::from(outcome), Box::new(exchange.clone()));
        captures.keep(index, Call { phase, before, piece, notes, decided, after });
    }

    /// Keeps that a filter has no such phase, which its canary may have.
    fn pass(&mut self, index: usize, link: &Link, phase: Phase, exchange: &Exchange) {
        if let Some(captures) = &mut self.captures
            && self.steps.get(index).is_some_and(|step| !step.skipped)
        {
            captures.pass(index, link, phase, exchange);
        }
    }

    fn has(&self, index: usize, link: &Link, phase: Phase) -> bool {
        self.steps.get(index).is_some_and(|step| !step.skipped)
            && exports(link.versions.on(self.tracks).0.filter(), phase)
    }

    /// Returns the filter's instance for this request, made at its first call.
    fn instance(&mut self, index: usize, link: &Link) -> Result<&mut Instance, CallError> {
        let effects = Captures::effects(self.captures.as_deref(), index);
        let slot = &mut self.steps[index].instance;
        match slot {
            Some(instance) => Ok(instance.get_mut()),
            None => {
                let (version, track) = link.versions.on(self.tracks);
                let mut instance = version.filter().acquire_for(track.as_str(), effects)?;
                if let Some(upstreams) = &self.upstreams {
                    instance.reach(Arc::clone(upstreams));
                }
                Ok(slot.insert(SyncWrapper::new(instance)).get_mut())
            }
        }
    }

    /// Accounts for a call that began when the one before it had ended, and returns when it has ended itself: one look at
    /// the clock for each call.
    fn record(&mut self, index: usize, link: &Link, phase: Phase, outcome: usize, started: Instant) -> Instant {
        let ended = Instant::now();
        let spent = ended.duration_since(started);
        let (version, track) = link.versions.on(self.tracks);
        if let Some(series) = version.series(track) {
            series.call(phase, outcome, spent);
        }
        if let Some(calls) = &mut self.calls {
            let outcome = crate::metrics::OUTCOMES.get(outcome).copied().unwrap_or_default();
            calls.note(link, self.tracks, phase, outcome, started, spent);
        }
        let step = &mut self.steps[index];
        step.spent += spent;
        // An earlier answer is the more telling one.
        if step.outcome.is_none() || outcome != CONTINUE {
            step.outcome = crate::metrics::OUTCOMES.get(outcome).copied();
        }
        ended
    }

    /// Accounts for a failure, and decides: a fault, or none where the filter is `open`.
    fn failed(
        &mut self,
        index: usize,
        link: &Link,
        phase: Phase,
        started: Instant,
        failure: Failure,
        exchange: &Exchange,
    ) -> Option<Fault> {
        self.record(index, link, phase, FAIL, started);
        let step = &mut self.steps[index];
        step.instance = None;
        let (version, track) = link.versions.on(self.tracks);
        let (kind, message) = match &failure {
            Failure::Call(error) => (error.kind.as_str(), error.message.as_str()),
            Failure::Itself(text) => (FAILED_BY_ITSELF, text.as_str()),
        };
        if let Some(series) = version.series(track) {
            series.failure(kind);
        }
        if let Some(unlogged) = version.may_log() {
            tracing::warn!(
                target: "lockgate::filter",
                filter = %link.filter,
                version = %version.label(),
                component = %version.id().component,
                track = track.as_str(),
                phase = phase.as_str(),
                kind,
                request_id = %exchange.id,
                after_ms = started.elapsed().as_secs_f64() * 1e3,
                unlogged,
                "filter failed: {message}"
            );
        }
        version.failed();
        match link.on_failure {
            FailureMode::Open => {
                step.skipped = true;
                None
            }
            FailureMode::Closed | FailureMode::FallBack { .. } => Some(match failure {
                Failure::Call(CallError { kind: CallErrorKind::Exhausted, .. }) => Fault::FilterExhausted,
                _ => Fault::FilterFailed,
            }),
        }
    }
}
