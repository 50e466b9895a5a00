//! What the target is asked for: another path, another host. Filters and the router know what the client asked for.

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use lockgate_config::model::{self, REGEX_BYTES_MAX};
use regex::{Regex, RegexBuilder};

use super::template::Asked;
use crate::proxy::path;

/// How a route's target is asked.
#[derive(Debug, Default)]
pub struct Rewrite {
    path: Option<PathRewrite>,
    /// The value of `host`.
    pub host: Option<HeaderValue>,
}

#[derive(Debug)]
enum PathRewrite {
    Prefix(Box<str>),
    Regex { regex: Regex, to: Box<str> },
}

impl Rewrite {
    /// Returns the rewriting that a configuration asks for. What does not compile, which it refuses, is left out.
    pub fn new(rewrite: &model::Rewrite) -> Self {
        let path = rewrite.path.as_ref().and_then(|path| match path {
            model::PathRewrite::Prefix(prefix) => Some(PathRewrite::Prefix(prefix.as_str().into())),
            model::PathRewrite::Regex { pattern, to } => {
                let regex = RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build().ok()?;
                Some(PathRewrite::Regex { regex, to: to.as_str().into() })
            }
        });
        let host = rewrite.host.as_ref().and_then(|host| HeaderValue::from_str(host).ok());
        Self { path, host }
    }

    /// Returns the target in the place of the one that was asked for; none where that stays.
    ///
    /// # Errors
    /// What an expression makes of the path is no path.
    pub fn target(&self, asked: &Asked<'_>) -> Result<Option<Uri>, path::TargetError> {
        let uri = &asked.request.uri;
        let mut target = match &self.path {
            None => return Ok(None),
            Some(PathRewrite::Prefix(prefix)) => behind(prefix, uri.path(), asked.prefix),
            Some(PathRewrite::Regex { regex, to }) => match regex.replace(uri.path(), &**to) {
                std::borrow::Cow::Borrowed(_) => return Ok(None),
                std::borrow::Cow::Owned(path) => path,
            },
        };
        if target.contains('?') {
            return Err(path::TargetError::BadCharacter);
        }
        if let Some(query) = uri.query() {
            target.push('?');
            target.push_str(query);
        }
        let normal = path::normalise(target.as_bytes())?;
        let target = PathAndQuery::try_from(&*normal).map_err(|_| path::TargetError::BadCharacter)?;
        Ok(Some(Uri::from(target)))
    }
}

/// Puts a prefix in the place of the first `length` bytes of a path. `/api` has less than the prefix `/api/`.
fn behind(prefix: &str, path: &str, length: usize) -> String {
    match path.get(length..) {
        Some(rest) => format!("{}/{rest}", prefix.strip_suffix('/').unwrap_or(prefix)),
        None => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::{asked, request};
    use super::*;

    fn check(path: model::PathRewrite, target: &str, expect: Option<&str>) {
        let rewrite = Rewrite::new(&model::Rewrite { path: Some(path), host: None });
        let request = request(target);
        let found = rewrite.target(&asked(&request)).ok().flatten().map(|uri| uri.to_string());
        assert_eq!(found.as_deref(), expect, "{target}");
    }

    #[test]
    fn a_prefix_takes_the_place_of_the_routes() {
        let prefix = |text: &str| model::PathRewrite::Prefix(text.into());
        check(prefix("/v2"), "/users/7?a=b", Some("/v2/7?a=b"));
        check(prefix("/v2"), "/users", Some("/v2"));
        check(prefix("/v2"), "/users/", Some("/v2/"));
        check(prefix("/"), "/users/7", Some("/7"));
        check(prefix("/"), "/users", Some("/"));
    }

    #[test]
    fn an_expression_takes_groups_along() {
        let regex = |pattern: &str, to: &str| model::PathRewrite::Regex { pattern: pattern.into(), to: to.into() };
        check(regex("^/users/([0-9]+)$", "/u/$1"), "/users/7?a=b", Some("/u/7?a=b"));
        check(regex("^/users/(?<id>.+)$", "/u/${id}x"), "/users/7", Some("/u/7x"));
        check(regex("^/users/([0-9]+)$", "/u/$1"), "/users/me", None);
    }

    #[test]
    fn what_is_made_of_a_path_is_a_path_in_its_normal_form() {
        let regex = |to: &str| model::PathRewrite::Regex { pattern: "^/users/(.*)$".into(), to: to.into() };
        check(regex("/a/.$1/b"), "/users/.x", Some("/a/..x/b"));
        check(regex("/a/../$1"), "/users/x", Some("/x"));
        check(regex("/../$1"), "/users/x", None);
        check(regex("$1"), "/users/x", None);
        check(regex("/a?$1"), "/users/x", None);
        check(regex("//$1"), "/users/x", Some("/x"));
    }
}
