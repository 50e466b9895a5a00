//! The JSON Schema of the file, for editors.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::file::File;

/// Where a default is said that depends on other keys or on the machine. For the reference page only.
pub(crate) const DEFAULT_IN_WORDS: &str = "x-default";

/// Returns the JSON Schema of the file. It knows forms, kinds and bounds, not whether a name is declared: what it accepts
/// may still be refused.
#[must_use]
pub fn schema() -> Value {
    // Draft 7 is what editors understand best.
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<File>().to_value();
    strip(&mut schema);
    // Missing ones are told with a hint of their own, which is why decoding lets them pass.
    schema["required"] = json!(["listeners", "upstreams", "routes"]);
    schema
}

/// Returns the schema that the reference page is made from.
pub(crate) fn annotated() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<File>().to_value()
}

/// Takes out what is not for editors: our own words, defaults that are none, and the line breaks of doc comments.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.shift_remove(DEFAULT_IN_WORDS);
            if map.get("default").is_some_and(Value::is_null) {
                map.shift_remove("default");
            }
            if let Some(Value::String(description)) = map.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}
