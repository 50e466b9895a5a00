//! The real binary, in a folder of its own, on ports of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate_guests::Guest;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{Reply, Upstream};

/// Longer than anything that works takes, on a machine that does something else as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of JSON that a process wrote.
#[derive(Clone, Debug)]
struct Lines(Arc<watch::Sender<Written>>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<Value>,
    ended: bool,
}

impl Lines {
    fn read(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let lines = Self(Arc::new(watch::channel(Written::default()).0));
        let sender = Arc::clone(&lines.0);
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream).lines();
            while let Ok(Some(line)) = stream.next_line().await {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| Value::String(line));
                sender.send_modify(|written| written.lines.push(value));
            }
            sender.send_modify(|written| written.ended = true);
        });
        lines
    }

    /// All lines of a process that has ended.
    async fn whole(&self) -> Vec<Value> {
        let mut receiver = self.0.subscribe();
        let ended = tokio::time::timeout(PATIENCE, receiver.wait_for(|written| written.ended)).await;
        ended.expect("the process ends").expect("its output is read").lines.clone()
    }

    /// The first line, from `skip` on, of which something is told; waits for it.
    async fn find<T>(&self, skip: usize, tell: impl Fn(&Value) -> Option<T>) -> T {
        let mut receiver = self.0.subscribe();
        let look = |written: &Written| written.lines.iter().skip(skip).find_map(&tell);
        let found = receiver.wait_for(|written| written.ended || look(written).is_some());
        let found = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(written)) => look(&written),
            _ => None,
        };
        found.unwrap_or_else(|| panic!("no such line in {:#?}", *self.0.borrow()))
    }
}

/// A gateway about to be started.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    config: String,
    variables: HashMap<String, String>,
    token: Option<String>,
}

impl Builder {
    /// Begins with a configuration without `admin`, which the harness adds, and one listener where there is none. `${UPSTREAM}` stands for
    /// the address of the upstream given to [`Self::upstream`].
    pub fn new(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lockgate-test-").tempdir().expect("a temporary folder");
        Self { dir, config: config.to_owned(), variables: HashMap::new(), token: None }
    }

    pub fn upstream(self, upstream: &Upstream) -> Self {
        self.variable("UPSTREAM", &upstream.address.to_string())
    }

    /// Sets an environment variable, which the configuration can name.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Gives the admin API a token; calls of the harness carry none.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Puts a guest into the folder `filters`, under its name: `filters/tag.wasm`.
    pub fn guest(self, guest: Guest) -> Self {
        let filters = self.dir.path().join("filters");
        std::fs::create_dir_all(&filters).expect("a folder");
        std::fs::copy(guest.path(), filters.join(format!("{}.wasm", guest.name()))).expect("a copy");
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub async fn start(self) -> Gateway {
        let config = self.dir.path().join("lockgate.yaml");
        write_config(&config, &self.config, self.token.as_deref());
        let mut gateway = Gateway {
            arguments: vec!["run".into(), "--config".into(), config.clone().into()],
            config,
            token: self.token,
            variables: self.variables,
            dir: self.dir,
            process: None,
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        };
        gateway.launch().await;
        gateway
    }
}

fn write_config(path: &Path, config: &str, token: Option<&str>) {
    let token = token.map(|token| format!(", token: {token}")).unwrap_or_default();
    let listeners = if config.contains("listeners:") { "" } else { "listeners: [\"127.0.0.1:0\"]" };
    let text = format!("{listeners}\nadmin: {{ address: \"127.0.0.1:0\"{token} }}\n{config}\n");
    // As an editor does it: to another name, then into place.
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).expect("the configuration can be written");
    std::fs::rename(&temporary, path).expect("the configuration can be renamed");
}

/// A running gateway; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    /// What the process is started with.
    arguments: Vec<OsString>,
    config: PathBuf,
    token: Option<String>,
    variables: HashMap<String, String>,
    dir: TempDir,
    process: Option<Process>,
    client: reqwest::Client,
}

