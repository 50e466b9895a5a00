//! Reaches the target: chooses an endpoint for each attempt, and decides whether there is another one. Tracks stay as they
//! were decided: an attempt changes the endpoint, never the upstream.

use std::time::{Duration, Instant};

use http::StatusCode;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;

use crate::control::upstream::Upstream;
use crate::metrics::Retry;
use crate::proxy::context::{Attempt, Context};
use crate::proxy::fault::Fault;
use crate::proxy::{pending, policy};

/// The pause before an attempt doubles at most this often.
const DOUBLINGS_MAX: u32 = 6;

/// Begins the next attempt, and returns where it goes.
///
/// # Errors
/// The upstream is not there, has no endpoint that is well, or has no room; or the time for all attempts is over, or the
/// client is gone.
pub async fn next(session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>, Fault> {
    if let Some(attempt) = &context.attempt {
        context.attempts.made = attempt.number;
    }
    let number = context.attempts.made + 1;
    let (upstream, track) = context.upstream().ok_or(Fault::Internal)?;
    let upstream = upstream.clone();
    if let Some(record) = context.trace.as_mut().and_then(|trace| trace.record()) {
        record.attempt(context.attempt.as_ref());
    }
    // The last attempt's place is free again.
    context.attempt = None;
    if context.attempts.began.is_none() {
        upstream.budget.request();
        context.attempts.began = Some(Instant::now());
    }
    let retries = &upstream.config().retries;
    if std::mem::take(&mut context.attempts.pause) {
        tokio::time::sleep(pause(retries.backoff, context.attempts.further, &context.id)).await;
    }
    let endpoint = pending::enter(session, context, &upstream).await?;
    let started = Instant::now();
    let left = time_left(&upstream, context, started)?;
    let peer = endpoint.as_ref().map(|endpoint| {
        let mut peer = Box::new(upstream.peer(endpoint.member()));
        if let Some(left) = left {
            let options = &mut peer.options;
            for timeout in [
                &mut options.connection_timeout,
                &mut options.total_connection_timeout,
                &mut options.read_timeout,
                &mut options.write_timeout,
            ] {
                *timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
        peer
    });
    context.attempt = Some(Attempt {
        address: endpoint.as_ref().map(|endpoint| endpoint.member().address),
        upstream,
        track,
        endpoint,
        number,
        started,
        status: 0,
        header_after: None,
    });
    peer.ok_or(Fault::NoEndpoint)
}

/// Returns what is left of the time for all attempts together; none where there is no such time.
///
/// # Errors
/// It is over.
pub fn time_left(upstream: &Upstream, context: &Context, now: Instant) -> Result<Option<Duration>, Fault> {
    let left = match (upstream.config().timeouts.total, context.attempts.began) {
        (Some(total), Some(began)) => {
            let left = total.checked_sub(now.saturating_duration_since(began));
            Some(left.filter(|left| !left.is_zero()).ok_or(Fault::UpstreamTimeout)?)
        }
        _ => None,
    };
    Ok([left, policy::time_left(context, now)?].into_iter().flatten().min())
}

/// Notes that the request is over: others can have its room.
pub fn leave(context: &mut Context) {
    context.attempts.admitted = None;
    if let Some(attempt) = &mut context.attempt {
        attempt.endpoint = None;
    }
}

/// Notes that connecting failed; returns whether another endpoint is tried.
pub fn not_connected(context: &mut Context) -> bool {
    failed(context);
    again(context, Retry::Connect)
}

/// Notes that the endpoint gave no answer.
pub fn failed(context: &Context) {
    judge(context, false);
}

/// Returns whether the attempt has brought the header of an answer.
pub fn has_answered(context: &Context) -> bool {
    context.attempt.as_ref().is_some_and(|attempt| attempt.header_after.is_some())
}

/// Returns whether another endpoint is tried, since this one gave no answer. `status` is what the client would be told.
pub fn unanswered(session: &Session, status: u16, context: &mut Context) -> bool {
    !has_answered(context) && is_worth_another(session, status, context) && again(context, Retry::NoAnswer)
}

/// Notes an answer; returns whether another attempt is worth more.
pub fn answered(session: &Session, status: StatusCode, context: &mut Context) -> bool {
    let bad = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
    judge(context, !bad);
    let again = is_worth_another(session, status.as_u16(), context) && again(context, Retry::Status);
    context.attempts.again = again;
    again
}

/// Returns whether a status is one that the upstream wants other attempts for, and the request one that can be sent twice.
fn is_worth_another(session: &Session, status: u16, context: &Context) -> bool {
    let Some(attempt) = &context.attempt else { return false };
    let retries = &attempt.upstream.config().retries;
    retries.statuses.contains(&status)
        && (retries.non_idempotent || session.req_header().method.is_idempotent())
        && is_repeatable(session, context)
}

/// Returns whether there is another attempt, and takes it out of the budget.
fn again(context: &mut Context, why: Retry) -> bool {
    let Some(attempt) = &context.attempt else { return false };
    let upstream = &attempt.upstream;
    if context.attempts.further >= upstream.config().retries.attempts || !upstream.budget.take() {
        return false;
    }
    upstream.series.retry(why);
    context.attempts.further += 1;
    context.attempts.tried.extend(attempt.address);
    // Another endpoint is not in trouble; only where there is none other, it is the same one again. A status may be about
    // what is behind all of them.
    let others = upstream.pool().members().len() > context.attempts.tried.len();
    context.attempts.pause = why == Retry::Status || !others;
    true
}

/// Returns whether the request can be sent again whole. What a filter has seen of a body, it must not see again; a body that
/// was read ahead is whole at every attempt.
pub fn is_repeatable(session: &Session, context: &Context) -> bool {
    let whole = context.body.whole.is_some() || !session.as_ref().retry_buffer_truncated();
    whole && !context.body.filtered
}

fn judge(context: &Context, succeeded: bool) {
    if let Some(attempt) = &context.attempt
        && let Some(endpoint) = &attempt.endpoint
    {
        attempt.upstream.judge(endpoint.member(), succeeded, Instant::now());
    }
}

/// Returns how long to wait before an attempt: a random part of a time that doubles, so that clients whose requests failed
/// together do not come back together ("full jitter"; Brooker, "Exponential backoff and jitter", 2015). What is random is
/// the request's id. `further` counts the attempts after the first, this one included.
fn pause(first: Duration, further: u32, id: &str) -> Duration {
    let longest = first.saturating_mul(1 << further.saturating_sub(1).min(DOUBLINGS_MAX));
    let drawn = xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), u64::from(further));
    longest.mul_f64(drawn as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_spread_out() {
        let first = Duration::from_millis(25);
        for further in 1..20 {
            let longest = first * (1 << (further - 1).min(6));
            let pauses: Vec<_> = (0..100).map(|id| pause(first, further, &format!("request-{id}"))).collect();
            assert!(pauses.iter().all(|pause| *pause <= longest));
            assert!(pauses.iter().any(|pause| *pause > longest / 2) && pauses.iter().any(|pause| *pause < longest / 2));
        }
    }
}
