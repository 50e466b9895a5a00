//! `upstreams`.

use std::time::Duration;

use super::{Resolver, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::file::upstream::{
    BalanceWord, Ejection as EjectionForm, Health as HealthForm, HealthCheck as CheckWord, Limits as LimitsForm, Tls,
};
use crate::file::written::{Whole, Written};
use crate::model::{
    Balance, Ejection, Endpoint, Health, HealthCheck, Host, Retries, Upstream, UpstreamIdentity, UpstreamLimits,
    UpstreamProtocol, UpstreamTimeouts, UpstreamTls,
};
use crate::problem::Problem;
use crate::tree::Node;

impl Resolver<'_> {
    pub(super) fn upstreams(&mut self, upstreams: Vec<(String, file::UpstreamForm)>, section: &Node) -> Vec<Upstream> {
        upstreams
            .into_iter()
            .map(|(name, form)| {
                let node = section.at(&name);
                let upstream = match form {
                    Either::Short(endpoints) => file::Upstream::of(endpoints),
                    Either::Long(long) => long,
                };
                let place = section.key_place(&name);
                let (endpoints, endpoints_file) = match upstream.endpoints {
                    Either::Short(list) => (self.endpoints(&name, list, node, section), None),
                    Either::Long(long) => {
                        let place = node.at("endpoints").at("file").place.clone();
                        (Vec::new(), Some((self.path(&long.file), place)))
                    }
                };
                let tls = self.upstream_tls(upstream.tls, &endpoints, node);
                let protocol = self.upstream_protocol(upstream.protocol, tls.is_some(), node);
                let health = upstream.health.map(|it| self.health(it, protocol, node.at("health")));
                Upstream {
                    name: name.into(),
                    endpoints,
                    endpoints_file,
                    balance: self.balance(upstream.balance, node.at("balance")),
                    timeouts: UpstreamTimeouts {
                        connect: upstream.timeouts.connect.0.0,
                        read: upstream.timeouts.read.0.0,
                        write: upstream.timeouts.write.0.0,
                        idle: upstream.timeouts.idle.0.0,
                        total: upstream.timeouts.total.map(|total| total.0.0),
                    },
                    protocol,
                    tls,
                    retries: retries(upstream.retries),
                    keepalive_connections: upstream.keepalive_connections.0.0 as usize,
                    limits: self.upstream_limits(&upstream.limits, node.at("limits")),
                    health,
                    ejection: ejection(&upstream.ejection),
                    slow_start: upstream.slow_start.map_or(Duration::ZERO, |it| it.0.0),
                    panic: upstream.panic.0,
                    place,
                }
            })
            .collect()
    }

    fn endpoints(
        &mut self,
        name: &str,
        forms: Vec<file::EndpointForm>,
        node: &Node,
        section: &Node,
    ) -> Vec<(Endpoint, u32)> {
        // The short form of an upstream is the list itself.
        let list = node.get("endpoints").unwrap_or(node);
        let endpoints: Vec<(Endpoint, u32)> = forms
            .into_iter()
            .map(|form| match form {
                Either::Short(Written(endpoint)) => (endpoint, 1),
                Either::Long(long) => (long.address.0, long.weight.0.0),
            })
            .collect();
        if endpoints.is_empty() && !node.damaged {
            let problem = Problem::new(format!("the upstream `{name}` has no endpoint"), section.key_place(name));
            self.problem(problem.hint(format!("add one: `{name}: [\"127.0.0.1:3000\"]`")));
        }
        let addresses: Vec<&Endpoint> = endpoints.iter().map(|(endpoint, _)| endpoint).collect();
        for (index, first) in repeated(&addresses) {
            let message = format!("`{}` is listed twice", addresses[index]);
            let label = format!("it is there already{}", line_of(&list.item(first).place));
            self.problem(Problem::new(message, list.item(index).place.clone()).label(label));
        }
        endpoints
    }

    fn balance(&mut self, form: file::BalanceForm, node: &Node) -> Balance {
        match form {
            Either::Short(BalanceWord::RoundRobin) => Balance::RoundRobin,
            Either::Short(BalanceWord::LeastRequests) => Balance::LeastRequests,
            Either::Long(hash) => Balance::Hash(self.key(&hash.hash, node.at("hash"))),
        }
    }

    fn upstream_tls(
        &mut self,
        form: Option<Either<Written<bool>, Tls>>,
        endpoints: &[(Endpoint, u32)],
        node: &Node,
    ) -> Option<UpstreamTls> {
        let tls = match form? {
            Either::Short(Written(false)) => return None,
            Either::Short(Written(true)) => Tls::default(),
            Either::Long(tls) => tls,
        };
        let at = node.at("tls");
        let server_name = tls.server_name.map(|name| name.0.0);
        let address = endpoints.iter().find(|(endpoint, _)| matches!(endpoint.host, Host::Address(_)));
        if let (None, Some((endpoint, _))) = (&server_name, address) {
            let problem = Problem::new(
                format!("it is not said which name the certificate of `{endpoint}` must have"),
                node.key_place("tls"),
            );
            self.problem(problem.hint("an address is no name: add `tls: { server_name: NAME }`"));
        }
        let file = |path: &Written<file::FilePath>, key| (self.path(path), at.at(key).place.clone());
        let ca = tls.ca.as_ref().map(|path| file(path, "ca"));
        let identity = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some(UpstreamIdentity { cert: file(cert, "cert"), key: file(key, "key") }),
            (None, None) => None,
            (cert, _) => {
                let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
                let problem = Problem::new(format!("`{there}` without `{missing}`"), at.key_place(there));
                self.problem(
                    problem.hint(format!("add `{missing}: FILE`: a certificate is shown with its private key")),
                );
                None
            }
        };
        Some(UpstreamTls { server_name, ca, identity })
    }

    fn upstream_limits(&mut self, form: &LimitsForm, node: &Node) -> UpstreamLimits {
        let limits = UpstreamLimits {
            requests: form.requests.as_ref().map(|max| max.0.0),
            connections_per_endpoint: form.connections_per_endpoint.as_ref().map(|max| max.0.0),
            pending: form.pending.as_ref().map_or(UpstreamLimits::PENDING, |max| max.0.0),
            pending_timeout: form.pending_timeout.as_ref().map_or(UpstreamLimits::PENDING_TIMEOUT, |time| time.0.0),
        };
        let unlimited = limits.requests.is_none() && limits.connections_per_endpoint.is_none();
        for (key, is_there) in
            [("pending", form.pending.is_some()), ("pending_timeout", form.pending_timeout.is_some())]
        {
            if is_there && unlimited {
                let problem = Problem::new(format!("`{key}` without a limit to wait for"), node.key_place(key));
                self.problem(problem.hint("add `requests` or `connections_per_endpoint`"));
            }
        }
        if limits.pending == 0 && form.pending_timeout.is_some() && !unlimited {
            let problem = Problem::new("`pending_timeout` where no request waits", node.key_place("pending_timeout"));
            self.problem(problem.hint("remove it, or set `pending` to 1 or more"));
        }
        limits
    }

    fn upstream_protocol(&mut self, protocol: file::Protocol, tls: bool, node: &Node) -> UpstreamProtocol {
        let at = || node.at("protocol").place.clone();
        match (protocol, tls) {
            (file::Protocol::H2 | file::Protocol::Auto, false) => {
                let problem = Problem::new("this protocol is spoken over TLS", at());
                self.problem(problem.hint("add `tls: true`, or say `h2c` for HTTP/2 without TLS"));
            }
            (file::Protocol::H2c, true) => {
                let problem = Problem::new("`h2c` is HTTP/2 without TLS", at());
                self.problem(problem.hint("say `h2`, or remove `tls`"));
            }
            _ => {}
        }
        match protocol {
            file::Protocol::Http1 => UpstreamProtocol::Http1,
            file::Protocol::H2c => UpstreamProtocol::H2c,
            file::Protocol::H2 => UpstreamProtocol::H2,
            file::Protocol::Auto => UpstreamProtocol::Auto,
        }
    }

    fn health(&mut self, form: HealthForm, protocol: UpstreamProtocol, node: &Node) -> Health {
        let check = match form.check {
            CheckWord::Http => HealthCheck::Http {
                path: form.path.0.0,
                host: form.host.map(|host| host.0.0),
                statuses: form.statuses.0.iter().map(|status| status.0.0).collect(),
            },
            CheckWord::Grpc => HealthCheck::Grpc,
            CheckWord::Tcp => HealthCheck::Tcp,
        };
        if check == HealthCheck::Grpc && protocol == UpstreamProtocol::Http1 {
            let problem =
                Problem::new("gRPC is HTTP/2, and this upstream speaks HTTP/1.1", node.at("check").place.clone());
            self.problem(problem.hint("set the upstream's `protocol` to `h2c`, or to `h2` with `tls`"));
        }
        if form.timeout.0.0 > form.interval.0.0 {
            let problem =
                Problem::new("a check may take longer than the time to the next", node.at("timeout").place.clone());
            self.problem(problem.hint("set `timeout` to `interval` or less"));
        }
        Health {
            check,
            interval: form.interval.0.0,
            timeout: form.timeout.0.0,
            healthy: form.healthy.0.0,
            unhealthy: form.unhealthy.0.0,
        }
    }
}

fn retries(form: Either<Written<Whole<0, 16>>, file::upstream::Retries>) -> Retries {
    let form = match form {
        Either::Short(attempts) => file::upstream::Retries { attempts, ..Default::default() },
        Either::Long(long) => long,
    };
    Retries {
        attempts: form.attempts.0.0,
        statuses: form.on.0.iter().map(|status| status.0.0).collect(),
        budget: form.budget.0,
        backoff: form.backoff.0.0,
        non_idempotent: form.non_idempotent.0,
    }
}

fn ejection(form: &EjectionForm) -> Ejection {
    Ejection { failures: form.failures.0.0, duration: form.duration.0.0, max: form.max.0 }
}
