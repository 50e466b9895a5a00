//! Who may call. With a token, whoever has it. Without one, whoever reaches the listener, which then is on loopback or a
//! Unix socket: programs of this machine and the gateway's own page, but not any other web page that its browser shows.
//! Such a page can send requests to `127.0.0.1`, and by DNS rebinding even read the answers; it cannot choose the `host`,
//! `origin` and `sec-fetch-site` headers. A token needs no such checks: no page but ours has it, and browsers add none.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::problem::Problem;
use super::{Context, Peer};

/// Bytes of a request's body. The largest that the API takes is a reason in words.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is open to whoever reaches the listener: probes and scrapers have no token, and the page, which knows nothing by
/// itself, asks the person for it.
const OPEN: [&str; 6] = ["/healthz", "/readyz", "/metrics", "/", "/page.css", "/page.js"];

/// Puts the guard before a router, and answers in its place where there is no such path or method.
pub(super) fn guarded(router: Router<Context>, context: Context) -> Router {
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(context.clone(), guard))
        .with_state(context)
}

async fn no_such_path(request: Request) -> Problem {
    let path = request.uri().path().to_owned();
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", format!("there is no `{path}`"))
        .hint("`/openapi.json` lists all paths")
}

async fn no_such_method(request: Request) -> Problem {
    let error = format!("`{}` does not take {}", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", error).hint("`/openapi.json` lists all methods")
}

async fn guard(State(context): State<Context>, request: Request, next: Next) -> Result<Response, Problem> {
    let config = context.control.config();
    let by_network = !matches!(request.extensions().get::<Peer>(), Some(Peer::User(_)));
    if let Some(token) = &config.admin.token {
        let is_open = OPEN.contains(&request.uri().path());
        if !is_open && !has_token(request.headers(), token.reveal()) {
            return Err(unauthorized());
        }
    } else if by_network {
        is_of_this_machine(request.headers())?;
        is_of_our_origin(request.headers())?;
        is_not_from_elsewhere(&request)?;
    }
    Ok(next.run(with_body(request).await?).await)
}

fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the token is missing, or it is not the gateway's")
        .hint("send `authorization: Bearer TOKEN`, with `admin.token` of the configuration")
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked("bearer ".len())).is_some_and(
        |(scheme, given)| scheme.eq_ignore_ascii_case(b"bearer ") && equal_in_constant_time(given, token.as_bytes()),
    )
}

/// The time that this takes depends on the lengths only, so that nobody can find the token byte by byte.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

/// Refuses names: a name that resolves to loopback may be anybody's.
fn is_of_this_machine(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host_of(host);
    let local = name.eq_ignore_ascii_case("localhost")
        || name.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if local {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "foreign-host",
        format!("the request is for `{host}`, not for this machine"),
    )
    .hint("call `127.0.0.1` or `localhost`, or set `admin.token` to allow other names"))
}

/// Returns a `host` header without its port.
fn host_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses requests that a page of another origin sends.
fn is_of_our_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "foreign-origin", format!("a page of `{origin}` sent this request"))
        .hint("call the API from a program, not from a web page"))
}

/// Refuses what a page of another site makes a browser send, also where no `origin` goes with it: an image, a form. A link
/// to the page is welcome.
fn is_not_from_elsewhere(request: &Request) -> Result<(), Problem> {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let site = header("sec-fetch-site");
    let ours = matches!(site, None | Some("same-origin" | "none"));
    let link = request.method() == Method::GET && header("sec-fetch-mode") == Some("navigate");
    if ours || link {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "foreign-origin", "a page of another site sent this request")
        .hint("call the API from a program, or from the gateway's own page"))
}

/// Reads the body before the handler runs: it is small, and whoever sends it slowly holds nothing but itself.
async fn with_body(request: Request) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let bytes: Bytes = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let error = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", error));
        }
        Ok(Err(error)) => return Err(Problem::bad_request(format!("the body cannot be read: {error}"))),
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time"));
        }
    };
    Ok(Request::from_parts(head, Body::from(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_very_token_opens() {
        let check = |value| has_token(&headers(&[("authorization", value)]), "s3cret");
        assert!(check("Bearer s3cret"));
        assert!(check("bearer s3cret"));
        for wrong in ["Bearer s3cre", "Bearer s3crets", "Bearer ", "s3cret", "Basic s3cret", "Bearer S3CRET"] {
            assert!(!check(wrong), "{wrong}");
        }
        assert!(!has_token(&HeaderMap::new(), "s3cret"));
    }

    #[test]
    fn names_of_other_machines_are_refused() {
        let check = |host| is_of_this_machine(&headers(&[("host", host)])).is_ok();
        for ours in ["127.0.0.1:9901", "localhost:9901", "LOCALHOST", "[::1]:9901", "127.1.2.3"] {
            assert!(check(ours), "{ours}");
        }
        for foreign in ["evil.example:9901", "localhost.evil.example", "10.0.0.1:9901", "", "[2001:db8::1]:9901"] {
            assert!(!check(foreign), "{foreign}");
        }
        assert!(is_of_this_machine(&HeaderMap::new()).is_err());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let check = |origin| is_of_our_origin(&headers(&[("host", "127.0.0.1:9901"), ("origin", origin)])).is_ok();
        assert!(check("http://127.0.0.1:9901"));
        for foreign in ["http://evil.example", "null", "https://127.0.0.1:9901", "http://127.0.0.1:8080"] {
            assert!(!check(foreign), "{foreign}");
        }
        assert!(is_of_our_origin(&headers(&[("host", "127.0.0.1:9901")])).is_ok());
    }

    #[test]
    fn what_another_site_makes_a_browser_send_is_refused_but_a_link() {
        let check = |method: &str, pairs: &[(&str, &str)]| {
            let request =
                pairs.iter().fold(Request::builder().method(method), |r, (name, value)| r.header(*name, *value));
            is_not_from_elsewhere(&request.body(Body::empty()).unwrap()).is_ok()
        };
        assert!(check("POST", &[]));
        assert!(check("POST", &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]));
        assert!(check("GET", &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]));
        assert!(check("GET", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
        assert!(!check("POST", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
        assert!(!check("GET", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]));
        // Another port of this machine is another origin of the same site.
        assert!(!check("POST", &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")]));
    }
}
