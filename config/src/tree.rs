//! The file as a tree of nodes. A *node* is a scalar, a list or a map, with its place, its variables expanded and the
//! text that stood there before.
//!
//! Two parsers read the same text: serde_yaml decides what it says, saphyr where it stands, since the former keeps no
//! places. Where they should ever disagree, only the places suffer: a node without a mark takes its parent's.

mod marks;
mod raw;
mod variables;

use std::sync::Arc;

use self::marks::{Mark, Marks};
use self::raw::Raw;
use crate::problem::{Place, Problem};

/// A piece of the file.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
    /// Whether something at or below was left out because of a problem: what is missing here is no news.
    pub(crate) damaged: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text {
        written: String,
        /// None where no variable is in it.
        expanded: Option<String>,
    },
    List(Vec<Node>),
    Map(Map),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    /// Keys that were there but had a problem.
    pub(crate) pruned: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Node,
}

/// Looks a variable of the environment up.
pub(crate) type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Reads a text; none, where it is not YAML at all. What cannot be used is left out of the tree, with a problem.
pub(crate) fn read(text: &str, env: &Env<'_>, problems: &mut Vec<Problem>) -> Option<Node> {
    let raw = match raw::read(text) {
        Ok(raw) => raw,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    // Only after serde_yaml has read the text: its bounds on depth and repetition hold for saphyr's part too.
    let marks = Marks::read(text);
    let mut builder = Builder { env, marks: &marks, problems };
    builder.node(raw, marks.root(), Place::none())
}

impl Node {
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(map) => &map.entries,
            _ => &[],
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Tells whether a key was there, but had a problem.
    pub(crate) fn pruned(&self, key: &str) -> bool {
        matches!(&self.value, Value::Map(map) if map.pruned.iter().any(|pruned| pruned == key))
    }

    /// Returns the node under a key, or, where there is none, the one that lacks it: the closest place to show.
    pub(crate) fn at(&self, key: &str) -> &Self {
        self.get(key).unwrap_or(self)
    }

    /// Returns an item of a list. Where something else stands, which the short form of a list of one is, that.
    pub(crate) fn item(&self, index: usize) -> &Self {
        match &self.value {
            Value::List(items) => items.get(index).unwrap_or(self),
            _ => self,
        }
    }

    /// Returns the place of a key, or the node's own where it has no such key.
    pub(crate) fn key_place(&self, key: &str) -> Place {
        self.entry(key).map_or_else(|| self.place.clone(), |entry| entry.key_place.clone())
    }

    /// Returns a scalar as it was written: the only spelling that a message may show, since a variable may be a secret.
    pub(crate) fn written(&self) -> Option<String> {
        Some(match &self.value {
            Value::Null | Value::List(_) | Value::Map(_) => return None,
            Value::Bool(value) => value.to_string(),
            Value::Unsigned(value) => value.to_string(),
            Value::Signed(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text { written, .. } => written.clone(),
        })
    }

    /// Returns the node as JSON, with variables expanded or as it was written.
    pub(crate) fn to_json(&self, expand: bool) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Unsigned(value) => (*value).into(),
            Value::Signed(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text { written, expanded } => match expanded {
                Some(expanded) if expand => expanded.as_str().into(),
                _ => written.as_str().into(),
            },
            Value::List(items) => items.iter().map(|item| item.to_json(expand)).collect(),
            Value::Map(map) => {
                Json::Object(map.entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json(expand))).collect())
            }
        }
    }
}

impl Value {
    /// Returns a text with its variables expanded.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text { written, expanded } => Some(expanded.as_deref().unwrap_or(written)),
            _ => None,
        }
    }
}

struct Builder<'a> {
    env: &'a Env<'a>,
    marks: &'a Marks<'a>,
    problems: &'a mut Vec<Problem>,
}

