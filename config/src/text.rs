//! How addresses, hosts, paths and names are written, each parsed into its type of the [model](crate::model) and shown
//! as it was written.

mod address;
mod collector;
mod host;
mod http;
mod log_format;
mod path;
mod template;

use std::fmt;

pub(crate) use self::collector::CollectorUrl;
pub(crate) use self::http::{HeaderName, Method, TOKEN_EXPECTED, is_token, is_value};
pub(crate) use self::log_format::LogFormat;
pub(crate) use self::template::{header_template, path_prefix, redirect_template};

/// Why a text is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// What would have been right: `a duration such as …`. Never quotes the text, which may be a variable's secret.
    pub expected: String,
    /// What to write instead, where it can be guessed. May quote the text.
    pub hint: Option<String>,
}

impl TextError {
    pub(crate) fn new(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for TextError {}

/// Characters of a name. It becomes a label of metrics, a part of addresses of the admin API, and a file's name.
const NAME_MAX: usize = 64;

/// Checks the name of an upstream, a filter, a route or a rollout.
pub(crate) fn check_name(name: &str) -> Result<(), TextError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.len() <= NAME_MAX
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(inner)
    {
        return Ok(());
    }
    Err(TextError::new(format!(
        "letters, digits, `-`, `_` and `.`, a letter or digit first, at most {NAME_MAX} characters"
    )))
}
