//! The page that a person watches rollouts on: three files, compiled in, that know nothing of this gateway. What they show
//! comes from the API, under the API's rules, so that they need no token themselves.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Context;

const HTML: (&str, &str) = ("text/html; charset=utf-8", include_str!("page/index.html"));
const CSS: (&str, &str) = ("text/css; charset=utf-8", include_str!("page/page.css"));
const JS: (&str, &str) = ("text/javascript; charset=utf-8", include_str!("page/page.js"));

/// Nothing from elsewhere, nothing inline, nowhere to be framed, nowhere to send a form: whatever should ever come in as
/// markup by mistake cannot run, and cannot send what it sees.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the paths of the page.
pub(super) fn router() -> Router<Context> {
    Router::new()
        .route("/", get(async || file(HTML)))
        .route("/page.css", get(async || file(CSS)))
        .route("/page.js", get(async || file(JS)))
}

fn file((media_type, text): (&'static str, &'static str)) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 7] = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // The next gateway may have another page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
