//! The demo does what its tour says.

mod harness;

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use harness::Reply;
use lockgate_guests::Guest;
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A demo that runs; killed when dropped.
struct Demo {
    _child: Child,
    dir: TempDir,
    tour: String,
    address: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
}

impl Demo {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("lockgate-test-").tempdir().unwrap();
        let library = dir.path().join("library");
        std::fs::create_dir(&library).unwrap();
        for guest in Guest::LIBRARY {
            std::fs::copy(guest.path(), library.join(format!("{}.wasm", guest.name()))).unwrap();
        }
        // Held until both are known, so that they differ.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, admin] = ports.map(|port| port.local_addr().unwrap());
        let mut child = command(&dir)
            .args(["demo", "--dir", "demo", "--components", "library"])
            .args(["--port", &address.port().to_string(), "--admin-port", &admin.port().to_string()])
            .env("LOCKGATE_LOG_FORMAT", "json")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        loop {
            let line = log.next_line().await.unwrap().expect("it serves before it ends");
            if line.contains("\"message\":\"serving\"") {
                break;
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut tour = String::new();
        while !tour.contains("Ctrl-C ends it.") {
            tour.push_str(&printed.next_line().await.unwrap().expect("the tour has an end"));
            tour.push('\n');
        }
        tokio::spawn(async move { while let Ok(Some(_)) = printed.next_line().await {} });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { _child: child, dir, tour, address, admin, client }
    }

    async fn get(&self, path: &str, header: Option<(&str, &str)>) -> Reply {
        let mut request = self.client.get(format!("http://{}{path}", self.address));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        Reply::read(request.send().await.unwrap()).await
    }

    /// Does what the tour says to do with `lockgate`.
    async fn lockgate(&self, arguments: &str) -> String {
        assert!(self.tour.contains(&format!(" {arguments} --admin {}\n", self.admin)), "{}", self.tour);
        let mut command = command(&self.dir);
        command.args(arguments.split(' ')).arg("--admin").arg(self.admin.to_string());
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments}: {said}");
        said
    }

    /// The users among so many that meet the canary.
    async fn on_canary(&self, users: usize) -> Vec<usize> {
        let mut on_canary = Vec::new();
        for user in 0..users {
            let reply = self.get("/", Some(("x-user-id", &user.to_string()))).await;
            match reply.header("x-greeting") {
                "hello from canary" => on_canary.push(user),
                greeting => assert_eq!(greeting, "hello from stable"),
            }
        }
        on_canary
    }

    /// What was sent to the origin so far.
    async fn asked(&self) -> String {
        let metrics = self.client.get(format!("http://{}/metrics", self.admin)).send().await.unwrap();
        let text = metrics.text().await.unwrap();
        let of_origin: Vec<&str> =
            text.lines().filter(|line| line.starts_with("lockgate_upstream_requests_total{")).collect();
        assert!(!of_origin.is_empty(), "{text}");
        of_origin.join("\n")
    }
}

fn command(dir: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.current_dir(dir.path()).env_remove("RUST_BACKTRACE").stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn each_line_of_the_tour_shows_what_it_says() {
    let demo = Demo::start().await;
    let url = format!("http://{}", demo.address);
    let (stable, canary) = ("hello from stable", "hello from canary");

    assert!(demo.tour.contains(&format!("curl -i {url}/\n")), "{}", demo.tour);
    let reply = demo.get("/", None).await;
    assert_eq!((reply.status, reply.header("x-greeting")), (StatusCode::OK, canary));
    assert!(reply.text().contains("\nx-request-seen-by: lockgate\n"), "{}", reply.text());

    assert!(demo.tour.contains(&format!("curl -i {url}/private/report\n")), "{}", demo.tour);
    let asked = demo.asked().await;
    let reply = demo.get("/private/report", None).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert!(!reply.text().contains("the origin got"), "{}", reply.text());
    assert_eq!(demo.asked().await, asked);

    assert!(demo.tour.contains(&format!("curl -i -H \"x-lockgate-track: stable\" {url}/\n")), "{}", demo.tour);
    assert_eq!(demo.get("/", Some(("x-lockgate-track", "stable"))).await.header("x-greeting"), stable);

    assert!(demo.tour.contains("-H \"x-user-id: $user\""), "{}", demo.tour);
    let fifth = demo.on_canary(10_000).await;
    assert!((1_900..=2_100).contains(&fifth.len()), "{}", fifth.len());

    demo.lockgate("rollout set greeting 50%").await;
    let half = demo.on_canary(2_000).await;
    let before = || fifth.iter().filter(|user| **user < 2_000);
    assert!(before().all(|user| half.contains(user)), "nobody moves back");
    assert!((900..=1_100).contains(&half.len()), "{}", half.len());
    assert!(demo.lockgate("explain greeting user-42").await.contains("track:"));
    demo.lockgate("rollout promote greeting").await;
    assert_eq!(demo.on_canary(100).await.len(), 100);
    demo.lockgate("rollout rollback greeting").await;
    assert!(demo.on_canary(100).await.is_empty());
    demo.lockgate("rollout resume greeting").await;
    assert_eq!(demo.on_canary(100).await, half.into_iter().filter(|user| *user < 100).collect::<Vec<_>>());
}
