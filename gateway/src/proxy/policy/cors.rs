//! Which pages of other origins may ask: the CORS protocol of browsers, as the Fetch standard has it. A browser asks for
//! permission first (a *preflight*), which is answered here; of other requests, the response says who may read it.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use lockgate_config::model::{self, Origin};
use lockgate_host::Response;
use pingora::http::ResponseHeader;

/// What browsers are told.
#[derive(Debug)]
pub struct Cors {
    origins: Box<[Origin]>,
    methods: Option<HeaderValue>,
    headers: Headers,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

#[derive(Debug)]
enum Headers {
    /// Those that the browser asks for.
    Any,
    /// These.
    Listed(Option<HeaderValue>),
}

/// What a target or a filter may have said of it, and has no say in.
const OURS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// Returns the method that a browser asks permission for; none for any other request.
pub fn asks_for(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if *method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    Method::from_bytes(headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

impl Cors {
    /// Returns what a configuration asks for. Pages may read the headers `further` as well.
    pub fn new(cors: &model::Cors, further: &[HeaderName]) -> Self {
        let list = |items: &[String]| match items {
            [] => None,
            items => HeaderValue::try_from(items.join(", ")).ok(),
        };
        let further = further.iter().map(HeaderName::as_str).filter(|name| !cors.expose.iter().any(|own| own == name));
        let expose: Vec<String> = cors.expose.iter().cloned().chain(further.map(str::to_owned)).collect();
        Self {
            origins: cors.origins.clone().into(),
            methods: list(&cors.methods),
            headers: match cors.headers.as_slice() {
                [any] if any == "*" => Headers::Any,
                names => Headers::Listed(list(names)),
            },
            expose: list(&expose),
            credentials: cors.credentials,
            max_age: HeaderValue::from(cors.max_age.as_secs()),
        }
    }

    /// Returns whether everybody is told the same.
    fn is_for_any(&self) -> bool {
        matches!(*self.origins, [Origin::Any])
    }

    /// Returns what an origin is told that may ask; none for one that may not.
    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        if self.is_for_any() {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = origin?;
        self.origins.iter().any(|known| is_of(known, origin.as_bytes())).then(|| origin.clone())
    }

    /// Answers a browser that asks for permission. One that gets none is told nothing, and lets nothing through.
    pub fn preflight(&self, request: &HeaderMap) -> Response {
        let mut headers = HeaderMap::with_capacity(8);
        if let Some(origin) = self.allowed(request.get(ORIGIN)) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if self.credentials {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            let asked = request.get(ACCESS_CONTROL_REQUEST_HEADERS);
            let listed = match &self.headers {
                Headers::Any => asked,
                Headers::Listed(names) => names.as_ref(),
            };
            for (name, value) in [
                (ACCESS_CONTROL_ALLOW_METHODS, self.methods.as_ref()),
                (ACCESS_CONTROL_ALLOW_HEADERS, listed),
                (ACCESS_CONTROL_MAX_AGE, Some(&self.max_age)),
            ] {
                if let Some(value) = value {
                    headers.insert(name, value.clone());
                }
            }
        }
        let vary = "origin, access-control-request-method, access-control-request-headers";
        headers.insert(VARY, HeaderValue::from_static(vary));
        Response { status: StatusCode::NO_CONTENT, headers, body: bytes::Bytes::new() }
    }

    /// Says in a response who may read it.
    ///
    /// # Errors
    /// A header with more fields than fit.
    pub fn tell(&self, origin: Option<&HeaderValue>, response: &mut ResponseHeader) -> pingora::Result<()> {
        for name in &OURS {
            response.remove_header(name);
        }
        if !self.is_for_any() {
            // Told to whoever asks, from wherever: a cache must not mix them up.
            response.append_header(VARY, HeaderValue::from_static("origin"))?;
        }
        let Some(allowed) = self.allowed(origin) else { return Ok(()) };
        response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, allowed)?;
        if self.credentials {
            response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"))?;
        }
        if let Some(expose) = &self.expose {
            response.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone())?;
        }
        Ok(())
    }
}

/// Returns whether an origin is the one that is known, or one of those.
fn is_of(known: &Origin, origin: &[u8]) -> bool {
    match known {
        Origin::Any => true,
        Origin::Exact(exact) => exact.as_bytes() == origin,
        Origin::Wildcard { scheme, suffix } => {
            let labels = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_suffix(suffix.as_bytes()));
            labels.is_some_and(|labels| {
                !labels.is_empty()
                    && labels.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        Cors::new(
            &model::Cors {
                origins: origins.iter().map(|origin| origin.parse().unwrap()).collect(),
                methods: vec!["GET".into(), "PUT".into()],
                headers: vec!["*".into()],
                expose: vec!["x-total".into()],
                credentials,
                max_age: Duration::from_secs(600),
            },
            &[HeaderName::from_static("grpc-status"), HeaderName::from_static("x-total")],
        )
    }

    fn allows(origins: &[&str], origin: &'static str) -> bool {
        cors(origins, false).allowed(Some(&HeaderValue::from_static(origin))).is_some()
    }

    #[test]
    fn an_origin_is_the_whole_of_it() {
        let exact = ["https://app.example.com"];
        assert!(allows(&exact, "https://app.example.com"));
        for other in
            ["http://app.example.com", "https://app.example.com.evil.example", "https://app.example.com:1", "null"]
        {
            assert!(!allows(&exact, other), "{other}");
        }
    }

    #[test]
    fn a_wildcard_is_for_whole_labels_below() {
        let below = ["https://*.example.com"];
        assert!(allows(&below, "https://a.example.com") && allows(&below, "https://a.b.example.com"));
        for other in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "https://evil.example/.example.com",
            "http://a.example.com",
        ] {
            assert!(!allows(&below, other), "{other}");
        }
    }

    #[test]
    fn whoever_may_not_ask_is_told_nothing() {
        let cors = cors(&["https://a.b"], true);
        let ask = |origin| {
            let request = HeaderMap::from_iter([
                (ORIGIN, HeaderValue::from_static(origin)),
                (ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-token")),
            ]);
            cors.preflight(&request).headers
        };
        let allowed = ask("https://a.b");
        assert_eq!(allowed[ACCESS_CONTROL_ALLOW_METHODS], "GET, PUT");
        assert_eq!(allowed[ACCESS_CONTROL_ALLOW_HEADERS], "x-token");
        assert_eq!(allowed[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(allowed[ACCESS_CONTROL_MAX_AGE], "600");
        let refused = ask("https://evil.example");
        assert_eq!(refused.keys().collect::<Vec<_>>(), [VARY]);
    }

    #[test]
    fn what_the_target_says_of_it_goes() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        response.append_header(ACCESS_CONTROL_ALLOW_ORIGIN, "https://evil.example").unwrap();
        response.append_header(VARY, "accept").unwrap();
        cors(&["https://a.b"], false).tell(Some(&HeaderValue::from_static("https://a.b")), &mut response).unwrap();
        assert_eq!(response.headers.get_all(ACCESS_CONTROL_ALLOW_ORIGIN).iter().collect::<Vec<_>>(), ["https://a.b"]);
        assert_eq!(response.headers.get_all(VARY).iter().collect::<Vec<_>>(), ["accept", "origin"]);
        assert_eq!(response.headers[ACCESS_CONTROL_EXPOSE_HEADERS], "x-total, grpc-status");
        cors(&["*"], false).tell(None, &mut response).unwrap();
        assert_eq!(response.headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    }
}
