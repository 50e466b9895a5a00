//! What a route asks for that needs no filter. A *policy* is that, resolved with the snapshot: it lies around the chain
//! of filters. On the way in, before the first of them: a browser's question whether a page may ask ([`cors`]), how often
//! who may ask ([`rate`]), how many may be under way ([`places`]), and the edits of the request's header ([`edits`]).
//! Behind the last of them, what the target is asked for ([`rewrite`]), or the answer itself where it is always the same
//! ([`fixed`]). On the way back, after the last filter: what is left of a rate limit, who may read the response, and the
//! edits of its header. What the gateway's own errors look like is in [`pages`]; who gets a copy of a request that is over, in
//! [`mirror`].

pub mod cors;
pub mod decompress;
pub mod edits;
pub mod fixed;
pub mod mirror;
pub mod pages;
pub mod places;
pub mod rate;
pub mod rewrite;
pub mod template;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ORIGIN, RETRY_AFTER};
use http::{HeaderName, HeaderValue};
use lockgate_config::model::{self, PathPattern, RouteTimeouts};
use lockgate_host::Response;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::control::snapshot::Target;
use crate::metrics::{PolicyAnswer, PolicySeries};
use crate::proxy::admit::Refused;
use crate::proxy::context::Context;
use crate::proxy::fault::Fault;
use crate::proxy::grpc::READ_BY_PAGES;
use crate::proxy::split::Attributes;
use crate::track::Slots;
use cors::Cors;
use edits::Edits;
use mirror::{Copy, Mirror};
use pages::Pages;
use places::Bound;
use rate::{Rate, Standing, Verdict};
use rewrite::Rewrite;
use template::Asked;

/// Of the IETF's draft "RateLimit header fields for HTTP": what is left, and what the limits are.
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// When to come again after being turned away since too many are there. Most of the time it is better a moment later.
pub const RETRY_AFTER_SECONDS: u64 = 1;

/// What a route asks for that needs no filter, with everything that requests need of it.
#[derive(Debug)]
pub struct Policy {
    /// Bytes of the route's prefix, its last `/` included; 1 where it has none.
    pub prefix: usize,
    /// Bytes of a request's body: the route's limit, or else the server's.
    pub body_max: Option<u64>,
    /// Bytes that a compressed body may become before filters look at it; none where it stays as it is.
    pub decompress: Option<u64>,
    /// Which pages of other origins may ask.
    pub cors: Option<Cors>,
    /// Who gets a copy of a share of the requests.
    pub mirror: Option<Arc<Mirror>>,
    timeouts: RouteTimeouts,
    rates: Box<[Arc<Rate>]>,
    /// The value of `ratelimit-policy`; none where no limit is to be told.
    rates_told: Option<HeaderValue>,
    places: Option<Bound>,
    request: Edits,
    response: Edits,
    rewrite: Rewrite,
    pages: Pages,
    series: Arc<PolicySeries>,
}

/// What of a policy lives longer than the snapshot, or was read before.
#[derive(Debug)]
pub struct Kept {
    /// In the order of the configuration.
    pub rates: Box<[Arc<Rate>]>,
    /// Requests of the route that are under way.
    pub places: Option<Bound>,
    /// The route's pages.
    pub pages: Pages,
    /// Who gets a copy of a share of the requests.
    pub mirror: Option<Arc<Mirror>>,
    /// Metric handles.
    pub series: Arc<PolicySeries>,
}

impl Policy {
    /// Returns what a route asks for. `body` is the server's limit.
    pub fn new(route: &model::Route, body: Option<u64>, kept: Kept) -> Self {
        let policy = &route.policy;
        let Kept { rates, places, pages, mirror, series } = kept;
        let read_by_pages = if route.grpc_web { READ_BY_PAGES.to_vec() } else { Vec::new() };
        Self {
            prefix: match &route.matcher.path {
                PathPattern::Prefix(prefix) => prefix.len(),
                PathPattern::Exact(_) | PathPattern::Template(_) => 1,
            },
            body_max: policy.body.map(|body| body.bytes()).or(body),
            decompress: policy.decompress.map(|size| size.bytes()),
            cors: policy.cors.as_ref().map(|cors| Cors::new(cors, &read_by_pages)),
            mirror,
            timeouts: policy.timeouts,
            rates_told: told(rates.iter().map(|rate| rate.limit())),
            rates,
            places,
            request: Edits::new(&policy.request_headers),
            response: Edits::new(&policy.response_headers),
            rewrite: Rewrite::new(&policy.rewrite),
            pages,
            series,
        }
    }

