//! Sets, appends and removes headers of requests and responses, with values from templates.

// What is pure stands in modules of its own and knows nothing of the gateway, so that it is tested where it is built.
mod edits;
mod template;

use edits::Edits;
use lockgate_filter::prelude::*;
use template::{Side, Source};

/// The settings as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    request: edits::Written,
    #[serde(default)]
    response: edits::Written,
}

struct Headers {
    request: Edits,
    response: Edits,
}

#[filter]
impl Filter for Headers {
    type Settings = Settings;

    fn configure(settings: Settings, _: &Declare) -> Result<Self, String> {
        let mut problems = Vec::new();
        let request = Edits::read(settings.request, Side::Request, &mut problems);
        let response = Edits::read(settings.response, Side::Response, &mut problems);
        if problems.is_empty() { Ok(Self { request, response }) } else { Err(problems.join("\n")) }
    }

    fn on_request(&self, request: &Request) -> Result<Outcome> {
        for name in &self.request.remove {
            request.remove_header(name)?;
        }
        for (name, template) in &self.request.set {
            request.set_header(name, template.fill(|source| value(source, request, None)))?;
        }
        for (name, template) in &self.request.append {
            request.append_header(name, template.fill(|source| value(source, request, None)))?;
        }
        Ok(Outcome::Continue)
    }

    fn on_response(&self, request: &Request, response: &Response) -> Result<()> {
        for name in &self.response.remove {
            response.remove_header(name)?;
        }
        for (name, template) in &self.response.set {
            response.set_header(name, template.fill(|source| value(source, request, Some(response))))?;
        }
        for (name, template) in &self.response.append {
            response.append_header(name, template.fill(|source| value(source, request, Some(response))))?;
        }
        Ok(())
    }
}

/// What stands for a placeholder now. A header that is not there stands for nothing.
fn value(source: &Source, request: &Request, response: Option<&Response>) -> Vec<u8> {
    match source {
        Source::Method => request.method().into_bytes(),
        Source::Scheme => request.scheme().into_bytes(),
        Source::Host => request.host().into_bytes(),
        Source::Path => request.path().into_bytes(),
        Source::Header(name) => request.header(name).unwrap_or_default(),
        Source::Id => request.id().into_bytes(),
        Source::ClientAddress => request.client_address().into_bytes(),
        Source::Route => request.route().into_bytes(),
        // A template for requests cannot have it: `configure` refuses it there.
        Source::Status => response.map(|response| response.status().to_string().into_bytes()).unwrap_or_default(),
    }
}
