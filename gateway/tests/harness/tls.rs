//! Certificates made for a test, and a client that speaks TLS with them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority, which exists for one test.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Issued {
    pub cert: String,
    pub key: String,
    der: CertificateDer<'static>,
    key_der: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate for hosts, valid now.
    pub fn issue(&self, hosts: &[&str]) -> Issued {
        self.issue_with(hosts, |_| {})
    }

    pub fn issue_with(&self, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            der: cert.der().clone(),
            key_der: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    /// Writes the authority's own certificate.
    pub fn write(&self, path: &Path) {
        replace(path, &self.pem);
    }

    /// A client that believes this authority only.
    pub fn client(&self) -> Client {
        Client { authority: self.der.clone(), alpn: vec!["h2", "http/1.1"], certificate: None, newest: true }
    }
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key` into a folder, as who renews certificates does.
    pub fn write(&self, folder: &Path, name: &str) {
        replace(&folder.join(format!("{name}.pem")), &self.cert);
        replace(&folder.join(format!("{name}.key")), &self.key);
    }
}

fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).expect("it can be written");
    std::fs::rename(temporary, path).expect("it can be renamed");
}

/// How a client comes.
pub struct Client {
    authority: CertificateDer<'static>,
    alpn: Vec<&'static str>,
    certificate: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    newest: bool,
}

/// A connection that speaks HTTP over TLS.
pub struct Connected {
    /// Names of the server's certificate.
    pub names: Vec<String>,
    /// The server's certificate.
    pub certificate: Vec<u8>,
    pub resumed: bool,
    sender: Sender,
    host: String,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub fn alpn(mut self, alpn: &[&'static str]) -> Self {
        self.alpn = alpn.to_vec();
        self
    }

    pub fn certificate(mut self, issued: &Issued) -> Self {
        self.certificate = Some((issued.der.clone(), issued.key_der.clone_key()));
        self
    }

    /// Speaks nothing newer than TLS 1.2.
    pub fn tls_1_2(mut self) -> Self {
        self.newest = false;
        self
    }

    /// The configuration, which keeps sessions to resume.
    pub fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).expect("an authority");
        let versions = if self.newest { rustls::ALL_VERSIONS } else { &[&rustls::version::TLS12] };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier: Arc<dyn ServerCertVerifier> = verifier.build().expect("a verifier");
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &self.certificate {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert.clone()], key.clone_key()).expect("a pair"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// The handshake alone.
    pub async fn handshake(&self, address: SocketAddr, host: &str) -> std::io::Result<TlsStream<TcpStream>> {
        handshake(self.config(), address, host).await
    }

    /// A connection for requests to a host.
    pub async fn connect(&self, address: SocketAddr, host: &str) -> Connected {
        self.try_connect(address, host).await.expect("a connection")
    }

    pub async fn try_connect(&self, address: SocketAddr, host: &str) -> std::io::Result<Connected> {
        Connected::over(self.handshake(address, host).await?, host).await
    }
}

pub async fn handshake(
    config: Arc<ClientConfig>,
    address: SocketAddr,
    host: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(host.to_owned()).expect("a host");
    TlsConnector::from(config).connect(name, stream).await
}

impl Connected {
    pub async fn over(stream: TlsStream<TcpStream>, host: &str) -> std::io::Result<Self> {
        let connection = stream.get_ref().1;
        let certificate = connection.peer_certificates().expect("a certificate")[0].to_vec();
        let resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let is_http2 = connection.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        let sender = if is_http2 {
            let (sender, driver) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(std::io::Error::other)?;
            tokio::spawn(driver);
            Sender::Http2(sender)
        } else {
            let (sender, driver) = http1::handshake(stream).await.map_err(std::io::Error::other)?;
            tokio::spawn(driver);
            Sender::Http1(sender)
        };
        Ok(Self { names: names_in(&certificate), certificate, resumed, sender, host: host.to_owned() })
    }

    pub async fn get(&mut self, path: &str) -> hyper::Result<super::Reply> {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&mut self, path: &str, headers: &[(&str, &str)]) -> hyper::Result<super::Reply> {
        let request = |target: String| {
            let mut request = Request::get(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request
        };
        let response: Response<hyper::body::Incoming> = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                let request = request(path.to_owned()).header("host", &self.host).body(Full::default());
                sender.send_request(request.expect("a request")).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                let request = request(format!("https://{}{path}", self.host)).body(Full::default());
                sender.send_request(request.expect("a request")).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        Ok(super::Reply { status: parts.status, headers: parts.headers, body })
    }

    /// The trailers of a response; only HTTP/2 has them.
    pub async fn trailers(&mut self, path: &str) -> hyper::HeaderMap {
        let Sender::Http2(sender) = &mut self.sender else { panic!("not HTTP/2") };
        sender.ready().await.expect("a connection");
        let request = Request::post(format!("https://{}{path}", self.host)).header("te", "trailers");
        let response = sender.send_request(request.body(Full::default()).expect("a request")).await.expect("an answer");
        let body = response.into_body().collect().await.expect("the body ends");
        body.trailers().cloned().unwrap_or_default()
    }

    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }
}

/// The hosts that a certificate names.
fn names_in(der: &[u8]) -> Vec<String> {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

    let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
    let alternative = certificate.subject_alternative_name().expect("it can be read").map(|found| found.value);
    let names = alternative.map(|names| &names.general_names[..]).unwrap_or_default().iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}
