//! The rules of both sides, and what they say about a request.

use std::net::IpAddr;

use serde::Deserialize;

use crate::addresses::Addresses;
use crate::paths::Paths;
use crate::user_agents::UserAgents;

/// One side's lists as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    cidrs: Option<Vec<String>>,
    user_agents: Option<Vec<String>>,
    paths: Option<Vec<String>>,
}

/// Problems with settings, all that there are; of very many, the first.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    texts: Vec<String>,
}

/// So many problems are shown in full: whoever has more has made the same mistake in a generated list.
const PROBLEMS_SHOWN_MAX: usize = 20;

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        self.texts.push(problem);
    }

    pub(crate) fn into_result(mut self) -> Result<(), String> {
        let more = self.texts.len().saturating_sub(PROBLEMS_SHOWN_MAX);
        self.texts.truncate(PROBLEMS_SHOWN_MAX);
        if more > 0 {
            self.texts.push(format!("… and {more} more"));
        }
        if self.texts.is_empty() { Ok(()) } else { Err(self.texts.join("\n")) }
    }
}

/// Why a request is turned away. The order is that of the checks, and of the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    CidrDenied,
    UserAgentDenied,
    PathDenied,
    CidrNotAllowed,
    UserAgentNotAllowed,
    PathNotAllowed,
}

impl Reason {
    pub(crate) const ALL: [Self; 6] = [
        Self::CidrDenied,
        Self::UserAgentDenied,
        Self::PathDenied,
        Self::CidrNotAllowed,
        Self::UserAgentNotAllowed,
        Self::PathNotAllowed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CidrDenied => "cidr_denied",
            Self::UserAgentDenied => "user_agent_denied",
            Self::PathDenied => "path_denied",
            Self::CidrNotAllowed => "cidr_not_allowed",
            Self::UserAgentNotAllowed => "user_agent_not_allowed",
            Self::PathNotAllowed => "path_not_allowed",
        }
    }
}

/// What the rules look at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// None where the client has no IP address; no rule matches that.
    pub(crate) address: Option<IpAddr>,
    /// None where the header is absent; no rule matches that.
    pub(crate) user_agent: Option<Vec<u8>>,
    pub(crate) path: String,
}

impl Seen {
    fn address_in(&self, addresses: &Addresses) -> bool {
        self.address.is_some_and(|address| addresses.contain(address))
    }

    fn user_agent_in(&self, user_agents: &UserAgents) -> bool {
        self.user_agent.as_ref().is_some_and(|user_agent| user_agents.match_one(user_agent))
    }
}

/// One side's lists, ready to be searched. A list that is not there is different from one that is empty.
#[derive(Debug, Default)]
struct Lists {
    addresses: Option<Addresses>,
    user_agents: Option<UserAgents>,
    paths: Option<Paths>,
}

impl Lists {
    fn read(side: &str, written: Written, problems: &mut Problems) -> Self {
        fn list<T>(
            place: String,
            entries: Option<Vec<String>>,
            problems: &mut Problems,
            read: impl FnOnce(&[String], &mut dyn FnMut(usize, String)) -> T,
        ) -> Option<T> {
            let entries = entries?;
            if entries.is_empty() && place.starts_with("allow") {
                problems
                    .add(format!("`{place}` is empty, which would let nobody in: leave it out to let everybody in"));
            }
            Some(read(&entries, &mut |index, problem| problems.add(format!("`{place}[{index}]`: {problem}"))))
        }
        Self {
            addresses: list(format!("{side}.cidrs"), written.cidrs, problems, |entries, problem| {
                Addresses::read(entries, problem)
            }),
            user_agents: list(format!("{side}.user_agents"), written.user_agents, problems, |entries, problem| {
                UserAgents::read(entries, problem)
            }),
            paths: list(format!("{side}.paths"), written.paths, problems, |entries, problem| {
                Paths::read(entries, problem)
            }),
        }
    }
}

/// Who is let in. A request that a list of `deny` matches is turned away. Of the others, a request is let in if every
/// list of `allow` that is there matches it.
#[derive(Debug)]
pub(crate) struct Rules {
    allow: Lists,
    deny: Lists,
}

impl Rules {
    /// Reads both sides. Problems name the list and the index in it.
    pub(crate) fn read(allow: Written, deny: Written, problems: &mut Problems) -> Self {
        Self { allow: Lists::read("allow", allow, problems), deny: Lists::read("deny", deny, problems) }
    }

    pub(crate) fn need_address(&self) -> bool {
        self.allow.addresses.is_some() || self.deny.addresses.is_some()
    }

    pub(crate) fn need_user_agent(&self) -> bool {
        self.allow.user_agents.is_some() || self.deny.user_agents.is_some()
    }

    pub(crate) fn need_path(&self) -> bool {
        self.allow.paths.is_some() || self.deny.paths.is_some()
    }

