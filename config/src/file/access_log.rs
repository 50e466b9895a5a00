//! `server.access_log`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::Either;
use super::server::no;
use super::written::{FilePath, Written};
use crate::text::{HeaderName, LogFormat};
use crate::units::Share;

/// A word, or a map that says everything.
pub(crate) type AccessLogForm = Either<AccessLogWord, AccessLog>;

/// Where the access log goes, and nothing else.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum AccessLogWord {
    /// To standard output, a line of JSON for each request.
    Stdout,
    /// Nowhere.
    Off,
}

/// How requests are logged.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AccessLog {
    /// The file that lines are appended to. It is made with mode 0640 where it is not there, and opened anew on SIGUSR1,
    /// which is what `logrotate` needs. A relative path starts at the folder of this file.
    #[schemars(extend("x-default" = "standard output"))]
    pub(crate) file: Option<Written<FilePath>>,
    /// `json`, one object a line; `combined` or `common`, which is what log analysers read; or a template, such as
    /// `{client} {method} {path} {status}`. The fields of a template: `time`, `clf_time`, `id`, `trace`, `client`,
    /// `method`, `host`, `path`, `query`, `target` (path and query), `protocol`, `user_agent`, `referer`, `status`,
    /// `bytes_received`, `bytes_sent`, `duration_ms`, `route`, `filters`, `upstream`, `upstream_track`,
    /// `upstream_address`, `upstream_ms`, `attempts`, `function`, `function_track`, `file`, `error`, `error_source`,
    /// `error_reason`, `tls_version`, `tls_server_name`, `tls_client`, `generation`, `sample`; and
    /// `request_header:NAME` and `response_header:NAME`. What a request does not have is `-`; `{{` and `}}` are braces.
    pub(crate) format: Written<LogFormat>,
    /// Share of the requests that are logged. Those that failed always are: answered with 5xx, or not at all, or kept
    /// from their target's answer by anybody but the client. Each line says what share it stands for.
    pub(crate) sample: Written<Share>,
    /// Of `json`: whether the query is logged, without what `redact.query` names.
    pub(crate) query: Written<bool>,
    /// Of `json`: further headers of the request that are logged.
    pub(crate) headers: Vec<Written<HeaderName>>,
    /// What is kept out of the lines.
    #[schemars(extend("x-default" = "as below"))]
    pub(crate) redact: Redact,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            file: None,
            format: Written(LogFormat::Json),
            sample: Written(Share::FULL),
            query: no(),
            headers: Vec::new(),
            redact: Redact::default(),
        }
    }
}

/// What is kept out of the lines of the access log. What stands in its place is `***`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Redact {
    /// Headers whose values are replaced.
    pub(crate) headers: Vec<Written<HeaderName>>,
    /// Query parameters whose values are replaced, in any case; in the query of `referer` and `location`, too.
    pub(crate) query: Vec<Written<String>>,
    /// Whether the client's address is cut to its network: 24 bits of an IPv4 address, 48 bits of an IPv6 address.
    pub(crate) client: Written<bool>,
}

impl Default for Redact {
    fn default() -> Self {
        let headers = ["authorization", "cookie", "proxy-authorization", "set-cookie"];
        let query = [
            "access_token",
            "api_key",
            "apikey",
            "auth",
            "client_secret",
            "code",
            "id_token",
            "key",
            "password",
            "refresh_token",
            "secret",
            "sig",
            "signature",
            "token",
            "x-amz-credential",
            "x-amz-security-token",
            "x-amz-signature",
            "x-goog-credential",
            "x-goog-signature",
        ];
        Self {
            headers: headers.map(|name| Written(HeaderName(name.into()))).into(),
            query: query.map(|name| Written(name.into())).into(),
            client: no(),
        }
    }
}
