//! `routes`.

use std::collections::BTreeMap;

use super::{Names, Resolver, Section, line_of, repeated};
use crate::file;
use crate::file::HeaderCondition;
use crate::file::forms::Either;
use crate::file::written::{Reference, Written};
use crate::model::{
    Coding, FailureMode, Filter, Function, HeaderMatch, HostPattern, Middleware, PathPattern, Rollout, RolloutSubject,
    Route, RouteMatch, Segment, StaticFolder, Target, Upstream, UpstreamProtocol, reached_upstreams,
};
use crate::problem::{Place, Problem};
use crate::text::HeaderName;
use crate::tree::Node;

/// Filters in a chain. Each request keeps an instance of each of them; 64 is far above any chain we have seen.
const FILTERS_MAX: usize = 64;
/// Rollouts that a route can meet: a request's tracks are kept as the bits of one word.
const ROLLOUTS_MAX: usize = 64;

impl Resolver<'_> {
    pub(super) fn routes(&mut self, routes: Vec<file::Route>, tree: &Node) -> Vec<Route> {
        let section = tree.get("routes");
        if routes.is_empty() && !tree.pruned("routes") && !section.is_some_and(|node| node.damaged) {
            let place = tree.entry("routes").map(|entry| entry.key_place.clone());
            let problem = Problem::new("there is no route", place.unwrap_or_default());
            self.problem(
                problem.hint(
                    "without one, every request is answered with 404: add `- upstream: NAME` or `- static: FOLDER`",
                ),
            );
        }
        let section = tree.at("routes");
        let routes: Vec<_> = routes
            .into_iter()
            .enumerate()
            .filter_map(|(index, route)| self.route(route, section.item(index)))
            .collect();
        let intact = |place: &Place| section_item(section, place).is_some_and(|node| !node.at("match").damaged);
        self.check_duplicates(&routes, intact);
        self.check_route_names(&routes, section);
        routes
    }

    fn route(&mut self, mut route: file::Route, node: &Node) -> Option<Route> {
        let matcher = self.matcher(std::mem::take(&mut route.matches), node.at("match"));
        let (filters, middleware) = self.chain(&route.filters, node.at("filters"));
        let links = filters.len() + middleware.len();
        if links > FILTERS_MAX {
            let problem = Problem::new("the chain is too long", node.key_place("filters"));
            self.problem(problem.label(format!("{links} filters; at most {FILTERS_MAX}")));
        }
        let name = match &route.name {
            Some(name) => name.0.0.as_str().into(),
            None => default_name(&matcher).into(),
        };
        let compress = route.compress.iter().map(|coding| match coding {
            file::Coding::Zstd => Coding::Zstd,
            file::Coding::Brotli => Coding::Brotli,
            file::Coding::Gzip => Coding::Gzip,
        });
        let compress = compress.collect();
        let upgrades = std::mem::take(&mut route.upgrades).into_iter().map(|protocol| protocol.0.0).collect();
        let grpc_web = route.grpc_web.0;
        let policy = self.policy(&mut route, &matcher, node);
        let target = self.target(route, node);
        Some(Route {
            name,
            matcher,
            filters,
            middleware,
            upgrades,
            compress,
            grpc_web,
            policy,
            target: target?,
            place: node.get("name").unwrap_or(node).place.clone(),
        })
    }

    /// Finds what answers a route: one thing, and not several.
    fn target(&mut self, route: file::Route, node: &Node) -> Option<Target> {
        let alternatives = self.references(Section::Upstreams, &route.alternatives, node.at("alternatives"));
        if route.upstream.is_none() && !route.alternatives.is_empty() && !node.pruned("upstream") {
            let problem = Problem::new("only an upstream has alternatives", node.key_place("alternatives"));
            self.problem(problem.hint("a filter may choose between upstreams only; remove this"));
        }
        let there = [
            ("upstream", route.upstream.is_some()),
            ("function", route.function.is_some()),
            ("static", route.files.is_some()),
            ("redirect", route.redirect.is_some()),
            ("respond", route.respond.is_some()),
        ];
        let mut there_are = there.iter().filter(|(_, is_there)| *is_there).map(|(key, _)| *key);
        if let (Some(first), Some(second)) = (there_are.next(), there_are.next()) {
            let problem = Problem::new("a route has one target", node.key_place(second));
            let problem = problem.label(format!("`{first}` is there too"));
            self.problem(problem.hint("make two routes of it, or remove one"));
            return None;
        }
        if let Some(redirect) = route.redirect {
            return Some(Target::Redirect(Self::redirect(redirect)));
        }
        if let Some(respond) = route.respond {
            return Some(Target::Respond(self.respond(respond, node.at("respond"))));
        }
        match (&route.upstream, &route.function, route.files) {
            (Some(name), _, _) => {
                let upstream = self.find(Section::Upstreams, name, node.at("upstream"));
                if let Some(index) = route.alternatives.iter().position(|other| other.0 == name.0) {
                    let place = node.at("alternatives").item(index).place.clone();
                    let problem = Problem::new("the route's upstream is no alternative to itself", place);
                    self.problem(problem.hint("remove it here: a filter may always choose it"));
                }
                Some(Target::Upstream { upstream: upstream?, alternatives })
            }
            (None, Some(name), _) => {
                Some(Target::Function { function: self.find(Section::Functions, name, node.at("function"))? })
            }
            (None, None, Some(files)) => {
                let node = node.at("static");
                Some(Target::Static(match files {
                    Either::Short(folder) => self.static_folder(file::Static::of(folder), node.place.clone()),
                    Either::Long(files) => self.static_folder(files, node.at("folder").place.clone()),
                }))
            }
            (None, None, None) => {
                if !there.iter().any(|(key, _)| node.pruned(key)) {
                    let problem = Problem::new("it is not said what answers", node.place.clone());
                    self.problem(problem.hint(
                        "add `upstream: NAME`, `function: NAME`, `static: FOLDER`, `redirect: TO` or `respond: STATUS`",
                    ));
                }
                None
            }
        }
    }

    fn static_folder(&self, files: file::Static, place: Place) -> StaticFolder {
        StaticFolder {
            folder: self.path(&files.folder),
            index: files.index.0.into_iter().map(|name| name.0.0).collect(),
            fallback: files.fallback.map(|name| name.0.0),
            precompressed: files.precompressed.0,
            cache_control: files.cache_control.map(|value| value.0.0),
            place,
        }
    }

    /// Finds what a chain is made of, nothing of it twice.
    fn chain(
        &mut self,
        links: &[Either<Written<Reference>, file::Link>],
        node: &Node,
    ) -> (Vec<usize>, Vec<Middleware>) {
        let names: Vec<(Section, &Reference)> = links
            .iter()
            .map(|link| match link {
                Either::Short(name) => (Section::Filters, &name.0),
                Either::Long(link) => (Section::Functions, &link.function.0),
            })
            .collect();
        let at = |index: usize| match &links[index] {
            Either::Short(_) => node.item(index),
            Either::Long(_) => node.item(index).at("function"),
        };
        for (index, _) in repeated(&names) {
            let written = at(index).written().unwrap_or_default();
            let problem = Problem::new(format!("`{written}` is listed twice"), at(index).place.clone());
            let hint = "a filter runs once in a chain; declare it under a second name to run it again";
            self.problem(problem.hint(hint));
        }
        let (mut filters, mut middleware) = (Vec::new(), Vec::new());
        for (index, link) in links.iter().enumerate() {
            match link {
                Either::Short(name) if self.is_a_function_only(&name.0) => {
                    let written = at(index).written().unwrap_or_default();
                    let problem = Problem::new(format!("there is no filter `{written}`"), at(index).place.clone());
                    let problem = problem.label("a function has this name");
                    self.problem(problem.hint(format!("a middleware stands here as `function: {written}`")));
                }
                Either::Short(name) => filters.extend(self.find(Section::Filters, name, at(index))),
                Either::Long(link) => {
                    middleware.extend(self.find(Section::Functions, &link.function, at(index)).map(|function| {
                        Middleware {
                            after: filters.len(),
                            function,
                            on_failure: match link.on_failure {
                                file::LinkFailure::Closed => FailureMode::Closed,
                                file::LinkFailure::Open => FailureMode::Open,
                            },
                        }
                    }))
                }
            }
        }
        (filters, middleware)
    }

    fn is_a_function_only(&self, name: &Reference) -> bool {
        let names = |names: &Names| names.names.contains(&name.0) || names.lost.contains(&name.0);
        names(&self.functions) && !names(&self.filters) && !self.filters.unsure
    }

    /// Finds what a list of names refers to, none of them twice.
    fn references(&mut self, section: Section, names: &[Written<Reference>], node: &Node) -> Vec<usize> {
        let texts: Vec<&Reference> = names.iter().map(|name| &name.0).collect();
        for (index, _) in repeated(&texts) {
            let item = node.item(index);
            let written = item.written().unwrap_or_default();
            let problem = Problem::new(format!("`{written}` is listed twice"), item.place.clone());
            self.problem(problem.hint("remove one of the two"));
        }
        names.iter().enumerate().filter_map(|(index, name)| self.find(section, name, node.item(index))).collect()
    }

    fn matcher(&mut self, matches: file::Match, node: &Node) -> RouteMatch {
        let mut hosts: Vec<HostPattern> = matches.host.0.into_iter().map(|host| host.0).collect();
        let mut methods: Vec<String> = matches.methods.into_iter().map(|method| method.0.0).collect();
        let twice = repeated(&hosts).into_iter().map(|(index, _)| node.at("host").item(index));
        let twice = twice.chain(repeated(&methods).into_iter().map(|(index, _)| node.at("methods").item(index)));
        for item in twice {
            let written = item.written().unwrap_or_default();
            let problem = Problem::new(format!("`{written}` is listed twice"), item.place.clone());
            self.problem(problem.hint("remove one of the two"));
        }
        for (index, _) in repeated(&hosts).into_iter().rev() {
            hosts.remove(index);
        }
        for (index, _) in repeated(&methods).into_iter().rev() {
            methods.remove(index);
        }
        let mut headers: Vec<HeaderMatch> = Vec::new();
        for (name, condition) in matches.headers.0 {
            let place = node.at("headers").key_place(&name);
            let value = match condition {
                HeaderCondition::Present => None,
                HeaderCondition::Value(value) => Some(value),
            };
            match self.matched_header(&name, &headers) {
                Ok(name) => headers.push(HeaderMatch { name, value }),
                Err(hint) => {
                    let problem = Problem::new(format!("a route cannot match on the header `{name}`"), place);
                    self.problem(problem.hint(hint));
                }
            }
        }
        let path = matches.path.map_or_else(|| PathPattern::Prefix("/".into()), |path| path.0);
        RouteMatch { hosts, path, methods, headers }
    }

    /// Returns a header's name in lower case, or why it cannot be asked for.
    fn matched_header(&self, name: &str, before: &[HeaderMatch]) -> Result<String, String> {
        let header = HeaderName::parse(name)
            .map_err(|error| error.hint.unwrap_or_else(|| format!("expected {}", error.expected)))?;
        if header.0 == "host" {
            return Err("hosts go to `match.host`".into());
        }
        // A route of its own for WebSockets is a common wish.
        if header.is_hop_by_hop() && header.0 != "upgrade" {
            return Err("it belongs to the connection, not to the request".into());
        }
        if header.is_ours() {
            return Err("headers that begin with `x-lockgate-` are the gateway's own".into());
        }
        if before.iter().any(|other| other.name == header.0) {
            return Err("it is there already; case makes no difference".into());
        }
        Ok(header.0)
    }

    fn check_duplicates(&mut self, routes: &[Route], intact: impl Fn(&Place) -> bool) {
        let mut seen: BTreeMap<Taken, &Route> = BTreeMap::new();
        for route in routes.iter().filter(|route| intact(&route.place)) {
            for taken in Taken::of(&route.matcher) {
                let Some(first) = seen.get(&taken) else {
                    seen.insert(taken, route);
                    continue;
                };
                let host = taken.host.map_or_else(String::new, |host| format!(" for `{host}`"));
                let message = format!("the routes `{}` and `{}` match the same requests{host}", first.name, route.name);
                let label = format!("the first is `{}`{}", item_path(&first.place), line_of(&first.place));
                let hint = "remove one of them, or tell them apart by host, path, methods or headers";
                self.problem(Problem::new(message, route.place.clone()).label(label).hint(hint));
                break;
            }
        }
    }

    fn check_route_names(&mut self, routes: &[Route], section: &Node) {
        let names: Vec<_> = routes.iter().map(|route| &route.name).collect();
        for (index, first) in repeated(&names) {
            let (route, first) = (&routes[index], &routes[first]);
            // Equal default names mean equal matches, which have been told.
            if section_item(section, &route.place).is_none_or(|node| node.get("name").is_none()) {
                continue;
            }
            let message = format!("two routes have the name `{}`", route.name);
            let label = format!("the first is `{}`{}", item_path(&first.place), line_of(&first.place));
            self.problem(Problem::new(message, route.place.clone()).label(label).hint("names of routes are unique"));
        }
    }

    /// Whether what is behind the routes that take gRPC-Web can speak gRPC.
    pub(super) fn check_grpc_web(
        &mut self,
        routes: &[Route],
        rollouts: &[Rollout],
        upstreams: &[Upstream],
        section: &Node,
    ) {
        for route in routes.iter().filter(|route| route.grpc_web) {
            let Some(node) = section_item(section, &route.place) else { continue };
            let at = || node.at("grpc_web").place.clone();
            if !route.middleware.is_empty() {
                let problem = Problem::new("gRPC-Web does not pass a middleware", at());
                self.problem(problem.hint("make two routes of it, told apart by `match.headers.content-type`"));
            }
            let Target::Upstream { upstream, alternatives } = &route.target else {
                let problem = Problem::new("gRPC-Web goes to upstreams only", at());
                self.problem(problem.hint("remove this, or name an `upstream`"));
                continue;
            };
            let reached = |index: usize| index == *upstream || alternatives.contains(&index);
            let canaries = rollouts.iter().filter_map(|rollout| match rollout.subject {
                RolloutSubject::Upstream { upstream, canary } if reached(upstream) => Some(canary),
                _ => None,
            });
            let all = std::iter::once(*upstream).chain(alternatives.iter().copied()).chain(canaries);
            let other = all.filter_map(|index| upstreams.get(index));
            let mut other = other.filter(|upstream| upstream.protocol == UpstreamProtocol::Http1);
            if let Some(other) = other.next() {
                let message = format!("gRPC is HTTP/2, and the upstream `{}` speaks HTTP/1.1", other.name);
                let hint = "set the upstream's `protocol` to `h2c`, or to `h2` with `tls`";
                self.problem(Problem::new(message, at()).hint(hint));
            }
        }
    }

    pub(super) fn check_rollouts_of_routes(
        &mut self,
        routes: &[Route],
        rollouts: &[Rollout],
        filters: &[Filter],
        functions: &[Function],
    ) {
        for route in routes {
            let reached = reached_upstreams(route, rollouts, filters, functions);
            let meets = |rollout: &&Rollout| match (&rollout.subject, &route.target) {
                (RolloutSubject::Filter { filter, .. }, _) => route.filters.contains(filter),
                (RolloutSubject::Upstream { upstream: subject, .. }, Target::Upstream { upstream, alternatives }) => {
                    upstream == subject || alternatives.contains(subject) || reached.contains(subject)
                }
                (RolloutSubject::Upstream { upstream: subject, .. }, _) => reached.contains(subject),
                (RolloutSubject::Function { function, .. }, target) => {
                    let links = route.middleware.iter().any(|link| link.function == *function);
                    links || matches!(target, Target::Function { function: target } if target == function)
                }
            };
            let count = rollouts.iter().filter(meets).count();
            if count > ROLLOUTS_MAX {
                let message = format!("the route `{}` meets too many rollouts", route.name);
                let problem = Problem::new(message, route.place.clone());
                self.problem(problem.label(format!("{count} of them; at most {ROLLOUTS_MAX}")));
            }
        }
    }
}