    /// Why the request is turned away; none where it is let in.
    pub(crate) fn judge(&self, seen: &Seen) -> Option<Reason> {
        let Self { allow, deny } = self;
        if deny.addresses.as_ref().is_some_and(|list| seen.address_in(list)) {
            return Some(Reason::CidrDenied);
        }
        if deny.user_agents.as_ref().is_some_and(|list| seen.user_agent_in(list)) {
            return Some(Reason::UserAgentDenied);
        }
        if deny.paths.as_ref().is_some_and(|list| list.contain(&seen.path)) {
            return Some(Reason::PathDenied);
        }
        if allow.addresses.as_ref().is_some_and(|list| !seen.address_in(list)) {
            return Some(Reason::CidrNotAllowed);
        }
        if allow.user_agents.as_ref().is_some_and(|list| !seen.user_agent_in(list)) {
            return Some(Reason::UserAgentNotAllowed);
        }
        if allow.paths.as_ref().is_some_and(|list| !list.contain(&seen.path)) {
            return Some(Reason::PathNotAllowed);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &str, deny: &str) -> Result<Rules, String> {
        let written = |json| serde_json::from_str(json).expect("lists of the right shape");
        let mut problems = Problems::default();
        let rules = Rules::read(written(allow), written(deny), &mut problems);
        problems.into_result().map(|()| rules)
    }

    fn judge(allow: &str, deny: &str, address: &str, user_agent: Option<&str>, path: &str) -> Option<Reason> {
        let seen =
            Seen { address: address.parse().ok(), user_agent: user_agent.map(Into::into), path: path.to_owned() };
        rules(allow, deny).expect("rules").judge(&seen)
    }

    #[test]
    fn without_rules_everybody_is_let_in() {
        assert_eq!(judge("{}", "{}", "192.0.2.1", None, "/"), None);
        assert_eq!(judge("{}", r#"{"cidrs": [], "paths": []}"#, "192.0.2.1", None, "/"), None);
    }

    #[test]
    fn deny_wins_over_allow() {
        let (allow, deny) = (r#"{"cidrs": ["10.0.0.0/8"]}"#, r#"{"cidrs": ["10.1.0.0/16"]}"#);
        assert_eq!(judge(allow, deny, "10.0.0.1", None, "/"), None);
        assert_eq!(judge(allow, deny, "10.1.0.1", None, "/"), Some(Reason::CidrDenied));
        assert_eq!(judge(allow, deny, "192.0.2.1", None, "/"), Some(Reason::CidrNotAllowed));
    }

    #[test]
    fn every_allow_list_that_is_there_has_to_match() {
        let allow = r#"{"cidrs": ["10.0.0.0/8"], "user_agents": ["curl/*"], "paths": ["/api/*"]}"#;
        let judge = |address, user_agent, path| judge(allow, "{}", address, user_agent, path);
        assert_eq!(judge("10.0.0.1", Some("curl/8"), "/api/a"), None);
        assert_eq!(judge("10.0.0.1", Some("curl/8"), "/"), Some(Reason::PathNotAllowed));
        assert_eq!(judge("10.0.0.1", Some("wget"), "/api/a"), Some(Reason::UserAgentNotAllowed));
        assert_eq!(judge("192.0.2.1", Some("curl/8"), "/api/a"), Some(Reason::CidrNotAllowed));
    }

    #[test]
    fn what_is_absent_matches_nothing() {
        let lists = r#"{"cidrs": ["0.0.0.0/0"], "user_agents": ["a"]}"#;
        assert_eq!(judge("{}", lists, "unix", None, "/"), None);
        assert_eq!(judge(r#"{"user_agents": ["a"]}"#, "{}", "unix", None, "/"), Some(Reason::UserAgentNotAllowed));
        assert_eq!(judge(r#"{"cidrs": ["0.0.0.0/0"]}"#, "{}", "unix", None, "/"), Some(Reason::CidrNotAllowed));
    }

    #[test]
    fn every_problem_is_reported_with_its_list_and_index() {
        let problems = rules(
            r#"{"cidrs": [], "paths": ["/a", "b"]}"#,
            r#"{"cidrs": ["10.0.0.0/8", "10.0.0/8", "10.0.0.1/8"], "user_agents": ["ok", "a*b"]}"#,
        );
        assert_eq!(
            problems.expect_err("problems"),
            "`allow.cidrs` is empty, which would let nobody in: leave it out to let everybody in\n\
             `allow.paths[1]`: `b` does not start with `/`\n\
             `deny.cidrs[1]`: `10.0.0/8` is neither an address nor a CIDR\n\
             `deny.cidrs[2]`: `10.0.0.1/8` has bits set past its prefix: write `10.0.0.0/8`, or `10.0.0.1` for one \
             address\n\
             `deny.user_agents[1]`: `a*b`: a `*` can stand at the end only"
        );
    }

    #[test]
    fn of_very_many_problems_the_first_are_shown() {
        let paths: Vec<String> = (0..25).map(|index| format!("{index}")).collect();
        let deny = serde_json::json!({ "paths": paths }).to_string();
        let problems = rules("{}", &deny).expect_err("problems");
        assert_eq!(problems.lines().count(), 21);
        assert!(problems.ends_with("… and 5 more"));
    }
}
