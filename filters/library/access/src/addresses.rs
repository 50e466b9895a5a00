//! A set of IP addresses, from CIDRs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses as ranges that are sorted and do not touch: one binary search, however many CIDRs there were.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Addresses {
    /// Reads CIDRs and single addresses; `problem` gets the index of each that is neither.
    pub(crate) fn read(entries: &[String], problem: &mut dyn FnMut(usize, String)) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            match parse(entry) {
                Ok(Range::V4(first, last)) => v4.push((first, last)),
                Ok(Range::V6(first, last)) => v6.push((first, last)),
                Err(text) => problem(index, text),
            }
        }
        Self {
            v4: merge(v4, |last, first| last >= first.saturating_sub(1)),
            v6: merge(v6, |last, first| last >= first.saturating_sub(1)),
        }
    }

    /// Tells whether the address is in the set. One mapped to IPv6 is the IPv4 address that it stands for.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => within(&self.v6, address.to_bits()),
        }
    }
}

#[derive(Debug)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

fn parse(entry: &str) -> Result<Range, String> {
    let neither = || format!("`{entry}` is neither an address nor a CIDR");
    let (address, prefix) = match entry.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (entry, None),
    };
    let address: IpAddr = address.parse().map_err(|_| neither())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => bits_max,
        // `u32`'s own parser takes a sign.
        Some(prefix) if !prefix.bytes().all(|byte| byte.is_ascii_digit()) => return Err(neither()),
        Some(prefix) => match prefix.parse() {
            Ok(bits) if bits <= bits_max => bits,
            _ => {
                return Err(format!("`{entry}` has a prefix of more than {bits_max} bits"));
            }
        },
    };
    let too_long = |network: IpAddr| {
        format!("`{entry}` has bits set past its prefix: write `{network}/{prefix}`, or `{address}` for one address")
    };
    match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
            let first = address.to_bits() & !host;
            if first != address.to_bits() {
                return Err(too_long(Ipv4Addr::from_bits(first).into()));
            }
            Ok(Range::V4(first, first | host))
        }
        IpAddr::V6(address) => {
            if let (Some(v4), 96..) = (address.to_ipv4_mapped(), prefix) {
                return Err(format!("`{entry}` is an IPv4 address in IPv6 form: write `{v4}/{}`", prefix - 96));
            }
            let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
            let first = address.to_bits() & !host;
            if first != address.to_bits() {
                return Err(too_long(Ipv6Addr::from_bits(first).into()));
            }
            Ok(Range::V6(first, first | host))
        }
    }
}

/// Sorts ranges and joins those that overlap or touch.
fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>, touch: impl Fn(T, T) -> bool) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if touch(previous.1, first) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= address);
    after > 0 && ranges[after - 1].1 >= address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(entries: &[&str]) -> Addresses {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        Addresses::read(&entries, &mut |index, problem| panic!("{index}: {problem}"))
    }

    fn problem(entry: &str) -> String {
        parse(entry).expect_err("not a CIDR")
    }

    #[test]
    fn ranges_hold_their_first_and_last_address_and_no_other() {
        let set = addresses(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"]);
        let contain = |address: &str| set.contain(address.parse().expect("an address"));
        for inside in
            ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "::1"]
        {
            assert!(contain(inside), "{inside}");
        }
        for outside in
            ["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "2001:db7:ffff::", "2001:db9::", "::2", "::"]
        {
            assert!(!contain(outside), "{outside}");
        }
    }

    #[test]
    fn everything_is_a_range_too() {
        let set = addresses(&["0.0.0.0/0", "::/0"]);
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(set.contain(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_form_is_the_ipv4_address() {
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        assert!(addresses(&["10.0.0.0/8"]).contain(mapped));
        assert!(!addresses(&["::/0"]).contain(mapped));
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        let set = addresses(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.5", "10.0.3.0/24"]);
        assert_eq!(set.v4, [(0x0a00_0000, 0x0a00_01ff), (0x0a00_0300, 0x0a00_03ff)]);
    }

    #[test]
    fn an_overlapping_wide_range_is_not_cut_by_a_narrow_one() {
        let set = addresses(&["10.0.0.0/8", "10.0.0.0/24"]);
        assert!(set.contain("10.200.0.1".parse().expect("an address")));
    }

    #[test]
    fn what_is_no_cidr_is_refused_with_a_reason() {
        assert_eq!(problem("localhost"), "`localhost` is neither an address nor a CIDR");
        assert_eq!(problem("10.0.0.0/+8"), "`10.0.0.0/+8` is neither an address nor a CIDR");
        assert_eq!(problem("10.0.0.0/33"), "`10.0.0.0/33` has a prefix of more than 32 bits");
        assert_eq!(problem("::/129"), "`::/129` has a prefix of more than 128 bits");
        assert_eq!(
            problem("2001:db8::1/32"),
            "`2001:db8::1/32` has bits set past its prefix: write `2001:db8::/32`, or `2001:db8::1` for one address"
        );
        assert_eq!(
            problem("::ffff:10.0.0.0/104"),
            "`::ffff:10.0.0.0/104` is an IPv4 address in IPv6 form: write `10.0.0.0/8`"
        );
    }
}
