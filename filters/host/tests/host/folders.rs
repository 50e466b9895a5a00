//! Folders: a function sees those that it is granted, as it is granted them, and nothing beside them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use lockgate_guests::Guest;
use lockgate_host::{FolderGrant, Function, FunctionSpec, Grants, LoadError, Silent};
use tempfile::TempDir;

use crate::functions::{get, load, spec};
use crate::host;

/// A folder `data` with a file, links that lead out of it, and a secret beside it.
fn folder() -> TempDir {
    let root = TempDir::new().expect("a folder");
    let data = root.path().join("data");
    fs::create_dir(&data).expect("a folder");
    fs::write(data.join("a.txt"), "a file\n").expect("a file");
    fs::write(root.path().join("secret.txt"), "a secret\n").expect("a file");
    symlink("../secret.txt", data.join("relative")).expect("a link");
    symlink(root.path().join("secret.txt"), data.join("absolute")).expect("a link");
    symlink("..", data.join("above")).expect("a link");
    symlink("a.txt", data.join("inside")).expect("a link");
    root
}

fn grant(root: &Path, write: bool) -> FolderGrant {
    FolderGrant { path: root.join("data"), seen_as: "/data".to_owned(), write }
}

fn granted(folders: Vec<FolderGrant>) -> FunctionSpec {
    FunctionSpec { grants: Grants { folders, ..Grants::default() }, ..spec(Guest::Files) }
}

async fn ask(function: &Arc<Function>, target: &str) -> (u16, String) {
    let (parts, body) = get(function, target).await.expect("an answer");
    (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_without_the_grant_sees_no_folder() {
    let function = load(&spec(Guest::Files));
    assert_eq!(ask(&function, "/preopens").await, (200, String::new()));
    for target in ["/read?/etc/passwd", "/list?/", "/write?/tmp/a", "/read?a.txt"] {
        assert_eq!(ask(&function, target).await.0, 403, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_read_and_not_written_unless_that_is_granted() {
    let root = folder();
    let function = load(&granted(vec![grant(root.path(), false)]));
    assert_eq!(ask(&function, "/preopens").await, (200, "/data read\n".to_owned()));
    assert_eq!(ask(&function, "/read?/data/a.txt").await, (200, "a file\n".to_owned()));
    assert_eq!(ask(&function, "/read?/data/inside").await, (200, "a file\n".to_owned()));
    assert_eq!(ask(&function, "/list?/data").await.1, "a.txt\nabove\nabsolute\ninside\nrelative\n");
    for target in ["/write?/data/b.txt", "/write?/data/a.txt", "/remove?/data/a.txt", "/make?/data/c", "/link?d"] {
        assert_eq!(ask(&function, target).await.0, 403, "{target}");
    }
    assert_eq!(fs::read_to_string(root.path().join("data/a.txt")).expect("the file"), "a file\n");
    assert_eq!(fs::read_dir(root.path().join("data")).expect("the folder").count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_written_where_that_is_granted() {
    let root = folder();
    let function = load(&granted(vec![grant(root.path(), true)]));
    assert_eq!(ask(&function, "/preopens").await.1, "/data write\n");
    for target in ["/write?/data/b.txt", "/make?/data/c", "/write?/data/c/d.txt", "/remove?/data/a.txt"] {
        assert_eq!(ask(&function, target).await.0, 200, "{target}");
    }
    assert_eq!(fs::read_to_string(root.path().join("data/b.txt")).expect("written"), "written\n");
    assert_eq!(fs::read_to_string(root.path().join("data/c/d.txt")).expect("written"), "written\n");
    assert!(!root.path().join("data/a.txt").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leads_out_of_a_folder() {
    let root = folder();
    let function = load(&granted(vec![grant(root.path(), true)]));
    // A link that the guest makes itself is no way out, either; whether it may make one is all the same.
    ask(&function, "/link?made").await;
    for target in [
        "/read?/data/../secret.txt",
        "/read?/data/relative",
        "/read?/data/absolute",
        "/read?/data/above/secret.txt",
        "/read?/data/made/secret.txt",
        "/list?/data/above",
        "/list?/data/..",
        "/write?/data/../planted.txt",
        "/write?/data/relative",
        "/write?/data/above/planted.txt",
        "/write?/data/made/planted.txt",
        "/remove?/data/above/secret.txt",
        "/read?/etc/passwd",
        "/read?/proc/self/environ",
    ] {
        let (status, text) = ask(&function, target).await;
        assert_eq!(status, 403, "{target}: {text}");
    }
    assert_eq!(fs::read_to_string(root.path().join("secret.txt")).expect("the file"), "a secret\n");
    assert!(!root.path().join("planted.txt").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_stays_the_one_that_was_opened_at_load() {
    let root = folder();
    let function = load(&granted(vec![grant(root.path(), false)]));
    fs::rename(root.path().join("data"), root.path().join("moved")).expect("moved");
    fs::create_dir(root.path().join("data")).expect("another folder");
    fs::write(root.path().join("data/a.txt"), "another file\n").expect("another file");
    assert_eq!(ask(&function, "/read?/data/a.txt").await.1, "a file\n");
}

#[test]
fn a_folder_that_cannot_be_used_so_is_refused_at_load() {
    let root = folder();
    for (path, told) in [("missing", "cannot be opened: No such file"), ("secret.txt", "cannot be opened: Not a dir")] {
        let folder = FolderGrant { path: root.path().join(path), ..grant(root.path(), false) };
        let error = host().load_function(&granted(vec![folder]), &Silent).expect_err("is refused");
        let LoadError::Folder { seen_as, problem } = error else { panic!("{error}") };
        assert_eq!(seen_as, "/data");
        assert!(problem.starts_with(told), "{problem}");
    }
}
