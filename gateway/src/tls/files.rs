//! From files to terms. Everything that is wrong with the files of a listener is collected, each at its place in the
//! configuration, so that a handshake fails for nothing that could have been known before. Blocks; never called on a
//! thread that serves requests.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lockgate_config::model::{self, Alpn, TlsVersion};
use lockgate_config::problem::{Problem, Source};
use lockgate_host::Digest;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::names::Names;
use super::{Certificate, Terms};

/// Reads a file; the caller may want to know which were read.
type Read<'a> = dyn FnMut(&Path) -> io::Result<Vec<u8>> + 'a;

/// Reads the terms of listeners.
pub struct Reader<'a> {
    source: &'a Source,
    read: &'a mut Read<'a>,
    provider: Arc<CryptoProvider>,
    problems: Vec<Problem>,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("problems", &self.problems).finish_non_exhaustive()
    }
}

/// The bytes of a certificate's files.
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Returns a reader of what the file in `source` names.
    pub fn new(source: &'a Source, read: &'a mut Read<'a>) -> Self {
        Self { source, read, provider: Arc::new(default_provider()), problems: Vec::new() }
    }

    /// Reads the terms of a listener, by its index in the file. Where `known` was made from the same, it is taken over:
    /// so sessions can be resumed across reloads. None where there is a problem.
    pub fn terms(&mut self, listener: usize, tls: &model::Tls, known: Option<&Arc<Terms>>) -> Option<Arc<Terms>> {
        let path = |field: &str| format!("listeners[{listener}].tls.{field}");
        let mut pairs = Vec::with_capacity(tls.certificates.len());
        for (index, files) in tls.certificates.iter().enumerate() {
            let cert = self.file("certificate", &files.cert, &path(&format!("certificates[{index}].cert")));
            let key = self.file("key", &files.key, &path(&format!("certificates[{index}].key")));
            pairs.push(cert.zip(key).map(|(cert, key)| Pair { cert, key }));
        }
        let ca = tls.client_auth.as_ref().map(|auth| self.file("authorities", &auth.ca, &path("client_auth.ca")));
        let digest = digest(&pairs, ca.as_ref().and_then(Option::as_deref));
        if let Some(known) = known.filter(|known| known.were_made_from(tls, digest)) {
            return Some(Arc::clone(known));
        }
        let had = self.problems.len();
        let mut names = Names::default();
        let mut certificates = Vec::with_capacity(pairs.len());
        for (index, (files, pair)) in tls.certificates.iter().zip(pairs).enumerate() {
            let path = path(&format!("certificates[{index}]"));
            let Some(read) = pair.and_then(|pair| self.certificate(files, &pair, index == 0, &path)) else { continue };
            let (certified, hosts, facts) = read;
            names.add(certified, &hosts);
            certificates.push(facts);
        }
        let verifier = match (&tls.client_auth, ca) {
            (Some(auth), Some(Some(ca))) => self.verifier(auth, &ca, &path("client_auth.ca")),
            _ => Some(WebPkiClientVerifier::no_client_auth()),
        };
        if certificates.len() < tls.certificates.len() || self.problems.len() > had {
            return None;
        }
        let server = self.server(tls, names, verifier?).map_err(|error| {
            let message = format!("TLS cannot be set up: {error}");
            self.problems.push(Problem::new(message, self.source.place_of(&format!("listeners[{listener}].tls"))));
        });
        Some(Arc::new(Terms {
            server: Arc::new(server.ok()?),
            handshake_timeout: tls.handshake_timeout,
            certificates: certificates.into(),
            settings: tls.clone(),
            files: digest,
        }))
    }

    /// Returns all that was wrong.
    pub fn finish(self) -> Vec<Problem> {
        self.problems
    }

    fn shown<'p>(&self, path: &'p Path) -> std::path::Display<'p> {
        let folder = self.source.file.parent();
        folder.and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path).display()
    }

    fn problem(&mut self, message: String, path: &str, hint: &str) {
        self.problems.push(Problem::new(message, self.source.place_of(path)).hint(hint));
    }

    fn file(&mut self, what: &str, file: &Path, path: &str) -> Option<Vec<u8>> {
        match (self.read)(file) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => "the user that runs the gateway must be allowed to read it",
                    _ => "paths are relative to the configuration file's folder",
                };
                self.problem(format!("cannot read {what} `{}`: {error}", self.shown(file)), path, hint);
                None
            }
        }
    }

    fn certificate(
        &mut self,
        files: &model::Certificate,
        pair: &Pair,
        is_default: bool,
        path: &str,
    ) -> Option<(Arc<CertifiedKey>, Vec<String>, Certificate)> {
        let (at_cert, at_key) = (format!("{path}.cert"), format!("{path}.key"));
        let (cert, key) = (self.shown(&files.cert).to_string(), self.shown(&files.key).to_string());
        let chain = self.chain(&pair.cert, &cert, &at_cert);
        let private = match PrivateKeyDer::from_pem_slice(&pair.key) {
            Ok(private) => Some(private),
            Err(error) => {
                let why = unreadable(&error, "private key");
                let hint = "PEM is asked for, not encrypted: it begins with `-----BEGIN PRIVATE KEY-----`";
                self.problem(format!("key `{key}` {why}"), &at_key, hint);
                None
            }
        };
        let (chain, private) = chain.zip(private)?;
        let leaf = chain.first()?.clone();
        let Ok((_, parsed)) = X509Certificate::from_der(&leaf) else {
            self.problem(format!("`{cert}` holds no X.509 certificate"), &at_cert, "make it anew");
            return None;
        };
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let hosts: Vec<String> = alternative
            .map_or(&[][..], |extension| &extension.value.general_names)
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        if hosts.is_empty() && !is_default {
            let message = format!("certificate `{cert}` names no host, so that no client would ever get it");
            self.problem(
                message,
                &at_cert,
                "a certificate names hosts as alternative names; only the first needs none",
            );
        }
        let validity = parsed.validity();
        let facts = Certificate {
            file: cert.clone(),
            fingerprint: Digest::of(&leaf),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        };
        match CertifiedKey::from_der(chain, private, &self.provider) {
            Ok(certified) => Some((Arc::new(certified), hosts, facts)),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let message = format!("`{key}` is not the key of certificate `{cert}`");
                self.problem(message, &at_key, "both files have to come from the same request");
                None
            }
            Err(error) => {
                let hint = "RSA from 2,048 bits, ECDSA with P-256 or P-384, and Ed25519 are understood";
                self.problem(format!("key `{key}` cannot be used: {error}"), &at_key, hint);
                None
            }
        }
    }

    /// Returns the certificates in a file, at least one.
    fn chain(&mut self, bytes: &[u8], file: &str, path: &str) -> Option<Vec<CertificateDer<'static>>> {
        let chain = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
        let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
        chain
            .map_err(|error| {
                let why = unreadable(&error, "certificate");
                let hint = "PEM is asked for: it begins with `-----BEGIN CERTIFICATE-----`";
                self.problem(format!("`{file}` {why}"), path, hint);
            })
            .ok()
    }

    fn verifier(&mut self, auth: &model::ClientAuth, ca: &[u8], path: &str) -> Option<Arc<dyn ClientCertVerifier>> {
        let file = self.shown(&auth.ca).to_string();
        let mut roots = RootCertStore::empty();
        for authority in self.chain(ca, &file, path)? {
            if let Err(error) = roots.add(authority) {
                self.problem(
                    format!("`{file}` holds no usable authority: {error}"),
                    path,
                    "take the one out that is not",
                );
                return None;
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
        builder
            .build()
            .map_err(|error| {
                self.problem(format!("`{file}` cannot be used for clients: {error}"), path, "make it anew");
            })
            .ok()
    }

    fn server(
        &self,
        tls: &model::Tls,
        names: Names,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, Error> {
        let versions = match tls.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(names));
        server.alpn_protocols = tls.alpn.iter().map(|protocol| alpn_name(*protocol).to_vec()).collect();
        // Sessions that only the client keeps. Their key is this listener's alone: what one listener asks of clients
        // cannot be passed by with a session of another.
        server.ticketer = Ticketer::new()?;
        Ok(server)
    }
}

const fn alpn_name(protocol: Alpn) -> &'static [u8] {
    match protocol {
        Alpn::H2 => b"h2",
        Alpn::Http1 => b"http/1.1",
    }
}

fn unreadable(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {wanted}"),
        pem::Error::MissingSectionEnd { .. } => format!("is cut off in the middle of a {wanted}"),
        _ => format!("holds no {wanted} that can be read"),
    }
}

/// Returns the digest of all files, each told apart from the next by its own.
fn digest(pairs: &[Option<Pair>], ca: Option<&[u8]>) -> Digest {
    let files = pairs.iter().flatten().flat_map(|pair| [pair.cert.as_slice(), &pair.key]).chain(ca);
    let digests: Vec<u8> = files.flat_map(|bytes| *Digest::of(bytes).as_bytes()).collect();
    Digest::of(&digests)
}
