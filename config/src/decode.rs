//! From a tree of nodes to typed data, with all problems and not just the first.
//!
//! serde stops at the first error. So the node at fault is taken out of the tree, which leaves a default or a shorter
//! list, and the rest is decoded anew, until nothing is at fault. What is required and was taken out takes its parent
//! with it, silently: the reason has been told. Each round decodes the whole file, which costs less than a millisecond
//! and is bounded by [`PROBLEMS_MAX`].

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::problem::Problem;
use crate::tree::{Node, Value};

/// Problems of form that are collected; a file with more is not worth reading further.
const PROBLEMS_MAX: usize = 100;

/// Decodes a tree, and takes what is at fault out of it.
pub(crate) fn decode<T: DeserializeOwned>(root: &mut Node, problems: &mut Vec<Problem>) -> Option<T> {
    for _ in 0..PROBLEMS_MAX {
        let mut error = match T::deserialize(Reader(&*root)) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        error.path.reverse();
        problems.extend(error.problem(root));
        if !prune(root, &error.path) {
            return None;
        }
    }
    None
}

/// What is wrong with a node.
#[derive(Debug)]
struct Error {
    fault: Fault,
    /// Steps to the node, the last one first.
    path: Vec<Step>,
}

#[derive(Debug)]
enum Fault {
    /// A field, or a word where one of a few is expected.
    Unknown {
        expected: &'static [&'static str],
    },
    Missing {
        field: &'static str,
    },
    Wrong {
        expected: String,
        hint: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Item(usize),
    /// The value of the entry with this index.
    Value(usize),
    /// The key itself is at fault.
    Key(usize),
}

impl Error {
    fn new(fault: Fault) -> Self {
        Self { fault, path: Vec::new() }
    }

    fn within(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// Returns the problem; none, where it only follows from one that was told before.
    fn problem(&self, root: &Node) -> Option<Problem> {
        let mut node = root;
        for step in &self.path {
            node = match (step, &node.value) {
                (Step::Item(index), Value::List(items)) => items.get(*index)?,
                (Step::Value(index), Value::Map(map)) => &map.entries.get(*index)?.value,
                (Step::Key(index), Value::Map(map)) => {
                    let entry = map.entries.get(*index)?;
                    return Some(self.of_key(&entry.key).at(entry.key_place.clone()));
                }
                _ => return None,
            };
        }
        if let Value::Map(map) = &node.value {
            let told = match &self.fault {
                Fault::Missing { field } => map.pruned.iter().any(|key| key == field),
                // A map of one key that has lost it.
                Fault::Wrong { .. } | Fault::Unknown { .. } => !map.pruned.is_empty(),
            };
            if told {
                return None;
            }
        }
        Some(self.of_value(node).at(node.place.clone()))
    }

    fn of_key(&self, key: &str) -> Complaint {
        match &self.fault {
            Fault::Unknown { expected } => {
                let mut complaint = Complaint::new(format!("unknown field `{key}`"), one_of(expected));
                complaint.hint = match key {
                    "<<" => Some("merge keys are not understood; an alias (`*name`) stands for a whole value".into()),
                    _ => did_you_mean(key, expected.iter().copied()),
                };
                complaint
            }
            Fault::Wrong { expected, hint } => Complaint {
                hint: hint.clone(),
                ..Complaint::new(format!("invalid key `{key}`"), format!("expected {expected}"))
            },
            Fault::Missing { .. } => Complaint::new(format!("invalid key `{key}`"), String::new()),
        }
    }

    fn of_value(&self, node: &Node) -> Complaint {
        let message = match (&node.value, node.written()) {
            (Value::Null, _) => "the value is missing".into(),
            (_, Some(written)) if written.is_empty() => "the value is empty".into(),
            (Value::List(_), _) => "a list cannot stand here".into(),
            (_, Some(written)) => format!("invalid value `{}`", shortened(&written)),
            (_, None) => "a map cannot stand here".into(),
        };
        match &self.fault {
            Fault::Missing { field } => {
                let hint = format!("add `{field}`; it has no default");
                Complaint { hint: Some(hint), ..Complaint::new(format!("missing field `{field}`"), String::new()) }
            }
            Fault::Unknown { expected } => Complaint {
                hint: node.written().and_then(|written| did_you_mean(&written, expected.iter().copied())),
                ..Complaint::new(message, one_of(expected))
            },
            Fault::Wrong { expected, hint } => {
                // A hint may quote the value, which is not for showing where it came from a variable.
                let hint = hint.clone().filter(|_| !matches!(node.value, Value::Text { expanded: Some(_), .. }));
                let bracketed = || {
                    let written = node.written().filter(|_| expected.starts_with("a list"))?;
                    Some(format!("put it in brackets: `[{}]`", shortened(&written)))
                };
                Complaint { hint: hint.or_else(bracketed), ..Complaint::new(message, format!("expected {expected}")) }
            }
        }
    }
}

struct Complaint {
    message: String,
    label: String,
    hint: Option<String>,
}

impl Complaint {
    fn new(message: String, label: String) -> Self {
        Self { message, label, hint: None }
    }