    /// Returns what such a route can answer by its policy.
    pub fn answers(route: &model::Route, gateway_bound: bool) -> Vec<PolicyAnswer> {
        let policy = &route.policy;
        let can = [
            (PolicyAnswer::Redirect, matches!(route.target, model::Target::Redirect(_))),
            (PolicyAnswer::Respond, matches!(route.target, model::Target::Respond(_))),
            (PolicyAnswer::Preflight, policy.cors.is_some()),
            (PolicyAnswer::RateLimit, !policy.rate_limits.is_empty()),
            (PolicyAnswer::RouteRequests, policy.requests_max.is_some()),
            (PolicyAnswer::GatewayRequests, gateway_bound),
        ];
        can.into_iter().filter(|(_, can)| *can).map(|(answer, _)| answer).collect()
    }
}

/// Returns the value of `ratelimit-policy`.
fn told<'a>(limits: impl Iterator<Item = &'a model::RateLimit>) -> Option<HeaderValue> {
    let mut text = String::new();
    for limit in limits.filter(|limit| limit.headers) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail. Names are made of what may stand between quotes.
        let _ = write!(text, "{comma}\"{}\";q={};w={}", limit.name, limit.requests, seconds(limit.per));
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}

/// Returns a time in whole seconds, none of them too few.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Does what is to be done before the first filter. Returns the answer where that is all there is to the request.
///
/// # Errors
/// The client asks too often, or too many ask.
pub fn admit(session: &mut Session, context: &mut Context) -> Result<Option<Response>, Refused> {
    let Some(route) = context.route.and_then(|index| context.snapshot.routes.get(index)) else { return Ok(None) };
    let policy = &route.policy;
    let request = session.req_header();
    if let Some(cors) = &policy.cors {
        if context.preflight {
            policy.series.answered(PolicyAnswer::Preflight);
            context.answered_by = Some(PolicyAnswer::Preflight);
            context.counted = Slots::default();
            return Ok(Some(cors.preflight(&request.headers)));
        }
        // A filter may take it away, for the target; the response is the page's all the same.
        context.origin = request.headers.get(ORIGIN).cloned();
    }
    let refused = match limit_rate(policy, request, context.client, context.peer.map(|peer| peer.ip())) {
        Ok(standing) => {
            context.rate_standing = standing;
            None
        }
        Err(limited) => {
            context.rate_standing = limited.standing;
            context.reason = Some(limited.limit);
            Some((PolicyAnswer::RateLimit, Fault::RateLimited, seconds(limited.wait).max(1)))
        }
    };
    let refused = refused.or_else(|| {
        for (bound, place, answer, fault) in [
            (&context.snapshot.requests_bound, 0, PolicyAnswer::GatewayRequests, Fault::GatewayOverloaded),
            (&policy.places, 1, PolicyAnswer::RouteRequests, Fault::RouteOverloaded),
        ] {
            if let Some(bound) = bound {
                let Some(taken) = bound.enter() else { return Some((answer, fault, RETRY_AFTER_SECONDS)) };
                context.places[place] = Some(taken);
            }
        }
        None
    });
    if let Some((answer, fault, wait)) = refused {
        policy.series.answered(answer);
        context.answered_by = Some(answer);
        // Nobody's canary has anything to do with it.
        context.counted = Slots::default();
        let mut refused = Refused::from(fault);
        refused.headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        return Err(refused);
    }
    if let Some(total) = policy.timeouts.total {
        context.deadline = context.started.checked_add(total);
        let read = context.snapshot.limits.read_timeout.min(total);
        session.as_downstream_mut().set_read_timeout(Some(read));
    }
    if !policy.request.is_empty() {
        let values = policy.request.values(&Asked::of(session.req_header(), context));
        values.edit_request(session.req_header_mut()).map_err(|_| Fault::HeaderTooLarge)?;
    }
    Ok(None)
}

