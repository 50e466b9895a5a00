//! What a route asks for that needs no filter.

use std::time::Duration;

use super::{Resolver, Section, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::file::policy::{self as form, BodyForm, HeaderText};
use crate::file::written::Written;
use crate::model::{
    Body, Cors, ErrorPage, FixedResponse, HeaderEdits, KeyPart, Mirror, Origin, PathPattern, PathRewrite, RateLimit,
    Redirect, Rewrite, RouteMatch, RoutePolicy, RouteTimeouts, Template,
};
use crate::problem::{Place, Problem};
use crate::text::HeaderName;
use crate::tree::Node;

/// Rate limits of a route. Each is asked for each request; more than two or three are hardly meant.
const RATE_LIMITS_MAX: usize = 8;

/// A rate that no limit needs to tell from none: one request a microsecond.
const INTERVAL_MIN: Duration = Duration::from_micros(1);

/// The longest time in which a burst comes back: sums of it and of the time since the start stay far from overflow.
const REFILL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Resolver<'_> {
    /// Takes out of a route what is policy. What answers is left.
    pub(super) fn policy(&mut self, route: &mut file::Route, matcher: &RouteMatch, node: &Node) -> RoutePolicy {
        let headers = std::mem::take(&mut route.headers);
        let rate_limits = self.rate_limits(std::mem::take(&mut route.rate_limits), node.at("rate_limits"));
        let edits = node.at("headers");
        let timeouts = &route.timeouts;
        RoutePolicy {
            rate_limits,
            requests_max: route.limits.requests.as_ref().map(|requests| requests.0.0),
            body: route.limits.body.as_ref().map(|body| body.0),
            decompress: route.decompress.as_ref().map(|size| size.0),
            timeouts: RouteTimeouts {
                total: timeouts.total.as_ref().map(|total| total.0.0),
                response: timeouts.response.as_ref().map(|response| response.0.0),
            },
            request_headers: self.header_edits(headers.request, edits.at("request")),
            response_headers: self.header_edits(headers.response, edits.at("response")),
            rewrite: self.rewrite(route, matcher, node),
            cors: route.cors.take().map(|cors| self.cors(cors, node.at("cors"))),
            mirror: self.mirror(route, node),
            error_pages: self.error_pages(std::mem::take(&mut route.error_pages), node.at("error_pages")),
        }
    }

    fn rate_limits(&mut self, limits: Vec<form::RateLimit>, node: &Node) -> Vec<RateLimit> {
        if limits.len() > RATE_LIMITS_MAX {
            let problem = Problem::new("the route has too many rate limits", node.place.clone());
            self.problem(problem.label(format!("{} of them; at most {RATE_LIMITS_MAX}", limits.len())));
        }
        let limits: Vec<RateLimit> = limits
            .into_iter()
            .enumerate()
            .map(|(index, limit)| self.rate_limit(index, limit, node.item(index)))
            .collect();
        let names: Vec<&String> = limits.iter().map(|limit| &limit.name).collect();
        for (index, first) in repeated(&names) {
            let message = format!("two rate limits of the route have the name `{}`", names[index]);
            let label = format!("the first is the one{}", line_of(&node.item(first).place));
            let place = node.item(index).at("name").place.clone();
            self.problem(Problem::new(message, place).label(label).hint("give one of them another name"));
        }
        limits
    }

    fn rate_limit(&mut self, index: usize, limit: form::RateLimit, node: &Node) -> RateLimit {
        let (requests, per) = (limit.requests.0.0, limit.per.0.0);
        let burst = limit.burst.map_or(requests, |burst| burst.0.0);
        let interval = per / requests;
        if interval < INTERVAL_MIN {
            let problem = Problem::new("a rate limit this high limits nothing", node.at("requests").place.clone());
            self.problem(problem.label("more than a million a second").hint("make `per` longer, or remove the limit"));
        }
        if interval.saturating_mul(burst) > REFILL_MAX {
            let problem = Problem::new("a burst this long takes too long to come back", node.at("burst").place.clone());
            self.problem(problem.label("more than 30 days").hint("lower `burst`, or raise `requests`"));
        }
        let key = match limit.key {
            None => vec![KeyPart::ClientIp],
            Some(key) if key.is_empty() => Vec::new(),
            Some(key) => self.key(&key, node.at("key")),
        };
        RateLimit {
            name: limit.name.map_or_else(|| format!("limit-{}", index + 1), |name| name.0.0),
            requests,
            per,
            burst,
            key,
            keys_max: limit.keys.0.0,
            headers: limit.headers.0,
        }
    }

    fn header_edits(&mut self, edits: form::HeaderEdits, node: &Node) -> HeaderEdits {
        let set = self.edited(edits.set.0, node.at("set"));
        let append = self.edited(edits.append.0, node.at("append"));
        let mut remove = Vec::new();
        for (index, Written(name)) in edits.remove.into_iter().enumerate() {
            let item = node.at("remove").item(index);
            if name.is_untouchable() {
                self.untouchable(&item.written().unwrap_or_default(), item.place.clone());
            }
            remove.push(name.0);
        }
        HeaderEdits { set, append, remove }
    }

    fn edited(&mut self, edits: Vec<(String, Written<HeaderText>)>, node: &Node) -> Vec<(String, Template)> {
        let edits = edits.into_iter().map(|(name, value)| (name, value.0.0)).collect();
        self.headers(edits, node)
    }

    /// Returns headers by their names in lower case, none of them twice and none that is not to be written.
    fn headers<T>(&mut self, headers: Vec<(String, T)>, node: &Node) -> Vec<(String, T)> {
        let mut known: Vec<(String, T)> = Vec::new();
        for (written, value) in headers {
            let place = node.key_place(&written);
            match HeaderName::parse(&written) {
                Err(error) => {
                    let problem = Problem::new(format!("`{written}` is no header"), place);
                    let problem = problem.label(format!("expected {}", error.expected));
                    self.problem(match error.hint {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                }
                Ok(name) if name.is_untouchable() => self.untouchable(&written, place),
                Ok(name) if known.iter().any(|(other, _)| *other == name.0) => {
                    let problem = Problem::new(format!("the header `{written}` is there already"), place);
                    self.problem(problem.hint("case makes no difference: remove one of the two"));
                }
                Ok(name) => known.push((name.0, value)),
            }
        }
        known
    }

    fn untouchable(&mut self, written: &str, place: Place) {
        let problem = Problem::new(format!("the header `{written}` cannot be edited"), place);
        let lower = written.to_ascii_lowercase();
        self.problem(problem.hint(match lower.as_str() {
            "host" => "to tell the target another host, set `rewrite.host`",
            name if name.starts_with("x-lockgate-") => "headers that begin with `x-lockgate-` are the gateway's own",
            name if name.starts_with("x-") || name == "forwarded" => {
                "the gateway writes it itself, of what it knows about the client"
            }
            _ => "it frames messages and connections, which is the gateway's matter",
        }));
    }

    fn rewrite(&mut self, route: &mut file::Route, matcher: &RouteMatch, node: &Node) -> Rewrite {
        let rewrite = std::mem::take(&mut route.rewrite);
        let at = node.at("rewrite");
        let wanted = rewrite.prefix.is_some() || rewrite.regex.is_some() || rewrite.host.is_some();
        if wanted && route.upstream.is_none() && route.function.is_none() {
            let problem = Problem::new("there is nobody to be asked for something else", node.key_place("rewrite"));
            self.problem(problem.hint("only upstreams and functions are told a path and a host: remove this"));
        }
        let path = match (rewrite.prefix, rewrite.regex, rewrite.to) {
            (None, None, None) => None,
            (Some(prefix), None, None) => {
                if !matches!(matcher.path, PathPattern::Prefix(_)) && !node.at("match").damaged {
                    let problem = Problem::new("the route has no prefix to be replaced", at.key_place("prefix"));
                    let label = format!("it matches `{}`", matcher.path);
                    self.problem(problem.label(label).hint("match `/below/*`, or use `regex` and `to`"));
                }
                Some(PathRewrite::Prefix(prefix.0.0))
            }
            (None, Some(regex), Some(to)) => {
                self.check_groups(&regex.0.0, &to.0, at.at("to"));
                Some(PathRewrite::Regex { pattern: regex.0.0.as_str().to_owned(), to: to.0 })
            }
            (Some(_), _, _) => {
                let problem = Problem::new("a path is rewritten in one way", at.key_place("prefix"));
                self.problem(problem.hint("keep either `prefix`, or `regex` and `to`"));
                None
            }
            (None, regex, _) => {
                let (there, missing) = if regex.is_some() { ("regex", "to") } else { ("to", "regex") };
                if !at.pruned(missing) {
                    let problem = Problem::new(format!("`{there}` without `{missing}`"), at.key_place(there));
                    self.problem(problem.hint(format!("add `{missing}`")));
                }
                None
            }
        };
        Rewrite { path, host: rewrite.host.map(|host| host.0.0) }
    }

    /// Finds groups that are referred to, and are not there: the crate would put nothing in their place.
    fn check_groups(&mut self, regex: &regex::Regex, to: &str, node: &Node) {
        let is_group = |name: &str| match name.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|known| known == name),
        };
        let mut rest = to;
        while let Some(at) = rest.find('$') {
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix('$') {
                rest = behind;
                continue;
            }
            let (name, braced) = match rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((name, _)) => (name, true),
                None => {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                    (&rest[..end], false)
                }
            };
            if name.is_empty() || is_group(name) {
                continue;
            }
            let problem = Problem::new(format!("the expression has no group `{name}`"), node.place.clone());
            let digits = name.bytes().take_while(u8::is_ascii_digit).count();
            self.problem(match &name[..digits] {
                "" => problem.hint("name one with `(?<name>…)`; a dollar that is meant as such is written `$$$$`"),
                number if !braced && digits < name.len() => {
                    problem.hint(format!("letters that follow belong to the name: write `$${{{number}}}`"))
                }
                _ => problem.hint("groups are counted from 1, by their opening parentheses"),
            });
        }
    }

    fn cors(&mut self, cors: form::Cors, node: &Node) -> Cors {
        let origins: Vec<Origin> = cors.origins.0.into_iter().map(|origin| origin.0).collect();
        if origins.is_empty() && !node.at("origins").damaged && !node.pruned("origins") {
            let problem = Problem::new("no origin may ask", node.key_place("origins"));
            self.problem(problem.hint("name some, or remove `cors`"));
        }
        let at = |index: usize| node.at("origins").item(index).place.clone();
        for (index, _) in repeated(&origins) {
            let problem = Problem::new(format!("`{}` is listed twice", origins[index]), at(index));
            self.problem(problem.hint("remove one of the two"));
        }
        let any = origins.iter().position(|origin| *origin == Origin::Any);
        if let Some(index) = any.filter(|_| cors.credentials.0) {
            let problem = Problem::new("any page could ask in the name of whoever is logged in", at(index));
            self.problem(problem.hint("name the origins, or remove `credentials`"));
        }
        if let Some(index) = any.filter(|_| origins.len() > 1) {
            let problem = Problem::new("`*` is any origin: the others make no difference", at(index));
            self.problem(problem.hint("remove it, or the others"));
        }
        let headers: Vec<String> = cors.headers.0.into_iter().map(|name| name.0.0).collect();
        if let Some(index) = headers.iter().position(|name| name == "*").filter(|_| headers.len() > 1) {
            let place = node.at("headers").item(index).place.clone();
            let problem = Problem::new("`*` is any header: the others make no difference", place);
            self.problem(problem.hint("remove it, or the others"));
        }
        Cors {
            origins,
            methods: cors.methods.into_iter().map(|method| method.0.0).collect(),
            headers,
            expose: cors.expose.into_iter().map(|name| name.0.0).collect(),
            credentials: cors.credentials.0,
            max_age: cors.max_age.0,
        }
    }

    fn mirror(&mut self, route: &mut file::Route, node: &Node) -> Option<Mirror> {
        let form = match route.mirror.take()? {
            Either::Short(upstream) => form::Mirror::of(upstream),
            Either::Long(long) => long,
        };
        if route.upstream.is_none() && !node.pruned("upstream") {
            let problem = Problem::new("only what goes to an upstream is mirrored", node.key_place("mirror"));
            self.problem(problem.hint("remove this"));
        }
        let upstream = self.find(Section::Upstreams, &form.upstream, node.at("mirror").at("upstream"))?;
        Some(Mirror { upstream, share: form.share.0, body: form.body.0, requests_max: form.requests.0.0 })
    }

    pub(super) fn error_pages(&mut self, pages: Vec<form::ErrorPage>, node: &Node) -> Vec<ErrorPage> {
        let pages = pages.into_iter().enumerate();
        pages
            .map(|(index, page)| {
                let item = node.item(index);
                if page.status.0.is_empty() && !item.at("status").damaged {
                    let problem = Problem::new("it is not said which errors look like this", item.key_place("status"));
                    self.problem(problem.hint("say `status: 5xx`, for example"));
                }
                ErrorPage {
                    statuses: page.status.0.into_iter().map(|status| status.0).collect(),
                    content_type: page.content_type.0.0,
                    body: self.body(page.body, item.at("body")),
                }
            })
            .collect()
    }

    fn body(&self, body: BodyForm, node: &Node) -> Body {
        match body {
            Either::Short(text) => Body::Text(text.0),
            Either::Long(long) => Body::File { path: self.path(&long.file), place: node.at("file").place.clone() },
        }
    }

    pub(super) fn redirect(form: Either<Written<form::RedirectTo>, form::Redirect>) -> Redirect {
        let form = match form {
            Either::Short(to) => form::Redirect::of(to),
            Either::Long(long) => long,
        };
        Redirect { status: form.status.0.0, to: form.to.0.0, keep_query: form.keep_query.0 }
    }

    pub(super) fn respond(&mut self, form: Either<Written<file::Status>, form::Respond>, node: &Node) -> FixedResponse {
        let form = match form {
            Either::Short(status) => form::Respond::of(status),
            Either::Long(long) => long,
        };
        let status = form.status.0.0;
        if matches!(status, 204 | 304) && form.body.is_some() {
            let problem = Problem::new(format!("a response of {status} has no body"), node.key_place("body"));
            self.problem(problem.hint("choose another status, or remove the body"));
        }
        let headers = form.headers.0.into_iter().map(|(name, value)| (name, value.0.0)).collect();
        let mut headers = self.headers(headers, node.at("headers"));
        if form.body.is_some() && !headers.iter().any(|(name, _)| name == "content-type") {
            headers.insert(0, ("content-type".to_owned(), form.content_type.0.0));
        }
        let body = form.body.map(|body| self.body(body, node.at("body")));
        FixedResponse { status, headers, body }
    }
}
