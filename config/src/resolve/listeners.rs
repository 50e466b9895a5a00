//! `listeners`.

use super::{Resolver, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::model::{Alpn, Certificate, ClientAuth, Hsts, ListenAddress, Listener, Server, Tls};
use crate::problem::{Place, Problem};
use crate::tree::Node;

impl Resolver<'_> {
    pub(super) fn listeners(
        &mut self,
        listeners: Vec<file::ListenerForm>,
        server: &Server,
        tree: &Node,
    ) -> Vec<Listener> {
        let node = tree.get("listeners");
        if listeners.is_empty() && !tree.pruned("listeners") && !node.is_some_and(|n| n.damaged) {
            let place = tree.entry("listeners").map(|entry| entry.key_place.clone());
            let problem = Problem::new("there is no listener", place.unwrap_or_default());
            self.problem(problem.hint("add one: `listeners: [\"0.0.0.0:8080\"]`"));
        }
        let listeners: Vec<Listener> = listeners
            .into_iter()
            .enumerate()
            .map(|(index, listener)| match listener {
                Either::Short(address) => {
                    let place = || tree.at("listeners").item(index).place.clone();
                    Listener::new(self.address(address.0, place))
                }
                Either::Long(long) => {
                    let node = tree.at("listeners").item(index);
                    if let (Some(_), Some(_)) = (&long.tls, &long.redirect_to_https) {
                        let place = node.at("redirect_to_https").place.clone();
                        let hint = "redirect on a listener without `tls`, on port 80 for example";
                        self.problem(Problem::new("clients are here by HTTPS already", place).hint(hint));
                    }
                    let address = self.address(long.address.0, || node.at("address").place.clone());
                    let trusts_nobody = server.trusted_proxies.is_empty() && matches!(address, ListenAddress::Tcp(_));
                    if long.proxy_protocol.0 && trusts_nobody && !tree.at("server").damaged {
                        let place = node.at("proxy_protocol").place.clone();
                        let problem = Problem::new("nobody is trusted to say who the client is", place);
                        let hint = "list the proxies in front in `server.trusted_proxies`";
                        self.problem(problem.label("every connection would be closed").hint(hint));
                    }
                    Listener {
                        address,
                        proxy_protocol: long.proxy_protocol.0,
                        h2c: long.h2c.0,
                        tls: long.tls.map(|tls| self.tls(tls, node.at("tls"))),
                        redirect_to_https: long.redirect_to_https.and_then(|port| u16::try_from(port.0.0).ok()),
                    }
                }
            })
            .collect();
        // Port 0 takes another port each time.
        let addresses: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| match &listener.address {
                ListenAddress::Tcp(address) if address.port() == 0 => (&listener.address, index),
                _ => (&listener.address, 0),
            })
            .collect();
        for (index, first) in repeated(&addresses) {
            let node = |index| tree.at("listeners").item(index).at("address");
            let message = format!("`{}` is listened on twice", node(index).written().unwrap_or_default());
            let label = format!("it is there already{}", line_of(&node(first).place));
            self.problem(Problem::new(message, node(index).place.clone()).label(label));
        }
        listeners
    }

    fn address(&mut self, address: ListenAddress, place: impl Fn() -> Place) -> ListenAddress {
        match address {
            ListenAddress::Unix(path) => ListenAddress::Unix(self.socket(&path, place)),
            tcp @ ListenAddress::Tcp(_) => tcp,
        }
    }

    fn tls(&mut self, tls: file::Tls, node: &Node) -> Tls {
        if tls.certificates.is_empty() && !node.at("certificates").damaged && !node.pruned("certificates") {
            let problem = Problem::new("there is no certificate", node.at("certificates").place.clone());
            self.problem(problem.hint("add one: `certificates: [{ cert: tls/cert.pem, key: tls/key.pem }]`"));
        }
        if tls.alpn.is_empty() && !node.at("alpn").damaged && !node.pruned("alpn") {
            let problem = Problem::new("nothing is spoken inside TLS", node.at("alpn").place.clone());
            self.problem(problem.hint("leave `alpn` out for both HTTP/2 and HTTP/1.1"));
        }
        Tls {
            certificates: tls
                .certificates
                .iter()
                .map(|pair| Certificate { cert: self.path(&pair.cert), key: self.path(&pair.key) })
                .collect(),
            min_version: tls.min_version.0,
            alpn: tls
                .alpn
                .iter()
                .map(|protocol| match protocol {
                    file::Alpn::H2 => Alpn::H2,
                    file::Alpn::Http1 => Alpn::Http1,
                })
                .collect(),
            client_auth: tls.client_auth.map(|auth| ClientAuth {
                ca: self.path(&auth.ca),
                required: matches!(auth.mode, file::ClientAuthMode::Required),
            }),
            handshake_timeout: tls.handshake_timeout.0.0,
            hsts: tls.hsts.map(|hsts| Hsts {
                max_age: hsts.max_age(),
                include_subdomains: hsts.include_subdomains.0,
                preload: hsts.preload.0,
            }),
        }
    }
}