impl Builder<'_> {
    /// Returns a node; none where it cannot be used. `around` is the place that a node without a mark takes, and its
    /// path is the node's.
    fn node(&mut self, raw: Raw, mark: Option<&Mark>, around: Place) -> Option<Node> {
        let place = match mark.and_then(|mark| self.marks.place(mark)) {
            Some(place) => Place { path: Arc::clone(&around.path), ..place },
            None => around,
        };
        if mark.is_some_and(|mark| mark.tagged) {
            let hint = "leave the tag out: quotes make a text, and nothing else needs a tag";
            self.problems.push(Problem::new("tags are not understood here", place).hint(hint));
            return None;
        }
        let mut damaged = false;
        let value = match raw {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Unsigned(value) => Value::Unsigned(value),
            Raw::Signed(value) => Value::Signed(value),
            Raw::Float(value) if value.is_finite() => Value::Float(value),
            Raw::Float(_) => {
                let hint = "JSON, which settings are handed over as, has finite numbers only";
                self.problems.push(Problem::new("the number is not finite", place).hint(hint));
                return None;
            }
            Raw::Text(written) => match variables::expand(&written, self.env) {
                Ok(expanded) => Value::Text { written, expanded },
                Err(failures) => {
                    for failure in failures {
                        self.problems.push(failure.problem(&place));
                    }
                    return None;
                }
            },
            Raw::List(items) => {
                let count = items.len();
                let nodes: Vec<Node> = items
                    .into_iter()
                    .enumerate()
                    .filter_map(|(index, item)| {
                        let around = Place { path: format!("{}[{index}]", place.path).into(), ..place.clone() };
                        self.node(item, mark.and_then(|mark| self.marks.item(mark, index)), around)
                    })
                    .collect();
                damaged = nodes.len() < count || nodes.iter().any(|node| node.damaged);
                Value::List(nodes)
            }
            Raw::Map(entries) => {
                let map = self.map(entries, mark, &place);
                damaged = !map.pruned.is_empty() || map.entries.iter().any(|entry| entry.value.damaged);
                Value::Map(map)
            }
        };
        Some(Node { place, value, damaged })
    }

    fn map(&mut self, entries: Vec<(Raw, Raw)>, mark: Option<&Mark>, place: &Place) -> Map {
        let mut map = Map::default();
        for (index, (key, value)) in entries.into_iter().enumerate() {
            let (key_mark, value_mark) = mark.and_then(|mark| self.marks.entry(mark, index)).unzip();
            let key_place = |path: Arc<str>| {
                let marked = key_mark.and_then(|mark| self.marks.place(mark));
                Place { path, ..marked.unwrap_or_else(|| place.clone()) }
            };
            let Raw::Text(key) = key else {
                let problem = Problem::new("a key must be a text", key_place(Arc::clone(&place.path)));
                self.problems.push(problem.hint("put the key in quotes"));
                continue;
            };
            let key_place = key_place(join(&place.path, &key));
            if let Some(first) = map.entries.iter().find(|entry| entry.key == key) {
                let label = match first.key_place.line {
                    0 => "it is there already".into(),
                    line => format!("it is there already, in line {line}"),
                };
                let problem = Problem::new(format!("`{key}` is written twice"), key_place);
                self.problems.push(problem.label(label).hint("keep one of the two"));
                continue;
            }
            match self.node(value, value_mark, key_place.clone()) {
                Some(value) => map.entries.push(Entry { key, key_place, value }),
                None => map.pruned.push(key),
            }
        }
        map
    }
}

