//! Folders as targets.

mod harness;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use harness::{Builder, Gateway, Reply, Upstream};
use lockgate_guests::Guest;
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters:
  tag: { component: filters/tag.wasm, settings: { value: seen, append: true } }
  upper: { component: filters/body-upper.wasm }
routes:
  - { name: files, match: { path: /files/* }, static: { folder: public, cache_control: "max-age=60" }, filters: [tag] }
  - { name: upper, match: { path: /upper/* }, static: public, filters: [upper] }
  - { name: app, static: { folder: public, fallback: index.html, precompressed: false } }
  - { name: api, match: { path: /api/* }, upstream: app }
"#;

/// Bytes that differ everywhere.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 251) as u8).collect()
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

async fn start() -> (Gateway, Upstream) {
    let up = Upstream::start().await;
    let builder = Builder::new(CONFIG).upstream(&up).guest(Guest::Tag).guest(Guest::BodyUpper);
    let public = builder.path().join("public");
    write(&public, "index.html", "<h1>home</h1>");
    write(&public, "a b.txt", "hello");
    write(&public, "empty.txt", "");
    write(&public, "app.js", "let a = 1;".repeat(100));
    write(&public, "app.js.br", "compressed by br");
    write(&public, "app.js.gz", "compressed by gzip");
    write(&public, "app.css", "body {}".repeat(100));
    write(&public, "app.css.zst", "compressed by zstd");
    write(&public, "docs/index.html", "docs");
    write(&public, "docs/big.bin", bytes(300_000));
    write(&public, ".env", "SECRET=hunter2");
    write(&public, ".git/config", "hunter2");
    write(&public, "deep/.hidden", "hunter2");
    write(builder.path(), "outside.txt", "hunter2");
    symlink("../outside.txt", public.join("out.txt")).unwrap();
    symlink("..", public.join("up")).unwrap();
    symlink("docs/index.html", public.join("inside.html")).unwrap();
    (builder.start().await, up)
}

async fn send(gateway: &Gateway, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request = gateway.client().request(method, gateway.url(path));
    gateway.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

/// Sends a request's first line as it is, which a client's library would tidy up. Returns status and body.
async fn raw(gateway: &Gateway, target: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(gateway.http()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut reply)).await.unwrap().unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, reply)
}

#[tokio::test]
async fn a_file_comes_with_what_clients_and_caches_need_to_know() {
    let (gateway, _up) = start().await;

    let reply = gateway.get("/files/a%20b.txt").await;

    assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, "hello"));
    assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(reply.header("content-length"), "5");
    assert_eq!(reply.header("accept-ranges"), "bytes");
    assert_eq!(reply.header("cache-control"), "max-age=60");
    assert_eq!(reply.header("vary"), "accept-encoding");
    let (tag, modified) = (reply.header("etag").to_owned(), reply.header("last-modified").to_owned());
    assert!(tag.starts_with('"') && modified.ends_with("GMT"), "{reply:?}");
    let line = gateway.logged(|line| line["path"] == "/files/a%20b.txt").await;
    assert_eq!((line["static"]["file"].as_str(), line["bytes_sent"].as_u64()), (Some("a b.txt"), Some(5)));

    let head = send(&gateway, Method::HEAD, "/files/a%20b.txt", &[]).await;
    assert_eq!((head.header("content-length"), head.header("etag"), head.body.len()), ("5", &*tag, 0));
    for condition in [("if-none-match", &*tag), ("if-modified-since", &*modified)] {
        let known = send(&gateway, Method::GET, "/files/a%20b.txt", &[condition]).await;
        assert_eq!((known.status, known.body.len(), known.header("etag")), (StatusCode::NOT_MODIFIED, 0, &*tag));
    }
    let failed = send(&gateway, Method::GET, "/files/a%20b.txt", &[("if-match", "\"other\"")]).await;
    assert_eq!(failed.status, StatusCode::PRECONDITION_FAILED);
    let post = send(&gateway, Method::POST, "/files/a%20b.txt", &[]).await;
    assert_eq!((post.status, post.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
    let empty = gateway.get("/files/empty.txt").await;
    assert_eq!((empty.status, empty.header("content-length")), (StatusCode::OK, "0"));
    assert_eq!(
        gateway.metric("lockgate_static_answers_total", &["route=\"files\"", "outcome=\"not_modified\""]).await,
        2.0
    );
}

#[tokio::test]
async fn what_changes_has_another_tag() {
    let (gateway, _up) = start().await;
    let before = gateway.get("/files/a%20b.txt").await;
    write(&gateway.path().join("public"), "a b.txt", "world");
    let tag = before.header("etag");
    let after = send(&gateway, Method::GET, "/files/a%20b.txt", &[("if-none-match", tag)]).await;
    assert_eq!((after.status, after.text().as_str()), (StatusCode::OK, "world"));
    assert_ne!(after.header("etag"), tag);
}

#[tokio::test]
async fn parts_are_the_bytes_that_were_asked_for() {
    let (gateway, _up) = start().await;
    let whole = bytes(300_000);
    let path = "/files/docs/big.bin";
    let get = async |range: &str| send(&gateway, Method::GET, path, &[("range", range)]).await;

    assert_eq!(gateway.get(path).await.body, whole);
    let part = get("bytes=65530-200000").await;
    assert_eq!((part.status, part.header("content-range")), (StatusCode::PARTIAL_CONTENT, "bytes 65530-200000/300000"));
    assert_eq!(part.body, whole[65_530..=200_000]);
    assert_eq!(get("bytes=-10").await.body, whole[299_990..]);
    let beyond = get("bytes=300000-").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */300000"));
    let stale = send(&gateway, Method::GET, path, &[("range", "bytes=0-9"), ("if-range", "\"other\"")]).await;
    assert_eq!((stale.status, stale.body.len()), (StatusCode::OK, 300_000));
}

#[tokio::test]
async fn nothing_outside_and_nothing_hidden_is_shown() {
    let (gateway, _up) = start().await;
    for (target, expected) in [
        ("/files/.env", 404),
        ("/files/%2eenv", 404),
        ("/files/.git/config", 404),
        ("/files/deep/.hidden", 404),
        ("/files/deep/%2Ehidden", 404),
        ("/files/%252e%252e/outside.txt", 404),
        ("/files/out.txt", 404),
        ("/files/up/outside.txt", 404),
        ("/files/missing", 404),
        ("/files/deep/", 404),
        ("/files/a%20b.txt/", 404),
        // What leaves `/files` meets the application, which has no such file either.
        ("/files/../outside.txt", 404),
        ("/files/%2e%2e/outside.txt", 404),
        // What could be read in two ways is no target.
        ("/files/..%2foutside.txt", 404),
        ("/files/docs/..%2f..%2foutside.txt", 404),
        ("/files/..%5coutside.txt", 404),
        ("/files/a%00.txt", 400),
        // The page of the application is for its own paths, and these are none.
        ("/.env", 404),
        ("/%2eenv", 404),
        ("/.git/config", 404),
        ("/deep/.hidden", 404),
    ] {
        let (status, reply) = raw(&gateway, target).await;
        assert_eq!(status, expected, "{target}: {reply}");
        assert!(!reply.contains("hunter2"), "{target}: {reply}");
    }
    assert_eq!(gateway.get("/files/inside.html").await.text(), "docs");
}

#[tokio::test]
async fn folders_answer_with_their_index_under_their_own_address() {
    let (gateway, _up) = start().await;
    assert_eq!(gateway.get("/files/docs/").await.text(), "docs");
    assert_eq!(raw(&gateway, "/files/docs?a=b").await.0, 301);
    let (_, reply) = raw(&gateway, "/files/docs?a=b").await;
    assert!(reply.to_ascii_lowercase().contains("location: /files/docs/?a=b\r\n"), "{reply}");
    let (status, reply) = raw(&gateway, "/files").await;
    assert!(status == 301 && reply.to_ascii_lowercase().contains("location: /files/\r\n"), "{reply}");
    assert_eq!(gateway.get("/").await.text(), "<h1>home</h1>");
}

#[tokio::test]
async fn the_page_of_an_application_answers_for_its_own_paths() {
    let (gateway, _up) = start().await;
    let page = gateway.get("/users/42").await;
    assert_eq!((page.status, page.text().as_str()), (StatusCode::OK, "<h1>home</h1>"));
    assert_eq!(gateway.get("/missing.js").await.status, StatusCode::NOT_FOUND);
    let asked = send(&gateway, Method::GET, "/users/john.doe", &[("accept", "text/html,*/*")]).await;
    assert_eq!(asked.text(), "<h1>home</h1>");
    assert_eq!(gateway.get("/app.js").await.text().len(), 1_000);
    assert_eq!(gateway.get("/api/x").await.seen().target, "/api/x");
}

#[tokio::test]
async fn who_understands_a_compressed_form_gets_it() {
    let (gateway, _up) = start().await;
    let get =
        async |accepted: &str| send(&gateway, Method::GET, "/files/app.js", &[("accept-encoding", accepted)]).await;
    let best = get("gzip, br").await;
    assert_eq!((best.header("content-encoding"), best.text().as_str()), ("br", "compressed by br"));
    assert_eq!(best.header("content-type"), "text/javascript; charset=utf-8");
    assert_eq!(get("gzip, br;q=0.1").await.text(), "compressed by gzip");
    let plain = get("zstd").await;
    assert_eq!((plain.header("content-encoding"), plain.body.len()), ("", 1_000));
    assert_ne!(plain.header("etag"), best.header("etag"));
    let css = send(&gateway, Method::GET, "/files/app.css", &[("accept-encoding", "gzip, br, zstd")]).await;
    assert_eq!((css.header("content-encoding"), css.text().as_str()), ("zstd", "compressed by zstd"));
    assert_eq!(css.header("content-type"), "text/css; charset=utf-8");
    let off = send(&gateway, Method::GET, "/app.js", &[("accept-encoding", "br")]).await;
    assert_eq!((off.header("content-encoding"), off.body.len()), ("", 1_000));
}

#[tokio::test]
async fn filters_see_the_answer_like_any_other() {
    let (gateway, _up) = start().await;
    for path in ["/files/app.js", "/files/missing"] {
        assert_eq!(gateway.get(path).await.header("x-tag"), "seen", "{path}");
    }
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for client in [gateway.client(), &http2] {
        let request =
            client.get(gateway.url("/upper/app.js")).header("accept-encoding", "br").header("range", "bytes=0-9");
        let reply = gateway.send(request).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.text(), "LET A = 1;".repeat(100));
        assert!(reply.header("etag").starts_with("W/"), "{reply:?}");
        let big = gateway.send(client.get(gateway.url("/upper/docs/big.bin"))).await;
        assert_eq!(big.body, bytes(300_000).to_ascii_uppercase());
    }
    let line = gateway.logged(|line| line["path"] == "/upper/app.js").await;
    assert_eq!(line["filters"][0]["name"], "upper");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_told_and_one_that_is_replaced_serves_at_once() {
    let (gateway, _up) = start().await;
    let config = "routes: [{ static: current }]";
    gateway.write_config(config);
    let refused = gateway.reload().await;
    assert!(refused.text().contains("`current` is no folder"), "{}", refused.text());
    for release in ["one", "two"] {
        write(gateway.path(), &format!("releases/{release}/name.txt"), release);
    }
    symlink("releases/one", gateway.path().join("current")).unwrap();
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/name.txt").await.text(), "one");
    symlink("releases/two", gateway.path().join("next")).unwrap();
    std::fs::rename(gateway.path().join("next"), gateway.path().join("current")).unwrap();
    assert_eq!(gateway.get("/name.txt").await.text(), "two");
}

#[tokio::test]
async fn a_file_that_breaks_off_breaks_the_response_off() {
    let (gateway, _up) = start().await;
    let path = gateway.path().join("public/long.bin");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let mut reply = gateway.client().get(gateway.url("/files/long.bin")).send().await.unwrap();
    assert_eq!(reply.content_length(), Some(64 << 20));
    reply.chunk().await.unwrap().unwrap();
    file.set_len(1 << 20).unwrap();
    let mut got = 0;
    let end = loop {
        match reply.chunk().await {
            Ok(Some(piece)) => got += piece.len(),
            end => break end,
        }
    };
    assert!(end.is_err() && got < 64 << 20, "{got} bytes, {end:?}");
    let line = gateway.logged(|line| line["path"] == "/files/long.bin").await;
    assert_eq!(line["error"]["kind"], "file_unreadable");
}
