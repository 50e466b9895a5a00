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

impl Place {
    /// Returns the place of what stands nowhere in the file: a default, or the file as a whole.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Tells whether there is a line to show.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.line > 0
    }
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

impl Problem {
    /// Returns a problem without label and hint.
    #[must_use]
    pub fn new(message: impl Into<String>, place: Place) -> Self {
        Self { message: message.into(), place, label: None, hint: None }
    }

    /// Says what stands beside the underline.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
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

impl Report {
    /// Returns a report with the problems put in the order of the file; those without a place come first.
    #[must_use]
    pub fn new(source: Source, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.place.line, problem.place.column));
        // Stable and canary may share a component, and what is wrong with it.
        problems.dedup();
        Self { source, problems }
    }
}

/// One block for each problem, then their number:
///
/// ```text
/// error: unknown field `wieght`
///   --> lockgate.yaml:31:5
/// 31 |     wieght: 5%
///    |     ^^^^^^ expected one of `filter`, `weight`
///    = path: rollouts.auth.wieght
/// hint: did you mean `weight`?
///
/// 1 problem in lockgate.yaml
/// ```
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.source.file.display();
        self.render_all("error", f)?;
        match self.problems.len() {
            1 => write!(f, "1 problem in {file}"),
            count => write!(f, "{count} problems in {file}"),
        }
    }
}

impl std::error::Error for Report {}

/// Characters of a line that are shown; a longer one is cut around the place. As wide as a terminal is at least.
const EXCERPT_MAX: usize = 96;

impl Report {
    /// Writes a block for each problem, which begins with what it is: an `error`, say.
    pub(crate) fn render_all(&self, kind: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            self.render(kind, problem, f)?;
            writeln!(f)?;
        }
        Ok(())
    }

    fn render(&self, kind: &str, problem: &Problem, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { message, place, label, hint } = problem;
        let file = self.source.file.display();
        writeln!(f, "{kind}: {}", printable(message))?;
        if place.is_some() {
            writeln!(f, "  --> {file}:{}:{}", place.line, place.column)?;
        } else {
            writeln!(f, "  --> {file}")?;
        }
        let number = place.line.to_string();
        let margin = " ".repeat(number.len());
        let line = (place.line as usize).checked_sub(1).and_then(|index| self.source.text.lines().nth(index));
        if let Some(line) = line {
            let excerpt = Excerpt::of(line, place);
            writeln!(f, "{number} | {}", excerpt.text)?;
            write!(f, "{margin} | {}{}", excerpt.indent, "^".repeat(excerpt.underline))?;
            match label {
                Some(label) => writeln!(f, " {}", printable(label))?,
                None => writeln!(f)?,
            }
        } else if let Some(label) = label {
            writeln!(f, "{margin} = {}", printable(label))?;
        }
        if !place.path.is_empty() {
            writeln!(f, "{margin} = path: {}", printable(&place.path))?;
        }
        if let Some(hint) = hint {
            writeln!(f, "hint: {}", printable(hint))?;
        }
        Ok(())
    }
}

/// The part of a line that is shown, and what goes below it.
struct Excerpt {
    text: String,
    /// As wide as what stands before the place; tabs stay tabs.
    indent: String,
    underline: usize,
}

impl Excerpt {
    fn of(line: &str, place: &Place) -> Self {
        let all: Vec<char> = printable(line.trim_end()).chars().collect();
        let start = (place.column as usize).saturating_sub(1).min(all.len());
        let cut = if all.len() <= EXCERPT_MAX { 0 } else { start.saturating_sub(EXCERPT_MAX / 3) };
        let end = all.len().min(cut + EXCERPT_MAX);
        let mark = if cut > 0 { "…" } else { "" };
        let shown = |from: usize, to: usize| all[from..to].iter();
        Self {
            text: mark.chars().chain(shown(cut, end).copied()).chain("…".chars().filter(|_| end < all.len())).collect(),
            indent: mark
                .chars()
                .map(|_| ' ')
                .chain(shown(cut, start).map(|c| if *c == '\t' { '\t' } else { ' ' }))
                .collect(),
            underline: (place.length as usize).clamp(1, (end - start).max(1)),
        }
    }
}

/// Replaces characters that would act on a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str, problems: Vec<Problem>) -> String {
        let report = Report::new(Source { file: "lockgate.yaml".into(), text: text.into() }, problems);
        report.to_string()
    }

    fn place(line: u32, column: u32, length: u32, path: &str) -> Place {
        Place { line, column, length, path: path.into() }
    }

    #[test]
    fn a_problem_says_what_where_and_what_to_do() {
        let problem = Problem::new("unknown field `wieght`", place(2, 5, 6, "rollouts.auth.wieght"))
            .label("expected one of `filter`, `weight`")
            .hint("did you mean `weight`?");
        insta::assert_snapshot!(report("auth:\n    wieght: 5%\n", vec![problem]), @r"
        error: unknown field `wieght`
          --> lockgate.yaml:2:5
        2 |     wieght: 5%
          |     ^^^^^^ expected one of `filter`, `weight`
          = path: rollouts.auth.wieght
        hint: did you mean `weight`?

        1 problem in lockgate.yaml
        ");
    }

    #[test]
    fn problems_stand_in_the_order_of_the_file() {
        let problems = vec![
            Problem::new("third", place(2, 3, 1, "")),
            Problem::new("second", place(1, 1, 90, "a")),
            Problem::new("first", Place::none()).label("of the file as a whole"),
        ];
        insta::assert_snapshot!(report("a: 1\n\tb: 2\r\n", problems), @r"
        error: first
          --> lockgate.yaml
          = of the file as a whole

        error: second
          --> lockgate.yaml:1:1
        1 | a: 1
          | ^^^^
          = path: a

        error: third
          --> lockgate.yaml:2:3
        2 | 	b: 2
          | 	 ^

        3 problems in lockgate.yaml
        ");
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("a: [{}here{}]", "1, ".repeat(100), ", 2".repeat(100));
        let shown = report(&text, vec![Problem::new("look", place(1, 305, 4, ""))]);
        let lines: Vec<&str> = shown.lines().collect();
        let column = lines[3].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[2].chars().skip(column).take(4).collect::<String>(), "here");
        assert!(lines[2].chars().count() < 110, "{shown}");
    }

    #[test]
    fn nothing_acts_on_the_terminal() {
        let shown = report("a: \u{1b}[2J", vec![Problem::new("\u{1b}[2J", place(1, 4, 40, ""))]);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn a_place_outside_the_text_is_rendered_without_an_excerpt() {
        for place in [place(9, 1, 1, ""), place(1, 99, 99, "")] {
            assert!(report("a: 1", vec![Problem::new("odd", place)]).contains("error: odd"));
        }
    }
}
