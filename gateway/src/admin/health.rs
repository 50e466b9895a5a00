//! What probes and scrapers ask. Open to whoever reaches the listener.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Context;

/// How long a scrape waits for the sizes of key-value spaces: what is not told by then is told as it was.
const MEASURING: Duration = Duration::from_millis(500);

/// The version of the text format is part of its media type.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn router() -> OpenApiRouter<Context> {
    OpenApiRouter::default().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// Whether the process is alive
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = String)))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether new requests are welcome
///
/// The API is there only once a configuration serves, so that this answers no from the beginning of a drain on, and never
/// before.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, body = String), (status = 503, body = String)))]
async fn readyz(State(context): State<Context>) -> impl IntoResponse {
    if context.phase.is_serving() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

/// All metrics, in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String)))]
async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    let host = context.control.host();
    host.measure_key_value(MEASURING).await;
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], context.control.metrics().render(host))
}
