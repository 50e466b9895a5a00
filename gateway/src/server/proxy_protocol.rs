//! The PROXY protocol: a header before the first byte of a connection in which a proxy in front says who the client is.
//! Versions 1 and 2. Nothing behind the header is taken from the socket, so that TLS and HTTP begin where they should.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use rustix::net::{RecvFlags, recv};

use super::transport::Raw;

/// Bytes of a header: those of version 2 may carry what else the proxy knows. 536 always arrive in one packet; we have
/// not seen a quarter of this.
const HEADER_BYTES_MAX: usize = 4096;

/// Reads the header, and returns the client's address; none where the proxy speaks for itself.
///
/// # Errors
/// There is no such header, or the connection ends. The caller sets the deadline.
pub(super) async fn read(stream: &Raw) -> io::Result<Option<SocketAddr>> {
    stream
        .when_readable(|socket| {
            let mut seen = [0; HEADER_BYTES_MAX];
            let (_, count) = recv(socket, &mut seen[..], RecvFlags::PEEK)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some((length, client)) = parse(&seen[..count])? else {
                // What is there stays, and more of it wakes us.
                let full = count == HEADER_BYTES_MAX;
                return Err(if full { io::ErrorKind::InvalidData } else { io::ErrorKind::WouldBlock }.into());
            };
            let (_, taken) = recv(socket, &mut seen[..length], RecvFlags::empty())?;
            if taken == length { Ok(client) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
        .await
}

/// Returns the header's length and the address in it; none while it is not whole.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, Option<SocketAddr>)>> {
    let parsed = HeaderResult::parse(bytes);
    if parsed.is_incomplete() {
        return Ok(None);
    }
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    Ok(Some(match parsed {
        HeaderResult::V1(header) => {
            let header = header.map_err(|_| invalid())?;
            let client = match header.addresses {
                v1::Addresses::Tcp4(of) => Some((of.source_address, of.source_port).into()),
                v1::Addresses::Tcp6(of) => Some((of.source_address, of.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            (header.header.len(), client)
        }
        HeaderResult::V2(header) => {
            let header = header.map_err(|_| invalid())?;
            let client = match (header.command, header.addresses) {
                // A health check of the proxy's own.
                (v2::Command::Local, _) => None,
                (v2::Command::Proxy, v2::Addresses::IPv4(of)) => Some((of.source_address, of.source_port).into()),
                (v2::Command::Proxy, v2::Addresses::IPv6(of)) => Some((of.source_address, of.source_port).into()),
                (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
            };
            (header.as_bytes().len(), client)
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: &[u8]) -> Option<(usize, Option<String>)> {
        let (length, client) = parse(bytes).unwrap()?;
        Some((length, client.map(|client| client.to_string())))
    }

    #[test]
    fn both_versions_say_who_the_client_is_and_where_they_end() {
        let text = b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(client(text), Some((40, Some("192.0.2.1:4711".into()))));
        let text = b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n";
        assert_eq!(client(text), Some((text.len(), Some("[2001:db8::1]:4711".into()))));
        assert_eq!(client(b"PROXY UNKNOWN\r\nGET"), Some((15, None)));
        let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        binary.extend([192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 1, 187]);
        for cut in 0..binary.len() {
            assert!(cut == 0 || client(&binary[..cut]).is_none(), "{cut}");
        }
        binary.extend(b"GET /");
        assert_eq!(client(&binary), Some((28, Some("192.0.2.1:4711".into()))));
        binary[12] = 0x20;
        assert_eq!(client(&binary), Some((28, None)));
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", b"PROXY UDP4 a\r\n"]
        {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
