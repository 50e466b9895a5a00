//! The side of the gateway that runs, and may be replaced.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use super::wire::{BATCH, Message, Wire};
use super::{HandOverError, socket_in};
use crate::control::Control;
use crate::server::Sockets;
use crate::server::service_manager;
use crate::server::socket::{self, Name};

/// How long the first word of a conversation may take.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// From the sockets to `serving`. The successor reads the state again in this time; when a version was promoted while it
/// was loading, it may have to compile.
const SERVING_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the outcome of an upgrade may take to be told.
const TELLING_MAX: Duration = Duration::from_secs(1);

/// How long after the end of the new process its last words may arrive.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// How this process was started, and how its successor will be.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The configuration file, absolute.
    pub config: PathBuf,
    /// Where the process id is written.
    pub pid_file: Option<PathBuf>,
    /// The value of `--log-format`.
    pub log_format: String,
    /// The arguments of `lockgate serve`, which writes the configuration; none where it was `lockgate run`.
    pub serve: Option<Vec<OsString>>,
}

/// How a hand-over ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::server) enum Outcome {
    /// None has.
    #[default]
    Pending,
    /// It failed; this process goes on.
    Failed {
        /// The new process.
        pid: u32,
        /// For a person.
        why: String,
    },
    /// The other process serves; this one is to drain.
    HandedOver {
        /// The new process.
        pid: u32,
    },
}

/// Listens for `lockgate upgrade` and for successors.
#[derive(Clone, Debug)]
pub(in crate::server) struct Predecessor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    control: Control,
    sockets: Sockets,
    invocation: Invocation,
    /// Successors that wait for SIGQUIT.
    waiting: AtomicUsize,
    signalled: Notify,
    /// One hand-over at a time.
    busy: AtomicBool,
    outcome: watch::Sender<Outcome>,
    closed: watch::Sender<bool>,
    /// Those that wait to be told how their upgrade went.
    asking: watch::Sender<usize>,
}

/// Held during a hand-over.
struct Busy<'a>(&'a AtomicBool);

