//! What a shadow found, in words and a table.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::output::Table;

/// Returns the API's answer as text.
pub(super) fn text(view: &Value) -> String {
    let word = |key: &str| view[key].as_str().unwrap_or_default();
    let count = |key: &str| view[key].as_u64().unwrap_or(0);
    let mut text = format!("{}: {} in the shadow of {}", word("rollout"), word("canary"), word("stable"));
    // Writing to a string cannot fail, here and below.
    let _ = match view["running"].as_bool() {
        Some(true) => {
            writeln!(text, ", on {} of the requests, within {} of one core", word("sample"), word("cpu"))
        }
        _ => writeln!(text, ", until it was ended"),
    };
    let _ = match view["agreement"].as_f64() {
        None => writeln!(text, "nothing has been compared yet"),
        Some(agreement) => writeln!(
            text,
            "{} of {} requests agree ({:.2} %), {:.1} s of processor time",
            count("agreed"),
            count("compared"),
            agreement * 100.0,
            view["cpu_seconds"].as_f64().unwrap_or(0.0)
        ),
    };
    let phases: Vec<&str> = items(view, "not_run").iter().filter_map(Value::as_str).collect();
    if !phases.is_empty() {
        let _ = writeln!(text, "not tried, since stable has no such phase: {}", phases.join(", "));
    }
    counts(&mut text, view, "DIFFERENCE", "differences", "kind");
    counts(&mut text, view, "NOT COMPARED", "skipped", "reason");
    for example in items(view, "examples") {
        let _ = write!(text, "\n{}", self::example(example));
    }
    text
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn counts(text: &mut String, view: &Value, title: &'static str, list: &str, name: &str) {
    if items(view, list).is_empty() {
        return;
    }
    let mut table = Table::new(&[title, "REQUESTS"]);
    for item in items(view, list) {
        let requests = item["requests"].as_u64().unwrap_or(0).to_string();
        table.row([item[name].as_str().unwrap_or_default().to_owned(), requests]);
    }
    let _ = write!(text, "\n{}", table.render());
}

fn example(example: &Value) -> String {
    let word = |key: &str| example[key].as_str().unwrap_or_default();
    let mut text = format!("{} {} {} (request {})\n", word("time"), word("method"), word("path"), word("request_id"));
    for difference in items(example, "differences") {
        let word = |key: &str| difference[key].as_str();
        let _ = write!(text, "  {}", word("kind").unwrap_or_default());
        if let Some(name) = word("name") {
            let _ = write!(text, " `{name}`");
        }
        let did = |key: &str| word(key).unwrap_or("nothing").to_owned();
        let _ = writeln!(text, " in {}: stable {}, canary {}", did("phase"), did("stable"), did("canary"));
    }
    if let Some(failure) = example["failure"].as_str() {
        let _ = writeln!(text, "  canary failed: {failure}");
    }
    for line in items(example, "lines").iter().filter_map(Value::as_str) {
        let _ = writeln!(text, "  canary logged: {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_shadow_is_told_in_words_with_what_differs() {
        let view = json!({
            "rollout": "auth-2.0", "stable": "9f2c1a.4be01f.e3b0c4", "canary": "77b0e4.4be01f.e3b0c4",
            "running": true, "sample": "10%", "cpu": "5%", "compared": 1000, "agreed": 990, "agreement": 0.99,
            "differences": [{ "kind": "request-headers", "requests": 9 }, { "kind": "trap", "requests": 1 }],
            "skipped": [{ "reason": "queue-full", "requests": 3 }], "cpu_seconds": 0.5,
            "not_run": ["on-request-body"],
            "examples": [{
                "time": "2026-11-21T05:00:00Z", "request_id": "4f", "route": "app", "method": "GET", "path": "/a",
                "differences": [{
                    "kind": "request-headers", "phase": "on-request", "name": "x-user", "stable": "5 bytes, digest 1a2b",
                    "canary": null
                }],
                "failure": "trap: unreachable executed", "lines": ["warn: no user"]
            }]
        });
        insta::assert_snapshot!(text(&view), @r"
        auth-2.0: 77b0e4.4be01f.e3b0c4 in the shadow of 9f2c1a.4be01f.e3b0c4, on 10% of the requests, within 5% of one core
        990 of 1000 requests agree (99.00 %), 0.5 s of processor time
        not tried, since stable has no such phase: on-request-body

        DIFFERENCE       REQUESTS
        request-headers  9
        trap             1

        NOT COMPARED  REQUESTS
        queue-full    3

        2026-11-21T05:00:00Z GET /a (request 4f)
          request-headers `x-user` in on-request: stable 5 bytes, digest 1a2b, canary nothing
          canary failed: trap: unreachable executed
          canary logged: warn: no user
        ");
        let nothing = json!({ "rollout": "a", "stable": "s", "canary": "c", "running": false });
        insta::assert_snapshot!(text(&nothing), @r"
        a: c in the shadow of s, until it was ended
        nothing has been compared yet
        ");
    }
}
