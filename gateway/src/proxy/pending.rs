//! Has a request wait for room at its upstream, where a limit is used up. It is let in before it is given an endpoint, and
//! holds nothing while it waits, so that no two can wait for each other. Which of the endpoint's connections it gets, Pingora
//! decides; a request that was let in and finds none is turned back, to where it stood in the queue.

use std::sync::Arc;
use std::time::Instant;

use pingora::ErrorType;
use pingora::proxy::Session;

use crate::control::upstream::Upstream;
use crate::control::upstream::member::InFlight;
use crate::control::upstream::room::Crowded;
use crate::metrics::{Limit, Overflow};
use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::reach;
use crate::proxy::split::Attributes;

/// How often a request can be turned back. It happens where an endpoint takes fewer streams than is known, or where
/// somebody else was faster; twice is rare.
pub const TURNED_BACK_MAX: u32 = 8;

/// Lets a request in for its next attempt, at once or when it is its turn. None where no endpoint is usable.
///
/// # Errors
/// There is no room to wait either, or none has become free in time; or the client is gone.
pub async fn enter(
    session: &mut Session,
    context: &mut Context,
    upstream: &Arc<Upstream>,
) -> Result<Option<InFlight>, Fault> {
    // Whoever comes now stands behind those that wait. Those that have been in, or have waited, came before.
    let attempts = &context.attempts;
    let mut may_try = attempts.admitted.is_some() || attempts.ticket.is_some() || upstream.room().pending() == 0;
    loop {
        let limit = match try_enter(session, context, upstream, may_try) {
            Ok(endpoint) => return Ok(Some(endpoint)),
            Err(Crowded::Nobody) => {
                // The next one need not wait to be told the same.
                upstream.room().wake();
                return Ok(None);
            }
            Err(Crowded::Full(limit)) => limit,
        };
        wait(session, context, upstream, limit).await?;
        may_try = true;
    }
}

fn try_enter(
    session: &Session,
    context: &mut Context,
    upstream: &Arc<Upstream>,
    may_try: bool,
) -> Result<InFlight, Crowded> {
    if !may_try {
        return Err(Crowded::Full(upstream.scarce()));
    }
    let request = session.req_header();
    let attributes = Attributes {
        headers: &request.headers,
        client: context.client,
        peer: context.peer.map(|peer| peer.ip()),
        path: request.uri.path(),
        query: request.uri.query(),
    };
    let attempts = &mut context.attempts;
    upstream.enter(&attributes, &attempts.tried, &mut attempts.admitted, Instant::now())
}

async fn wait(
    session: &mut Session,
    context: &mut Context,
    upstream: &Arc<Upstream>,
    limit: Limit,
) -> Result<(), Fault> {
    let (room, now) = (upstream.room(), Instant::now());
    let left = reach::time_left(upstream, context, now)?;
    let until = *context.attempts.pending_until.get_or_insert_with(|| now + room.limits().pending_timeout);
    context.attempts.admitted = None;
    let Some(mut pending) = room.join(context.attempts.ticket, context.attempts.turned_back > 0) else {
        return Err(refuse(context, upstream, limit, Overflow::Refused));
    };
    context.attempts.ticket = Some(pending.ticket());
    if upstream.has_room(now) {
        room.wake();
    }
    let until = left.map_or(until, |left| until.min(now + left));
    // While there is a body to read, to read it would be the only way to hear that the client is gone.
    let watched = session.as_downstream_mut().is_body_done() && !session.is_upgrade_req();
    tokio::select! {
        biased;
        () = pending.woken() => return Ok(()),
        () = gone(session), if watched => return Err(Fault::ClientGone),
        () = tokio::time::sleep_until(until.into()) => {}
    }
    reach::time_left(upstream, context, Instant::now())?;
    Err(refuse(context, upstream, limit, Overflow::TimedOut))
}

/// Waits until the client is gone.
async fn gone(session: &mut Session) {
    match session.as_downstream_mut().read_body_or_idle(true).await {
        Err(error) if !matches!(error.etype(), ErrorType::ConnectError) => {}
        // It spoke out of turn. A byte of that has been read: the connection is of no use after this.
        _ => {
            session.as_downstream_mut().set_keepalive(None);
            std::future::pending().await
        }
    }
}

/// Notes that a request was let in and found no connection; returns whether it tries again. It was no attempt: nobody has
/// been asked.
pub fn turn_back(context: &mut Context) -> bool {
    let Some(mut attempt) = context.attempt.take() else { return false };
    context.attempts.made = attempt.number - 1;
    if let Some(endpoint) = attempt.endpoint.take() {
        endpoint.turn_back();
    }
    context.attempts.turned_back += 1;
    let again = context.attempts.turned_back <= TURNED_BACK_MAX;
    if !again {
        refuse(context, &attempt.upstream, Limit::Connections, Overflow::Refused);
    }
    again
}

/// Notes that a request has its connection.
pub fn end(context: &mut Context) {
    context.attempts.pending_until = None;
    if let Some(endpoint) = context.attempt.as_ref().and_then(|attempt| attempt.endpoint.as_ref()) {
        endpoint.member().connections().connected();
    }
}

fn refuse(context: &mut Context, upstream: &Upstream, limit: Limit, outcome: Overflow) -> Fault {
    upstream.room().series.refused(limit, outcome);
    context.reason = Some(format!("`limits.{}` of upstream `{}`", limit.as_str(), upstream.name()));
    match outcome {
        Overflow::Refused => Fault::UpstreamOverloaded,
        Overflow::TimedOut => Fault::PendingTimeout,
    }
}
