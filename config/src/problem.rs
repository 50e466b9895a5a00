//! What is wrong with a configuration, and where. A *problem* names what, where and what to do; a [`Report`] is all of
//! them, rendered against the text of the file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1; 0 where there is no place.
    pub line: u32,
    /// In characters, counted from 1.
    pub column: u32,
    /// Length in characters of what stands there, for the underline; at least 1.
    pub length: u32,
    /// `routes[2].filters[0]`
    pub path: Arc<str>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Lower case, no final full stop, the user's own spelling in backticks.
    pub message: String,
    /// Where.
    pub place: Place,
    /// Beside the underline: `expected one of …`.
    pub label: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// The text of a configuration file, kept to render problems.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was named.
    pub file: PathBuf,
    /// Before variables were expanded: no secret of the environment is in it.
    pub text: Arc<str>,
}

/// All that is wrong with a file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file.
    pub source: Source,
    /// At least one, in the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "error: {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