/// Why a rate limit turned a request away.
struct Limited {
    limit: String,
    wait: Duration,
    standing: Option<HeaderValue>,
}

/// Asks the rate limits, one after the other. Returns the value of `ratelimit`, which is one allocation, where it is told.
fn limit_rate(
    policy: &Policy,
    request: &RequestHeader,
    client: std::net::IpAddr,
    peer: Option<std::net::IpAddr>,
) -> Result<Option<HeaderValue>, Limited> {
    if policy.rates.is_empty() {
        return Ok(None);
    }
    let uri = &request.uri;
    let attributes = Attributes { headers: &request.headers, client, peer, path: uri.path(), query: uri.query() };
    let mut standing = String::new();
    for rate in &policy.rates {
        let limit = rate.limit();
        match rate.admit(&attributes) {
            Verdict::Admitted(Standing { remaining, reset }) if limit.headers => {
                tell(&mut standing, &limit.name, remaining, reset);
            }
            Verdict::Admitted(_) => {}
            Verdict::Refused(wait) => {
                if limit.headers {
                    tell(&mut standing, &limit.name, 0, wait);
                }
                let standing = HeaderValue::try_from(standing).ok().filter(|value| !value.is_empty());
                return Err(Limited { limit: format!("limit {}", limit.name), wait, standing });
            }
        }
    }
    Ok(if standing.is_empty() { None } else { HeaderValue::try_from(standing).ok() })
}

fn tell(standing: &mut String, name: &str, remaining: u32, reset: Duration) {
    let comma = if standing.is_empty() { "" } else { ", " };
    // Writing to a string does not fail.
    let _ = write!(standing, "{comma}\"{name}\";r={remaining};t={}", seconds(reset));
}

/// Finds out what the target is asked for, once, for all attempts.
///
/// # Errors
/// What an expression makes of the path is no path.
pub fn aim(session: &Session, context: &mut Context) -> Result<(), Fault> {
    let Some(route) = context.route() else { return Ok(()) };
    let target = route.policy.rewrite.target(&Asked::of(session.req_header(), context));
    context.rewritten = target.map_err(|_| Fault::BadTarget)?;
    Ok(())
}

/// Tells the target what it is asked for.
///
/// # Errors
/// A header with more fields than fit.
pub fn redirect_to_target(request: &mut RequestHeader, context: &Context) -> pingora::Result<()> {
    if let Some(target) = &context.rewritten {
        request.set_uri(target.clone());
    }
    match context.route().and_then(|route| route.policy.rewrite.host.as_ref()) {
        Some(host) => request.insert_header(http::header::HOST, host.clone()),
        None => Ok(()),
    }
}

/// Begins a request's copy, if it is to have one: anew for each attempt, with which the body begins anew. Who is not among
/// the share pays for a hash.
pub fn begin_copy(request: &RequestHeader, context: &mut Context) {
    let Some(mirror) = context.route().and_then(|route| route.policy.mirror.as_ref()) else { return };
    if !context.upgrade && mirror.samples(&context.id) {
        context.copy = Some(Box::new(Copy::new(request, context.client)));
    }
}

/// Adds a piece of the request's body to its copy.
pub fn copy_piece(piece: Option<&bytes::Bytes>, end: bool, context: &mut Context) {
    let Some(route) = context.route.and_then(|index| context.snapshot.routes.get(index)) else { return };
    if let (Some(mirror), Some(copy)) = (&route.policy.mirror, &mut context.copy) {
        copy.push(piece, end, mirror);
    }
}

/// Sends the copy of a request that is over.
pub fn send_copy(context: &mut Context) {
    let Some(copy) = context.copy.take() else { return };
    if let Some(mirror) = context.route().and_then(|route| route.policy.mirror.as_ref()) {
        mirror.send(*copy);
    }
}

