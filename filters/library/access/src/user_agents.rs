//! A set of user agents, by what they contain or begin with, in any case.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::prefixes::Prefixes;

/// User agents: `bot` is every one with that in it, `curl/*` every one that begins so.
#[derive(Debug, Default)]
pub(crate) struct UserAgents {
    /// One pass over the header, however many texts there are; none where there is none.
    contained: Option<AhoCorasick>,
    beginnings: Prefixes,
}

impl UserAgents {
    /// Reads entries; `problem` gets the index of each that is none.
    pub(crate) fn read(entries: &[String], problem: &mut dyn FnMut(usize, String)) -> Self {
        let (mut contained, mut beginnings) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let (text, at_beginning) = match entry.strip_suffix('*') {
                Some(text) => (text, true),
                None => (entry.as_str(), false),
            };
            if text.is_empty() {
                problem(index, format!("`{entry}` would match every user agent"));
            } else if text.contains('*') {
                problem(index, format!("`{entry}`: a `*` can stand at the end only"));
            } else if at_beginning {
                beginnings.push(text.to_ascii_lowercase().into_bytes());
            } else {
                contained.push(text.to_ascii_lowercase());
            }
        }
        Self { contained: automaton(contained, problem), beginnings: beginnings.into_iter().collect() }
    }

    /// Tells whether one of them matches the header's value.
    pub(crate) fn match_one(&self, user_agent: &[u8]) -> bool {
        let user_agent = user_agent.to_ascii_lowercase();
        self.beginnings.begin(&user_agent) || self.contained.as_ref().is_some_and(|texts| texts.is_match(&user_agent))
    }
}

/// Both sides are put into lower case by us: the library's own way of ignoring case doubles the automaton.
fn automaton(texts: Vec<String>, problem: &mut dyn FnMut(usize, String)) -> Option<AhoCorasick> {
    if texts.is_empty() {
        return None;
    }
    AhoCorasick::builder()
        // Not the DFA, which is many times as large, and the automaton is part of every instance's memory.
        .kind(Some(AhoCorasickKind::ContiguousNFA))
        .match_kind(MatchKind::Standard)
        .prefilter(false)
        .build(&texts)
        .inspect_err(|error| problem(0, format!("the texts are too many or too long: {error}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[&str]) -> (UserAgents, Vec<String>) {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        let mut problems = Vec::new();
        let user_agents = UserAgents::read(&entries, &mut |_, problem| problems.push(problem));
        (user_agents, problems)
    }

    #[test]
    fn a_text_matches_anywhere_and_in_any_case() {
        let (user_agents, _) = read(&["Bot", "python-requests"]);
        let matches = |user_agent: &str| user_agents.match_one(user_agent.as_bytes());
        assert!(matches("Mozilla/5.0 (compatible; Googlebot/2.1)"));
        assert!(matches("BOT"));
        assert!(matches("Python-Requests/2"));
        assert!(!matches("Mozilla/5.0"));
        assert!(!matches(""));
    }

    #[test]
    fn a_star_matches_what_begins_so() {
        let (user_agents, _) = read(&["curl/*"]);
        assert!(user_agents.match_one(b"Curl/8.5.0"));
        assert!(!user_agents.match_one(b"libcurl/8.5.0"));
    }

    #[test]
    fn a_value_need_not_be_utf_8() {
        assert!(read(&["bot"]).0.match_one(b"\xffbot\xff"));
    }

    #[test]
    fn what_would_match_everything_is_refused() {
        let (_, problems) = read(&["", "*", "a*b", "**"]);
        assert_eq!(
            problems,
            [
                "`` would match every user agent",
                "`*` would match every user agent",
                "`a*b`: a `*` can stand at the end only",
                "`**`: a `*` can stand at the end only",
            ]
        );
    }
}
