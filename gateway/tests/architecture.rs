//! What the code must not say, where.

use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The locks of the data plane, and why no request waits for the control plane at them.
const LOCKS: [(&str, &str); 3] = [
    ("proxy/log/sink.rs", "the writer's thread takes all lines at once, and writes them without it"),
    ("proxy/policy/rate.rs", "a shard of a rate limit's table: requests alone take it, for a few reads and writes"),
    ("proxy/rest.rs", "one request and what it asks for: nobody else has it"),
];

/// Invariant 3: the data plane never compiles, reads a file, waits for a lock that the control plane holds, or looks a
/// metric up by label. None of the words with which it would is in its folder.
#[test]
fn the_data_plane_has_no_words_for_what_is_slow() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = sources(&source.join("proxy"));
    files.push(source.join("proxy.rs"));
    assert!(files.len() > 10);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // The tests of a module are below it.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in [
            "std::fs",
            "tokio::fs",
            "File::",
            "with_label_values",
            "Host::",
            ".load_full(",
            "block_on",
            "RwLock",
            "Mutex",
        ] {
            let own = word == "Mutex" && LOCKS.iter().any(|(known, _)| file.ends_with(known));
            assert!(own || !code.contains(word), "`{word}` in {}", file.display());
        }
        // The control plane's clock and its types are all that is used of it.
        for line in code.lines().filter(|line| line.contains("crate::control")) {
            let known =
                ["snapshot", "upstream", "version", "function", "time"].map(|module| format!("control::{module}"));
            assert!(known.iter().any(|known| line.contains(&**known)), "{line} in {}", file.display());
        }
    }
}

/// What decides is tried without a connection, and stays so: nothing of the proxy's library is in it.
#[test]
fn route_split_path_place_and_chain_are_free_of_pingora() {
    let proxy = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proxy");
    for module in ["route", "split", "path", "place", "chain"] {
        let mut files = vec![proxy.join(module).with_extension("rs")];
        let below = proxy.join(module);
        if below.is_dir() {
            files.extend(sources(&below));
        }
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                assert!(!line.contains("pingora"), "{line} in {}", file.display());
            }
        }
    }
}

/// The dashboard and the alerts ask for metrics by name, and nothing else would notice that one was renamed.
#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file| std::fs::read_to_string(root.join(file)).unwrap();
    let metrics = ["src/metrics.rs", "src/metrics/key_value.rs"].map(read).concat();
    for file in ["grafana/lockgate.json", "prometheus/alerts.yaml"] {
        let text = std::fs::read_to_string(root.join("../deploy").join(file)).unwrap();
        let mut asked = 0;
        for (start, _) in text.match_indices("lockgate_") {
            let rest = &text[start..];
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
            let name = &rest[..end];
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
            assert!(metrics.contains(&format!("\"{family}\"")), "`{name}` in {file}");
            asked += 1;
        }
        assert!(asked > 5, "{file}");
    }
}
