//! The artifact cache: what is in it, and making it smaller.

use std::time::SystemTime;

use axum::Json;
use axum::body::Bytes;
use axum::http::StatusCode;
use lockgate_config::units::ByteSize;
use lockgate_host::CacheEntry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ControlPlane, blocking, read};
use crate::admin::problem::Problem;

/// An artifact: a component, compiled for this machine, with its settings in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Artifact {
    /// Its name in the cache's directory.
    key: String,
    /// Its size.
    bytes: u64,
    /// Seconds since it was made, or loaded last.
    idle_seconds: u64,
}

impl Artifact {
    fn new(entry: CacheEntry) -> Self {
        // A clock that was set back makes it new.
        let idle = SystemTime::now().duration_since(entry.used).unwrap_or_default();
        Self { key: entry.key, bytes: entry.bytes, idle_seconds: idle.as_secs() }
    }
}

/// The cache.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CacheView {
    /// The longest unused first.
    entries: Vec<Artifact>,
    /// Their size, together.
    bytes: u64,
    /// Artifacts that were found, since the start.
    hits: u64,
    /// Artifacts that had to be compiled, since the start.
    misses: u64,
    /// Time spent compiling, since the start.
    compile_seconds: f64,
}

/// The artifact cache
#[utoipa::path(get, path = "/api/v1/cache", tag = "cache", responses((status = 200, body = CacheView)))]
pub(super) async fn cache(ControlPlane(control): ControlPlane) -> Result<Json<CacheView>, Problem> {
    let host = control.host().clone();
    let entries = blocking(move || host.cache().entries()).await?.map_err(unreadable)?;
    let stats = control.host().cache().stats();
    Ok(Json(CacheView {
        bytes: entries.iter().map(|entry| entry.bytes).sum(),
        entries: entries.into_iter().map(Artifact::new).collect(),
        hits: stats.hits,
        misses: stats.misses,
        compile_seconds: stats.compile_seconds,
    }))
}

/// How small the cache is to become.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Prune {
    /// As `512MiB`. Default: `0`, which drops all.
    #[serde(default)]
    to: Option<String>,
}

/// What was dropped.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pruned {
    /// The longest unused first.
    dropped: Vec<Artifact>,
    /// Their size, together.
    bytes: u64,
}

/// Make the artifact cache smaller
///
/// Drops the longest unused artifacts. What is loaded goes on running; it is compiled again when it is loaded again.
#[utoipa::path(
    post, path = "/api/v1/cache/prune", tag = "cache", request_body(content = Option<Prune>),
    responses((status = 200, body = Pruned), (status = 400, body = Problem))
)]
pub(super) async fn prune_cache(ControlPlane(control): ControlPlane, body: Bytes) -> Result<Json<Pruned>, Problem> {
    let Prune { to } = if body.is_empty() { Prune::default() } else { read(&body)? };
    let to = to.as_deref().unwrap_or("0");
    let to: ByteSize = to.parse().map_err(|error| Problem::bad_request(format!("`{to}` is no size: {error}")))?;
    let host = control.host().clone();
    let dropped = blocking(move || host.cache().prune(to.bytes())).await?.map_err(unreadable)?;
    Ok(Json(Pruned {
        bytes: dropped.iter().map(|entry| entry.bytes).sum(),
        dropped: dropped.into_iter().map(Artifact::new).collect(),
    }))
}

fn unreadable(error: std::io::Error) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cache", format!("the cache's directory cannot be read: {error}"))
}
