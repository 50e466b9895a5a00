//! How a line of the access log is written: a word, or a template of text and fields.

use std::fmt;
use std::str::FromStr;

use super::{TextError, is_token};
use crate::decode::did_you_mean;
use crate::model::{LogField, LogPiece};

/// The form of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One object a line.
    Json,
    /// As web servers have written it for thirty years.
    Common,
    /// The same, with `referer` and `user-agent`.
    Combined,
    /// The template as it was written, and what it means.
    Template(String, Vec<LogPiece>),
}

const COMMON: &str = r#"{client} - - [{clf_time}] "{method} {target} {protocol}" {status} {bytes_sent}"#;
const COMBINED: &str =
    r#"{client} - - [{clf_time}] "{method} {target} {protocol}" {status} {bytes_sent} "{referer}" "{user_agent}""#;

const REQUEST_HEADER: &str = "request_header:";
const RESPONSE_HEADER: &str = "response_header:";

/// Fields without a parameter, by name.
const FIELDS: [(&str, LogField); 33] = [
    ("attempts", LogField::Attempts),
    ("bytes_received", LogField::BytesReceived),
    ("bytes_sent", LogField::BytesSent),
    ("client", LogField::Client),
    ("clf_time", LogField::ClfTime),
    ("duration_ms", LogField::DurationMs),
    ("error", LogField::Error),
    ("error_reason", LogField::ErrorReason),
    ("error_source", LogField::ErrorSource),
    ("file", LogField::File),
    ("filters", LogField::Filters),
    ("function", LogField::Function),
    ("function_track", LogField::FunctionTrack),
    ("generation", LogField::Generation),
    ("host", LogField::Host),
    ("id", LogField::Id),
    ("method", LogField::Method),
    ("path", LogField::Path),
    ("protocol", LogField::Protocol),
    ("query", LogField::Query),
    ("route", LogField::Route),
    ("sample", LogField::Sample),
    ("status", LogField::Status),
    ("target", LogField::Target),
    ("time", LogField::Time),
    ("tls_client", LogField::TlsClient),
    ("tls_server_name", LogField::TlsServerName),
    ("tls_version", LogField::TlsVersion),
    ("trace", LogField::Trace),
    ("upstream", LogField::Upstream),
    ("upstream_address", LogField::UpstreamAddress),
    ("upstream_ms", LogField::UpstreamMs),
    ("upstream_track", LogField::UpstreamTrack),
];

/// Headers that have a short name.
const SHORT: [(&str, &str); 2] = [("referer", "referer"), ("user_agent", "user-agent")];

impl LogFormat {
    /// Returns what lines are made of; none for JSON.
    pub(crate) fn pieces(&self) -> Option<Vec<LogPiece>> {
        let preset = |template| pieces(template).unwrap_or_default();
        match self {
            Self::Json => None,
            Self::Common => Some(preset(COMMON)),
            Self::Combined => Some(preset(COMBINED)),
            Self::Template(_, pieces) => Some(pieces.clone()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Common => "common",
            Self::Combined => "combined",
            Self::Template(template, _) => template,
        })
    }
}

impl FromStr for LogFormat {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "json" => Ok(Self::Json),
            "common" => Ok(Self::Common),
            "combined" => Ok(Self::Combined),
            _ if !text.contains(['{', '}']) => {
                let expected =
                    TextError::new("`json`, `common`, `combined`, or a template such as `{client} {status}`");
                Err(match did_you_mean(text, ["json", "common", "combined"]) {
                    Some(hint) => expected.hint(hint),
                    None => expected,
                })
            }
            _ => pieces(text).map(|pieces| Self::Template(text.to_owned(), pieces)),
        }
    }
}