/// What a route takes of one host, in a form that is equal for what matches the same.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    host: Option<HostPattern>,
    path: PathPattern,
    methods: Vec<String>,
    headers: Vec<HeaderMatch>,
}

impl Taken {
    fn of(matcher: &RouteMatch) -> Vec<Self> {
        let mut methods = matcher.methods.clone();
        methods.sort_unstable();
        let mut headers = matcher.headers.clone();
        headers.sort_unstable();
        let path = match &matcher.path {
            // Names of parameters make no difference.
            PathPattern::Template(segments) => PathPattern::Template(
                segments
                    .iter()
                    .map(|segment| match segment {
                        Segment::Literal(text) => Segment::Literal(text.clone()),
                        Segment::Parameter(_) => Segment::Parameter(String::new()),
                    })
                    .collect(),
            ),
            path => path.clone(),
        };
        let of = |host| Self { host, path: path.clone(), methods: methods.clone(), headers: headers.clone() };
        match matcher.hosts.as_slice() {
            [] => vec![of(None)],
            hosts => hosts.iter().map(|host| of(Some(host.clone()))).collect(),
        }
    }
}

/// Returns what a route matches, as one reads it: `GET api.example.com/users/{id} x-beta=1`.
fn default_name(matcher: &RouteMatch) -> String {
    let mut name = matcher.methods.join(",");
    if !name.is_empty() {
        name.push(' ');
    }
    name.push_str(&matcher.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    name.push_str(&matcher.path.to_string());
    for HeaderMatch { name: header, value } in &matcher.headers {
        name.push(' ');
        name.push_str(header);
        if let Some(value) = value {
            name.push('=');
            name.push_str(value);
        }
    }
    name
}

/// Returns the item of `routes` that a place is in.
fn section_item<'n>(section: &'n Node, place: &Place) -> Option<&'n Node> {
    section.items().iter().find(|item| *item.place.path == *item_path(place))
}

/// Returns `routes[2]` for `routes[2].name`.
fn item_path(place: &Place) -> &str {
    place.path.split_inclusive(']').next().unwrap_or_default()
}
