//! Wires the gateway together: runtimes, listeners, admin API, signals, hand-over, and the order in which it all ends.
//!
//! Two runtimes, so that neither half can starve the other: requests are served on the data plane's threads, and what
//! loads, decides, watches and answers the operator runs on two of the control plane's. Pingora's own `Server` is not
//! used: it can neither end as soon as nothing is in flight, nor add a listener, nor survive a failed hand-over.

mod accept;
mod connection;
mod drain;
mod handover;
mod listener;
mod proxy_protocol;
mod service_manager;
mod signals;
mod socket;
mod transport;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockgate_config::model::{Config, ListenAddress};
use lockgate_config::problem::Report;
use lockgate_host::Progress;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::{debug, error, info, warn};

use crate::admin;
use crate::control::{self, Actor, Cause, Control, StartError};
use crate::proxy::Gateway;
use crate::proxy::arrival::Tunnels;
use crate::proxy::log::AccessLog;
use crate::proxy::pending;
use crate::seeing::output::Output;
use accept::Acceptor;
pub use drain::{Connections, Phase};
use drain::{Deadlines, Ending, Shutdown, drain};
pub use handover::{HandOverError, Invocation, Step, Upgrade, When};
use handover::{Inheritance, Outcome, Predecessor, Successor};
use listener::{BindError, Listeners};
use service_manager::PidFile;
use signals::{Signal, Signals};
use socket::{Name, Socket};

/// The proxy that connections are given to.
type App = HttpProxy<Gateway>;

/// Threads of the control plane: one may read files or write state while the other answers the operator.
const CONTROL_THREADS: usize = 2;

/// How long the last spans may take to their collector when everything else has ended.
const SPANS_PATIENCE: Duration = Duration::from_secs(2);

/// How to run.
#[derive(Clone)]
pub struct Options {
    /// How this process was started.
    pub invocation: Invocation,
    /// Whether, and when, another gateway is replaced. Default: none is.
    pub takeover: Option<When>,
    /// Is told how far loading is.
    pub progress: Arc<dyn Progress + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invocation, takeover, progress: _ } = self;
        f.debug_struct("Options").field("invocation", invocation).field("takeover", takeover).finish_non_exhaustive()
    }
}

/// Why the gateway does not run, or does not any more. Displays for a person.
#[derive(Debug)]
pub enum RunError {
    /// The configuration file is wrong, or a component that it names is.
    Config(Report),
    /// The control plane did not start.
    Start(StartError),
    /// A listener cannot be bound.
    Bind(BindFailure),
    /// A hand-over did not happen.
    HandOver(HandOverError),
    /// The operating system refuses something.
    System {
        /// What was tried.
        what: String,
        /// What it says.
        error: io::Error,
    },
}

/// A listener that cannot be bound. Displays for a person.
#[derive(Debug)]
pub struct BindFailure(String);

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(report) => write!(f, "{report}"),
            Self::Start(error) => write!(f, "{error}"),
            Self::Bind(BindFailure(why)) => f.write_str(why),
            Self::HandOver(error) => write!(f, "{error}"),
            Self::System { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

impl From<BindError> for RunError {
    fn from(error: BindError) -> Self {
        Self::Bind(BindFailure(error.to_string()))
    }
}

impl From<HandOverError> for RunError {
    fn from(error: HandOverError) -> Self {
        Self::HandOver(error)
    }
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |error| RunError::System { what, error }
}

/// All listening sockets of the process: what a successor gets.
#[derive(Clone, Debug)]
struct Sockets {
    listeners: Arc<Listeners>,
    admin: Arc<(Name, Socket)>,
}

impl Sockets {
    fn duplicate(&self) -> io::Result<Vec<(Name, OwnedFd)>> {
        let mut sockets = self.listeners.duplicate()?;
        let (name, socket) = &*self.admin;
        sockets.push((name.clone(), socket.duplicate()?));
        Ok(sockets)
    }
}

/// Returns the process that serves with a state directory, if one does.
pub fn incumbent(state_dir: &Path) -> Option<u32> {
    handover::incumbent(state_dir)
}

/// Runs a gateway until it is stopped or has handed over, and everything in flight has ended.
///
/// # Errors
/// It could not start. Once it serves, nothing makes it end but a signal or a hand-over.
pub fn run(options: &Options) -> Result<(), RunError> {
    // The allocator asks for huge pages, and an idle gateway uses a tenth of each: without them it holds half the memory,
    // and serves as fast.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        debug!(%error, "huge pages cannot be turned off");
    }
    let config = lockgate_config::load(&options.invocation.config).map_err(RunError::Config)?.config;
    let outcome = run_with(options, &config);
    if let (Err(error), Some(_)) = (&outcome, options.takeover) {
        handover::give_up(&config.server.state_dir, &error.to_string());
    }
    outcome
}

