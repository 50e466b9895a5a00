//! What a filter says of its settings, in the operator's spelling. A complaint often quotes the value that it is about, and
//! a value that came from a variable may be a secret: in its place stands what is in the file.

use serde_json::Value;

/// Shorter values are no secrets, and would be found in the middle of other words.
const VALUE_BYTES_MIN: usize = 4;

/// Returns a complaint with the values of variables replaced by what was written: `settings` is the JSON text that the
/// filter got, `written` the same with its variables.
pub(super) fn as_written(complaint: &str, settings: &str, written: &Value) -> String {
    let Ok(settings) = serde_json::from_str::<Value>(settings) else { return complaint.to_owned() };
    let mut spellings = Vec::new();
    collect(&settings, written, &mut spellings);
    // A value may be a part of another.
    spellings.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    spellings.iter().fold(complaint.to_owned(), |complaint, (value, written)| {
        complaint.replace(value, written).replace(&*value.escape_debug().to_string(), written)
    })
}

/// Collects the values that came from variables, each with what stands in the file.
fn collect<'a>(value: &Value, written: &'a Value, spellings: &mut Vec<(String, &'a str)>) {
    match (value, written) {
        (Value::Object(values), Value::Object(written)) => {
            for (key, written) in written {
                if let Some(value) = values.get(key) {
                    collect(value, written, spellings);
                }
            }
        }
        (Value::Array(values), Value::Array(written)) => {
            for (value, written) in values.iter().zip(written) {
                collect(value, written, spellings);
            }
        }
        (Value::String(value), Value::String(written)) => note(value, written, spellings),
        _ => {}
    }
}

/// Notes a value, and what is left of it without the literal text around its variables.
fn note<'a>(value: &str, written: &'a str, spellings: &mut Vec<(String, &'a str)>) {
    let (Some(first), Some(last)) = (written.find("${"), written.rfind('}')) else { return };
    let variables = written.get(first..=last).unwrap_or(written);
    let of_variables = value
        .strip_prefix(&written[..first])
        .and_then(|rest| rest.strip_suffix(&written[last + 1..]))
        .map(|value| (value.to_owned(), variables));
    for (value, written) in of_variables.into_iter().chain([(value.to_owned(), written)]) {
        if value.len() >= VALUE_BYTES_MIN && value != written {
            spellings.push((value, written));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(complaint: &str, expected: &str) {
        let settings = json!({
            "key": "hunter22", "header": "Bearer t0p-s3cret", "list": [{ "pin": "271828" }], "level": "on", "plain": "visible",
            "odd": "a\"quoted\"b",
        });
        let written = json!({
            "key": "${KEY}", "header": "Bearer ${TOKEN}", "list": [{ "pin": "${PIN}" }], "level": "${LEVEL:-on}",
            "plain": "visible", "odd": "${ODD}",
        });
        assert_eq!(as_written(complaint, &settings.to_string(), &written), expected);
    }

    #[test]
    fn values_of_variables_are_spelt_as_in_the_file() {
        check("`key`: invalid type: string \"hunter22\"", "`key`: invalid type: string \"${KEY}\"");
        check("no such header: Bearer t0p-s3cret", "no such header: Bearer ${TOKEN}");
        check("`t0p-s3cret` is no token", "`${TOKEN}` is no token");
        check("`list[0].pin`: 271828 has no letter", "`list[0].pin`: ${PIN} has no letter");
        check("string \"a\\\"quoted\\\"b\"", "string \"${ODD}\"");
    }

    #[test]
    fn what_is_no_variable_and_what_is_too_short_stays() {
        check("`plain`: visible is not hidden", "`plain`: visible is not hidden");
        check("the condition is on one line", "the condition is on one line");
    }
}