/// Returns the answer of a route that always gives the same.
///
/// # Errors
/// A redirect that leads nowhere.
pub fn answer(session: &Session, context: &mut Context) -> Result<Option<Response>, Fault> {
    let Some(route) = context.route() else { return Ok(None) };
    let (response, by) = match &route.target {
        Target::Redirect(redirect) => {
            let response = redirect.response(&Asked::of(session.req_header(), context)).ok_or(Fault::Internal)?;
            (response, PolicyAnswer::Redirect)
        }
        Target::Respond(fixed) => (fixed.response(), PolicyAnswer::Respond),
        Target::Upstream { .. } | Target::Function(_) | Target::Static { .. } => return Ok(None),
    };
    route.policy.series.answered(by);
    context.answered_by = Some(by);
    Ok(Some(response))
}

/// Does what is to be done to a response after the last filter, whoever answers.
///
/// # Errors
/// A header with more fields than fit.
pub fn finish(request: &RequestHeader, response: &mut ResponseHeader, context: &Context) -> pingora::Result<()> {
    let Some(route) = context.route() else { return Ok(()) };
    let policy = &route.policy;
    if let Some(standing) = &context.rate_standing {
        // Behind what the target says of limits of its own.
        response.append_header(RATELIMIT, standing.clone())?;
        if let Some(told) = &policy.rates_told {
            response.append_header(RATELIMIT_POLICY, told.clone())?;
        }
    }
    if let Some(cors) = policy.cors.as_ref().filter(|_| !context.preflight) {
        cors.tell(context.origin.as_ref(), response)?;
    }
    if !policy.response.is_empty() {
        policy.response.values(&Asked::of(request, context)).edit_response(response)?;
    }
    Ok(())
}

/// Returns the page for an error: the route's, or the server's.
pub fn page<'a>(status: http::StatusCode, request: &RequestHeader, context: &'a Context) -> Option<pages::Found<'a>> {
    let of_route = context.route().and_then(|route| route.policy.pages.find(status, &request.headers));
    of_route.or_else(|| context.snapshot.pages.find(status, &request.headers))
}

/// Returns what is left of the route's time for the header of a response; none where it sets none.
///
/// # Errors
/// Nothing is.
pub fn time_left(context: &Context, now: Instant) -> Result<Option<Duration>, Fault> {
    let Some(route) = context.route() else { return Ok(None) };
    let RouteTimeouts { total, response } = route.policy.timeouts;
    let Some(timeout) = [total, response].into_iter().flatten().min() else { return Ok(None) };
    let left = timeout.saturating_sub(now.saturating_duration_since(context.started));
    if left.is_zero() { Err(Fault::RequestTimeout) } else { Ok(Some(left)) }
}

/// Returns whether a request has had all of the route's time for it. Asks the clock where there is a limit.
pub fn is_over(context: &Context) -> bool {
    context.deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Returns whether a route's time is why something took too long: all of it is over, or that for the header of a
/// response, and none has come.
pub fn is_to_blame(context: &Context) -> bool {
    let has_answer = context.attempt.as_ref().is_some_and(|attempt| attempt.header_after.is_some());
    is_over(context) || (!has_answer && time_left(context, Instant::now()).is_err())
}

/// Waits for the end of a request's time; for ever, where it has none. With `answered`, the header of its response is there.
pub async fn until_over(context: &Context, answered: bool) {
    let response = context.route().and_then(|route| route.policy.timeouts.response).filter(|_| !answered);
    let response = response.and_then(|timeout| context.started.checked_add(timeout));
    match [context.deadline, response].into_iter().flatten().min() {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_the_draft_has_it() {
        let limit = |name: &str, requests, per, headers| model::RateLimit {
            name: name.into(),
            requests,
            per: Duration::from_millis(per),
            burst: requests,
            key: Vec::new(),
            keys_max: 1024,
            headers,
        };
        let limits = [limit("a", 10, 1_500, true), limit("hidden", 1, 1, false), limit("b", 100, 60_000, true)];
        assert_eq!(told(limits.iter()).unwrap(), "\"a\";q=10;w=2, \"b\";q=100;w=60");
        assert_eq!(told(limits[1..2].iter()), None);
        let mut standing = String::new();
        tell(&mut standing, "a", 9, Duration::from_millis(150));
        tell(&mut standing, "b", 0, Duration::from_secs(2));
        assert_eq!(standing, "\"a\";r=9;t=1, \"b\";r=0;t=2");
    }
}