fn run_with(options: &Options, config: &Config) -> Result<(), RunError> {
    let control_runtime = runtime("control", CONTROL_THREADS)?;
    let data_runtime = runtime("proxy", config.server.threads)?;
    let outcome = control_runtime.block_on(serve(options, config, data_runtime.handle().clone()));
    // Whatever is left has had its time.
    data_runtime.shutdown_background();
    control_runtime.shutdown_background();
    outcome
}

fn runtime(name: &'static str, threads: usize) -> Result<Runtime, RunError> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(system(format!("cannot start the {name} threads")))
}

async fn serve(options: &Options, config: &Config, data_runtime: Handle) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(system("cannot listen to signals"))?;
    let state_dir = &config.server.state_dir;
    if options.takeover.is_none()
        && let Some(pid) = handover::incumbent(state_dir)
    {
        let why = format!(
            "process {pid} already serves with the state directory `{}`; use `lockgate upgrade` to replace it, or give \
             this one its own `server.state_dir`",
            state_dir.display()
        );
        return Err(RunError::Bind(BindFailure(why)));
    }

    let listeners = Arc::new(Listeners::default());
    let started = tokio::select! {
        control = Control::start(control_options(options, &listeners)) => Some(control.map_err(RunError::Start)?),
        () = stopped(&mut signals) => None,
    };
    let Some(control) = started else { return Ok(()) };

    let phase = Arc::new(Phase::default());
    let shutdown = Shutdown::default();
    let connections = Arc::new(Connections::new(control.metrics()));
    let output = Output::open(control.cell().clone()).map_err(system("cannot open the access log"))?;
    let access_log = AccessLog::start(output, control.metrics().access_log_dropped.clone())
        .map_err(system("cannot start the thread of the access log"))?;
    let app = crate::proxy::proxy(
        control.cell().clone(),
        control.metrics().clone(),
        access_log.clone(),
        &Arc::new(upstream_pool(config)),
        &config.server.limits,
    );
    let tunnels = Arc::new(Tunnels::new(
        control.metrics().tunnels.clone(),
        control.metrics().tunnels_opened.clone(),
        control.metrics().tunnels_cut.clone(),
    ));
    let acceptor = Acceptor::new(
        app.clone(),
        control.cell().clone(),
        connections.clone(),
        tunnels.clone(),
        control.metrics().clone(),
        &shutdown,
        data_runtime.clone(),
    );

    let (successor, mut inheritance) = match options.takeover {
        None => (None, Inheritance::default()),
        Some(when) => {
            info!("everything is loaded, asking for the sockets");
            let dir = state_dir.clone();
            let asked = tokio::task::spawn_blocking(move || Successor::take_over(&dir, when));
            let asked = tokio::select! {
                asked = asked => asked,
                () = stopped(&mut signals) => return Ok(()),
            };
            let (successor, inheritance) = asked.map_err(|error| RunError::HandOver(HandOverError::from(error)))??;
            (Some(successor), inheritance)
        }
    };
    listeners.inherit(std::mem::take(&mut inheritance.http));
    let opened = open(&control, &listeners, &acceptor, inheritance, successor.is_some(), &phase).await;
    let (admin_server, admin) = match (opened, successor) {
        (Ok(opened), None) => opened,
        (Ok(opened), Some(successor)) => {
            tokio::task::block_in_place(|| successor.serving())?;
            info!("took over");
            opened
        }
        (Err(error), None) => return Err(error),
        (Err(error), Some(successor)) => {
            successor.give_up(&error.to_string());
            return Err(error);
        }
    };

    let sockets = Sockets { listeners: listeners.clone(), admin: Arc::new(admin) };
    let predecessor = Predecessor::listen(state_dir, control.clone(), sockets.clone(), options.invocation.clone())
        .map_err(system("cannot listen for `lockgate upgrade` in the state directory"))?;
    let pid_file = options
        .invocation
        .pid_file
        .as_deref()
        .map(|path| PidFile::write(path).map_err(system(format!("cannot write `{}`", path.display()))))
        .transpose()?;
    let follow = tokio::spawn(follow_listeners(control.clone(), listeners.clone(), acceptor));
    service_manager::notify(&ready(&control));
    let alive = service_manager::watchdog(options.takeover.is_some())
        .map(|every| tokio::spawn(service_manager::say_alive(every, data_runtime)));
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "serving");

    let ending = until_the_end(&control, &predecessor, &access_log, &mut signals).await;

    phase.begin_drain();
    if ending == Ending::Stop {
        service_manager::notify("STOPPING=1\nSTATUS=draining");
    }
    predecessor.close();
    follow.abort();
    listeners.close();
    if ending == Ending::HandedOver {
        // The successor answers the operator, and the service manager.
        admin_server.stop();
        if let Some(alive) = alive {
            alive.abort();
        }
    }
    let config = control.config();
    let deadlines = Deadlines { requests: config.server.drain, tunnels: config.server.drain_tunnels };
    tokio::select! {
        _ = drain(ending, &app, &connections, &tunnels, &shutdown, deadlines) => {}
        () = stopped(&mut signals) => warn!("a second signal, ending at once"),
    }
    if ending == Ending::HandedOver {
        predecessor.told().await;
    }
    if ending == Ending::Stop {
        admin_server.stop();
        remove_sockets(&sockets, state_dir);
        Listeners::forget_paths(&config.listeners);
    }
    drop(pid_file);
    control.stop_deciding().await;
    tokio::task::block_in_place(|| {
        access_log.close();
        if let Some(spans) = control.cell().current().tracing.as_ref().and_then(|tracing| tracing.spans.as_ref()) {
            spans.close(SPANS_PATIENCE);
        }
    });
    info!("ended");
    Ok(())
}

