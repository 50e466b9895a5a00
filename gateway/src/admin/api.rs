//! The API's paths, and what describes them. Reading waits for nothing; whatever changes something answers when the
//! change serves, is on disk and in the audit log.

mod approvals;
mod cache;
mod chart;
pub(super) mod events;
mod rollouts;
mod state;

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;
use axum::routing::get;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use utoipa::openapi::{Contact, InfoBuilder, License, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use super::{Context, Peer, health};
use crate::control::Actor;

/// Returns all paths, with a description of them at `/openapi.json`.
pub(super) fn router() -> Router<Context> {
    let (router, description) = described().split_for_parts();
    let description = Arc::new(description);
    router.route("/openapi.json", get(move || async move { Json(description) }))
}

/// Returns the description of the API, as it is served at `/openapi.json`.
pub fn openapi() -> OpenApi {
    described().into_openapi()
}

fn described() -> OpenApiRouter<Context> {
    let info = InfoBuilder::new()
        .title("Lockgate admin API")
        .description(Some(
            "Answers are JSON. What is refused is answered with `error` (for a person), `kind` (for a program) and \
             `hint`. Where the gateway has an admin token, every path but `/healthz`, `/readyz` and `/metrics` asks for \
             it as `authorization: Bearer TOKEN`.",
        ))
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(License::new("Apache-2.0")))
        .contact(None::<Contact>)
        .build();
    OpenApiRouter::with_openapi(OpenApiBuilder::new().info(info).build())
        .merge(health::router())
        .routes(routes!(state::status))
        .routes(routes!(state::config))
        .routes(routes!(state::routes))
        .routes(routes!(state::filters))
        .routes(routes!(state::functions))
        .routes(routes!(state::upstreams))
        .routes(routes!(state::audit))
        .routes(routes!(events::events))
        .routes(routes!(state::reload))
        .routes(routes!(rollouts::rollouts))
        .routes(routes!(rollouts::rollout))
        .routes(routes!(rollouts::set_weight))
        .routes(routes!(rollouts::promote))
        .routes(routes!(rollouts::roll_back))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::abandon))
        .routes(routes!(rollouts::why))
        .routes(routes!(rollouts::counts))
        .routes(routes!(rollouts::explain))
        .routes(routes!(rollouts::shadow))
        .routes(routes!(chart::chart))
        .routes(routes!(rollouts::export))
        .routes(routes!(rollouts::quarantine))
        .routes(routes!(rollouts::release))
        .routes(routes!(approvals::approvals))
        .routes(routes!(approvals::approve))
        .routes(routes!(cache::cache))
        .routes(routes!(cache::prune_cache))
}

/// Who calls, for the audit log.
#[derive(Debug)]
struct Caller(Actor);

impl FromRequestParts<Context> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Context) -> Result<Self, Infallible> {
        // What a client calls itself is its word only; where it calls from is the kernel's.
        let agent = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let program = if agent.starts_with("lockgate/") { "cli" } else { "api" };
        Ok(Self(Actor::new(match parts.extensions.get::<Peer>() {
            Some(Peer::User(Some(user))) => format!("{program} by uid {user}"),
            Some(Peer::Address(address)) => format!("{program} {address}"),
            Some(Peer::User(None)) | None => program.to_owned(),
        })))
    }
}

/// The control plane, for handlers that need nothing else.
#[derive(Debug)]
struct ControlPlane(crate::control::Control);

impl FromRequestParts<Context> for ControlPlane {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, context: &Context) -> Result<Self, Infallible> {
        Ok(Self(context.control.clone()))
    }
}

/// Reads a JSON body. Its type is not asked for: `curl -d` gets it wrong.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not what is expected: {error}")))
}

/// Reads files on a thread that may wait for them.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_path_and_says_what_it_does() {
        let description = openapi();
        let paths: Vec<&str> = description.paths.paths.keys().map(String::as_str).collect();
        insta::assert_snapshot!(paths.join("\n"), @r"
        /api/v1/approvals
        /api/v1/approvals/{name}
        /api/v1/audit
        /api/v1/cache
        /api/v1/cache/prune
        /api/v1/config
        /api/v1/events
        /api/v1/export
        /api/v1/filters
        /api/v1/functions
        /api/v1/quarantine
        /api/v1/quarantine/{version}
        /api/v1/reload
        /api/v1/rollouts
        /api/v1/rollouts/{rollout}
        /api/v1/rollouts/{rollout}/abandon
        /api/v1/rollouts/{rollout}/chart
        /api/v1/rollouts/{rollout}/counts
        /api/v1/rollouts/{rollout}/explain
        /api/v1/rollouts/{rollout}/pause
        /api/v1/rollouts/{rollout}/promote
        /api/v1/rollouts/{rollout}/resume
        /api/v1/rollouts/{rollout}/rollback
        /api/v1/rollouts/{rollout}/shadow
        /api/v1/rollouts/{rollout}/weight
        /api/v1/rollouts/{rollout}/why
        /api/v1/routes
        /api/v1/status
        /api/v1/upstreams
        /healthz
        /metrics
        /readyz
        ");
        for (path, item) in &description.paths.paths {
            for operation in [&item.get, &item.put, &item.post, &item.delete].into_iter().flatten() {
                assert!(operation.summary.is_some(), "{path} says nothing");
            }
        }
    }
}