#[derive(Debug)]
struct Process {
    child: Child,
    access_log: Lines,
    log: Lines,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    /// Starts a gateway in front of an upstream, with every guest that the configuration names.
    pub async fn start(config: &str, upstream: &Upstream) -> Self {
        let mut builder = Builder::new(config).upstream(upstream);
        for guest in Guest::ALL {
            if config.contains(&format!("filters/{}.wasm", guest.name())) {
                builder = builder.guest(*guest);
            }
        }
        builder.start().await
    }

    /// Starts `lockgate serve` on the folder `app`, which is made ready before, with these arguments.
    pub async fn serve(prepare: impl FnOnce(&Path), arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("lockgate-test-").tempdir().expect("a temporary folder");
        let app = dir.path().join("app");
        std::fs::create_dir(&app).expect("a folder");
        prepare(&app);
        let own = ["serve", "app", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut gateway = Self {
            arguments: own.iter().chain(arguments).map(OsString::from).collect(),
            config: app.join(".lockgate/lockgate.yaml"),
            token: None,
            variables: HashMap::new(),
            dir,
            process: None,
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        };
        gateway.launch().await;
        gateway
    }

    /// Starts the process, in the folder that it had.
    pub async fn launch(&mut self) {
        let mut child = self.command();
        let mut child = child.args(&self.arguments).spawn().expect("the gateway starts");
        let access_log = Lines::read(child.stdout.take().expect("piped"));
        let log = Lines::read(child.stderr.take().expect("piped"));
        let http = log.find(0, |line| listening(line, "http")).await;
        let admin = log.find(0, |line| listening(line, "admin")).await;
        // From here on it can be upgraded, too.
        log.find(0, |line| (line["message"] == "serving").then_some(())).await;
        self.process = Some(Process { child, access_log, log, http, admin });
    }

    /// The binary, with the gateway's environment and its output captured.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
        command
            .current_dir(self.dir.path())
            .env_remove("RUST_BACKTRACE")
            .env("LOCKGATE_LOG_FORMAT", "json")
            .envs(&self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command against this gateway, and returns what it printed and how it ended.
    pub async fn cli(&self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut command = self.command();
        command.args(arguments).env("LOCKGATE_CONFIG", &self.config).env("LOCKGATE_ADMIN", self.admin_url(""));
        let output = command.output().await.expect("the command runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&text).into_owned())
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the gateway runs")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.process().child.id().expect("the gateway runs")
    }

    pub fn http(&self) -> SocketAddr {
        self.process().http
    }

    /// The address of a listener, by the address in the configuration: `127.0.0.2:0`, say, whose port is chosen.
    pub async fn listener(&self, configured: &str) -> SocketAddr {
        let configured: SocketAddr = configured.parse().expect("an address");
        let found = |line: &Value| listening(line, "http").filter(|address| address.ip() == configured.ip());
        self.process().log.find(0, found).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http())
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.process().admin)
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(self.client.get(self.url(path))).await
    }

    /// A request with one more header.
    pub async fn get_with(&self, path: &str, name: &str, value: &str) -> Reply {
        self.send(self.client.get(self.url(path)).header(name, value)).await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        Reply::read(request.send().await.expect("the gateway answers")).await
    }

    /// A call of the admin API.
    pub async fn admin(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Reply {
        let mut request = self.client.request(method, self.admin_url(path));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(request).await
    }

    /// Everything at `/metrics`.
    pub async fn metrics(&self) -> String {
        self.admin(reqwest::Method::GET, "/metrics", None).await.text()
    }

    /// The sum of all series of a metric whose labels contain all of these: `("lockgate_requests_total", &["route=\"a\""])`.
    /// There is at least one: what is misspelt, or gone, is no zero.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics().await;
        sum(&text, name, labels).unwrap_or_else(|| panic!("no series of {name} with {labels:?} in {text}"))
    }

    /// As [`Self::metric`], for series that come with the first thing that is counted, or go with the last.
    pub async fn metric_or_zero(&self, name: &str, labels: &[&str]) -> f64 {
        sum(&self.metrics().await, name, labels).unwrap_or_default()
    }

    /// Waits until a metric has a value: a request is counted a moment after its answer.
    pub async fn settles(&self, name: &str, labels: &[&str], value: f64) {
        let began = Instant::now();
        loop {
            let text = self.metrics().await;
            let found = sum(&text, name, labels);
            if found == Some(value) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{name} with {labels:?} is {found:?}, not {value}, in {text}");
        }
    }

    /// The access log line of a request, by what it holds; waits for it.
    pub async fn logged(&self, tell: impl Fn(&Value) -> bool) -> Value {
        self.process().access_log.find(0, |line| tell(line).then(|| line.clone())).await
    }

    /// What it printed to standard output that is no line of the access log.
    pub fn printed(&self) -> Vec<String> {
        self.access_log().iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
    }

    /// All access log lines so far.
    pub fn access_log(&self) -> Vec<Value> {
        self.process().access_log.0.borrow().lines.clone()
    }

    /// The whole access log of a gateway that has ended.
    pub async fn whole_access_log(&self) -> Vec<Value> {
        self.process().access_log.whole().await
    }

    /// Every log line of a gateway that has ended.
    pub async fn whole_log(&self) -> Vec<Value> {
        self.process().log.whole().await
    }

    /// A log line from `skip` on that holds a text; waits for it.
    pub async fn says_after(&self, skip: usize, text: &str) -> Value {
        self.process().log.find(skip, |line| line.to_string().contains(text).then(|| line.clone())).await
    }

    /// A log line that holds a text; waits for it.
    pub async fn says(&self, text: &str) -> Value {
        self.says_after(0, text).await
    }

    /// Log lines so far: where to begin to look for the next one.
    pub fn said(&self) -> usize {
        self.process().log.0.borrow().lines.len()
    }

    /// Replaces the configuration, as an editor does.
    pub fn write_config(&self, config: &str) {
        write_config(&self.config, config, self.token.as_deref());
    }

    /// Replaces a component, as a build does: written to another name and renamed into place.
    pub fn replace_component(&self, name: &str, bytes: &[u8]) {
        let target = self.dir.path().join(name);
        let temporary = target.with_extension("new");
        std::fs::write(&temporary, bytes).expect("the component can be written");
        std::fs::rename(temporary, target).expect("the component can be renamed");
    }

    /// Asks for a reload, and returns the reply.
    pub async fn reload(&self) -> Reply {
        self.admin(reqwest::Method::POST, "/api/v1/reload", None).await
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    /// Has itself replaced by another process of the same binary.
    pub async fn upgrade(&self) -> Successor {
        let (status, said) = self.cli(&["upgrade"]).await;
        assert!(status.success(), "{said}");
        Successor::in_words(&said)
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("the gateway runs");
        let status = tokio::time::timeout(PATIENCE, process.child.wait()).await;
        status.expect("the gateway ends").expect("its status is known")
    }

    /// Kills the process as a power failure would.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().await.expect("the process is there");
        }
    }
}