/// Endpoints that a file of them is taken to have, where room is made for their connections. With more, connections are
/// closed a little earlier.
const FILE_ENDPOINTS: usize = 16;

/// Attempts at an upstream: one, and the sixteen retries that the configuration allows at most.
const ATTEMPTS_MAX: usize = 17;

/// Sets up the pool of connections to upstreams. It is one for all of them: large enough for what each may keep.
fn upstream_pool(config: &Config) -> ServerConf {
    let kept = config.upstreams.iter().map(|upstream| {
        let endpoints = if upstream.endpoints_file.is_some() { FILE_ENDPOINTS } else { upstream.endpoints.len() };
        upstream.keepalive_connections * endpoints
    });
    ServerConf {
        threads: config.server.threads,
        upstream_keepalive_pool_size: kept.sum::<usize>().max(1),
        // Attempts; how many there are, each upstream says. Pingora counts those that find no room as well.
        max_retries: ATTEMPTS_MAX + pending::TURNED_BACK_MAX as usize,
        ..ServerConf::default()
    }
}

fn control_options(options: &Options, listeners: &Arc<Listeners>) -> control::Options {
    let listeners = listeners.clone();
    control::Options {
        config: options.invocation.config.clone(),
        deciding: options.takeover.is_none(),
        bind: Arc::new(move |wanted| listeners.prepare(wanted).map_err(|error| error.to_string())),
        progress: options.progress.clone(),
    }
}

