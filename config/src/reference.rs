//! The reference page, made from the types of the file and their doc comments.

use serde_json::{Map, Value};

use crate::schema::{DEFAULT_IN_WORDS, annotated};

const INTRODUCTION: &str = concat!(
    "# Configuration reference

<!-- Made from the types in `config/src/file` by `cargo run -p lockgate-config --example generate`. -->

A configuration is one YAML file. `lockgate check FILE` tells everything that is wrong with it, and with the components
that it names, without serving. This is the smallest useful file:

```yaml
",
    include_str!("../examples/minimal.yaml"),
    "```

`config/examples/full.yaml` has every key. Editors that know JSON Schema complete and check the file with
`config/lockgate.schema.json`.

## How values are written

| value | examples | notes |
|---|---|---|
| duration | `5ms`, `1.5s`, `2m`, `1h` | always with a unit: `us`, `ms`, `s`, `m` or `h`; at most `24h` |
| size | `16MiB`, `64KiB`, `1MB`, `4096` | `KiB`, `MiB`, `GiB`, `TiB` count in 1,024s, `kB`, `MB`, `GB`, `TB` in 1,000s; a number alone is bytes |
| weight, share | `5%`, `12.5%`, `0.01%` | from `0%` to `100%`, in steps of `0.01%`; always with `%` |
| network | `10.0.0.0/8`, `::1` | an address alone is a network of one |
| name | `auth-1.5` | letters, digits, `-`, `_` and `.`, a letter or digit first, at most 64 characters |

**Variables.** In every text, `${NAME}` stands for a variable of the environment, and `${NAME:-default}` for its value or,
if it is unset or empty, the default. One that is unset and has no default is an error. Numbers, durations and the like
may come from variables too; keys are not expanded. `$$` is a dollar, and so is a `$` that neither `{` nor `$` follows: a
filter's own placeholder is written `$${request.host}`. Inside `{ }` and `[ ]`, put a text with `${…}` in quotes. Secrets
belong into the `settings` of filters and into `admin.token`: what variables expand to there is never shown, not in
messages, not in logs, not in dumps.

**Short forms.** Where a key takes a list or a map, and a shorter form says it all, the shorter form may stand there: an
address for a listener, a list of endpoints for an upstream, one host for a list of one.

**Changes.** A file that is changed is reloaded as a whole, or not at all if anything is wrong with it. What is read at
start only says so.
"
);

/// Returns the reference page as Markdown.
#[must_use]
pub fn reference() -> String {
    let schema = annotated();
    let reader = Reader { root: &schema };
    let mut page = INTRODUCTION.to_owned();
    for (name, section) in properties(&schema) {
        reader.section(name, section, &mut page);
    }
    page
}

#[derive(Clone, Copy)]
struct Reader<'s> {
    root: &'s Value,
}

impl<'s> Reader<'s> {
    /// Writes what stands at a path, and below it.
    fn section(self, path: &str, schema: &'s Value, page: &mut String) {
        let heading = if path.contains(['.', '[']) { "###" } else { "##" };
        line(page, &format!("\n{heading} `{path}`\n\n{}", description(schema)));
        for (below, map) in self.maps(path, schema) {
            if below != path {
                line(page, &format!("\nEach `{below}`:"));
            }
            line(page, "\n| key | value | default | meaning |\n|---|---|---|---|");
            let variants = match map.get("oneOf").and_then(Value::as_array) {
                Some(variants) => variants.as_slice(),
                None => std::slice::from_ref(map),
            };
            let mut nested = Vec::new();
            for variant in variants {
                for (key, field) in properties(variant) {
                    let default = match variants.len() {
                        1 => default_of(key, field, variant),
                        _ => "one of these".into(),
                    };
                    line(page, &self.row(key, field, variant, &default));
                    let path = format!("{below}.{key}");
                    if !self.maps(&path, field).is_empty() {
                        nested.push((path, field));
                    }
                }
            }
            for (path, field) in nested {
                self.section(&path, field, page);
            }
        }
    }

