//! How the API says no: `{ "error": …, "kind": …, "hint": … }` and the status that fits.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::control::Refusal;

/// A refusal, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    /// What is wrong, for a person. Several lines where a configuration is refused.
    error: String,
    /// What kind of refusal it is, for a program; one of a closed set.
    kind: &'static str,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &'static str, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), kind, hint: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", error)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind() {
            "unknown-rollout" | "unknown-version" | "no-shadow" | "not-counted" | "nothing-waits" => {
                StatusCode::NOT_FOUND
            }
            "config" | "load" | "restart" | "listener" | "unapproved" => StatusCode::UNPROCESSABLE_ENTITY,
            "stopped" => StatusCode::SERVICE_UNAVAILABLE,
            "state" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, refusal.kind(), refusal.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(format!("the query is not what is expected: {rejection}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
