//! `lockgate serve`: a folder of components and files, without a configuration, through the real binary.

mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Gateway, Successor};
use lockgate_guests::Guest;
use reqwest::StatusCode;

/// Puts a component into an application, as a build does: whole.
fn put(app: &Path, file: &str, guest: Guest) {
    write(app, file, std::fs::read(guest.path()).expect("it is built"));
}

fn write(app: &Path, file: &str, content: impl AsRef<[u8]>) {
    let path = app.join(file);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, content).expect("it can be written");
    std::fs::rename(temporary, path).expect("it can be renamed");
}

/// An application with a route of each kind.
fn app(app: &Path) {
    put(app, "index.wasm", Guest::Hello);
    put(app, "users/[id].wasm", Guest::Function);
    put(app, "users/me.wasm", Guest::Function);
    put(app, "users/index.wasm", Guest::Function);
    put(app, "cgi-bin/[...rest].wasm", Guest::Cgi);
    write(app, "users/me.yaml", "# Whose it is.\nvars: { VERSION: mine }\nlimits:\n  deadline: 5s\n");
    write(app, "public/style.css", "body {}");
    write(app, "public/users/logo.svg", "<svg/>");
}

/// Asks until the answer is as expected: a change takes its time to be seen, and no answer may be a failure meanwhile.
async fn until(gateway: &Gateway, path: &str, expected: impl Fn(StatusCode, &str) -> bool) {
    let began = std::time::Instant::now();
    loop {
        let reply = gateway.get(path).await;
        assert!(reply.status.as_u16() < 500, "{path}: {}", reply.status);
        if expected(reply.status, &reply.text()) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{path} stays {}: {}", reply.status, reply.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_files_path_is_its_route() {
    let gateway = Gateway::serve(app, &[]).await;
    assert_eq!(gateway.get("/").await.text(), "hello\n");
    // The function tells method, target and the variable `VERSION`.
    assert_eq!(gateway.get("/users/42?a=b").await.text(), "GET /users/42?a=b \n");
    assert_eq!(gateway.get("/users/me").await.text(), "GET /users/me mine\n", "the more literal goes first");
    for path in ["/users", "/users/"] {
        assert_eq!(gateway.get(path).await.text(), format!("GET {path} \n"));
    }
    assert_eq!(gateway.get("/style.css").await.header("content-type"), "text/css; charset=utf-8");
    assert_eq!(gateway.get("/users/logo.svg").await.text(), "GET /users/logo.svg \n", "a parameter takes any segment");
    assert_eq!(gateway.get("/cgi-bin/a/b").await.text(), "GET /cgi-bin/a/b\n");
    assert_eq!(gateway.get("/nothing/here").await.status, StatusCode::NOT_FOUND);
    assert_eq!(gateway.get("/.lockgate/lockgate.yaml").await.status, StatusCode::NOT_FOUND);
    let printed = gateway.printed().join("\n");
    for line in ["/users/{id}  users/[id].wasm", "/*           public/"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let (status, said) = gateway.cli(&["status"]).await;
    assert!(status.success() && said.contains("users._id"), "{said}");
}

#[tokio::test]
async fn a_parameter_reaches_the_function_and_no_client_can_make_one_up() {
    let gateway = Gateway::serve(|app| put(app, "[Shop_Name].wasm", Guest::Function), &[]).await;
    // At this path, the function tells what it sees.
    let request = gateway.client().get(gateway.url("/request")).header("x-lockgate-param-shop-name", "forged");
    let seen = gateway.send(request.header("x-lockgate-param-other", "forged")).await.text();
    assert!(seen.contains("\nx-lockgate-param-shop-name: request\n") && !seen.contains("forged"), "{seen}");
}

#[tokio::test]
async fn a_prefix_stands_before_everything() {
    let gateway = Gateway::serve(app, &["--prefix", "/api/"]).await;
    for (path, status) in [("/api", 200), ("/api/", 200), ("/api/users/7", 200), ("/api/style.css", 200), ("/", 404)] {
        assert_eq!(gateway.get(path).await.status.as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn files_come_change_and_go_without_a_failed_request() {
    let gateway = Gateway::serve(app, &[]).await;
    let folder = gateway.path().join("app");
    let (over, url) = (Arc::new(AtomicBool::new(false)), gateway.url("/users/1"));
    let (client, stop) = (gateway.client().clone(), Arc::clone(&over));
    let load = tokio::spawn(async move {
        let mut asked = 0;
        while !stop.load(Ordering::Relaxed) {
            let reply = client.get(&url).send().await.expect("an answer");
            assert_eq!(reply.status(), StatusCode::OK, "after {asked}");
            asked += 1;
        }
        asked
    });
    put(&folder, "new/one.wasm", Guest::Hello);
    until(&gateway, "/new/one", |status, text| status == 200 && text == "hello\n").await;
    put(&folder, "new/one.wasm", Guest::Function);
    until(&gateway, "/new/one", |status, text| status == 200 && text == "GET /new/one \n").await;
    write(&folder, "new/one.yaml", "vars: { VERSION: v2 }\n");
    until(&gateway, "/new/one", |_, text| text == "GET /new/one v2\n").await;
    std::fs::remove_file(folder.join("new/one.wasm")).expect("it can be removed");
    until(&gateway, "/new/one", |status, _| status == 404).await;
    gateway.says("`new/one.yaml` stands beside no `.wasm` of its name").await;
    std::fs::remove_dir_all(folder.join("public")).expect("it can be removed");
    until(&gateway, "/style.css", |status, _| status == 404).await;
    over.store(true, Ordering::Relaxed);
    assert!(load.await.expect("no failed request") > 10);
}

#[tokio::test]
async fn what_is_broken_is_told_and_its_last_good_version_stays() {
    let mut gateway = Gateway::serve(app, &[]).await;
    let folder = gateway.path().join("app");
    write(&folder, "users/[id].wasm", b"no component at all");
    gateway.says("`users/[id].wasm`: its last good version stays: it is not a valid component").await;
    put(&folder, "filter.wasm", Guest::Tag);
    gateway.says("`filter.wasm`: it is not served: ").await;
    // The rest goes on, and what is right is served beside what is wrong.
    put(&folder, "right.wasm", Guest::Hello);
    until(&gateway, "/right", |status, _| status == 200).await;
    assert_eq!(gateway.get("/users/1").await.text(), "GET /users/1 \n");
    assert_eq!(gateway.get("/filter").await.status, StatusCode::NOT_FOUND);
    // Over a restart as well.
    gateway.kill().await;
    gateway.launch().await;
    assert_eq!(gateway.get("/users/1").await.text(), "GET /users/1 \n");
    let said = gateway.said();
    write(&folder, "users/me.yaml", "vars: { VERSION: mine }\nlimits:\n  deadline: 5 parsecs\n");
    let told = gateway.says_after(said, "its last good version stays").await.to_string();
    for part in ["users/me.yaml:3:13", "5 parsecs"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(gateway.get("/users/me").await.text(), "GET /users/me mine\n");
    let said = gateway.said();
    put(&folder, "users.wasm", Guest::Hello);
    gateway.says_after(said, "`users/index.wasm` does not answer `/users`: `users.wasm` does").await;
    until(&gateway, "/users", |_, text| text == "hello\n").await;
    assert_eq!(gateway.get("/users/").await.text(), "GET /users/ \n");
}

#[tokio::test]
async fn what_stands_beside_a_component_grants_it_folders_and_spaces_and_may_change() {
    let prepare = |app: &Path| {
        // The fixtures do what their path says.
        put(app, "read.wasm", Guest::Files);
        put(app, "count.wasm", Guest::Keeper);
        put(app, "in/visits/count.wasm", Guest::Keeper);
        write(app, "data/a.txt", "beside it");
        write(app, "other/a.txt", "elsewhere");
        write(app, "read.yaml", "grants:\n  folders: [{ path: ./data, as: /data }]\n");
        write(app, "count.yaml", "grants: { key_value: default }\n");
        write(app, "in/visits/count.yaml", "grants: { key_value: visits }\n");
    };
    let gateway = Gateway::serve(prepare, &[]).await;
    let folder = gateway.path().join("app");
    assert_eq!(gateway.get("/read?/data/a.txt").await.text(), "beside it");
    write(&folder, "read.yaml", "grants:\n  folders: [{ path: other, as: /data }]\n");
    until(&gateway, "/read?/data/a.txt", |_, text| text == "elsewhere").await;
    write(&folder, "read.yaml", "");
    until(&gateway, "/read?/data/a.txt", |status, _| status == StatusCode::FORBIDDEN).await;

    assert_eq!(gateway.get("/count?hits").await.text(), "1");
    assert_eq!(gateway.get("/in/visits/count?hits").await.text(), "1", "a space of its own name");
    write(&folder, "count.yaml", "grants: { key_value: default }\nvars: { NEW: version }\n");
    gateway.says("\"reloaded\"").await;
    assert_eq!(gateway.get("/count?hits").await.text(), "2", "its space outlives its versions");
}

#[tokio::test]
async fn services_are_served_to_those_who_ask_for_them() {
    let service = |app: &Path| put(app, "index.wasm", Guest::Service);
    let gateway = Gateway::serve(service, &[]).await;
    gateway.says("serve with `--experimental wasi-0.3`").await;
    assert_eq!(gateway.get("/").await.status, StatusCode::NOT_FOUND);
    let mut gateway = Gateway::serve(service, &["--experimental", "wasi-0.3"]).await;
    assert_eq!(gateway.get("/").await.text(), "GET / \n");
    // Whoever goes on has been told.
    let _successor: Successor = gateway.upgrade().await;
    assert!(gateway.ended().await.success());
    assert_eq!(gateway.get("/").await.text(), "GET / \n");
}

#[tokio::test]
async fn an_empty_folder_fills() {
    let gateway = Gateway::serve(|_| {}, &[]).await;
    assert_eq!(gateway.get("/").await.status, StatusCode::NOT_FOUND);
    put(&gateway.path().join("app"), "index.wasm", Guest::Hello);
    until(&gateway, "/", |status, _| status == 200).await;
    std::fs::remove_file(gateway.path().join("app/index.wasm")).expect("it can be removed");
    until(&gateway, "/", |status, _| status == 404).await;
}

#[tokio::test]
async fn a_folder_is_served_once_and_its_successor_follows_it_as_well() {
    let mut gateway = Gateway::serve(app, &[]).await;
    let config = gateway.path().join("app/.lockgate/lockgate.yaml");
    let before = std::fs::read_to_string(&config).expect("it is written");
    let (status, said) = gateway.cli(&["serve", "app", "--listen", "127.0.0.1:1"]).await;
    assert!(!status.success() && said.contains("serves this folder already"), "{said}");
    assert_eq!(std::fs::read_to_string(&config).expect("it is there"), before);
    let _successor: Successor = gateway.upgrade().await;
    assert!(gateway.ended().await.success());
    put(&gateway.path().join("app"), "later.wasm", Guest::Hello);
    until(&gateway, "/later", |status, _| status == 200).await;
}
