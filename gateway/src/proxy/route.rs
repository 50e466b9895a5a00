//! Finds the route of a request. The more special wins: exact host before wildcard before any; exact path before
//! template before prefix, a longer one before a shorter; then more conditions before fewer. Where the most special
//! does not take the request (its method or headers differ), the next one is tried.
//!
//! A look-up costs one hash for each label of the host and each segment of the path, however many routes there are.
//! Pure, and free of Pingora.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, Method};
use lockgate_config::model::{HostPattern, PathPattern, RouteMatch, Segment};

/// All routes, arranged for look-up.
#[derive(Debug, Default)]
pub struct Router {
    exact: HashMap<String, Paths>,
    /// By the suffix, with its dot: `.example.com`.
    wildcard: HashMap<String, Paths>,
    any: Paths,
}

/// What a router found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The route's index.
    Route(usize),
    /// A route would take the request with one of these methods.
    MethodNotAllowed(Vec<Method>),
    /// No route.
    Nothing,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Candidates>,
    templates: Node,
    /// By the prefix without its last `/`, so that `/a/*` is found for `/a` too, and everything under the empty one.
    prefix: HashMap<String, Candidates>,
}

/// Templates, segment by segment.
#[derive(Debug, Default)]
struct Node {
    literal: HashMap<String, Self>,
    parameter: Option<Box<Self>>,
    here: Candidates,
}

/// Routes that differ in methods and headers only, the one with the most conditions first.
#[derive(Debug, Default)]
struct Candidates(Vec<Candidate>);

#[derive(Debug)]
struct Candidate {
    route: usize,
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Option<String>)>,
}

/// What a request is matched by.
struct Request<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    /// Methods of routes that only the method kept from taking the request.
    allowed: Vec<Method>,
}

impl Router {
    /// Returns a router over routes, which are named by their index.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a RouteMatch>) -> Self {
        let mut router = Self::default();
        for (route, matcher) in routes.into_iter().enumerate() {
            if matcher.hosts.is_empty() {
                router.any.add(route, matcher);
            }
            for host in &matcher.hosts {
                let paths = match host {
                    HostPattern::Exact(name) => router.exact.entry(name.clone()).or_default(),
                    HostPattern::Wildcard(suffix) => router.wildcard.entry(suffix.clone()).or_default(),
                };
                paths.add(route, matcher);
            }
        }
        router
    }

    /// Returns the route of a request. `host` is without a port, in any case; `path` is normalised.
    pub fn find(&self, method: &Method, host: &str, path: &str, headers: &HeaderMap) -> Found {
        let mut request = Request { method, headers, allowed: Vec::new() };
        match self.find_by_host(host, path, &mut request) {
            Some(route) => Found::Route(route),
            None if request.allowed.is_empty() => Found::Nothing,
            None => Found::MethodNotAllowed(request.allowed),
        }
    }

    fn find_by_host(&self, host: &str, path: &str, request: &mut Request<'_>) -> Option<usize> {
        if !self.exact.is_empty() || !self.wildcard.is_empty() {
            let lower;
            let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
                lower = host.to_ascii_lowercase();
                lower.as_str()
            } else {
                host
            };
            // `example.com.` is the same host, written fully.
            let host = host.strip_suffix('.').unwrap_or(host);
            let exact = self.exact.get(host).and_then(|paths| paths.find(path, request));
            if exact.is_some() {
                return exact;
            }
            let mut rest = host;
            while let Some(dot) = rest.get(1..).and_then(|tail| tail.find('.')) {
                rest = &rest[dot + 1..];
                let found = self.wildcard.get(rest).and_then(|paths| paths.find(path, request));
                if found.is_some() {
                    return found;
                }
            }
        }
        self.any.find(path, request)
    }
}

