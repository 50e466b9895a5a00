//! What serde_yaml reads, before anything is known about places. Not `serde_yaml::Value`: that one stops at the first
//! key that is written twice, and we want to show all of them.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};

use crate::problem::{Place, Problem};

/// A piece of YAML.
#[derive(Debug)]
pub(super) enum Raw {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    /// In the order of the file. Keys may be anything, and may be there twice.
    Map(Vec<(Self, Self)>),
}

/// Reads a text; an empty one is [`Raw::Null`].
pub(super) fn read(text: &str) -> Result<Raw, Problem> {
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else {
        return Ok(Raw::Null);
    };
    let raw = match Raw::deserialize(document) {
        Ok(raw) => raw,
        // The loader has no word for a text without a document; one with comments only is the usual case.
        Err(_) if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) => Raw::Null,
        Err(error) => return Err(syntax(text, &error)),
    };
    match documents.next() {
        None => Ok(raw),
        Some(_) => {
            let problem = Problem::new("there is more than one document", Place::none());
            Err(problem.hint("a configuration is one document: remove what follows the second `---`"))
        }
    }
}

/// Says where a text stops being YAML.
fn syntax(text: &str, error: &serde_yaml::Error) -> Problem {
    let message = error.to_string();
    // serde_yaml ends its sentences with the position, and begins them with its own path.
    let mut message = message.split(" at line ").next().unwrap_or(&message);
    if message == "did not find expected node content" {
        message = "a value is missing, or cannot begin with this character";
    }
    let Some(location) = error.location() else {
        return Problem::new(message, Place::none());
    };
    let (line, column) = (location.line() as u32, location.column() as u32);
    let problem = Problem::new(message, Place { line, column, length: 1, path: "".into() });
    match quoting_hint(text.lines().nth(location.line().saturating_sub(1)).unwrap_or_default(), message) {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

/// Says what to quote, for the characters of this format that YAML has other plans for.
fn quoting_hint(line: &str, message: &str) -> Option<&'static str> {
    if line.contains("${") && line.contains(['{', '[']) {
        Some("inside `{ }` and `[ ]`, put a text with `${…}` in quotes")
    } else if line.contains('*') && ["anchor", "alias", "alphabetic"].iter().any(|word| message.contains(word)) {
        Some("put a text that begins with `*` in quotes")
    } else if line.starts_with('\t') || line.trim_start_matches(' ').starts_with('\t') {
        Some("indent with spaces, not with tabs")
    } else if message.contains("cannot start any token") {
        Some("put a text that begins with `@`, `%` or a backtick in quotes")
    } else {
        None
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Signed(value))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Raw, E> {
        Err(E::custom("the number is too large for 64 bits: put it in quotes"))
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Raw, E> {
        Err(E::custom("the number is too large for 64 bits: put it in quotes"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }

    /// A value with a tag of its own. The marks tell that there is one, and it is refused with its place.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Raw, A::Error> {
        let (_, value) = tagged.variant::<String>()?;
        value.newtype_variant()
    }
}
