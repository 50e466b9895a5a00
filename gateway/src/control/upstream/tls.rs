//! What TLS to an upstream needs, read from files and checked: trusted authorities, and the gateway's own certificate.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use lockgate_config::model::UpstreamTls;
use lockgate_config::problem::{Place, Problem};
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates and key for connections to one upstream.
#[derive(Clone)]
pub struct Material {
    /// The name that certificates must have; none: each endpoint's own.
    pub server_name: Option<Arc<str>>,
    /// Trusted authorities; none: the system's.
    pub ca: Option<Arc<[WrappedX509]>>,
    /// What the gateway shows.
    pub identity: Option<Arc<CertKey>>,
    digest: u128,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Two of the same files' contents are equal.
impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        self.server_name == other.server_name && self.digest == other.digest
    }
}

impl Material {
    /// Reads and checks the files that a configuration names, each by `read`.
    ///
    /// # Errors
    ///
    /// All that is wrong with them, at their places.
    pub fn read(
        tls: &UpstreamTls,
        read: &mut dyn FnMut(&Path) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut bytes = |(path, place): &(std::path::PathBuf, Place), problems: &mut Vec<Problem>| match read(path) {
            Ok(bytes) => {
                hash.update(&(bytes.len() as u64).to_le_bytes());
                hash.update(&bytes);
                Some(bytes)
            }
            Err(error) => {
                problems.push(Problem::new(format!("cannot read `{}`: {error}", path.display()), place.clone()));
                None
            }
        };
        let ca = tls.ca.as_ref().and_then(|file| {
            let bytes = bytes(file, &mut problems)?;
            certificates(&bytes, file, &mut problems)
        });
        let identity = tls.identity.as_ref().and_then(|identity| {
            let (cert, key) = (bytes(&identity.cert, &mut problems), bytes(&identity.key, &mut problems));
            let chain = certificates(&cert?, &identity.cert, &mut problems)?;
            let key = private_key(&key?, &identity.key, &mut problems)?;
            fits(&chain, &key, &identity.key, &mut problems)?;
            Some((chain, key))
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            server_name: tls.server_name.as_deref().map(Into::into),
            ca: ca
                .map(|chain| chain.into_iter().map(|der| WrappedX509::new(der, parse_x509)).collect::<Vec<_>>().into()),
            identity: identity.map(|(chain, key)| Arc::new(CertKey::new(chain, key.secret_der().to_vec()))),
            digest: hash.digest128(),
        })
    }
}

fn certificates(bytes: &[u8], file: &(std::path::PathBuf, Place), problems: &mut Vec<Problem>) -> Option<Vec<Vec<u8>>> {
    let (path, place) = file;
    let mut refuse = |why: String| {
        problems.push(
            Problem::new(format!("`{}` {why}", path.display()), place.clone())
                .hint("a PEM file is asked for, with `-----BEGIN CERTIFICATE-----`"),
        );
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match chain {
        Ok(chain) if chain.is_empty() => {
            refuse("has no certificate".to_owned());
            None
        }
        Ok(chain) => match chain.iter().position(|der| X509Certificate::from_der(der).is_err()) {
            Some(index) => {
                refuse(format!("has a certificate that cannot be read, number {}", index + 1));
                None
            }
            None => Some(chain.into_iter().map(|der| der.to_vec()).collect()),
        },
        Err(error) => {
            refuse(format!("cannot be read: {error}"));
            None
        }
    }
}

fn private_key(
    bytes: &[u8],
    file: &(std::path::PathBuf, Place),
    problems: &mut Vec<Problem>,
) -> Option<PrivateKeyDer<'static>> {
    let (path, place) = file;
    PrivateKeyDer::from_pem_slice(bytes)
        .map_err(|error| {
            problems.push(
                Problem::new(format!("`{}` has no private key: {error}", path.display()), place.clone())
                    .hint("a PEM file is asked for, with `-----BEGIN PRIVATE KEY-----`"),
            );
        })
        .ok()
}

/// Checks that a key belongs to a certificate.
fn fits(
    chain: &[Vec<u8>],
    key: &PrivateKeyDer<'_>,
    file: &(std::path::PathBuf, Place),
    problems: &mut Vec<Problem>,
) -> Option<()> {
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(chain, key.clone_key(), &provider) {
        Ok(_) => Some(()),
        Err(error) => {
            let (path, place) = file;
            let message = format!("`{}` is not the key of its certificate: {error}", path.display());
            problems.push(Problem::new(message, place.clone()).hint("`cert` and `key` are a pair: renew both"));
            None
        }
    }
}
