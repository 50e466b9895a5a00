//! A middleware stands in the chain: a function that has its request handled by what is behind it. It is run as a target
//! is (see [`function`]), and what it asks for is a subrequest of Pingora's that goes on where it stands: the filters
//! behind it, further middleware, the target, on the same snapshot, the same tracks and under the same id. So there is one
//! way to an upstream, whoever asks. The subrequest neither routes nor splits, and tells its parent what became of it,
//! whose log line it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate_config::model::FailureMode;
use lockgate_host::{CallError, CallErrorKind, World};
use pingora::proxy::Session;

use crate::control::function::FunctionVersion;
use crate::metrics::OUTCOMES;
use crate::proxy::chain::Step;
use crate::proxy::client::Ahead;
use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::function::{self, Answerer, Ended, Run};
use crate::proxy::inner::Reach;
use crate::proxy::rest::{Direct, Rest};
use crate::proxy::{Gateway, forward};
use crate::track::Track;

/// Has the middleware that stands next in the chain answer, if there is one. Returns whether there is.
///
/// # Errors
/// The middleware failed, or the client did: Pingora has the fault answered, or the response cut off.
pub async fn answer(gateway: &Gateway, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
    let Some(route) = context.route() else { return Ok(false) };
    let Some(link) = route.middleware.get(context.part) else { return Ok(false) };
    let (version, track) = link.versions.on(context.tracks);
    let (version, on_failure) = (Arc::clone(version), link.on_failure);
    let place = context.middleware.len();
    context.middleware.push((context.part, Step::default()));
    if let Some((chain, links, _)) = context.filters() {
        context.response_body = chain.acts_on_response_body(links);
    }
    let started = Instant::now();
    let (rest, mut behind) = Rest::prepare(session, context).ok_or_else(|| context.fail(Fault::Internal))?;
    let (body, client) = function::bodies(session, context, None);
    let request = function::request(session, context, version.function().world(), body, forward::to_middleware)?;
    let tls = context.scheme() == "https";
    let upstreams = Reach::of(context, &gateway.itself);
    let id = Arc::clone(&context.id);
    let called = version.function().call(track.as_str(), id, upstreams, tls, request, Some(Box::new(rest)));
    let mut run = Run::new(gateway, session, context, client);
    let (answered, busy, call) = match called {
        Ok(call) => {
            let mut answerer = Answerer::Guest(Box::new(call));
            let answered = run.answer(&mut answerer).await;
            (answered, answerer.busy(), Some(answerer))
        }
        Err(error) => (Err(Ended::Function(error)), Duration::ZERO, None),
    };
    let untouched = !run.has_begun() && !behind.asked();
    let ahead = run.into_ahead();
    let failed = match answered {
        Ok(()) => {
            let outcome = if behind.asked() { OUTCOMES[0] } else { OUTCOMES[1] };
            account(context, place, &version, track, started, busy, outcome);
            if let Some(answerer) = call {
                function::settle(answerer, version, track, &context.id).await;
            }
            behind.report(context).await;
            return Ok(true);
        }
        Err(Ended::Function(error)) => error,
        Err(Ended::Otherwise(error)) => {
            drop(call);
            context.middleware[place].1.spent = busy;
            behind.report(context).await;
            return Err(error);
        }
    };
    // The guest goes, and with it what it has begun.
    drop(call);
    if failed.kind == CallErrorKind::NoResponse && behind.broke_off() {
        account(context, place, &version, track, started, busy, OUTCOMES[0]);
        behind.report(context).await;
        return Err(context.fail(Fault::UpstreamClosed));
    }
    account(context, place, &version, track, started, busy, OUTCOMES[2]);
    version.failed(track, &context.id, &failed);
    if on_failure == FailureMode::Open && untouched {
        return go_on_without(gateway, session, context, ahead).await.map(|()| true);
    }
    behind.report(context).await;
    Err(context.fail(fault_of(&failed)))
}

fn fault_of(error: &CallError) -> Fault {
    if error.kind == CallErrorKind::Exhausted { Fault::FilterExhausted } else { Fault::FilterFailed }
}

fn account(
    context: &mut Context,
    place: usize,
    version: &FunctionVersion,
    track: Track,
    started: Instant,
    busy: Duration,
    outcome: &'static str,
) {
    if let Some((_, step)) = context.middleware.get_mut(place) {
        step.outcome = Some(outcome);
        step.spent = busy;
    }
    if let Some(series) = version.series(track) {
        series.call(outcome != OUTCOMES[2], started.elapsed(), busy);
    }
}

/// Has what is behind a middleware that failed open answer the client itself.
async fn go_on_without(
    gateway: &Gateway,
    session: &mut Session,
    context: &mut Context,
    ahead: Option<Ahead>,
) -> pingora::Result<()> {
    let (rest, mut behind) = Rest::prepare(session, context).ok_or_else(|| context.fail(Fault::Internal))?;
    let (body, client) = function::bodies(session, context, ahead);
    let request = function::request(session, context, World::Middleware, body, forward::to_middleware)?;
    let mut answerer = Answerer::Rest(Direct::new(rest, request));
    let answered = Run::new(gateway, session, context, client).answer(&mut answerer).await;
    drop(answerer);
    behind.report(context).await;
    answered.map_err(|ended| match ended {
        Ended::Otherwise(error) => error,
        Ended::Function(error) => {
            tracing::debug!(request_id = %context.id, "what is behind a middleware broke off: {}", error.message);
            context.fail(Fault::UpstreamClosed)
        }
    })
}
