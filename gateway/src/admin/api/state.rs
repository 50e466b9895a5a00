//! What is: status, configuration, routes, filters, upstreams, audit log; and the reload that makes it new.

use std::sync::Arc;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Caller, ControlPlane, blocking};
use crate::admin::problem::Problem;
use crate::control::Cause;
use crate::control::Reloaded;
use crate::control::audit::AuditEntry;
use crate::control::status::{FilterView, FunctionView, RouteView, Status, UpstreamView};

/// Entries of the audit log that are returned where nobody says how many.
const AUDIT_DEFAULT: usize = 50;

/// Entries of the audit log that are returned at most.
const AUDIT_MAX: usize = 1000;

/// The state of everything
#[utoipa::path(get, path = "/api/v1/status", tag = "state", responses((status = 200, body = Status)))]
pub(super) async fn status(ControlPlane(control): ControlPlane) -> Json<Arc<Status>> {
    Json(control.status())
}

/// The configuration in force
///
/// With all defaults filled in; secrets are hidden, and variables are not expanded in settings.
#[utoipa::path(get, path = "/api/v1/config", tag = "state", responses((status = 200, body = Value)))]
pub(super) async fn config(ControlPlane(control): ControlPlane) -> Json<Value> {
    Json(lockgate_config::dump(&control.config()))
}

/// The routes
#[utoipa::path(get, path = "/api/v1/routes", tag = "state", responses((status = 200, body = Vec<RouteView>)))]
pub(super) async fn routes(ControlPlane(control): ControlPlane) -> Json<Vec<RouteView>> {
    Json(control.status().routes.clone())
}

/// The filters, with their versions
#[utoipa::path(get, path = "/api/v1/filters", tag = "state", responses((status = 200, body = Vec<FilterView>)))]
pub(super) async fn filters(ControlPlane(control): ControlPlane) -> Json<Vec<FilterView>> {
    Json(control.status().filters.clone())
}

/// The functions, with their versions
#[utoipa::path(get, path = "/api/v1/functions", tag = "state", responses((status = 200, body = Vec<FunctionView>)))]
pub(super) async fn functions(ControlPlane(control): ControlPlane) -> Json<Vec<FunctionView>> {
    Json(control.status().functions.clone())
}

/// The upstreams, with their addresses
#[utoipa::path(get, path = "/api/v1/upstreams", tag = "state", responses((status = 200, body = Vec<UpstreamView>)))]
pub(super) async fn upstreams(ControlPlane(control): ControlPlane) -> Json<Vec<UpstreamView>> {
    Json(control.status().upstreams.clone())
}

/// How much of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Entries, the last ones. Default: 50; at most 1,000.
    last: Option<usize>,
}

/// The end of the audit log
///
/// Who changed what, when, and on what evidence; the oldest entry first.
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "state", params(AuditQuery),
    responses((status = 200, body = Vec<AuditEntry>), (status = 400, body = Problem))
)]
pub(super) async fn audit(
    ControlPlane(control): ControlPlane,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Vec<AuditEntry>>, Problem> {
    let Query(query) = query?;
    let last = query.last.unwrap_or(AUDIT_DEFAULT).min(AUDIT_MAX);
    blocking(move || control.audit(last)).await.map(Json)
}

/// How a reload ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReloadAnswer {
    /// `swapped`, or `unchanged` where file and components are what serves already.
    outcome: &'static str,
    /// The generation that serves.
    generation: u64,
    /// Versions of filters that were loaded for it.
    loaded: usize,
    /// Versions of filters that were kept.
    reused: usize,
    /// What is right in the file, and hardly meant so.
    warnings: Vec<String>,
}

/// Reload the configuration
///
/// Reads the file and its components again, loads what is new, and swaps. It succeeds whole or changes nothing; what is
/// refused is answered with all problems. Answers when the new snapshot serves, which takes as long as compiling does.
#[utoipa::path(
    post, path = "/api/v1/reload", tag = "change",
    responses((status = 200, body = ReloadAnswer), (status = 409, body = Problem), (status = 422, body = Problem))
)]
pub(super) async fn reload(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
) -> Result<Json<ReloadAnswer>, Problem> {
    Ok(Json(match control.reload(Cause::Api, actor).await? {
        Reloaded::Swapped { generation, loaded, reused, warnings } => {
            ReloadAnswer { outcome: "swapped", generation, loaded, reused, warnings }
        }
        Reloaded::Unchanged => {
            let generation = control.status().generation;
            ReloadAnswer { outcome: "unchanged", generation, loaded: 0, reused: 0, warnings: Vec::new() }
        }
    }))
}
