//! The dashboard and the alerts in `deploy`: that Prometheus understands them, that the alerts fire when they should, and
//! that what they ask for is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .output()
        .expect("`promtool` runs; `make setup-test` as root installs it, or `apt-get install prometheus`");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// Every value under a key, wherever it is.
fn values<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.extend(value.as_str());
                }
                values(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| values(item, key, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(deploy("grafana/lockgate.json")).unwrap()).unwrap()
}

#[test]
fn prometheus_understands_every_query_of_the_dashboard() {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    values(&dashboard, "expr", &mut queries);
    assert!(queries.len() > 30, "{}", queries.len());
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(index, query)| {
            // As Grafana does it before it asks.
            let query = query.replace("$__rate_interval", "5m").replace("$__interval", "1m");
            let query = query.replace("$instance", ".*").replace("$filter", ".*").replace("$rollout", ".*");
            assert!(!query.contains('$'), "{query}");
            json!({ "record": format!("query_{index}"), "expr": query })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yaml");
    // JSON is YAML, too.
    std::fs::write(&file, json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()]);
}

#[test]
fn panels_have_a_title_a_unit_and_a_place_of_their_own() {
    let dashboard = dashboard();
    let mut ids = std::collections::BTreeSet::new();
    let mut cells = std::collections::BTreeMap::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title}");
        for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
            assert!(cells.insert(cell, title).is_none(), "{title} lies over another panel at {cell:?}");
        }
        if panel["type"] != "row" {
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        }
    }
}

#[test]
fn alerts_are_rules_and_fire_when_they_should() {
    promtool(&["check", "rules", deploy("prometheus/alerts.yaml").to_str().unwrap()]);
    promtool(&["test", "rules", deploy("prometheus/alerts.test.yaml").to_str().unwrap()]);
}
