//! Allows and denies requests by client address, user agent and path.

// Everything that decides is pure and stands in modules of its own, so that it is tested where it is built.
mod addresses;
mod paths;
mod prefixes;
mod rules;
mod user_agents;

use lockgate_filter::prelude::*;
use lockgate_filter::{CounterBy, Label};
use rules::{Reason, Rules, Seen};

/// The settings as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    allow: Option<rules::Written>,
    deny: Option<rules::Written>,
    #[serde(default = "forbidden")]
    status: u16,
    #[serde(default)]
    body: String,
}

fn forbidden() -> u16 {
    403
}

struct Access {
    rules: Rules,
    refusal: Answer,
    denied: CounterBy,
}

#[filter]
impl Filter for Access {
    type Settings = Settings;

    fn configure(settings: Settings, declare: &Declare) -> Result<Self, String> {
        let mut problems = rules::Problems::default();
        let rules = Rules::read(settings.allow.unwrap_or_default(), settings.deny.unwrap_or_default(), &mut problems);
        if !(400..=599).contains(&settings.status) {
            problems.add(format!("`status`: {} is not the status of a refusal: use 400 to 599", settings.status));
        }
        problems.into_result()?;

        let refusal = Answer::new(settings.status);
        let refusal = if settings.body.is_empty() {
            refusal
        } else {
            refusal.header("content-type", "text/plain; charset=utf-8").body(settings.body)
        };
        let reason = Label { name: "reason", values: &Reason::ALL.map(Reason::name) };
        let denied = declare.counter_by("access_denied", "Requests that the filter turned away.", reason);
        Ok(Self { rules, refusal, denied })
    }

    fn on_request(&self, request: &Request) -> Result<Outcome> {
        // Only what a rule looks at is asked for: each is a call of the gateway.
        let mut seen = Seen::default();
        if self.rules.need_address() {
            seen.address = request.client_ip();
        }
        if self.rules.need_user_agent() {
            seen.user_agent = request.header("user-agent");
        }
        if self.rules.need_path() {
            seen.path = request.path();
        }
        match self.rules.judge(&seen) {
            None => Ok(Outcome::Continue),
            Some(reason) => {
                self.denied.add(reason as usize, 1);
                Ok(Outcome::Respond(self.refusal.clone()))
            }
        }
    }
}
