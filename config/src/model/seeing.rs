//! What is told of requests: the access log, and traces.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::units::{Secret, Share};

/// How requests are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where lines go. Default: to standard output.
    pub output: LogOutput,
    /// What they look like. Default: JSON.
    pub format: LogFormat,
    /// Share of the requests that are logged; those that failed always are. Default: all.
    pub sample: Share,
    /// What is kept out of the lines.
    pub redact: Redact,
}

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// To standard output.
    Stdout,
    /// To the end of a file. Relative paths are resolved against the configuration file's folder.
    File(PathBuf),
}

impl LogOutput {
    /// Returns the folder of the file; none for standard output.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        let Self::File(file) = self else { return None };
        // The parent of a bare name is empty, and means where the process is.
        file.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
    }
}

/// What lines of the access log look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json {
        /// Whether the query is in it.
        query: bool,
        /// Headers of the request that are in it, in lower case.
        headers: Vec<String>,
    },
    /// A template.
    Text {
        /// As it was written: a template, `common` or `combined`.
        written: String,
        /// What it means.
        pieces: Vec<LogPiece>,
    },
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPiece {
    /// As it stands.
    Text(String),
    /// Something of the request.
    Field(LogField),
    /// A header of the request, by its name in lower case.
    RequestHeader(String),
    /// A header of the response, by its name in lower case.
    ResponseHeader(String),
}

/// Something of a request that a line can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the reference of `server.access_log.format` says what each is")]
pub enum LogField {
    Attempts,
    BytesReceived,
    BytesSent,
    Client,
    ClfTime,
    DurationMs,
    Error,
    ErrorReason,
    ErrorSource,
    File,
    Filters,
    Function,
    FunctionTrack,
    Generation,
    Host,
    Id,
    Method,
    Path,
    Protocol,
    Query,
    Route,
    Sample,
    Status,
    Target,
    Time,
    TlsClient,
    TlsServerName,
    TlsVersion,
    Trace,
    Upstream,
    UpstreamAddress,
    UpstreamMs,
    UpstreamTrack,
}

/// What is kept out of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redact {
    /// Headers whose values are replaced, in lower case. Default: those that let somebody in.
    pub headers: Vec<String>,
    /// Query parameters whose values are replaced, in lower case. Default: those that usually let somebody in.
    pub query: Vec<String>,
    /// Whether the client's address is cut to its network. Default: false.
    pub client: bool,
}

/// Traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Whose trace context is continued. Default: that of trusted proxies.
    pub continue_from: ContinueFrom,
    /// Share of the traces begun here that are sampled. Default: 1 %.
    pub sample: Share,
    /// Where spans are sent. Default: nowhere.
    pub otlp: Option<Otlp>,
}

/// Whose trace context is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContinueFrom {
    /// That of trusted proxies.
    Trusted,
    /// Everybody's.
    Any,
    /// Nobody's.
    None,
}

/// A collector of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// Where traces are posted: `http://127.0.0.1:4318/v1/traces`.
    pub url: String,
    /// Further headers, names in lower case.
    pub headers: Vec<(String, Secret)>,
    /// The name of this service. Default: `lockgate`.
    pub service: String,
    /// Time for one batch. Default: 10 s.
    pub timeout: Duration,
}
