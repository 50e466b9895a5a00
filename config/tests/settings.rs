//! Every setting is used somewhere: in an example, in a file that tests accept, or in what `deploy` ships. What the schema
//! knows and no file says would be documented, and tried by nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lockgate_config::schema;
use serde_json::Value;

/// The settings of a schema, each by the pointer to where it is declared.
struct Settings<'s> {
    schema: &'s Value,
    used: BTreeSet<String>,
}

impl<'s> Settings<'s> {
    fn at(&self, pointer: &str) -> &'s Value {
        self.schema.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}"))
    }

    /// Marks what a value uses of the schema at a pointer. Returns whether it may be meant: it has no key that is unknown
    /// there.
    fn mark(&mut self, value: &Value, pointer: &str) -> bool {
        let schema = self.at(pointer);
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.mark(value, reference.trim_start_matches('#'));
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            if let Some(branches) = schema.get(choice).and_then(Value::as_array) {
                let branches: Vec<_> = (0..branches.len()).map(|index| format!("{pointer}/{choice}/{index}")).collect();
                // Of several forms, one is written; what they have in common is counted for each.
                if branches.iter().filter(|branch| self.mark(value, branch)).count() == 0 {
                    return false;
                }
            }
        }
        match value {
            Value::Object(map) => self.mark_map(map, schema, pointer),
            Value::Array(items) => match schema.get("items") {
                Some(_) => items.iter().all(|item| self.mark(item, &format!("{pointer}/items"))),
                None => schema.get("type").is_none_or(|kind| includes(kind, "array")),
            },
            _ => schema.get("properties").is_none(),
        }
    }

    fn mark_map(&mut self, map: &serde_json::Map<String, Value>, schema: &Value, pointer: &str) -> bool {
        let properties = schema.get("properties");
        let known = |key: &String| properties.is_some_and(|properties| properties.get(key).is_some());
        let open = schema.get("additionalProperties").filter(|other| other.is_object());
        if !map.keys().all(|key| known(key) || open.is_some()) {
            // Whatever is allowed there is no setting of ours, but of a filter.
            return properties.is_none() && schema.get("type").is_none_or(|kind| includes(kind, "object"));
        }
        for (key, value) in map {
            let place = if known(key) {
                let place = format!("{pointer}/properties/{key}");
                self.used.insert(place.clone());
                place
            } else {
                format!("{pointer}/additionalProperties")
            };
            self.mark(value, &place);
        }
        true
    }
}

/// Returns whether a `type` allows something.
fn includes(kind: &Value, name: &str) -> bool {
    kind == name || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == name))
}

/// Adds all settings below a place of a schema.
fn declared(schema: &Value, pointer: &str, all: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                all.extend(properties.keys().map(|key| format!("{pointer}/properties/{key}")));
            }
            for (key, inner) in map.iter().filter(|(key, _)| !matches!(key.as_str(), "default" | "examples" | "enum")) {
                declared(inner, &format!("{pointer}/{key}"), all);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                declared(inner, &format!("{pointer}/{index}"), all);
            }
        }
        _ => {}
    }
}

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["examples", "tests/valid"].map(|folder| root.join(folder));
    let found = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let found = found.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let deployed = ["lockgate.yaml", "compose/config/lockgate.yaml"].map(|file| root.join("../deploy").join(file));
    found.chain(deployed).collect()
}

fn unused(files: impl IntoIterator<Item = String>) -> Vec<String> {
    let schema = schema();
    let mut settings = Settings { schema: &schema, used: BTreeSet::new() };
    for text in files {
        let value: Value = serde_yaml::from_str(&text).expect("a file that can be read");
        assert!(settings.mark(&value, ""), "the schema does not know what is in\n{text}");
    }
    let mut all = BTreeSet::new();
    declared(&schema, "", &mut all);
    assert!(all.len() > 150, "{} settings", all.len());
    all.difference(&settings.used)
        .map(|pointer| pointer.replace("/definitions/", "").replace("/properties/", "."))
        .collect()
}

#[test]
fn every_setting_is_used_by_an_example_or_a_test() {
    let unused = unused(files().iter().map(|path| fs::read_to_string(path).unwrap()));
    assert!(unused.is_empty(), "no file in config/examples, config/tests/valid or deploy uses {unused:#?}");
}

#[test]
fn what_no_file_uses_is_found() {
    let unused =
        unused(["upstreams: { a: [\"127.0.0.1:1\"] }\nroutes: [{ upstream: a, cors: { origins: \"*\" } }]".to_owned()]);
    let has = |name: &str| unused.iter().any(|setting| setting == name);
    assert!(has("Cors.max_age") && has("Route.function") && has(".listeners"), "{unused:#?}");
    assert!(!has("Cors.origins") && !has("Route.upstream") && !has(".upstreams"), "{unused:#?}");
}
