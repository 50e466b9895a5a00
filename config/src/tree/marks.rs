//! Where things stand. A *mark* is a node without its meaning: line, column, and the marks below.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

#[cfg(test)]
use super::raw::Raw;
use crate::problem::Place;

/// The marks of a text.
#[derive(Debug)]
pub(super) struct Marks<'t> {
    lines: Vec<&'t str>,
    marks: Vec<Mark>,
    root: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Mark {
    /// Counted from 1.
    line: usize,
    /// In characters, counted from 1.
    column: usize,
    /// The last line of what stands here, and the column behind it.
    end: (usize, usize),
    /// Whether a tag of the file's own (`!name`) stands before it.
    pub(super) tagged: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Scalar,
    /// Indices of the marks below; of a map, keys and values in turn.
    List(Vec<usize>),
    Map(Vec<usize>),
}

impl<'t> Marks<'t> {
    /// Reads a text. One that saphyr does not understand has no marks.
    pub(super) fn read(text: &'t str) -> Self {
        let mut reader = Reader::default();
        let root = reader.read(text);
        Self { lines: text.lines().collect(), marks: reader.marks, root }
    }

    pub(super) fn root(&self) -> Option<&Mark> {
        self.root.and_then(|root| self.marks.get(root))
    }

    pub(super) fn item(&self, mark: &Mark, index: usize) -> Option<&Mark> {
        match &mark.kind {
            Kind::List(items) => items.get(index).and_then(|item| self.marks.get(*item)),
            _ => None,
        }
    }

    /// Returns the marks of a key and of its value.
    pub(super) fn entry(&self, mark: &Mark, index: usize) -> Option<(&Mark, &Mark)> {
        match &mark.kind {
            Kind::Map(items) => {
                let of = |index: usize| items.get(index).and_then(|item| self.marks.get(*item));
                of(2 * index).zip(of(2 * index + 1))
            }
            _ => None,
        }
    }

    /// Returns the place of what is marked; none where nothing is written there (`key:`).
    pub(super) fn place(&self, mark: &Mark) -> Option<Place> {
        let line = self.lines.get(mark.line.checked_sub(1)?)?;
        // A block list or map has no character of its own: its first key or item is the better one to underline.
        let first = match &mark.kind {
            Kind::List(items) | Kind::Map(items) if mark.end == (mark.line, mark.column) => items.first(),
            _ => None,
        };
        if let Some(first) = first {
            return self.marks.get(*first).and_then(|first| self.place(first));
        }
        let mut rest: String = line.chars().skip(mark.column - 1).collect();
        rest.truncate(rest.trim_end().len());
        let rest = quoted(&rest).unwrap_or(&rest).chars().count();
        let length = if mark.end.0 == mark.line { mark.end.1.saturating_sub(mark.column).min(rest) } else { rest };
        (length > 0).then(|| Place {
            line: mark.line as u32,
            column: mark.column as u32,
            length: length as u32,
            path: "".into(),
        })
    }

    /// Tells whether the marks have the shape of what the other parser read.
    #[cfg(test)]
    pub(super) fn fit(&self, raw: &Raw) -> bool {
        fn fit(marks: &Marks<'_>, mark: Option<&Mark>, raw: &Raw) -> bool {
            let Some(mark) = mark else { return false };
            match (raw, &mark.kind) {
                (Raw::List(items), Kind::List(below)) => {
                    items.len() == below.len()
                        && items.iter().enumerate().all(|(index, item)| fit(marks, marks.item(mark, index), item))
                }
                (Raw::Map(entries), Kind::Map(below)) => {
                    2 * entries.len() == below.len()
                        && entries.iter().enumerate().all(|(index, (key, value))| {
                            let (key_mark, value_mark) = marks.entry(mark, index).unzip();
                            fit(marks, key_mark, key) && fit(marks, value_mark, value)
                        })
                }
                (Raw::List(_) | Raw::Map(_), _) => false,
                (_, kind) => matches!(kind, Kind::Scalar),
            }
        }
        fit(self, self.root(), raw)
    }
}

/// Returns the text in quotes that a line begins with, quotes included. saphyr's mark of one ends only where the next
/// token begins, behind a comment.
fn quoted(line: &str) -> Option<&str> {
    let quote = line.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut chars = line.char_indices().skip(1).peekable();
    while let Some((index, c)) = chars.next() {
        let escaped = match quote {
            '"' => c == '\\',
            _ => c == quote && chars.peek().is_some_and(|(_, next)| *next == quote),
        };
        if escaped {
            chars.next();
        } else if c == quote {
            return line.get(..=index);
        }
    }
    None
}

#[derive(Default)]
struct Reader {
    marks: Vec<Mark>,
    /// Lists and maps that have begun, the innermost last.
    open: Vec<usize>,
    anchors: HashMap<usize, usize>,
}

impl Reader {
    /// Returns the first document's root.
    fn read(&mut self, text: &str) -> Option<usize> {
        let mut parser = Parser::new_from_str(text);
        let mut root = None;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.ok()?;
            let added = match event {
                Event::Scalar(_, _, anchor, tag) => {
                    Some(self.add(span, Kind::Scalar, anchor, tag.is_some_and(|tag| !tag.is_yaml_core_schema())))
                }
                Event::SequenceStart(anchor, tag) => {
                    let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema());
                    Some(self.begin(span, Kind::List(Vec::new()), anchor, tagged))
                }
                Event::MappingStart(anchor, tag) => {
                    let tagged = tag.is_some_and(|tag| !tag.is_yaml_core_schema());
                    Some(self.begin(span, Kind::Map(Vec::new()), anchor, tagged))
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let begun = self.open.pop().and_then(|begun| self.marks.get_mut(begun));
                    // A flow list ends with its bracket; a block one ends where the next thing begins, which says nothing.
                    if let Some(begun) = begun.filter(|begun| begun.end != (begun.line, begun.column)) {
                        begun.end = (span.end.line(), span.end.col() + 1);
                    }
                    None
                }
                Event::Alias(anchor) => {
                    let anchored = *self.anchors.get(&anchor)?;
                    self.attach(anchored);
                    Some(anchored)
                }
                Event::DocumentEnd => return root,
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => None,
            };
            root = root.or(added);
        }
        root
    }

    fn begin(&mut self, span: Span, kind: Kind, anchor: usize, tagged: bool) -> usize {
        let index = self.add(span, kind, anchor, tagged);
        self.open.push(index);
        index
    }

    fn add(&mut self, span: Span, kind: Kind, anchor: usize, tagged: bool) -> usize {
        let index = self.marks.len();
        let (line, column) = (span.start.line(), span.start.col() + 1);
        self.marks.push(Mark { line, column, end: (span.end.line(), span.end.col() + 1), tagged, kind });
        self.attach(index);
        if anchor > 0 {
            self.anchors.insert(anchor, index);
        }
        index
    }

    fn attach(&mut self, index: usize) {
        let around = self.open.last().and_then(|around| self.marks.get_mut(*around));
        if let Some(Mark { kind: Kind::List(items) | Kind::Map(items), .. }) = around {
            items.push(index);
        }
    }
}