/// Reads a template.
fn pieces(template: &str) -> Result<Vec<LogPiece>, TextError> {
    let lone = |brace: char| {
        TextError::new("a template whose braces come in pairs")
            .hint(format!("a `{brace}` that is to be in the line is written twice: `{brace}{brace}`"))
    };
    if template.chars().any(char::is_control) {
        return Err(TextError::new("a template for one line, without control characters"));
    }
    let (mut found, mut text, mut rest) = (Vec::new(), String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((brace, behind)) =
            [("{{", '{'), ("}}", '}')].into_iter().find_map(|(twice, one)| Some((one, rest.strip_prefix(twice)?)))
        {
            text.push(brace);
            rest = behind;
            continue;
        }
        let Some(inner) = rest.strip_prefix('{') else { return Err(lone('}')) };
        let Some((name, behind)) = inner.split_once('}') else { return Err(lone('{')) };
        if !text.is_empty() {
            found.push(LogPiece::Text(std::mem::take(&mut text)));
        }
        found.push(field(name)?);
        rest = behind;
    }
    text.push_str(rest);
    if !text.is_empty() {
        found.push(LogPiece::Text(text));
    }
    Ok(found)
}

/// Finds what a name stands for.
fn field(name: &str) -> Result<LogPiece, TextError> {
    let header = |header: &str| match is_token(header) {
        true => Ok(header.to_ascii_lowercase()),
        false => Err(TextError::new("the name of a header behind the colon, as in `{request_header:x-user}`")),
    };
    if let Some(name) = name.strip_prefix(REQUEST_HEADER) {
        return header(name).map(LogPiece::RequestHeader);
    }
    if let Some(name) = name.strip_prefix(RESPONSE_HEADER) {
        return header(name).map(LogPiece::ResponseHeader);
    }
    if let Some((_, header)) = SHORT.iter().find(|(short, _)| *short == name) {
        return Ok(LogPiece::RequestHeader((*header).to_owned()));
    }
    if let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) {
        return Ok(LogPiece::Field(*field));
    }
    let names = FIELDS.iter().map(|(known, _)| *known).chain(SHORT.map(|(short, _)| short));
    Err(TextError::new("a template of known fields, each in braces").hint(match did_you_mean(name, names) {
        Some(guess) => format!("there is no field `{name}`: {guess}"),
        None => format!("there is no field `{name}`; the reference of `server.access_log.format` lists them"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, expected: &[LogPiece]) {
        assert_eq!(pieces(template).as_deref(), Ok(expected));
    }

    fn hint(template: &str) -> String {
        template.parse::<LogFormat>().unwrap_err().hint.unwrap_or_default()
    }

    #[test]
    fn a_template_is_text_and_fields() {
        let text = |text: &str| LogPiece::Text(text.into());
        let field = LogPiece::Field;
        check("{status}", &[field(LogField::Status)]);
        check("a {path}{query} b", &[text("a "), field(LogField::Path), field(LogField::Query), text(" b")]);
        check("{{{id}}}", &[text("{"), field(LogField::Id), text("}")]);
        check("{request_header:X-User}", &[LogPiece::RequestHeader("x-user".into())]);
        check("{referer}", &[LogPiece::RequestHeader("referer".into())]);
        check("{response_header:server}", &[LogPiece::ResponseHeader("server".into())]);
    }

    #[test]
    fn a_name_that_is_none_gets_a_guess() {
        assert_eq!(hint("{stats}"), "there is no field `stats`: did you mean `status`?");
        assert_eq!(hint("combind"), "did you mean `combined`?");
        assert!(hint("{color}").contains("the reference"));
        assert!(hint("{status").contains("`{{`"));
        assert!(hint("status}").contains("`}}`"));
        assert!("{request_header:}".parse::<LogFormat>().is_err());
        assert!("{status}\n".parse::<LogFormat>().is_err());
    }

    #[test]
    fn presets_are_templates_that_can_be_read() {
        for preset in [COMMON, COMBINED] {
            assert!(pieces(preset).is_ok_and(|pieces| pieces.len() > 10), "{preset}");
        }
    }

    #[test]
    fn every_field_is_in_the_reference() {
        let reference = crate::reference();
        for name in FIELDS.iter().map(|(name, _)| *name).chain(SHORT.map(|(short, _)| short)) {
            assert!(reference.contains(&format!("`{name}`")), "{name}");
        }
    }
}
