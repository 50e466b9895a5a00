//! What happens, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admin::problem::Problem;
use crate::admin::{Context, Stopping};
use crate::control::events::{Follower, Notice};

/// Followers at a time. Each holds one of the listener's connections, of which scrapers and people need some, too.
pub(in crate::admin) const FOLLOWERS_MAX: usize = 64;

/// A comment is sent when nothing else was for so long, so that proxies and clients know that the gateway is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What happens, as it happens
///
/// Server-sent events: every move of a rollout and every verdict, reload, quarantine and drain, named `move`, `verdict`,
/// `reload`, `quarantine` and `drain`, each with one JSON object. An event is sent when what it tells of is in force. Who
/// sends the header `last-event-id` is told first what it missed, as far as that is kept: the last 256 events.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "state",
    params(("last-event-id" = Option<u64>, Header, description = "The last event that was seen")),
    responses(
        (status = 200, body = Notice, content_type = "text/event-stream"), (status = 400, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub(super) async fn events(
    State(context): State<Context>,
    Extension(Stopping(mut stopping)): Extension<Stopping>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    let after = match headers.get("last-event-id") {
        None => None,
        Some(id) => Some(id.to_str().ok().and_then(|id| id.trim().parse().ok()).ok_or_else(|| {
            Problem::bad_request("`last-event-id` is no number").hint("send the `id` of an event, or leave it out")
        })?),
    };
    let place = Arc::clone(&context.followers).try_acquire_owned().map_err(|_| {
        let error = format!("{FOLLOWERS_MAX} clients follow the events already");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-followers", error)
            .hint("close one of them, or poll `/api/v1/audit`")
    })?;
    let follower = context.control.notices().follow(after);
    let events = stream::unfold((follower, place), async |(mut follower, place): (Follower, OwnedSemaphorePermit)| {
        let notice = follower.next().await?;
        Some((Ok::<_, Infallible>(event(&notice)), (follower, place)))
    });
    // The first line at once: a client knows that it follows, and misses nothing of what it causes from then on.
    let begun = stream::once(async { Ok(Event::default().comment("following").retry(Duration::from_secs(1))) });
    let end = async move { drop(stopping.wait_for(|&stopped| stopped).await) };
    let events = stream::StreamExt::take_until(stream::StreamExt::chain(begun, events), Box::pin(end));
    let headers = [("cache-control", "no-store"), ("x-accel-buffering", "no")];
    Ok((headers, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))))
}

/// Returns the places of all followers.
pub(in crate::admin) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(FOLLOWERS_MAX))
}

fn event(notice: &Notice) -> Event {
    let event = Event::default().id(notice.id.to_string()).event(notice.kind.as_str());
    // A notice can always be written as JSON.
    event.json_data(notice).unwrap_or_default()
}