impl Paths {
    fn add(&mut self, route: usize, matcher: &RouteMatch) {
        let candidates = match &matcher.path {
            PathPattern::Exact(path) => self.exact.entry(path.clone()).or_default(),
            PathPattern::Prefix(prefix) => {
                let key = prefix.strip_suffix('/').unwrap_or(prefix);
                self.prefix.entry(key.to_owned()).or_default()
            }
            PathPattern::Template(segments) => {
                let mut node = &mut self.templates;
                for segment in segments {
                    node = match segment {
                        Segment::Literal(text) => node.literal.entry(text.clone()).or_default(),
                        Segment::Parameter(_) => node.parameter.get_or_insert_default(),
                    };
                }
                &mut node.here
            }
        };
        candidates.add(route, matcher);
    }

    fn find(&self, path: &str, request: &mut Request<'_>) -> Option<usize> {
        let exact = self.exact.get(path).and_then(|candidates| candidates.find(request));
        if exact.is_some() {
            return exact;
        }
        if !self.templates.is_empty() {
            let found = self.templates.find(path.strip_prefix('/').unwrap_or(path), request);
            if found.is_some() {
                return found;
            }
        }
        self.find_by_prefix(path, request)
    }

    fn find_by_prefix(&self, path: &str, request: &mut Request<'_>) -> Option<usize> {
        if self.prefix.is_empty() {
            return None;
        }
        std::iter::once(path)
            .chain(path.rmatch_indices('/').map(|(slash, _)| &path[..slash]))
            .filter_map(|prefix| self.prefix.get(prefix))
            .find_map(|candidates| candidates.find(request))
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.parameter.is_none()
    }

    /// Literal segments before parameters, deepest first: what is found first is the most special.
    fn find(&self, rest: &str, request: &mut Request<'_>) -> Option<usize> {
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        let literal = self.literal.get(segment);
        let parameter = self.parameter.as_deref().filter(|_| !segment.is_empty());
        [literal, parameter].into_iter().flatten().find_map(|node| match rest {
            Some(rest) => node.find(rest, request),
            None => node.here.find(request),
        })
    }
}

impl Candidates {
    fn add(&mut self, route: usize, matcher: &RouteMatch) {
        self.0.push(Candidate {
            route,
            methods: matcher.methods.iter().filter_map(|method| Method::from_bytes(method.as_bytes()).ok()).collect(),
            headers: matcher
                .headers
                .iter()
                .filter_map(|header| Some((HeaderName::try_from(&header.name).ok()?, header.value.clone())))
                .collect(),
        });
        // Stable: among equals the order of the file stays.
        self.0.sort_by_key(|candidate| std::cmp::Reverse(candidate.conditions()));
    }

    fn find(&self, request: &mut Request<'_>) -> Option<usize> {
        for candidate in self.0.iter().filter(|candidate| candidate.headers_hold(request.headers)) {
            if candidate.methods.is_empty() || candidate.methods.contains(request.method) {
                return Some(candidate.route);
            }
            request.allowed.extend_from_slice(&candidate.methods);
        }
        None
    }
}

impl Candidate {
    fn conditions(&self) -> usize {
        self.headers.len() + usize::from(!self.methods.is_empty())
    }

