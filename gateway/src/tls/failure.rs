//! Why a handshake failed: a closed set, for metrics and logs.

use std::io;

use rustls::{Error, PeerIncompatible};

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident $kind:literal;)*) => {
        /// Why a handshake failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failure {
            $($(#[$doc])* $name,)*
        }

        impl Failure {
            /// All of them, in the order of their discriminants.
            pub const ALL: [Self; [$($kind),*].len()] = [$(Self::$name),*];

            /// Returns the word for logs and metrics.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$name => $kind,)* }
            }
        }
    };
}

failures! {
    /// It took too long.
    Timeout "timeout";
    /// The client went away.
    Closed "closed";
    /// What came is no TLS: plain HTTP, most of the time.
    NotTls "not_tls";
    /// No version of TLS in common.
    Version "version";
    /// No cipher suite, group or kind of signature in common.
    Cipher "cipher";
    /// No protocol in common.
    Alpn "alpn";
    /// The client has no certificate, and needs one.
    NoClientCertificate "no_client_certificate";
    /// The client's certificate is not valid, or not from an authority that is asked for.
    BadClientCertificate "bad_client_certificate";
    /// The client refused: our certificate, most of the time.
    Refused "refused";
    /// Something else that breaks the protocol.
    Broken "broken";
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            None => Self::Closed,
            Some(Error::InvalidMessage(_)) => Self::NotTls,
            Some(Error::PeerIncompatible(why)) => match why {
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic => Self::Version,
                _ => Self::Cipher,
            },
            Some(Error::NoApplicationProtocol) => Self::Alpn,
            Some(Error::NoCertificatesPresented) => Self::NoClientCertificate,
            Some(Error::InvalidCertificate(_)) => Self::BadClientCertificate,
            Some(Error::AlertReceived(_)) => Self::Refused,
            Some(_) => Self::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_its_own_and_stands_at_its_discriminant() {
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index);
            assert_eq!(Failure::ALL.iter().filter(|other| other.kind() == failure.kind()).count(), 1);
        }
    }

    #[test]
    fn what_rustls_says_is_told_apart_from_what_the_socket_says() {
        let of = |error: Error| Failure::from(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(of(Error::NoApplicationProtocol), Failure::Alpn);
        assert_eq!(of(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)), Failure::Version);
        assert_eq!(Failure::from(&io::ErrorKind::UnexpectedEof.into()), Failure::Closed);
    }
}
