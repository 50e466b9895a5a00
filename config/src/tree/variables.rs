//! Variables of the environment in texts: `${NAME}`, `${NAME:-default}`, and `$$` for a dollar.

use super::Env;
use crate::problem::{Place, Problem};

/// Why a variable cannot be expanded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It has no value, and no default.
    Unset(String),
    /// `${` without an end.
    Open,
    /// What stands between the braces is no name.
    Name(String),
}

impl Failure {
    pub(super) fn problem(self, place: &Place) -> Problem {
        let place = place.clone();
        match self {
            Self::Unset(name) => {
                let key = if place.path.is_empty() { "the file".into() } else { format!("`{}`", place.path) };
                let mut hint = format!("set it in the environment, or give a default: `${{{name}:-…}}`");
                // Filters have placeholders of their own that look the same.
                if place.path.contains(".settings") {
                    hint += &format!("; for the text `${{{name}}}` itself, write `$${{{name}}}`");
                }
                Problem::new(format!("the variable `{name}` is not set"), place)
                    .label(format!("{key} needs it"))
                    .hint(hint)
            }
            Self::Open => Problem::new("a variable is not closed", place)
                .label("`${` without `}`")
                .hint("write `$$` for a dollar that begins no variable"),
            Self::Name(name) => Problem::new(format!("`{name}` is no name of a variable"), place)
                .label("expected letters, digits and `_`")
                .hint(format!("write `$${{{name}}}` where no variable is meant, but `${{{name}}}` itself")),
        }
    }
}

/// Returns a text with its variables replaced; none where there is nothing to replace. As in a shell, a default also
/// stands in for an empty value, and a dollar that is followed by anything else is just a dollar.
pub(super) fn expand(text: &str, env: &Env<'_>) -> Result<Option<String>, Vec<Failure>> {
    if !text.contains("${") && !text.contains("$$") {
        return Ok(None);
    }
    let mut out = String::with_capacity(text.len());
    let mut failures = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some((inside, after)) = after.split_once('}') else {
                failures.push(Failure::Open);
                break;
            };
            match variable(inside, env) {
                Ok(value) => out.push_str(&value),
                Err(failure) => failures.push(failure),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    if failures.is_empty() { Ok(Some(out)) } else { Err(failures) }
}

fn variable(inside: &str, env: &Env<'_>) -> Result<String, Failure> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(Failure::Name(name.to_owned()));
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Failure::Unset(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, Failure>) {
        let env = |name: &str| match name {
            "HOST" => Some("example.com".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let expanded = expand(text, &env).map(|expanded| expanded.unwrap_or_else(|| text.to_owned()));
        assert_eq!(expanded, expected.map(str::to_owned).map_err(|failure| vec![failure]), "{text}");
    }

    #[test]
    fn variables_are_expanded_as_in_a_shell() {
        check("plain", Ok("plain"));
        check("https://${HOST}:${PORT:-443}/", Ok("https://example.com:443/"));
        check("${HOST:-other}", Ok("example.com"));
        check("<${EMPTY}> <${EMPTY:-full}> <${NO:-}>", Ok("<> <full> <>"));
    }

    #[test]
    fn a_dollar_alone_is_a_dollar() {
        check("^a$ costs 5$", Ok("^a$ costs 5$"));
        check("$HOST", Ok("$HOST"));
        check("$${HOST} $$$${HOST} $$", Ok("${HOST} $${HOST} $"));
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        check("a ${NO} b", Err(Failure::Unset("NO".into())));
        check("a ${HOST", Err(Failure::Open));
        check("${1A}", Err(Failure::Name("1A".into())));
        check("${}", Err(Failure::Name(String::new())));
        check("${A B:-x}", Err(Failure::Name("A B".into())));
    }

    #[test]
    fn all_failures_of_a_text_are_found() {
        let failures = expand("${A} ${B:-b} ${C}", &|_| None).unwrap_err();
        assert_eq!(failures, [Failure::Unset("A".into()), Failure::Unset("C".into())]);
    }
}
