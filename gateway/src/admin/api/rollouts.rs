//! Rollouts: see them, move them, ask them why; and the quarantine, which holds what they were rolled back from.

use std::net::IpAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use lockgate_config::units::Weight;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caller, ControlPlane, read};
use crate::admin::problem::Problem;
use crate::control::status::{QuarantineView, RolloutView};
use crate::control::{Asked, CountsView, Explanation, Refusal, WhyView};
use crate::shadow::tally::ShadowView;

/// The rollouts
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", responses((status = 200, body = Vec<RolloutView>)))]
pub(super) async fn rollouts(ControlPlane(control): ControlPlane) -> Json<Vec<RolloutView>> {
    Json(control.status().rollouts.clone())
}

/// One rollout
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}", tag = "rollouts", params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem))
)]
pub(super) async fn rollout(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
) -> Result<Json<RolloutView>, Problem> {
    let status = control.status();
    match status.rollouts.iter().find(|rollout| rollout.name == name) {
        Some(rollout) => Ok(Json(rollout.clone())),
        None => {
            let known = status.rollouts.iter().map(|rollout| rollout.name.clone()).collect();
            Err(Refusal::UnknownRollout { name, known }.into())
        }
    }
}

/// A new weight.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWeight {
    /// The canary's share, `0%` to `100%` in steps of 0.01 %.
    weight: String,
}

/// Set a rollout's weight
///
/// Raising it moves users only from stable to canary, lowering it only back. Overlays the weight in the file until that
/// is changed.
#[utoipa::path(
    put, path = "/api/v1/rollouts/{rollout}/weight", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")), request_body = NewWeight,
    responses(
        (status = 200, body = RolloutView), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)
    )
)]
pub(super) async fn set_weight(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<RolloutView>, Problem> {
    let NewWeight { weight } = read(&body)?;
    let weight: Weight = weight.parse().map_err(|error| {
        Problem::bad_request(format!("`{weight}` is no weight: {error}")).hint("write it like `5%` or `0.25%`")
    })?;
    Ok(Json(control.set_weight(&name, weight, actor).await?))
}

/// Promote a rollout
///
/// The canary serves everybody, as the new stable version.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{rollout}/promote", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn promote(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Json<RolloutView>, Problem> {
    Ok(Json(control.promote(&name, actor).await?))
}

/// Why something is done.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// In words, for the audit log.
    #[serde(default)]
    why: Option<String>,
}

/// Roll a rollout back
///
/// Stable serves everybody, and the canary's version goes into quarantine.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{rollout}/rollback", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")), request_body(content = Option<Reason>),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn roll_back(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<RolloutView>, Problem> {
    let Reason { why } = if body.is_empty() { Reason::default() } else { read(&body)? };
    Ok(Json(control.roll_back(&name, why, actor).await?))
}

/// Abandon a rollout
///
/// Stable serves everybody, and that is its end: it begins anew only when the file names other versions.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{rollout}/abandon", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")), request_body(content = Option<Reason>),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn abandon(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<RolloutView>, Problem> {
    let Reason { why } = if body.is_empty() { Reason::default() } else { read(&body)? };
    Ok(Json(control.abandon(&name, why, actor).await?))
}

/// Pause a rollout
///
/// It climbs no further until it is resumed; its guard still takes it back.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{rollout}/pause", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")), request_body(content = Option<Reason>),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn pause(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<RolloutView>, Problem> {
    let Reason { why } = if body.is_empty() { Reason::default() } else { read(&body)? };
    Ok(Json(control.pause(&name, why, actor).await?))
}

/// Why a rollout is where it is
///
/// Its steps, what is left of the one under way, and what the judge knows: numbers, and sentences.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}/why", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = WhyView), (status = 404, body = Problem))
)]
pub(super) async fn why(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
) -> Result<Json<WhyView>, Problem> {
    Ok(Json(control.why(&name)?))
}

/// What was counted of a rollout
///
/// For a decider elsewhere, which adds up the counts of all gateways and sets the weight on each.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}/counts", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = CountsView), (status = 404, body = Problem))
)]
pub(super) async fn counts(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
) -> Result<Json<CountsView>, Problem> {
    Ok(Json(control.counts(&name)?))
}

/// Resume a rollout
///
/// Lets a paused one go on, and takes a rolled-back one up again, with the weight that it had. A version that its guard or
/// its failures have put into quarantine has to be released first.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{rollout}/resume", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub(super) async fn resume(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
) -> Result<Json<RolloutView>, Problem> {
    Ok(Json(control.resume(&name, actor).await?))
}

