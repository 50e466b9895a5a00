//! Which addresses are public. What is not (this machine, the networks behind it, the metadata service of a cloud) is
//! reached only where a grant lists it: a guest that is made to fetch what a client names must not become a way in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Networks of version 4 that are not public: first address, bits, and what they are.
const SPECIAL_V4: [([u8; 4], u32, &str); 18] = [
    ([0, 0, 0, 0], 8, "an unspecified"),
    ([10, 0, 0, 0], 8, "a private"),
    ([100, 64, 0, 0], 10, "a carrier's shared"),
    ([127, 0, 0, 0], 8, "a loopback"),
    // Azure's, the one metadata service at an address that looks public; the others are link-local.
    ([168, 63, 129, 16], 32, "a metadata"),
    ([169, 254, 169, 254], 32, "a metadata"),
    ([169, 254, 0, 0], 16, "a link-local"),
    ([172, 16, 0, 0], 12, "a private"),
    ([192, 0, 0, 0], 24, "a reserved"),
    ([192, 0, 2, 0], 24, "a documentation"),
    ([192, 88, 99, 0], 24, "a reserved"),
    ([192, 168, 0, 0], 16, "a private"),
    ([198, 18, 0, 0], 15, "a benchmarking"),
    ([198, 51, 100, 0], 24, "a documentation"),
    ([203, 0, 113, 0], 24, "a documentation"),
    ([224, 0, 0, 0], 4, "a multicast"),
    ([255, 255, 255, 255], 32, "a broadcast"),
    ([240, 0, 0, 0], 4, "a reserved"),
];

/// Networks of version 6 that are not public.
const SPECIAL_V6: [([u16; 8], u32, &str); 15] = [
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, "an unspecified"),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, "a loopback"),
    ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "an IPv4-mapped"),
    ([0, 0, 0, 0, 0, 0, 0, 0], 96, "an IPv4-compatible"),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "a private"),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "a discarding"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "a tunnelled"),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "a documentation"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "a documentation"),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "a reserved"),
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, "a metadata"),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "a unique-local"),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "a link-local"),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "a private"),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "a multicast"),
];

/// Returns what an address is that is not public, with its article: `a loopback`.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let is_in = |first: [u8; 4], bits: u32| (address.to_bits() ^ Ipv4Addr::from(first).to_bits()) >> (32 - bits) == 0;
    SPECIAL_V4.iter().find(|(first, bits, _)| is_in(*first, *bits)).map(|(.., what)| *what)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let is_in = |first: [u16; 8], bits: u32| (address.to_bits() ^ Ipv6Addr::from(first).to_bits()) >> (128 - bits) == 0;
    let known = SPECIAL_V6.iter().find(|(first, bits, _)| is_in(*first, *bits)).map(|(.., what)| *what);
    known.or_else(|| embedded(address).and_then(special_v4))
}

/// Returns the address of version 4 that one of version 6 leads to: by NAT64, or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// Returns whether a grant lists an address. One that is mapped is listed as the address of version 4 that it stands for.
pub(super) fn is_listed(allowed: &[IpNet], address: IpAddr) -> bool {
    let canonical = address.to_canonical();
    allowed.iter().any(|network| network.contains(&address) || network.contains(&canonical))
}

/// Checks an address that a request is about to go to.
///
/// # Errors
///
/// It is not public, and not listed; what it is.
pub(super) fn check(allowed: &[IpNet], address: IpAddr) -> Result<(), &'static str> {
    match special(address) {
        Some(what) if !is_listed(allowed, address) => Err(what),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_known_for_what_it_is() {
        for (address, expected) in [
            ("1.1.1.1", None),
            ("9.255.255.255", None),
            ("10.0.0.0", Some("a private")),
            ("10.255.255.255", Some("a private")),
            ("11.0.0.0", None),
            ("100.63.255.255", None),
            ("100.64.0.0", Some("a carrier's shared")),
            ("100.100.100.200", Some("a carrier's shared")),
            ("100.128.0.0", None),
            ("0.0.0.0", Some("an unspecified")),
            ("127.0.0.1", Some("a loopback")),
            ("127.255.255.254", Some("a loopback")),
            ("168.63.129.16", Some("a metadata")),
            ("168.63.129.17", None),
            ("169.254.169.254", Some("a metadata")),
            ("169.254.1.1", Some("a link-local")),
            ("172.15.255.255", None),
            ("172.16.0.1", Some("a private")),
            ("172.31.255.255", Some("a private")),
            ("172.32.0.0", None),
            ("192.0.0.192", Some("a reserved")),
            ("192.168.1.1", Some("a private")),
            ("198.19.255.255", Some("a benchmarking")),
            ("224.0.0.1", Some("a multicast")),
            ("240.0.0.1", Some("a reserved")),
            ("255.255.255.255", Some("a broadcast")),
            ("::", Some("an unspecified")),
            ("::1", Some("a loopback")),
            ("::2", Some("an IPv4-compatible")),
            ("::7f00:1", Some("an IPv4-compatible")),
            ("::ffff:127.0.0.1", Some("an IPv4-mapped")),
            ("::ffff:1.1.1.1", Some("an IPv4-mapped")),
            ("64:ff9b::1.1.1.1", None),
            ("64:ff9b::10.0.0.1", Some("a private")),
            ("64:ff9b:1::1", Some("a private")),
            ("2002:7f00:1::", Some("a loopback")),
            ("2002:101:101::", None),
            ("2001::1", Some("a tunnelled")),
            ("2001:db8::1", Some("a documentation")),
            ("2606:4700::1111", None),
            ("fd00:ec2::254", Some("a metadata")),
            ("fc00::1", Some("a unique-local")),
            ("fdff::1", Some("a unique-local")),
            ("fe80::1", Some("a link-local")),
            ("febf::1", Some("a link-local")),
            ("ff02::1", Some("a multicast")),
        ] {
            assert_eq!(special(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_grant_lists_what_it_reaches_beyond_the_public() {
        let allowed: Vec<IpNet> = ["127.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).into();
        for (address, reached) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("fd00::7", true),
            ("1.1.1.1", true),
            ("::1", false),
            ("10.0.0.1", false),
            ("169.254.169.254", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(check(&allowed, address.parse().unwrap()).is_ok(), reached, "{address}");
        }
    }
}