    fn row(self, key: &str, field: &Value, map: &Value, default: &str) -> String {
        let meaning = match description(field) {
            text if text.is_empty() => description(map),
            text => text,
        };
        let row = [format!("`{key}`"), self.kind(field), default.to_owned(), meaning];
        format!("| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "))
    }

    /// Follows a reference.
    fn target<'a>(self, schema: &'a Value) -> &'a Value
    where
        's: 'a,
    {
        let pointer = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        pointer.and_then(|pointer| self.root.pointer(pointer)).unwrap_or(schema)
    }

    /// Returns the maps with keys of their own that may stand at a path, and the path of each.
    fn maps<'a>(self, path: &str, schema: &'a Value) -> Vec<(String, &'a Value)>
    where
        's: 'a,
    {
        let schema = self.target(schema);
        let keyed = |schema: &Value| {
            let variants = schema.get("oneOf").and_then(Value::as_array);
            !properties(schema).is_empty()
                || variants.is_some_and(|variants| variants.iter().all(|variant| !properties(variant).is_empty()))
        };
        if keyed(schema) {
            return vec![(path.to_owned(), schema)];
        }
        if let Some(items) = schema.get("items") {
            return self.maps(&format!("{path}[]"), items);
        }
        if let Some(named) = schema.get("additionalProperties").filter(|named| named.is_object()) {
            return self.maps(&format!("{path}.NAME"), named);
        }
        let forms = schema.get("anyOf").and_then(Value::as_array);
        forms.into_iter().flatten().flat_map(|form| self.maps(path, form)).collect()
    }

    /// Says what kind of value stands at a key.
    fn kind(self, schema: &Value) -> String {
        let schema = self.target(schema);
        if let Some(title) = schema.get("title").and_then(Value::as_str) {
            let bounds = |key| schema.get(key).and_then(Value::as_u64);
            return match (title, bounds("minimum"), bounds("maximum")) {
                ("whole number", Some(min), Some(max)) if max < u32::MAX.into() => {
                    format!("{min} to {max}")
                }
                ("whole number", Some(min), _) => format!("{min} or more"),
                _ => title.to_owned(),
            };
        }
        if let Some(value) = schema.get("const") {
            return format!("`{}`", plain(value));
        }
        if let Some(items) = schema.get("items") {
            return format!("list of: {}", self.kind(items));
        }
        if !properties(schema).is_empty() {
            return "map".into();
        }
        if let Some(named) = schema.get("additionalProperties").filter(|named| named.is_object()) {
            return format!("map of names to: {}", self.kind(named));
        }
        let forms = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)).and_then(Value::as_array);
        let Some(forms) = forms else {
            return "anything".into();
        };
        let mut kinds: Vec<String> = forms
            .iter()
            .filter(|form| form.get("type").and_then(Value::as_str) != Some("null"))
            .map(|form| self.kind(form))
            .collect();
        kinds.dedup();
        kinds.join(" or ")
    }
}

fn line(page: &mut String, line: &str) {
    page.push_str(line);
    page.push('\n');
}

fn properties(schema: &Value) -> Vec<(&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).map(Map::iter).into_iter().flatten().collect()
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.replace('\n', " ")
}

fn default_of(key: &str, field: &Value, map: &Value) -> String {
    let required = map.get("required").and_then(Value::as_array);
    if required.is_some_and(|keys| keys.iter().any(|required| required == key)) {
        return "required".into();
    }
    if let Some(words) = field.get(DEFAULT_IN_WORDS).and_then(Value::as_str) {
        return words.to_owned();
    }
    match field.get("default") {
        None if field.get("$ref").is_some() => "see below".into(),
        None | Some(Value::Null) => "none".into(),
        Some(Value::Array(items)) if items.is_empty() => "none".into(),
        Some(value) => format!("`{}`", plain(value)),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
