//! `server.access_log` and `tracing`.

use super::Resolver;
use crate::file::{self, AccessLogForm, AccessLogWord, ContinueFrom};
use crate::model::{self, AccessLog, LogFormat, LogOutput, Otlp, Redact, Tracing};
use crate::problem::Problem;
use crate::text::{HeaderName, is_value};
use crate::tree::Node;

impl Resolver<'_> {
    pub(super) fn access_log(&mut self, form: AccessLogForm, node: &Node) -> Option<AccessLog> {
        let log = match form {
            AccessLogForm::Short(AccessLogWord::Off) => return None,
            AccessLogForm::Short(AccessLogWord::Stdout) => file::AccessLog::default(),
            AccessLogForm::Long(log) => log,
        };
        let names = |names: Vec<file::written::Written<HeaderName>>| names.into_iter().map(|name| name.0.0).collect();
        let format = match log.format.0.pieces() {
            None => LogFormat::Json { query: log.query.0, headers: names(log.headers) },
            Some(pieces) => {
                let (query, headers) = (log.query.0, !log.headers.is_empty());
                for (key, instead, _) in [("query", "{query}", query), ("headers", "{request_header:NAME}", headers)]
                    .iter()
                    .filter(|it| it.2)
                {
                    let message = format!("`{key}` is of the format `json`, and this is another");
                    let problem = Problem::new(message, node.at(key).place.clone());
                    self.problem(problem.hint(format!("a template has `{instead}`")));
                }
                LogFormat::Text { written: log.format.0.to_string(), pieces }
            }
        };
        Some(AccessLog {
            output: log.file.map_or(LogOutput::Stdout, |file| LogOutput::File(self.path(&file))),
            format,
            sample: log.sample.0,
            redact: Redact {
                headers: names(log.redact.headers),
                query: log.redact.query.into_iter().map(|name| name.0.to_ascii_lowercase()).collect(),
                client: log.redact.client.0,
            },
        })
    }

    pub(super) fn tracing(&mut self, tracing: Option<file::Tracing>, node: &Node) -> Option<Tracing> {
        let tracing = tracing?;
        let mut headers = Vec::new();
        for (name, value) in tracing.headers.0 {
            match HeaderName::parse(&name) {
                Ok(_) if !is_value(value.0.reveal()) => {
                    let place = node.at("headers").at(&name).place.clone();
                    let problem = Problem::new(format!("the value of `{name}` cannot be sent in a header"), place);
                    self.problem(problem.hint("no control characters, and no space at its ends"));
                }
                Ok(name) => headers.push((name.0, value.0)),
                Err(error) => {
                    let place = node.at("headers").at(&name).place.clone();
                    let problem = Problem::new(format!("`{name}` is no name of a header"), place);
                    self.problem(problem.label(format!("expected {}", error.expected)));
                }
            }
        }
        if tracing.otlp.is_none() && !headers.is_empty() {
            let problem = Problem::new("nothing is sent to a collector", node.at("headers").place.clone());
            self.problem(problem.hint("say where it is with `otlp: http://127.0.0.1:4318`, or leave `headers` out"));
        }
        Some(Tracing {
            continue_from: match tracing.continue_from {
                ContinueFrom::Trusted => model::ContinueFrom::Trusted,
                ContinueFrom::Any => model::ContinueFrom::Any,
                ContinueFrom::None => model::ContinueFrom::None,
            },
            sample: tracing.sample.0,
            otlp: tracing.otlp.map(|url| Otlp {
                url: url.0.traces(),
                headers,
                service: tracing.service.0,
                timeout: tracing.timeout.0.0,
            }),
        })
    }
}
