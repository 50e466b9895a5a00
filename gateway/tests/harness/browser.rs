//! A real Chromium, by its driver.

#![allow(dead_code, unreachable_pub, reason = "each test file that has it uses a part of it")]

use std::process::Stdio;
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::harness::Gateway;

/// Longer than anything takes, on a machine that does something else as well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often the page is looked at while something is waited for: no event of a browser says that it shows something.
const LOOK: Duration = Duration::from_millis(50);

/// A browser without a window; it ends with the test.
pub struct Browser {
    pub client: Client,
    driver: String,
    process: tokio::process::Child,
    _profile: TempDir,
}

impl Drop for Browser {
    /// A test that fails leaves no browser behind: it is of the driver's process group.
    fn drop(&mut self) {
        let pid = self.process.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // An error means that it has ended.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Browser {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments of Chromium's.
    pub async fn start_with(further: &[&str]) -> Self {
        let mut process = tokio::process::Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("`chromedriver` runs; `make setup-test` as root installs it, or `apt-get install chromium chromium-driver`");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("chromedriver says its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let driver = format!("http://127.0.0.1:{port}");
        let profile = tempfile::Builder::new().prefix("lockgate-browser-").tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,1000",
            &data,
        ];
        let arguments: Vec<&str> = arguments.iter().chain(further).copied().collect();
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities.as_object().unwrap().clone())
            .connect(&driver)
            .await
            .expect("Chromium starts");
        Self { client, driver, process, _profile: profile }
    }

    /// Opens the gateway's own page.
    pub async fn open(&self, gateway: &Gateway) {
        self.goto(&gateway.admin_url("/")).await;
    }

    pub async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    pub async fn find(&self, css: &str) -> Element {
        let wait = self.client.wait().at_most(PATIENCE).every(LOOK);
        wait.for_element(Locator::Css(css)).await.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.unwrap();
    }

    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until an expression is true on the page.
    pub async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        let is_true = async {
            while self.run(&script).await != json!(true) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PATIENCE, is_true).await.is_err() {
            let text = self.run("return document.body.innerText").await;
            panic!("never `{expression}` on a page that says {text}");
        }
    }

    /// Waits until the text of an element contains something.
    pub async fn says(&self, css: &str, text: &str) {
        self.until(&format!("document.querySelector({css:?})?.innerText.includes({text:?})")).await;
    }

    /// Presses a key on whatever has the focus.
    pub async fn press(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Presses the tabulator until an element has the focus.
    pub async fn tab_to(&self, css: &str) {
        for _ in 0..60 {
            if self.run(&format!("return document.activeElement.matches({css:?})")).await == json!(true) {
                return;
            }
            self.press(&char::from(Key::Tab).to_string()).await;
        }
        panic!("the tabulator never comes to {css}");
    }

    /// Makes the window another size.
    pub async fn resize(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }

    /// Ends the browser, and holds that its console had nothing to complain of.
    pub async fn close(self) {
        let session = self.client.session_id().await.unwrap().expect("a session");
        let log = reqwest::Client::builder().no_proxy().build().unwrap();
        let log = log.post(format!("{}/session/{session}/se/log", self.driver)).json(&json!({ "type": "browser" }));
        let log: Value = log.send().await.unwrap().json().await.unwrap();
        let entries = log["value"].as_array().expect("a log");
        let bad: Vec<&Value> =
            entries.iter().filter(|entry| !matches!(entry["level"].as_str(), Some("DEBUG" | "INFO"))).collect();
        assert!(bad.is_empty(), "{bad:?}");
        self.client.clone().close().await.unwrap();
    }
}