/// Returns the path of a key: `a.b`, or `a["b.c"]` where a dot would mislead.
fn join(path: &str, key: &str) -> Arc<str> {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    match (plain, path.is_empty()) {
        (true, true) => key.into(),
        (true, false) => format!("{path}.{key}").into(),
        (false, _) => format!("{path}[{key:?}]").into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(text: &str) -> (Option<Node>, Vec<Problem>) {
        let mut problems = Vec::new();
        let env = |name: &str| (name == "HOST").then(|| "example.com".to_owned());
        (read(text, &env, &mut problems), problems)
    }

    fn node(text: &str) -> Node {
        let (node, problems) = tree(text);
        assert_eq!(problems, []);
        node.expect("it is YAML")
    }

    /// Every node's path and what stands at its place.
    fn places(text: &str) -> Vec<String> {
        fn walk(node: &Node, lines: &[&str], out: &mut Vec<String>) {
            let Place { line, column, length, path } = &node.place;
            let line: Vec<char> = lines[*line as usize - 1].chars().collect();
            let shown: String = line.iter().skip(*column as usize - 1).take(*length as usize).collect();
            out.push(format!("{path} {shown}"));
            match &node.value {
                Value::List(items) => items.iter().for_each(|item| walk(item, lines, out)),
                Value::Map(map) => map.entries.iter().for_each(|entry| walk(&entry.value, lines, out)),
                _ => {}
            }
        }
        let mut out = Vec::new();
        walk(&node(text), &text.lines().collect::<Vec<_>>(), &mut out);
        out
    }

    #[test]
    fn every_node_knows_its_place() {
        let text =
            "a:\n  - b: 1\n    c d: \"x y\" # no\n  - [p, {q: r}]\ne: &e\n  f: ä ö \ng: *e\nh:\ni: |\n  long\n  text\n";
        assert_eq!(
            places(text),
            [
                " a",
                "a b",
                "a[0] b",
                "a[0].b 1",
                "a[0][\"c d\"] \"x y\"",
                "a[1] [p, {q: r}]",
                "a[1][0] p",
                "a[1][1] {q: r}",
                "a[1][1].q r",
                "e &e",
                "e.f ä ö",
                "g &e",
                "g.f ä ö",
                "h h",
                "i long",
            ]
        );
    }

    #[test]
    fn what_is_written_and_what_is_meant_are_both_kept() {
        let node = node("a: [\"${HOST}\", 1, 1.5, true, null, -3, 'b$$']");
        assert_eq!(node.to_json(true).to_string(), r#"{"a":["example.com",1,1.5,true,null,-3,"b$"]}"#);
        assert_eq!(node.to_json(false).to_string(), r#"{"a":["${HOST}",1,1.5,true,null,-3,"b$$"]}"#);
    }

    #[test]
    fn what_cannot_be_used_is_left_out_with_a_problem() {
        let (node, problems) = tree("a: {b: .nan, c: 1}\na: 2\n3: x\nd: ['${NO}', 4]\ne: !t 1\nf: 5\n");
        let messages: Vec<_> = problems.iter().map(|p| format!("{} {}", p.place.line, p.message)).collect();
        assert_eq!(
            messages,
            [
                "1 the number is not finite",
                "2 `a` is written twice",
                "3 a key must be a text",
                "4 the variable `NO` is not set",
                "5 tags are not understood here",
            ]
        );
        let node = node.unwrap();
        assert_eq!(node.to_json(true).to_string(), r#"{"a":{"c":1},"d":[4],"f":5}"#);
        assert!(node.damaged && node.at("a").damaged && node.at("d").damaged && !node.at("f").damaged);
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{}]\n", below.trim_end_matches(", "));
        }
        let (node, problems) = tree(&text);
        assert!(node.is_none());
        assert_eq!(problems.len(), 1);
    }

    /// YAML that nests, quotes and comments.
    fn yaml() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-z .:#äß\"'{}-]{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::btree_map("[a-z ä:-]{1,8}", inner, 0..5)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn both_parsers_see_the_same_tree(value in yaml()) {
            for text in [serde_yaml::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
                let raw = raw::read(&text).expect("it was written by serde_yaml");
                let marks = Marks::read(&text);
                prop_assert!(marks.fit(&raw), "{text}");
            }
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[a-z0-9:\\-\\[\\]{},&*!|>'\"#%@$ \t\n]{0,60}") {
            drop(tree(&text));
        }

        #[test]
        fn not_even_a_wild_one(text in "(?s).{0,60}") {
            drop(tree(&text));
        }
    }
}