    fn at(self, place: crate::problem::Place) -> Problem {
        Problem {
            message: self.message,
            place,
            label: Some(self.label).filter(|label| !label.is_empty()),
            hint: self.hint,
        }
    }
}

/// Characters of a value that a message quotes; the excerpt shows the rest.
const QUOTED_MAX: usize = 60;

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.len() == text.len() && text.chars().count() <= QUOTED_MAX {
        return text.to_owned();
    }
    format!("{}…", line.chars().take(QUOTED_MAX).collect::<String>())
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "no field is expected here".into(),
        [name] => format!("expected `{name}`"),
        names => {
            format!("expected one of {}", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Returns a hint with the name that is meant, if one is close enough.
pub(crate) fn did_you_mean<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // A third of the letters may be wrong; with more, the guess is more often wrong than right.
    let distance_max = (written.chars().count() / 3).max(1);
    let normal = |text: &str| text.to_lowercase().replace('-', "_");
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&normal(written), &normal(name)), name))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| format!("did you mean `{name}`?"))
}

/// Takes a node out of the tree; false where that is the root.
fn prune(node: &mut Node, path: &[Step]) -> bool {
    let Some((step, below)) = path.split_first() else {
        return false;
    };
    let found = match (step, &mut node.value) {
        (Step::Item(index), Value::List(items)) if *index < items.len() => {
            if below.is_empty() {
                items.remove(*index);
                true
            } else {
                prune(&mut items[*index], below)
            }
        }
        (Step::Value(index) | Step::Key(index), Value::Map(map)) if *index < map.entries.len() => {
            if below.is_empty() {
                let entry = map.entries.remove(*index);
                map.pruned.push(entry.key);
                true
            } else {
                prune(&mut map.entries[*index].value, below)
            }
        }
        _ => false,
    };
    node.damaged |= found;
    found
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fault)
    }
}

impl std::error::Error for Error {}

/// Says in the words of YAML what serde expects in those of Rust.
fn in_words(expected: &dyn de::Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "a sequence" => "a list".into(),
        _ if expected.starts_with("struct ") => "a map".into(),
        _ => expected,
    }
}

impl de::Error for Error {
    /// Of what the leaf types say: `expected …`, and a hint in a line of its own.
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        let (expected, hint) = match message.split_once("\nhint: ") {
            Some((expected, hint)) => (expected, Some(hint.to_owned())),
            None => (message.as_str(), None),
        };
        Self::new(Fault::Wrong { expected: expected.trim_start_matches("expected ").to_owned(), hint })
    }

    // What was found is left out: it is the expanded value, and the message quotes the written one.
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Fault::Wrong { expected: in_words(expected), hint: None })
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Fault::Wrong { expected: in_words(expected), hint: None })
    }

    fn invalid_length(_: usize, expected: &dyn de::Expected) -> Self {
        Self::new(Fault::Wrong { expected: in_words(expected), hint: None })
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Fault::Unknown { expected })
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Fault::Unknown { expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Fault::Missing { field })
    }
}

