//! Templates: text with placeholders, as in `https://${request.host}${request.path}`.

use lockgate_filter::header::{check_value, is_token};

/// Which headers a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

impl Side {
    /// As in the settings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// What a placeholder stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Method,
    Scheme,
    Host,
    Path,
    Header(String),
    Id,
    ClientAddress,
    Route,
    Status,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Placeholder(Source),
}

/// A template that has been parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// Parses a template. `$${` stands for `${`; a `$` before anything else is itself.
    ///
    /// # Errors
    ///
    /// A placeholder is unknown or not closed, or the text can be in no header; the text says which.
    pub(crate) fn parse(template: &str, side: Side) -> Result<Self, String> {
        check_value(template.as_bytes()).map_err(|refusal| refusal.to_string())?;
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(start) = rest.find("${") {
            let (before, from) = rest.split_at(start);
            if let Some(before) = before.strip_suffix('$') {
                text.push_str(before);
                text.push_str("${");
                rest = &from[2..];
                continue;
            }
            text.push_str(before);
            let Some((name, after)) = from[2..].split_once('}') else {
                return Err(format!("placeholder `{from}` has no `}}`; `$${{` stands for a `${{` that begins none"));
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text).into_bytes()));
            }
            pieces.push(Piece::Placeholder(source(name, side)?));
            rest = after;
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into_bytes()));
        }
        Ok(Self { pieces })
    }

    /// The text with each placeholder's value in its place.
    pub(crate) fn fill(&self, value: impl Fn(&Source) -> Vec<u8>) -> Vec<u8> {
        let mut filled = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => filled.extend_from_slice(text),
                Piece::Placeholder(source) => filled.append(&mut value(source)),
            }
        }
        filled
    }
}

fn source(name: &str, side: Side) -> Result<Source, String> {
    Ok(match name {
        "request.method" => Source::Method,
        "request.scheme" => Source::Scheme,
        "request.host" => Source::Host,
        "request.path" => Source::Path,
        "request.id" => Source::Id,
        "client.address" => Source::ClientAddress,
        "route" => Source::Route,
        "response.status" if side == Side::Response => Source::Status,
        "response.status" => {
            return Err(format!(
                "placeholder `${{{name}}}`: there is no response yet; it can stand in `response` only"
            ));
        }
        _ => match name.strip_prefix("request.header.") {
            Some(header) if is_token(header) => Source::Header(header.to_ascii_lowercase()),
            Some(header) => {
                return Err(format!("placeholder `${{{name}}}`: `{header}` is not a header name"));
            }
            None => {
                let also = if side == Side::Response { ", `response.status`" } else { "" };
                return Err(format!(
                    "unknown placeholder `${{{name}}}`: expected one of `request.method`, `request.scheme`, \
                     `request.host`, `request.path`, `request.header.NAME`, `request.id`, `client.address`, \
                     `route`{also}"
                ));
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills placeholders with their own names.
    fn fill(template: &str) -> String {
        let template = Template::parse(template, Side::Response).expect("a template");
        String::from_utf8(template.fill(|source| format!("<{source:?}>").into_bytes())).expect("text")
    }

    fn problem(template: &str) -> String {
        Template::parse(template, Side::Response).expect_err("not a template")
    }

    #[test]
    fn placeholders_stand_for_values() {
        assert_eq!(fill("plain"), "plain");
        assert_eq!(fill(""), "");
        assert_eq!(fill("${route}"), "<Route>");
        assert_eq!(fill("a ${request.method} b ${response.status}${request.id} c"), "a <Method> b <Status><Id> c");
        assert_eq!(fill("${request.header.User-Agent}"), r#"<Header("user-agent")>"#);
        assert_eq!(fill("${request.header.host}"), r#"<Header("host")>"#);
    }

    #[test]
    fn a_dollar_is_itself_unless_it_begins_a_placeholder() {
        assert_eq!(fill("5 $ and $5 and $$"), "5 $ and $5 and $$");
        assert_eq!(fill("$${route}"), "${route}");
        assert_eq!(fill("$${${route}}"), "${<Route>}");
    }

    #[test]
    fn what_is_no_template_is_refused_with_a_reason() {
        assert_eq!(problem("a ${route"), "placeholder `${route` has no `}`; `$${` stands for a `${` that begins none");
        assert_eq!(problem("${request.header.}"), "placeholder `${request.header.}`: `` is not a header name");
        assert_eq!(problem("a\r\nb: c"), "the value has a control character");
        assert!(problem("${request.query}").starts_with("unknown placeholder `${request.query}`: expected one of"));
    }
}
