//! What a route's pattern makes of a request's path: which part of it led here, and its parameters. Functions are told.
//! Pure.

use http::{HeaderMap, HeaderName, HeaderValue};
use lockgate_config::model::{PathPattern, Segment};
use lockgate_host::PARAMETER_PREFIX;

/// Where a route is in the space of paths.
#[derive(Debug)]
pub enum Place {
    /// At paths that it takes whole.
    Whole,
    /// At everything below this, which has no `/` at its end.
    Below(Box<str>),
    /// At paths with parameters.
    Parameters(Box<[Part]>),
}

/// A segment of a path with parameters.
#[derive(Debug)]
pub enum Part {
    /// Is the same in all paths.
    Literal(Box<str>),
    /// Is told by this header.
    Parameter(HeaderName),
}

impl Place {
    /// Returns the place of a route.
    pub fn new(pattern: &PathPattern) -> Self {
        match pattern {
            PathPattern::Exact(_) => Self::Whole,
            PathPattern::Prefix(prefix) => Self::Below(prefix.trim_end_matches('/').into()),
            PathPattern::Template(segments) => Self::Parameters(segments.iter().filter_map(Part::new).collect()),
        }
    }

    /// Returns the bytes of a path that led to the route: all of it, or what stands before the `*`. A path that a filter
    /// has put in its place leads here as a whole.
    pub fn bytes_of(&self, path: &str) -> usize {
        match self {
            Self::Below(prefix) if path.strip_prefix(&**prefix).is_some_and(is_boundary) => prefix.len(),
            _ => path.len(),
        }
    }

    /// Adds a header for each parameter, with its value as it stands in the path. A path that a filter has put in its
    /// place, and that does not fit, has none.
    pub fn tell(&self, path: &str, headers: &mut HeaderMap) {
        let Self::Parameters(parts) = self else { return };
        let segments = || path.split('/').skip(1);
        let fits = |(part, segment): (&Part, &str)| match part {
            Part::Literal(text) => **text == *segment,
            Part::Parameter(_) => !segment.is_empty(),
        };
        if segments().count() != parts.len() || !parts.iter().zip(segments()).all(fits) {
            return;
        }
        for (part, segment) in parts.iter().zip(segments()) {
            // A path in its normal form is made of what a value may have.
            if let (Part::Parameter(name), Ok(value)) = (part, HeaderValue::from_str(segment)) {
                headers.append(name, value);
            }
        }
    }
}

impl Part {
    /// None only if a parameter's name were no part of a header's.
    fn new(segment: &Segment) -> Option<Self> {
        Some(match segment {
            Segment::Literal(text) => Self::Literal(text.as_str().into()),
            Segment::Parameter(name) => {
                // Programs get headers as variables, where `_` and `-` are the same; many servers drop the former.
                let name = format!("{PARAMETER_PREFIX}{}", name.to_ascii_lowercase().replace('_', "-"));
                Self::Parameter(HeaderName::try_from(name).ok()?)
            }
        })
    }
}

fn is_boundary(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pattern: &str) -> Place {
        Place::new(&pattern.parse().unwrap())
    }

    fn told(pattern: &str, path: &str) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        place(pattern).tell(path, &mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn parameters_are_told_as_they_stand_in_the_path() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(told("/users/{id}", "/users/42"), [pair("x-lockgate-param-id", "42")]);
        assert_eq!(
            told("/{Shop_Name}/x/{id}", "/a%2Fb/x/%C3%BC"),
            [pair("x-lockgate-param-shop-name", "a%2Fb"), pair("x-lockgate-param-id", "%C3%BC")]
        );
        assert_eq!(told("/users/*", "/users/42"), []);
    }

    #[test]
    fn a_path_that_does_not_fit_any_more_has_no_parameters() {
        for path in ["/", "/users", "/users/", "/users/1/2", "/people/1"] {
            assert_eq!(told("/users/{id}", path), [], "{path}");
        }
    }

    #[test]
    fn what_led_here_ends_before_the_star() {
        for (pattern, path, led) in [
            ("/files/*", "/files/a/b", "/files"),
            ("/files/*", "/files", "/files"),
            ("/files/*", "/filesystem", "/filesystem"),
            ("/*", "/a", ""),
            ("/a", "/a", "/a"),
            ("/users/{id}", "/users/1", "/users/1"),
        ] {
            assert_eq!(&path[..place(pattern).bytes_of(path)], led, "{pattern} {path}");
        }
    }
}