/// Opens everything that requests and operators come in by. The order matters to a successor: it decides only when
/// nothing can fail any more but the last word to its predecessor.
async fn open(
    control: &Control,
    listeners: &Listeners,
    acceptor: &Acceptor,
    inheritance: Inheritance,
    takes_over: bool,
    phase: &Arc<Phase>,
) -> Result<(admin::Server, (Name, Socket)), RunError> {
    let config = control.config();
    listeners.prepare(&config.listeners)?;
    let admin = admin_socket(&config.admin.address, inheritance.admin)?;
    if takes_over {
        control.begin_deciding().await.map_err(RunError::Start)?;
    }
    let wanted = control.listeners().borrow().clone();
    listeners.apply(&wanted, acceptor).map_err(system("cannot listen"))?;
    let listener = match &admin.1 {
        Socket::Tcp(socket) => admin::Listener::tcp(socket),
        Socket::Unix(socket) => admin::Listener::unix(socket),
    };
    let listener = listener.map_err(system("cannot serve the admin API"))?;
    info!(kind = "admin", address = %listener.address(&config.admin.address), "listening");
    let server = admin::Server::start(listener, admin::Context::new(control.clone(), phase.clone()));
    Ok((server, admin))
}

fn admin_socket(address: &ListenAddress, inherited: Option<(Name, Socket)>) -> Result<(Name, Socket), RunError> {
    let name = Name::admin(address);
    match inherited {
        Some((inherited, socket)) if inherited == name => Ok((name, socket)),
        _ => Ok((name, listener::bind_admin(address)?)),
    }
}

/// Starts and stops accept loops as reloads ask.
async fn follow_listeners(control: Control, listeners: Arc<Listeners>, acceptor: Acceptor) {
    let mut wanted = control.listeners();
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        if let Err(error) = listeners.apply(&now, &acceptor) {
            error!(%error, "a listener that is bound cannot be served");
        }
    }
}

/// Serves until there is a reason not to.
async fn until_the_end(
    control: &Control,
    predecessor: &Predecessor,
    access_log: &AccessLog,
    signals: &mut Signals,
) -> Ending {
    let mut outcome = predecessor.outcome();
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => return Ending::Stop,
                Signal::Reload => {
                    let control = control.clone();
                    service_manager::reloading();
                    tokio::spawn(async move {
                        // The control loop logs how it went. Refused or not, it is over, and the gateway serves.
                        let _ = control.reload(Cause::Signal, Actor::signal()).await;
                        service_manager::notify(&ready(&control));
                    });
                }
                Signal::HandOver => predecessor.signalled(),
                Signal::ReopenLog => access_log.reopen(),
            },
            handed_over = outcome.wait_for(|outcome| matches!(outcome, Outcome::HandedOver { .. })) => {
                if handed_over.is_ok() {
                    return Ending::HandedOver;
                }
            }
        }
    }
}

/// What the service manager is told of a gateway that serves.
fn ready(control: &Control) -> String {
    format!("READY=1\nSTATUS=serving, generation {}", control.cell().current().generation)
}

/// Waits for a signal to stop; the others mean nothing to who waits for this.
async fn stopped(signals: &mut Signals) {
    while signals.next().await != Signal::Stop {}
}

/// Removes the names of the Unix sockets; a successor's are its own.
fn remove_sockets(sockets: &Sockets, state_dir: &Path) {
    let mut paths: Vec<PathBuf> = vec![handover::socket_in(state_dir)];
    if let Name::AdminUnix(path) = &sockets.admin.0 {
        paths.push(path.clone());
    }
    for path in paths {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%error, path = %path.display(), "cannot remove a socket");
        }
    }
}
