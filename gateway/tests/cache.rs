//! The cache of artifacts, as an operator meets it: filled before a start, damaged, emptied.

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use harness::{Gateway, Upstream};
use reqwest::Method;
use serde_json::Value;

const CONFIG: &str = r#"
server: { watch: false }
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: v1 } }
  set: { component: filters/read-set.wasm }
routes: [{ filters: [tag, set], upstream: app }]
"#;

/// The artifacts of a gateway, by their names.
fn artifacts(gateway: &Gateway) -> Vec<PathBuf> {
    let files = fs::read_dir(gateway.path().join("cache")).expect("a cache");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn inode(file: &Path) -> u64 {
    fs::metadata(file).expect("an artifact").ino()
}

async fn said(gateway: &Gateway, arguments: &[&str]) -> String {
    let (status, said) = gateway.cli(arguments).await;
    assert!(status.success(), "{arguments:?}: {said}");
    said
}

async fn serves(gateway: &Gateway) {
    let reply = gateway.get("/").await;
    assert_eq!((reply.header("x-tag"), reply.header("x-read-set").is_empty()), ("v1", false), "{reply:?}");
}

/// Invariant 7.
#[tokio::test]
async fn a_damaged_cache_prevents_no_start_and_is_told_and_made_anew() {
    let up = Upstream::start().await;
    let mut gateway = Gateway::start(CONFIG, &up).await;
    serves(&gateway).await;
    gateway.kill().await;

    let files = artifacts(&gateway);
    let [flipped, halved] = &files[..] else { panic!("two artifacts: {files:?}") };
    let whole = [flipped, halved].map(|file| fs::read(file).expect("an artifact"));
    let mut bytes = whole[0].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(flipped, &bytes).expect("it can be written");
    fs::write(halved, &whole[1][..whole[1].len() / 2]).expect("it can be written");
    let before = [flipped, halved].map(|file| inode(file));

    gateway.launch().await;
    serves(&gateway).await;
    for file in [flipped, halved] {
        let name = file.file_name().expect("a name").to_str().expect("hexadecimal digits");
        let line = gateway.says(name).await;
        assert_eq!((&line["level"], &line["reason"]), (&Value::from("WARN"), &Value::from("tampered")), "{line}");
        assert!(line.to_string().contains("compiled anew"), "{line}");
    }
    gateway.settles("lockgate_cache_rejects_total", &[], 2.0).await;
    assert_eq!(artifacts(&gateway), files, "under the same names, and nothing beside them");
    // Renamed into place: whoever had the old file open has not seen it change.
    assert!([flipped, halved].map(|file| inode(file)).iter().zip(before).all(|(now, before)| *now != before));

    // What was made anew is good.
    gateway.kill().await;
    gateway.launch().await;
    serves(&gateway).await;
    gateway.settles("lockgate_cache_rejects_total", &[], 0.0).await;
}

#[tokio::test]
async fn what_is_compiled_before_is_found_by_whoever_comes_after() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    fs::create_dir(gateway.path().join("image")).expect("a folder");
    let config = fs::read_to_string(gateway.path().join("lockgate.yaml")).expect("a configuration");
    let other = config.replace("watch: false", "watch: false, cache_dir: image/cache, state_dir: image/state");
    fs::write(gateway.path().join("image.yaml"), other).expect("it can be written");

    let compile = ["compile", "--config", "image.yaml"];
    let first = said(&gateway, &compile).await;
    assert!(first.starts_with("2 versions: 2 compiled, 0 in the cache already\n"), "{first}");
    for filter in ["tag", "set"] {
        assert!(first.contains(&format!("\"filter\":\"{filter}\"")), "what takes long is logged: {first}");
    }
    assert_eq!(said(&gateway, &compile).await.trim(), "2 versions: 0 compiled, 2 in the cache already");
}

#[tokio::test]
async fn the_cache_is_emptied_and_the_gateway_serves_on() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    assert!(said(&gateway, &["cache", "list"]).await.contains("2 artifacts in the cache"));

    let dropped = said(&gateway, &["cache", "prune", "--to", "0"]).await;
    assert!(dropped.contains("2 artifacts dropped"), "{dropped}");
    assert!(artifacts(&gateway).is_empty());
    assert!(said(&gateway, &["cache", "list"]).await.starts_with("0 artifacts in the cache"));
    serves(&gateway).await;

    // What is needed again is compiled again.
    gateway.write_config(&CONFIG.replace("v1", "v2"));
    assert!(gateway.reload().await.status.is_success());
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");
    assert_eq!(artifacts(&gateway).len(), 1, "the other filter was loaded already");

    // By the API: down to a size, then to nothing.
    let all = gateway.admin(Method::GET, "/api/v1/cache", None).await.json();
    let to = serde_json::json!({ "to": "1GiB" });
    let nothing = gateway.admin(Method::POST, "/api/v1/cache/prune", Some(to)).await.json();
    assert_eq!((&nothing["dropped"], &nothing["bytes"]), (&serde_json::json!([]), &Value::from(0)));
    let pruned = gateway.admin(Method::POST, "/api/v1/cache/prune", None).await.json();
    assert_eq!((&pruned["dropped"][0]["key"], &pruned["bytes"]), (&all["entries"][0]["key"], &all["bytes"]));
    assert!(artifacts(&gateway).is_empty());
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");
}
