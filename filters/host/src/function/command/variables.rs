//! What a program is told about its request: the variables of RFC 3875, section 4.1, and a few that everybody knows
//! (`HTTPS`, `REQUEST_URI`). What the configuration says in `vars` goes before all of them. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE};
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::Caller;

const SOFTWARE: &str = concat!("lockgate/", env!("CARGO_PKG_VERSION"));

/// Returns the environment of a program for one request.
pub(super) fn of(parts: &Parts, tls: bool, vars: &[(String, String)]) -> Vec<(String, String)> {
    let mut told: BTreeMap<Cow<'static, str>, String> = BTreeMap::new();
    let path = parts.uri.path();
    let caller = parts.extensions.get::<Caller>();
    let script_bytes = caller.map_or(path.len(), |caller| caller.script_bytes);
    // Somewhere in the middle of a character there is no place to cut; the router cuts at slashes.
    let (script, info) = path.split_at_checked(script_bytes).unwrap_or((path, ""));
    let authority = parts.uri.authority();
    let port = authority.and_then(http::uri::Authority::port_u16).unwrap_or(if tls { 443 } else { 80 });
    let target = parts.uri.path_and_query().map_or(path, http::uri::PathAndQuery::as_str);
    let mut tell = |name: &'static str, value: String| drop(told.insert(name.into(), value));
    tell("GATEWAY_INTERFACE", "CGI/1.1".to_owned());
    tell("PATH_INFO", decoded(info));
    tell("QUERY_STRING", parts.uri.query().unwrap_or_default().to_owned());
    tell("REQUEST_METHOD", parts.method.to_string());
    tell("REQUEST_URI", target.to_owned());
    tell("SCRIPT_NAME", decoded(script));
    tell("SERVER_NAME", authority.map_or("localhost", http::uri::Authority::host).to_owned());
    tell("SERVER_PORT", port.to_string());
    tell("SERVER_PROTOCOL", format!("{:?}", parts.version));
    tell("SERVER_SOFTWARE", SOFTWARE.to_owned());
    if let Some(client) = caller.and_then(|caller| caller.client) {
        tell("REMOTE_ADDR", client.to_string());
        tell("REMOTE_HOST", client.to_string());
    }
    if let Some(authority) = authority {
        // Handlers have it from the target, where it has been moved.
        tell("HTTP_HOST", authority.to_string());
    }
    if tls {
        tell("HTTPS", "on".to_owned());
    }
    for (name, variable) in [(CONTENT_LENGTH, "CONTENT_LENGTH"), (CONTENT_TYPE, "CONTENT_TYPE")] {
        if let Some(value) = parts.headers.get(name) {
            tell(variable, text(value));
        }
    }
    for name in parts.headers.keys() {
        let Some(variable) = variable(name) else { continue };
        let separator = if *name == COOKIE { "; " } else { ", " };
        let values: Vec<String> = parts.headers.get_all(name).iter().map(text).collect();
        told.insert(variable.into(), values.join(separator));
    }
    for (name, _) in vars {
        told.remove(name.as_str());
    }
    vars.iter().cloned().chain(told.into_iter().map(|(name, value)| (name.into_owned(), value))).collect()
}

/// Returns the variable for a header; none where a program could take it for something else.
fn variable(name: &HeaderName) -> Option<String> {
    // A client's `Proxy` would be `HTTP_PROXY`, by which many programs find the proxy for their own requests.
    if *name == CONTENT_LENGTH || *name == CONTENT_TYPE || name == "proxy" {
        return None;
    }
    // `x_forwarded_for` would be the same variable as `x-forwarded-for`, which the gateway has written.
    if !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    Some(format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")))
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Decodes a path in its normal form. An encoded slash stays as it is: decoded, `%2F..%2F` would climb.
fn decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let encoded = (bytes[at] == b'%').then(|| digit(at + 1).zip(digit(at + 2))).flatten();
        match encoded.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) if byte != b'/' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> BTreeMap<String, String> {
        let request = build(http::Request::builder()).body(()).unwrap();
        of(&request.into_parts().0, false, &[]).into_iter().collect()
    }

    #[test]
    fn a_path_is_cut_where_the_route_ends() {
        let caller = Caller { client: Some([192, 0, 2, 1].into()), script_bytes: "/files".len() };
        let told = environment(|request| request.uri("http://a:81/files/a%20b/%2F..%2Fc?d=%20e").extension(caller));
        assert_eq!((&*told["SCRIPT_NAME"], &*told["PATH_INFO"]), ("/files", "/a b/%2F..%2Fc"));
        assert_eq!((&*told["QUERY_STRING"], &*told["REQUEST_URI"]), ("d=%20e", "/files/a%20b/%2F..%2Fc?d=%20e"));
        assert_eq!((&*told["SERVER_NAME"], &*told["SERVER_PORT"], &*told["HTTP_HOST"]), ("a", "81", "a:81"));
        assert_eq!(told["REMOTE_ADDR"], "192.0.2.1");
    }

    #[test]
    fn no_header_is_taken_for_something_else() {
        let told = environment(|request| {
            let request = request.header("proxy", "http://evil").header("x_forwarded_for", "1.2.3.4");
            let request = request.header("content-type", "a/b").header("cookie", "a=1").header("cookie", "b=2");
            request.header("x-a", "1").header("x-a", "2").header("content-length", "3")
        });
        assert!(!told.contains_key("HTTP_PROXY") && !told.contains_key("HTTP_X_FORWARDED_FOR"), "{told:?}");
        assert!(!told.contains_key("HTTP_CONTENT_TYPE") && !told.contains_key("HTTP_CONTENT_LENGTH"), "{told:?}");
        assert_eq!((&*told["CONTENT_TYPE"], &*told["CONTENT_LENGTH"]), ("a/b", "3"));
        assert_eq!((&*told["HTTP_X_A"], &*told["HTTP_COOKIE"]), ("1, 2", "a=1; b=2"));
    }

    #[test]
    fn what_the_configuration_says_goes_before_the_request() {
        let request = http::Request::builder().header("x-mode", "evil").body(()).unwrap();
        let vars = [("HTTP_X_MODE", "safe"), ("SERVER_NAME", "mine")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let told = of(&request.into_parts().0, true, &vars);
        for (name, expected) in [("HTTP_X_MODE", "safe"), ("SERVER_NAME", "mine"), ("HTTPS", "on")] {
            let values: Vec<_> = told.iter().filter(|(other, _)| other == name).map(|(_, value)| &**value).collect();
            assert_eq!(values, [expected], "{name}");
        }
    }
}
