//! Chooses the certificate for the host that a client asks for.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Certificates by the hosts that they name.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// All of them; the first is the default.
    all: Vec<Arc<CertifiedKey>>,
}

impl Names {
    /// Adds a certificate, under the names in it.
    pub(super) fn add(&mut self, certificate: Arc<CertifiedKey>, names: &[String]) {
        for name in names {
            let name = name.to_ascii_lowercase();
            let of_name = match name.strip_prefix("*.") {
                Some(parent) => self.wildcard.entry(parent.to_owned()),
                None => self.exact.entry(name),
            };
            of_name.or_default().push(Arc::clone(&certificate));
        }
        self.all.push(certificate);
    }

    /// Returns what names a host: by itself, or else by a wildcard for its first label.
    fn naming(&self, host: &str) -> &[Arc<CertifiedKey>] {
        let by_wildcard = || self.wildcard.get(host.split_once('.')?.1);
        self.exact.get(host).or_else(by_wildcard).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for Names {
    /// A client that cannot check the signatures of what names its host gets nothing better from the default.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let naming = hello.server_name().map_or(&[][..], |host| self.naming(host));
        let candidates = if naming.is_empty() { &self.all[..] } else { naming };
        let fits = |candidate: &&Arc<CertifiedKey>| candidate.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(fits).or(candidates.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn certificate(names: &[&str]) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], key))
    }

    #[test]
    fn an_exact_name_wins_over_a_wildcard_for_one_label() {
        let mut names = Names::default();
        let hosts = [&["example.com", "*.example.com"][..], &["API.example.com"], &["other.org"]];
        let certificates = hosts.map(|hosts| {
            let certificate = certificate(hosts);
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            names.add(Arc::clone(&certificate), &hosts);
            certificate
        });
        for (host, expected) in [
            ("example.com", Some(0)),
            ("www.example.com", Some(0)),
            ("api.example.com", Some(1)),
            ("other.org", Some(2)),
            ("a.www.example.com", None),
            ("www.other.org", None),
            ("com", None),
        ] {
            let found = names.naming(host).first();
            assert_eq!(
                found.map(Arc::as_ptr),
                expected.map(|index: usize| Arc::as_ptr(&certificates[index])),
                "{host}"
            );
        }
    }
}
