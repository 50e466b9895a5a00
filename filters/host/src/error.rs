//! What can go wrong, one error for each boundary: making the host, loading a filter, calling it.

use std::fmt;
use std::path::PathBuf;

use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::store::StoreError;

/// Why a [`Host`](crate::Host) could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Wasmtime refused its configuration.
    #[error("the WebAssembly engine could not be started: {0}")]
    Engine(String),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(String),
    /// The key-value store cannot be what was asked for.
    #[error("{0}")]
    Store(String),
    /// The cache's folder or key file is not usable.
    #[error("the component cache `{}`: {problem}", path.display())]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

/// Why a component was not loaded. Each text can be shown to the operator as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Machine code: nobody but this gateway compiles what it runs.
    #[error("is precompiled machine code; give the component (`.wasm`) that it was made from")]
    Precompiled,
    /// A core module.
    #[error("is a core module, not a component; {}", if *.preview1 {
        "it was built for wasm32-wasip1: build for wasm32-wasip2"
    } else {
        "build for wasm32-wasip2, or wrap it with `wasm-tools component new`"
    })]
    CoreModule {
        /// It imports WASI preview 1.
        preview1: bool,
    },
    /// Not WebAssembly, or broken.
    #[error("is not a valid component: {0}")]
    Invalid(String),
    /// Made for another contract.
    #[error("was built for `{found}`; this gateway speaks `lockgate:filter@0.1`: rebuild it with the matching SDK")]
    Contract {
        /// The interface that it names.
        found: String,
    },
    /// Exports nothing that the gateway would call.
    #[error("exports no interface of `lockgate:filter@0.1`, such as `lockgate:filter/on-request@0.1.0`; it exports {}",
        if .exports.is_empty() { "nothing".to_owned() } else { list(.exports) })]
    NoExports {
        /// What it exports.
        exports: Vec<String>,
    },
    /// Answers no requests.
    #[error("exports none of `wasi:http/incoming-handler@0.2`, `wasi:http/handler@0.3` and `wasi:cli/run@0.2`; it exports {}{hint}",
        if .exports.is_empty() { "nothing".to_owned() } else { list(.exports) })]
    NoHandler {
        /// What it exports.
        exports: Vec<String>,
        /// What to do about it.
        hint: &'static str,
    },
    /// A program whose instances would be used again.
    #[error("is a command, which ends with its answer and cannot be `reused`: give it `isolation: request`")]
    ReusedCommand,
    /// Wants what no function can have.
    #[error("imports what a function cannot have: {}; there are {there_is}", list(.imports))]
    UnknownFunctionImports {
        /// What that is.
        imports: Vec<String>,
        /// What it could have.
        there_is: &'static str,
    },
    /// Wants what no filter can have.
    #[error("imports what a filter cannot have: {}; there are `lockgate:filter@0.1` and WASI 0.2", list(.0))]
    UnknownImports(Vec<String>),
    /// An interface of ours with a function that is not ours.
    #[error("does not fit the contract: {0}")]
    Mismatch(String),
    /// A response body is handled where nothing can wait.
    #[error(
        "exports `on-response-body` and has an outbound grant; response bodies pass without waiting: \
         move one of the two to a filter of its own"
    )]
    ResponseBodyWaits,
    /// A folder that it is granted cannot be opened.
    #[error("the folder that it would see as `{seen_as}` {problem}")]
    Folder {
        /// Where it would find it.
        seen_as: String,
        /// What is wrong with the folder.
        problem: String,
    },
    /// Needs more than its limits, or than any instance can have.
    #[error("{0}")]
    Limits(String),
    /// `configure` returned this.
    #[error("{0}")]
    Configure(String),
    /// `configure` trapped or took too long.
    #[error("`configure` failed: {0}")]
    ConfigureFailed(CallError),
    /// Compiling failed.
    #[error("cannot be compiled: {0}")]
    Compile(String),
    /// An instance could not be started.
    #[error("cannot be started: {0}")]
    Start(CallError),
}

/// Returns the items in backticks, with commas; at most eight of them.
fn list(items: &[String]) -> String {
    const SHOWN_MAX: usize = 8;
    let mut text = items.iter().take(SHOWN_MAX).map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", items.len() - SHOWN_MAX));
    }
    text
}

/// The kind of a failed call. A closed set: its names are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallErrorKind {
    /// The guest trapped: a panic, a bad access, a host function used wrongly.
    Trap,
    /// The call took longer than its deadline.
    Deadline,
    /// The guest wanted more memory than its limit.
    Memory,
    /// The guest wanted a table of more elements than its limit.
    Table,
    /// The guest held as many handles to what the host has for it as it may.
    Handles,
    /// The guest's stack is full: it recursed too deeply.
    Stack,
    /// One call wanted to copy more than the copy budget.
    Copy,
    /// No instance was to be had: too many are in use.
    Exhausted,
    /// The answer is a response that cannot be sent.
    InvalidResponse,
    /// A function kept its thread busy for longer than it may.
    Cpu,
    /// A function failed after it had been refused a header that belongs to the gateway.
    ForbiddenHeader,
    /// A function's body is not of the length that its header names.
    ContentLength,
    /// It failed after an outbound request was denied: no grant covers where it would have gone.
    Denied,
    /// It failed after an outbound request was denied for its method.
    DeniedMethod,
    /// It failed after an outbound request was denied for the address that it would have gone to.
    DeniedAddress,
    /// A function ended without an answer, or with an error in its place.
    NoResponse,
    /// The key-value store was not to be had; or a function failed after it had been.
    Store,
    /// A program printed a header that is none.
    CgiHeader,
    /// A program ended with a status other than 0.
    Exit,
}