/// Explain a track
///
/// Which key of a request a rollout hashes, into which bucket, and what follows from it. Either `key`, a key's very value,
/// or what the request has: `header` (`NAME:VALUE`, as often as needed), `client`, `peer`, `path`, `query`.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}/explain", tag = "rollouts",
    params(
        ("rollout" = String, Path, description = "Its name"),
        ("key" = Option<String>, Query, description = "The value of a key, whichever it comes from"),
        ("header" = Option<Vec<String>>, Query, description = "`NAME:VALUE`"),
        ("client" = Option<String>, Query, description = "The client's address"),
        ("peer" = Option<String>, Query, description = "The address at the other end of the connection"),
        ("path" = Option<String>, Query, description = "The path, without the query"),
        ("query" = Option<String>, Query, description = "The query, without the `?`"),
    ),
    responses((status = 200, body = Explanation), (status = 400, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn explain(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Query(query) = query?;
    Ok(Json(control.explain(&name, &asked(query)?)?))
}

fn asked(query: Vec<(String, String)>) -> Result<Asked, Problem> {
    let mut key = None;
    let (mut headers, mut client, mut peer, mut path, mut text) = Default::default();
    for (name, value) in query {
        match name.as_str() {
            "key" => key = Some(value),
            "header" => add_header(&mut headers, &value)?,
            "client" => client = Some(address(&value)?),
            "peer" => peer = Some(address(&value)?),
            "path" => path = Some(value),
            "query" => text = Some(value),
            _ => {
                return Err(Problem::bad_request(format!("unknown parameter `{name}`"))
                    .hint("expected `key`, or any of `header`, `client`, `peer`, `path`, `query`"));
            }
        }
    }
    Ok(match key {
        Some(key) => Asked::Key(key),
        None => Asked::Request { headers, client, peer, path, query: text },
    })
}

fn add_header(headers: &mut axum::http::HeaderMap, pair: &str) -> Result<(), Problem> {
    let parsed = pair.split_once(':').and_then(|(name, value)| {
        Some((name.trim().parse::<HeaderName>().ok()?, HeaderValue::from_str(value.trim()).ok()?))
    });
    let Some((name, value)) = parsed else {
        return Err(Problem::bad_request(format!("`{pair}` is no header")).hint("write it like `x-user-id:42`"));
    };
    headers.append(name, value);
    Ok(())
}

fn address(text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("`{text}` is no address")).hint("write it like `192.0.2.7`"))
}

/// What a shadow found
///
/// How often the canary did as stable did on the requests that it was tried on, what differed otherwise, and examples
/// without the values that requests carry.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{rollout}/shadow", tag = "rollouts",
    params(("rollout" = String, Path, description = "Its name")),
    responses((status = 200, body = ShadowView), (status = 404, body = Problem))
)]
pub(super) async fn shadow(
    ControlPlane(control): ControlPlane,
    Path(name): Path<String>,
) -> Result<Json<ShadowView>, Problem> {
    Ok(Json(control.shadow(&name)?))
}

/// What to commit
///
/// YAML for what is in force but not in the file. Once it is in the file, the state overlays nothing any more.
#[utoipa::path(
    get, path = "/api/v1/export", tag = "rollouts",
    responses((status = 200, body = String, content_type = "application/yaml"))
)]
pub(super) async fn export(ControlPlane(control): ControlPlane) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/yaml")], control.export())
}

/// The quarantine
///
/// Versions of filters, functions and upstreams that must not come back by themselves, and why.
#[utoipa::path(
    get, path = "/api/v1/quarantine", tag = "quarantine", responses((status = 200, body = Vec<QuarantineView>))
)]
pub(super) async fn quarantine(ControlPlane(control): ControlPlane) -> Json<Vec<QuarantineView>> {
    Json(control.status().quarantine.clone())
}

/// Release a version from quarantine
#[utoipa::path(
    delete, path = "/api/v1/quarantine/{version}", tag = "quarantine",
    params(("version" = String, Path, description = "Its label, as `9f2c1a.4be01f.e3b0c4` or `app-2@4be01f`")),
    responses((status = 204), (status = 404, body = Problem))
)]
pub(super) async fn release(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(version): Path<String>,
) -> Result<StatusCode, Problem> {
    control.release(&version, actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pairs: &[(&str, &str)]) -> Result<Asked, Problem> {
        asked(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_key_stands_for_itself() {
        assert!(matches!(ask(&[("key", "user-42")]), Ok(Asked::Key(key)) if key == "user-42"));
    }

    #[test]
    fn a_request_is_put_together_from_what_is_said_of_it() {
        let asked = ask(&[("header", "x-user-id: 42"), ("header", "cookie:sid=a:b"), ("client", "192.0.2.7")]);
        let Ok(Asked::Request { headers, client, peer, .. }) = asked else { panic!("{asked:?}") };
        assert_eq!(headers["x-user-id"], "42");
        assert_eq!(headers["cookie"], "sid=a:b");
        assert_eq!((client, peer), (Some("192.0.2.7".parse().unwrap()), None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [("header", "nothing"), ("header", "a b:c"), ("client", "here"), ("user", "42")] {
            assert!(ask(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