impl<'a> Busy<'a> {
    fn begin(flag: &'a AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(flag))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Counts somebody who asked for an upgrade, until it was told how that went.
struct Asking<'a>(&'a watch::Sender<usize>);

impl<'a> Asking<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Counts a successor that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Predecessor {
    /// Listens on the socket in the state directory, until [`Self::close`]. Must be
    /// called within a runtime.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub(in crate::server) fn listen(
        state_dir: &Path,
        control: Control,
        sockets: Sockets,
        invocation: Invocation,
    ) -> io::Result<Self> {
        // Whoever answered there before has handed over to us, or is dead.
        let listener = socket::replace_private(&socket_in(state_dir))?;
        let listener = UnixListener::from_std(listener)?;
        let predecessor = Self(Arc::new(Inner {
            control,
            sockets,
            invocation,
            waiting: AtomicUsize::new(0),
            signalled: Notify::new(),
            busy: AtomicBool::new(false),
            outcome: watch::Sender::default(),
            closed: watch::Sender::default(),
            asking: watch::Sender::default(),
        }));
        tokio::spawn(predecessor.clone().accept(listener));
        Ok(predecessor)
    }

    /// Returns what tells how hand-overs end.
    pub(in crate::server) fn outcome(&self) -> watch::Receiver<Outcome> {
        self.0.outcome.subscribe()
    }

    /// Listens no more: the process is ending, with or without a successor.
    pub(in crate::server) fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Waits until those who asked for the upgrade that has come about know it: a process that has nothing to drain would end
    /// before.
    pub(in crate::server) async fn told(&self) {
        let mut asking = self.0.asking.subscribe();
        // Somebody who does not read holds nobody up.
        let _ = tokio::time::timeout(TELLING_MAX, asking.wait_for(|&asking| asking == 0)).await;
    }

    /// Hands over to the successor that waits for SIGQUIT; refuses where none does.
    pub(in crate::server) fn signalled(&self) {
        if self.0.waiting.load(Ordering::Acquire) == 0 {
            warn!(
                "SIGQUIT refused: no successor is waiting; start one with `lockgate run --takeover=on-signal`, or use \
                 `lockgate upgrade`"
            );
        } else {
            // One permit, one successor: a second one goes on waiting.
            self.0.signalled.notify_one();
        }
    }

    async fn accept(self, listener: UnixListener) {
        let mut closed = self.0.closed.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = closed.wait_for(|&closed| closed) => return,
            };
            match accepted {
                Ok((stream, _)) if is_one_of_us(&stream) => {
                    let this = self.clone();
                    let handle = Handle::current();
                    tokio::task::spawn_blocking(move || this.converse(stream, &handle));
                }
                Ok(_) => warn!("an upgrade was refused: it was asked for by another user"),
                Err(error) => {
                    warn!(%error, "cannot accept a connection on the upgrade socket");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn converse(&self, stream: UnixStream, handle: &Handle) {
        let wire = stream.into_std().and_then(|stream| Wire::new(stream, Some(FIRST_WORD_TIMEOUT)));
        let Ok(mut wire) = wire else { return };
        match wire.hear() {
            Ok(Message::Upgrade { binary, config }) => self.upgrade(&mut wire, &binary, config, handle),
            Ok(Message::TakeOver { pid, version, on_signal }) => {
                info!(pid, version, on_signal, "a successor is ready");
                if on_signal && !self.wait_for_signal(&wire, handle) {
                    info!(pid, "the successor that waited for SIGQUIT is gone");
                    return;
                }
                self.hand_over(wire, pid, handle);
            }
            Ok(Message::GaveUp { pid, why }) => {
                self.0.outcome.send_replace(Outcome::Failed { pid, why });
            }
            // Somebody looked whether we are there, and left.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => warn!(?other, "the upgrade socket was spoken to in an unknown way"),
        }
    }

    /// Starts the new binary, and tells `lockgate upgrade` how it went.
    fn upgrade(&self, wire: &mut Wire, binary: &Path, config: Option<PathBuf>, handle: &Handle) {
        let _asking = Asking::begin(&self.0.asking);
        let said = match self.start_successor(wire, binary, config, handle) {
            Ok(pid) => Message::Done { pid },
            Err(why) => {
                error!(why, "the upgrade failed; this process goes on serving");
                Message::Refused { why }
            }
        };
        if let Err(error) = wire.say(&said) {
            warn!(%error, "`lockgate upgrade` did not wait for the outcome");
        }
    }

    fn start_successor(
        &self,
        wire: &mut Wire,
        binary: &Path,
        config: Option<PathBuf>,
        handle: &Handle,
    ) -> Result<u32, String> {
        if std::process::id() == 1 {
            return Err("the gateway is process 1 of its container, which ends with it: replace the container".into());
        }
        let Invocation { config: own_config, pid_file, log_format, serve } = &self.0.invocation;
        let config = config.as_ref().unwrap_or(own_config);
        let mut command = Command::new(binary);
        command.arg("--log-format").arg(log_format);
        match serve.as_ref().filter(|_| config == own_config) {
            Some(arguments) => command.arg("serve").args(arguments),
            None => command.arg("run").arg("--config").arg(config),
        };
        command.arg("--takeover");
        if let Some(pid_file) = pid_file {
            command.arg("--pid-file").arg(pid_file);
        }
        // It is our child, so that it keeps our output, our environment and our place at the service manager; of another
        // process group, so that a Ctrl-C for us is not one for it.
        command.stdin(Stdio::null()).process_group(0);
        let mut outcome = self.outcome();
        outcome.mark_unchanged();
        let mut child = {
            let _in_runtime = handle.enter();
            command.spawn().map_err(|error| format!("`{}` cannot be started: {error}", binary.display()))?
        };
        let pid = child.id().ok_or("the new process ended at once")?;
        info!(pid, binary = %binary.display(), "started a successor");
        // Whether anybody waits for the outcome does not change it.
        let _ = wire.say(&Message::Started { pid });

        let ended = handle.block_on(async {
            let status = tokio::select! {
                ended = concluded(&mut outcome, pid) => return ended,
                status = child.wait() => status,
            };
            // Its last words say more than its exit status.
            tokio::time::timeout(LAST_WORDS_TIMEOUT, concluded(&mut outcome, pid)).await.unwrap_or_else(|_| {
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Outcome::Failed { pid, why: format!("the new process ended before it took over: {how}") }
            })
        });
        match ended {
            Outcome::HandedOver { pid } => Ok(pid),
            Outcome::Failed { why, .. } => Err(why),
            Outcome::Pending => Err("this process is ending".into()),
        }
    }

    /// Returns whether the signal came before the successor left.
    fn wait_for_signal(&self, wire: &Wire, handle: &Handle) -> bool {
        let _waiting = Waiting::begin(&self.0.waiting);
        let signalled = handle.block_on(async {
            tokio::select! {
                () = self.0.signalled.notified() => true,
                () = wire.hung_up() => false,
            }
        });
        // Watching it made the socket non-blocking.
        signalled && wire.block().is_ok()
    }

    fn hand_over(&self, mut wire: Wire, pid: u32, handle: &Handle) {
        let Some(_busy) = Busy::begin(&self.0.busy) else {
            let why = "another hand-over is under way".to_owned();
            // It will see that the connection ends.
            let _ = wire.say(&Message::Refused { why });
            return;
        };
        handle.block_on(self.0.control.stop_deciding());
        match self.give(&mut wire) {
            Ok(()) => {
                info!(pid, "handed over");
                service_manager::notify(&format!("MAINPID={pid}"));
                self.0.outcome.send_replace(Outcome::HandedOver { pid });
            }
            Err(HandOverError(why)) => {
                error!(pid, why, "the hand-over failed; this process goes on serving");
                // It may be the one that is gone.
                let _ = wire.say(&Message::Refused { why: why.clone() });
                if let Err(error) = handle.block_on(self.0.control.begin_deciding()) {
                    error!(%error, "the state cannot be read again; the last one in memory goes on");
                }
                self.0.outcome.send_replace(Outcome::Failed { pid, why });
            }
        }
    }

    fn give(&self, wire: &mut Wire) -> Result<(), HandOverError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| HandOverError(format!("{what}: {error}"))
        };
        let sockets = self.0.sockets.duplicate().map_err(failed("cannot duplicate the listening sockets"))?;
        send(wire, &sockets).map_err(failed("cannot send the listening sockets"))?;
        wire.patience(SERVING_TIMEOUT).map_err(failed("cannot wait for the successor"))?;
        match wire.hear() {
            Ok(Message::Serving) => {}
            Ok(Message::GaveUp { why, .. }) => return Err(HandOverError(why)),
            Ok(other) => return Err(HandOverError(format!("the successor said {other:?} instead of `serving`"))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let seconds = SERVING_TIMEOUT.as_secs();
                return Err(HandOverError(format!("the successor did not serve within {seconds} s")));
            }
            Err(error) => return Err(failed("the successor is gone")(error)),
        }
        wire.say(&Message::Yours).map_err(failed("the successor is gone"))
    }
}

/// Waits until it is known how the hand-over to a process ended.
async fn concluded(outcome: &mut watch::Receiver<Outcome>, pid: u32) -> Outcome {
    let concerns_it = |outcome: &Outcome| match outcome {
        Outcome::Pending => false,
        Outcome::Failed { pid: of, .. } | Outcome::HandedOver { pid: of } => *of == pid,
    };
    match outcome.wait_for(concerns_it).await {
        Ok(outcome) => outcome.clone(),
        // The sender goes with the process.
        Err(_) => Outcome::Pending,
    }
}

fn send(wire: &mut Wire, sockets: &[(Name, OwnedFd)]) -> io::Result<()> {
    for batch in sockets.chunks(BATCH) {
        let names = batch.iter().map(|(name, _)| name.clone()).collect();
        let handles: Vec<_> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
        wire.say_with(&Message::Sockets { names, more: true }, &handles)?;
    }
    wire.say(&Message::Sockets { names: Vec::new(), more: false })
}

/// The mode of the socket keeps others out already; this holds where a directory was copied with other modes.
fn is_one_of_us(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| {
        let own = rustix::process::geteuid().as_raw();
        peer.uid() == own || peer.uid() == 0
    })
}