impl CallErrorKind {
    /// Those of an outbound request that was refused.
    pub const OF_OUTBOUND: [Self; 3] = [Self::Denied, Self::DeniedMethod, Self::DeniedAddress];

    /// Those of a filter.
    pub const OF_FILTERS: [Self; 13] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Table,
        Self::Handles,
        Self::Stack,
        Self::Copy,
        Self::Exhausted,
        Self::InvalidResponse,
        Self::Denied,
        Self::DeniedMethod,
        Self::DeniedAddress,
        Self::Store,
    ];

    /// Those of a function.
    pub const OF_FUNCTIONS: [Self; 19] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Table,
        Self::Handles,
        Self::Stack,
        Self::Copy,
        Self::Exhausted,
        Self::InvalidResponse,
        Self::Cpu,
        Self::ForbiddenHeader,
        Self::ContentLength,
        Self::Denied,
        Self::DeniedMethod,
        Self::DeniedAddress,
        Self::NoResponse,
        Self::Store,
        Self::CgiHeader,
        Self::Exit,
    ];

    /// Returns the name for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Table => "table",
            Self::Handles => "handles",
            Self::Stack => "stack",
            Self::Copy => "copy",
            Self::Exhausted => "exhausted",
            Self::InvalidResponse => "invalid-response",
            Self::Cpu => "cpu",
            Self::ForbiddenHeader => "forbidden-header",
            Self::ContentLength => "content-length",
            Self::Denied => "denied",
            Self::DeniedMethod => "denied-method",
            Self::DeniedAddress => "denied-address",
            Self::NoResponse => "no-response",
            Self::Store => "store",
            Self::CgiHeader => "cgi-header",
            Self::Exit => "exit",
        }
    }
}

impl fmt::Display for CallErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that did not end well. The instance is not called again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What kind of failure.
    pub kind: CallErrorKind,
    /// For the log, never for the client: what happened, and the guest's backtrace where there is one.
    pub message: String,
}

impl CallError {
    pub(crate) fn new(kind: CallErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Sorts an error of Wasmtime's. `refused` tells what the limiter said no to before: what follows a refused growth is
    /// usually the guest's own abort, which says nothing.
    pub(crate) fn from_wasmtime(error: &wasmtime::Error, refused: Option<CallErrorKind>) -> Self {
        let trap = error.downcast_ref::<Trap>();
        let kind = match (trap, refused) {
            _ if error.is::<PoolConcurrencyLimitError>() => CallErrorKind::Exhausted,
            _ if error.is::<StoreError>() => CallErrorKind::Store,
            (Some(Trap::Interrupt), _) => CallErrorKind::Deadline,
            (Some(Trap::StackOverflow), _) => CallErrorKind::Stack,
            (_, Some(refused)) => refused,
            _ if matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full)) => {
                CallErrorKind::Handles
            }
            // Wasmtime keeps this error's type to itself; a test holds the sentence.
            _ if error.root_cause().to_string().contains("fuel allocated for hostcalls") => CallErrorKind::Copy,
            _ => CallErrorKind::Trap,
        };
        let mut message = match kind {
            CallErrorKind::Deadline => "the deadline passed while it was running".to_owned(),
            CallErrorKind::Stack => "the stack is full: it recursed too deeply".to_owned(),
            CallErrorKind::Copy => "more than `copy_bytes` was copied in one call".to_owned(),
            CallErrorKind::Handles => "it holds as many handles as it may".to_owned(),
            _ => error.root_cause().to_string(),
        };
        let wanted = match kind {
            CallErrorKind::Memory => "more memory",
            CallErrorKind::Table => "a larger table",
            _ => "",
        };
        if !wanted.is_empty() && !message.contains("limit") {
            message = format!("{wanted} than the limit was wanted: {message}");
        }
        message.push_str(&backtrace(error));
        Self { kind, message }
    }
}

/// Returns where the guest was, ` (at INNERMOST < … < OUTERMOST)`; empty where that is not known.
pub(crate) fn backtrace(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return String::new();
    };
    let frames: Vec<_> = backtrace.frames().iter().map(frame).collect();
    // How a language gets from its panic to the trap is the same each time, and says nothing.
    let began = frames.iter().position(|frame| !is_panicking(frame)).unwrap_or(0);
    match &frames[began..] {
        [] => String::new(),
        frames => format!(" (at {})", frames.join(" < ")),
    }
}

/// Returns one frame of a guest's stack: its function, and the line where the component carries debug information.
fn frame(frame: &wasmtime::FrameInfo) -> String {
    let symbol = frame.symbols().first();
    let name = symbol.and_then(|symbol| symbol.name()).or_else(|| frame.func_name());
    let name = match (name, frame.module().name()) {
        (Some(name), _) => format!("{:#}", rustc_demangle::demangle(name)),
        (None, Some(module)) => format!("{module} function {}", frame.func_index()),
        (None, None) => format!("function {}", frame.func_index()),
    };
    match symbol.map(|symbol| (symbol.file(), symbol.line())) {
        Some((Some(file), Some(line))) => {
            // The last two parts of a path tell enough, and hide whose machine it was built on.
            let mut parts: Vec<&str> = file.rsplit('/').take(2).collect();
            parts.reverse();
            format!("{name} {}:{line}", parts.join("/"))
        }
        _ => name,
    }
}

fn is_panicking(frame: &str) -> bool {
    frame == "abort" || ["std::", "core::panicking::", "__rustc"].iter().any(|prefix| frame.starts_with(prefix))
}