impl Drop for Gateway {
    /// A test that fails shows what the gateway had to say.
    #[expect(clippy::print_stderr, reason = "this is a test's output")]
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(process) = &self.process
        {
            let written = process.log.0.borrow();
            for line in written.lines.iter().rev().take(12).rev() {
                eprintln!("gateway: {line}");
            }
        }
    }
}

/// The sum of all series of a metric whose labels contain all of these; none where there is no such series.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    metrics
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{')))
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .map(|(_, value)| value.parse::<f64>().expect("a number"))
        .reduce(|sum, value| sum + value)
}

/// A process that nobody else ends.
#[derive(Debug)]
pub struct Successor(pub u32);

impl Successor {
    /// Finds the process in what `lockgate upgrade` says.
    pub fn in_words(text: &str) -> Self {
        let pid = text.split("process ").nth(1).and_then(|rest| rest.split(' ').next());
        Self(pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no process in {text}")))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn listening(line: &Value, kind: &str) -> Option<SocketAddr> {
    // Fields stand beside the message or below `fields`, as tracing-subscriber is told.
    let fields = line.get("fields").unwrap_or(line);
    (fields["message"] == "listening" && fields["kind"] == kind)
        .then(|| fields["address"].as_str().and_then(|address| address.parse().ok()))
        .flatten()
}
