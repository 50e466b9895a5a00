//! A rollout's tracks side by side, drawn.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{ControlPlane, blocking};
use crate::admin::chart::{self, WIDTHS};
use crate::admin::problem::Problem;
use crate::control::history::Span;

/// The width of a chart for which nobody asks for another, in CSS pixels.
const WIDTH: u32 = 480;

/// What is drawn.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Of {
    /// Requests per second.
    Traffic,
    /// The share of requests that failed, and its interval.
    #[default]
    Failures,
    /// How long requests took.
    Latency,
}

/// Over which time.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Over {
    /// The last five minutes.
    #[default]
    Recent,
    /// Since the rollout's versions began to be watched by this process.
    Whole,
}

/// Which chart, and how wide.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ChartQuery {
    /// `traffic`, `failures` or `latency`. Default: `failures`.
    #[serde(default)]
    #[param(inline)]
    of: Of,
    /// `recent` or `whole`. Default: `recent`. How long requests took is always of the whole.
    #[serde(default)]
    #[param(inline)]
    span: Over,
    /// 200 to 2,000 CSS pixels. Default: 480.
    width: Option<u32>,
}

/// A chart of a rollout
///
/// Canary beside stable, as SVG. Its title says in words what it shows.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}/chart", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name"), ChartQuery),
    responses(
        (status = 200, body = String, content_type = "image/svg+xml"), (status = 400, body = Problem),
        (status = 404, body = Problem)
    )
)]
pub(super) async fn chart(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
    query: Result<Query<ChartQuery>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Query(ChartQuery { of, span, width }) = query?;
    let width = width.unwrap_or(WIDTH);
    if !WIDTHS.contains(&width) {
        let hint = format!("ask for {} to {} pixels", WIDTHS.start(), WIDTHS.end());
        return Err(Problem::bad_request(format!("no chart is {width} pixels wide")).hint(hint));
    }
    let span = match span {
        Over::Recent => Span::Recent,
        Over::Whole => Span::Whole,
    };
    let watched = control.watched(&name)?;
    // Some 100 µs of work, which no other call should wait for.
    let drawn = blocking(move || match of {
        Of::Traffic => chart::traffic(&watched.slots(span), width),
        Of::Failures => chart::failures(&watched.slots(span), width),
        Of::Latency => chart::latency(watched.latency(), width),
    });
    let svg = drawn.await?.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error))?;
    Ok(([(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "no-store")], svg))
}
