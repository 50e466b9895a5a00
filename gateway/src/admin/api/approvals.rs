//! Versions that wait to be let in, and the word that lets them in.

use axum::Json;
use axum::body::Bytes;
use axum::extract::Path;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caller, ControlPlane, read};
use crate::admin::problem::Problem;
use crate::control::ApprovalView;

/// The versions that wait for approval
///
/// Each may do more than the one that serves, where `require_approval: grants` holds.
#[utoipa::path(get, path = "/api/v1/approvals", tag = "approvals", responses((status = 200, body = Vec<ApprovalView>)))]
pub(super) async fn approvals(ControlPlane(control): ControlPlane) -> Json<Vec<ApprovalView>> {
    Json(control.status().approvals.clone())
}

/// What is let in.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approval {
    /// The label of the version that was looked at: another one, which came meanwhile, is not let in. Default: whatever
    /// waits.
    #[serde(default)]
    version: Option<String>,
}

/// Let in what waits for approval
///
/// A canary's rollout begins; a file that waited with a stable version is read again. The approval is for these versions,
/// by their digests, and for no others. Answers with what was let in.
#[utoipa::path(
    post, path = "/api/v1/approvals/{name}", tag = "approvals",
    params(("name" = String, Path, description = "The name of the filter or function")),
    request_body(content = Option<Approval>),
    responses(
        (status = 200, body = Vec<ApprovalView>), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)
    )
)]
pub(super) async fn approve(
    ControlPlane(control): ControlPlane,
    Caller(actor): Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Vec<ApprovalView>>, Problem> {
    let Approval { version } = if body.is_empty() { Approval::default() } else { read(&body)? };
    Ok(Json(control.approve(&name, version, actor).await?))
}
