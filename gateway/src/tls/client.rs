//! Who a client is, by its certificate. Read once a connection, when the handshake has verified it.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderValue;
use lockgate_host::Digest;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// Who a client is, by a certificate that was verified.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `CN=reports, O=Example`
    pub subject: String,
    /// The alternative names: `DNS:a.example.com`, `URI:spiffe://example.com/a`, `email:a@example.com`, `IP:192.0.2.1`.
    pub names: Vec<String>,
    /// The same for whoever reads it behind us, in the form that Envoy gave `x-forwarded-client-cert`.
    pub header: HeaderValue,
}

impl Identity {
    /// Reads a certificate; none if it cannot be read, which the verifier rules out.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject().to_string();
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let alternative = alternative.map_or(&[][..], |extension| &extension.value.general_names);
        let mut header = format!("Hash={:#};Subject={}", Digest::of(der), quoted(&subject));
        let mut names = Vec::with_capacity(alternative.len());
        for name in alternative {
            match name {
                GeneralName::DNSName(name) => {
                    names.push(format!("DNS:{name}"));
                    // A write to a text does not fail.
                    let _ = write!(header, ";DNS={}", quoted(name));
                }
                GeneralName::URI(name) => {
                    names.push(format!("URI:{name}"));
                    let _ = write!(header, ";URI={}", quoted(name));
                }
                GeneralName::RFC822Name(name) => names.push(format!("email:{name}")),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes).map(|address| format!("IP:{address}"))),
                _ => {}
            }
        }
        Some(Self { subject, names, header: HeaderValue::try_from(header).ok()? })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Quotes a value, so that nothing in it is taken for the next field; what no header can hold becomes a question mark.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_name_in_a_certificate_cannot_end_its_field() {
        let mut params = CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "eve\";DNS=\"admin.example.com\r\nx: y");
        params.subject_alt_names.push(SanType::URI("spiffe://example.com/a".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap();
        let identity = Identity::of(der.der()).unwrap();
        assert_eq!(identity.names, ["DNS:a.example.com", "URI:spiffe://example.com/a", "IP:192.0.2.1"]);
        let header = identity.header.to_str().unwrap();
        assert!(header.contains(r#"eve\";DNS=\"admin.example.com??x: y"#), "{header}");
        assert!(header.ends_with(r#";DNS="a.example.com";URI="spiffe://example.com/a""#), "{header}");
        assert!(header.starts_with("Hash=") && header.as_bytes()[69] == b';', "{header}");
    }
}
