//! `upstreams`.

use super::{Resolver, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::model::{Endpoint, Upstream, UpstreamProtocol, UpstreamTimeouts};
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
                let endpoints: Vec<Endpoint> = upstream.endpoints.into_iter().map(|endpoint| endpoint.0).collect();
                let place = section.key_place(&name);
                if endpoints.is_empty() && !node.damaged {
                    let problem = Problem::new(format!("the upstream `{name}` has no endpoint"), place.clone());
                    self.problem(problem.hint(format!("add one: `{name}: [\"127.0.0.1:3000\"]`")));
                }
                for (index, first) in repeated(&endpoints) {
                    let item = |index| node.at("endpoints").item(index);
                    let message = format!("`{}` is listed twice", item(index).written().unwrap_or_default());
                    let label = format!("it is there already{}", line_of(&item(first).place));
                    self.problem(Problem::new(message, item(index).place.clone()).label(label));
                }
                Upstream {
                    name: name.into(),
                    endpoints,
                    timeouts: UpstreamTimeouts {
                        connect: upstream.timeouts.connect.0.0,
                        read: upstream.timeouts.read.0.0,
                        write: upstream.timeouts.write.0.0,
                        idle: upstream.timeouts.idle.0.0,
                    },
                    protocol: match upstream.protocol {
                        file::Protocol::Http1 => UpstreamProtocol::Http1,
                        file::Protocol::H2c => UpstreamProtocol::H2c,
                    },
                    retries: upstream.retries.0.0,
                    keepalive_connections: upstream.keepalive_connections.0.0 as usize,
                    place,
                }
            })
            .collect()
    }
}