struct Reader<'t>(&'t Node);

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            text @ Value::Text { .. } => visitor.visit_str(text.text().unwrap_or_default()),
            Value::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Map(map) => {
                let mut entries = Entries { entries: &map.entries, next: 0 };
                let value = visitor.visit_map(&mut entries)?;
                // An enum takes one key, and does not look for more.
                if entries.next < map.entries.len() {
                    let fault = Fault::Wrong { expected: "one key only".into(), hint: None };
                    return Err(Error::new(fault).within(Step::Key(entries.next)));
                }
                Ok(value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// A key without a value (all its items are commented out, say) is an empty list.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Null => visitor.visit_seq(Items { items: &[], next: 0 }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Null => visitor.visit_map(Entries { entries: &[], next: 0 }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            // A list would do for serde, field by field; for people it would not.
            Value::List(_) => Err(de::Error::custom("expected a map")),
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Map(map) => {
                visitor.visit_enum(MapAccessDeserializer::new(Entries { entries: &map.entries, next: 0 }))
            }
            value => match value.text() {
                Some(text) => {
                    let variant: StrDeserializer<'_, Error> = text.into_deserializer();
                    visitor.visit_enum(variant)
                }
                None => self.deserialize_any(visitor),
            },
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'t> {
    items: &'t [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let index = self.next;
        let Some(item) = self.items.get(index) else {
            return Ok(None);
        };
        self.next += 1;
        seed.deserialize(Reader(item)).map(Some).map_err(|error| error.within(Step::Item(index)))
    }
}

struct Entries<'t> {
    entries: &'t [crate::tree::Entry],
    /// The entry whose key comes next; its value is that of the entry before.
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let index = self.next;
        let Some(entry) = self.entries.get(index) else {
            return Ok(None);
        };
        self.next += 1;
        let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.within(Step::Key(index)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let index = self.next.saturating_sub(1);
        let Some(entry) = self.entries.get(index) else {
            return Err(de::Error::custom("expected a value"));
        };
        seed.deserialize(Reader(&entry.value)).map_err(|error| error.within(Step::Value(index)))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        name: String,
        #[serde(default)]
        sizes: Vec<u8>,
        #[serde(default)]
        colour: Option<Colour>,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "kebab-case")]
    enum Colour {
        Red,
        LightBlue,
    }

    fn check(text: &str, things: usize, expected: &[&str]) {
        let mut problems = Vec::new();
        let mut root = crate::tree::read(text, &|_| None, &mut problems).expect("it is YAML");
        let decoded: Option<Vec<Thing>> = decode(&mut root, &mut problems);
        let shown: Vec<_> = problems
            .into_iter()
            .map(|p| {
                [p.message, p.place.path.to_string(), p.label.unwrap_or_default(), p.hint.unwrap_or_default()]
                    .join(" | ")
            })
            .collect();
        assert_eq!(shown, expected);
        assert_eq!(decoded.map(|decoded| decoded.len()), Some(things));
    }

    #[test]
    fn all_problems_are_found_each_in_its_place() {
        check(
            "- {name: a, sizes: [1, big, 3, 400], colur: red}\n- {nam: b}\n- {name: c, colour: light_blue}\n- {name: 5}",
            2,
            &[
                "invalid value `big` | [0].sizes[1] | expected u8 | ",
                "invalid value `400` | [0].sizes[3] | expected u8 | ",
                "unknown field `colur` | [0].colur | expected one of `name`, `sizes`, `colour` | did you mean `colour`?",
                "unknown field `nam` | [1].nam | expected one of `name`, `sizes`, `colour` | did you mean `name`?",
                "missing field `name` | [1] |  | add `name`; it has no default",
                "invalid value `light_blue` | [2].colour | expected one of `red`, `light-blue` | did you mean `light-blue`?",
                "invalid value `5` | [3].name | expected a string | ",
            ],
        );
    }

    #[test]
    fn a_key_without_a_value_is_an_empty_list_or_none() {
        check("- {name: a, sizes: , colour: }", 1, &[]);
    }

    #[test]
    fn a_value_from_a_variable_is_not_quoted() {
        let mut problems = Vec::new();
        let env = |_: &str| Some("hunter2".to_owned());
        let mut root = crate::tree::read("- {name: a, colour: \"${SECRET}\"}", &env, &mut problems).unwrap();
        decode::<Vec<Thing>>(&mut root, &mut problems);
        assert_eq!(problems[0].message, "invalid value `${SECRET}`");
        assert!(!format!("{problems:?}").contains("hunter2"));
    }
}