    fn headers_hold(&self, headers: &HeaderMap) -> bool {
        self.headers.iter().all(|(name, expected)| match expected {
            None => headers.contains_key(name),
            Some(expected) => headers.get_all(name).iter().any(|value| value.as_bytes() == expected.as_bytes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use lockgate_config::model::HeaderMatch;

    use super::*;

    fn matcher(host: &str, path: &str) -> RouteMatch {
        let hosts = match host.strip_prefix('*') {
            Some("") => Vec::new(),
            Some(suffix) => vec![HostPattern::Wildcard(suffix.into())],
            None => vec![HostPattern::Exact(host.into())],
        };
        let path = if let Some(prefix) = path.strip_suffix('*') {
            PathPattern::Prefix(prefix.into())
        } else if path.contains('{') {
            let segment = |s: &str| match s.strip_prefix('{') {
                Some(name) => Segment::Parameter(name.trim_end_matches('}').into()),
                None => Segment::Literal(s.into()),
            };
            PathPattern::Template(path[1..].split('/').map(segment).collect())
        } else {
            PathPattern::Exact(path.into())
        };
        RouteMatch { hosts, path, methods: Vec::new(), headers: Vec::new() }
    }

    const ROUTES: &[(&str, &str)] = &[
        ("*", "/*"),
        ("example.com", "/*"),
        ("*.example.com", "/*"),
        ("*.b.example.com", "/only"),
        ("example.com", "/users/{id}"),
        ("example.com", "/users/me"),
        ("example.com", "/users/*"),
        ("example.com", "/users/{id}/posts/{post}"),
        ("example.com", "/users/me/posts/{post}"),
        ("example.com", "/a/b/*"),
    ];

    fn check(request: &str, expect: (&str, &str)) {
        let router = Router::new(&ROUTES.iter().map(|(h, p)| matcher(h, p)).collect::<Vec<_>>());
        let (host, path) = request.split_at(request.find('/').unwrap());
        let found = router.find(&Method::GET, host, path, &HeaderMap::new());
        let Found::Route(route) = found else { panic!("{request}: {found:?}") };
        assert_eq!(ROUTES[route], expect, "{request}");
    }

    #[test]
    fn the_more_special_host_wins() {
        check("other.org/x", ("*", "/*"));
        check("EXAMPLE.com/x", ("example.com", "/*"));
        check("example.com./x", ("example.com", "/*"));
        check("a.example.com/x", ("*.example.com", "/*"));
        check("a.b.example.com/only", ("*.b.example.com", "/only"));
        check("a.b.example.com/x", ("*.example.com", "/*"));
    }

    #[test]
    fn the_more_special_path_wins() {
        check("example.com/users/me", ("example.com", "/users/me"));
        check("example.com/users/7", ("example.com", "/users/{id}"));
        check("example.com/users/7/x", ("example.com", "/users/*"));
        check("example.com/users/", ("example.com", "/users/*"));
        check("example.com/users", ("example.com", "/users/*"));
        check("example.com/usersx", ("example.com", "/*"));
        check("example.com/users/7/posts/1", ("example.com", "/users/{id}/posts/{post}"));
        check("example.com/users/me/posts/1", ("example.com", "/users/me/posts/{post}"));
        check("example.com/a/b", ("example.com", "/a/b/*"));
        check("example.com/a", ("example.com", "/*"));
    }

    #[test]
    fn more_conditions_are_tried_before_fewer() {
        let mut beta = matcher("*", "/x");
        beta.headers = vec![HeaderMatch { name: "x-beta".into(), value: Some("1".into()) }];
        let mut post = matcher("*", "/x");
        post.methods = vec!["POST".into()];
        let plain = matcher("*", "/x");
        let router = Router::new(&[plain, post, beta]);
        let beta = [(HeaderName::from_static("x-beta"), http::HeaderValue::from_static("1"))];
        let find = |method, headers: &HeaderMap| router.find(&method, "h", "/x", headers);
        assert_eq!(find(Method::GET, &beta.into_iter().collect()), Found::Route(2));
        assert_eq!(find(Method::POST, &HeaderMap::new()), Found::Route(1));
        assert_eq!(find(Method::GET, &HeaderMap::new()), Found::Route(0));
    }

    #[test]
    fn a_method_that_no_route_takes_is_told_from_a_missing_route() {
        let mut post = matcher("*", "/x");
        post.methods = vec!["POST".into()];
        let router = Router::new(&[post]);
        let find = |path| router.find(&Method::GET, "h", path, &HeaderMap::new());
        assert_eq!(find("/x"), Found::MethodNotAllowed(vec![Method::POST]));
        assert_eq!(find("/y"), Found::Nothing);
    }
}
