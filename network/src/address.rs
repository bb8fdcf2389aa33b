//! Reckoning with addresses and the networks that they are in.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::definition::Subnet;

/// An address of either kind as a number.
pub trait Address: Copy + Ord + Debug + Into<IpAddr> {
    /// Its length.
    const BITS: u8;

    /// As a number.
    fn number(self) -> u128;

    /// The address of a number; the highest for one that is too large.
    fn of(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;

    fn number(self) -> u128 {
        u32::from(self).into()
    }

    fn of(number: u128) -> Self {
        u32::try_from(number).unwrap_or(u32::MAX).into()
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;

    fn number(self) -> u128 {
        self.into()
    }

    fn of(number: u128) -> Self {
        number.into()
    }
}

/// The first and the last address of a network.
pub fn bounds<A: Address>(address: A, prefix: u8) -> (A, A) {
    let host_bits = u32::from(A::BITS.saturating_sub(prefix));
    // Shifting by all of the bits is not defined.
    let mask = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    let first = address.number() & !mask;
    (A::of(first), A::of(first | mask))
}

/// Whether two networks have an address in common.
pub fn overlap<A: Address>(one: (A, u8), other: (A, u8)) -> bool {
    let ((first, last), (other_first, other_last)) = (bounds(one.0, one.1), bounds(other.0, other.1));
    first <= other_last && other_first <= last
}

impl<A: Address> Subnet<A> {
    /// Whether the address is in it.
    pub fn contains(&self, address: A) -> bool {
        let (first, last) = bounds(self.address, self.prefix);
        (first..=last).contains(&address)
    }

    /// Whether a member can have the address.
    pub fn is_for_members(&self, address: A) -> bool {
        let (first, last) = bounds(self.address, self.prefix);
        self.contains(address) && ![first, last, self.gateway, self.resolver].contains(&address)
    }

    /// The first address that a member can have and nobody has; `None` where there is no more.
    pub fn first_free(&self, is_taken: impl Fn(A) -> bool) -> Option<A> {
        let (address, prefix) = self.range.unwrap_or((self.address, self.prefix));
        let (first, last) = bounds(address, prefix);
        (first.number()..=last.number())
            .map(A::of)
            .find(|address| self.is_for_members(*address) && !is_taken(*address))
    }
}

/// The hardware address of who has this address: locally administered, and as unique as the address is.
#[must_use]
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x72, a, b, c, d]
}

/// The address that an interface gives itself by its hardware address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    let join = |high: u16, low: u16| (high << 8) | low;
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        join(a ^ 2, b),
        join(c, 0xff),
        join(0xfe, d),
        join(e, f),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(prefix: u8, range: Option<(Ipv4Addr, u8)>) -> Subnet<Ipv4Addr> {
        Subnet {
            address: Ipv4Addr::new(10, 0, 0, 0),
            prefix,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            resolver: bounds(Ipv4Addr::new(10, 0, 0, 0), prefix)
                .1
                .number()
                .checked_sub(1)
                .map(Address::of)
                .unwrap(),
            range,
        }
    }

    #[test]
    fn networks_have_bounds() {
        let check = |address: &str, prefix, first: &str, last: &str| {
            let parse = |text: &str| text.parse::<Ipv4Addr>().unwrap();
            assert_eq!(bounds(parse(address), prefix), (parse(first), parse(last)));
        };
        check("10.1.2.3", 24, "10.1.2.0", "10.1.2.255");
        check("10.1.2.3", 32, "10.1.2.3", "10.1.2.3");
        check("10.1.2.3", 0, "0.0.0.0", "255.255.255.255");
        let (first, last) = bounds("fd00::5".parse::<Ipv6Addr>().unwrap(), 64);
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("fd00::".into(), "fd00::ffff:ffff:ffff:ffff".into())
        );
        assert_eq!(bounds(Ipv6Addr::LOCALHOST, 0).1, Ipv6Addr::from(u128::MAX));
    }

    #[test]
    fn networks_overlap_where_one_is_in_the_other() {
        let check = |one: &str, first, other: &str, second, expected| {
            let parse = |text: &str| text.parse::<Ipv4Addr>().unwrap();
            assert_eq!(overlap((parse(one), first), (parse(other), second)), expected);
            assert_eq!(overlap((parse(other), second), (parse(one), first)), expected);
        };
        check("10.0.0.0", 8, "10.5.0.0", 16, true);
        check("10.0.0.0", 24, "10.0.1.0", 24, false);
        check("0.0.0.0", 0, "192.168.0.0", 24, true);
    }

    #[test]
    fn members_get_what_nobody_has() {
        let first = |subnet: &Subnet<Ipv4Addr>, taken: &[[u8; 4]]| {
            let free = subnet.first_free(|address| taken.contains(&address.octets()));
            free.map(|address| address.octets())
        };
        assert_eq!(first(&subnet(24, None), &[]), Some([10, 0, 0, 2]));
        assert_eq!(first(&subnet(24, None), &[[10, 0, 0, 2]]), Some([10, 0, 0, 3]));
        let all: Vec<[u8; 4]> = (2..6).map(|last| [10, 0, 0, last]).collect();
        assert_eq!(first(&subnet(29, None), &all), None);
        let range = Some((Ipv4Addr::new(10, 0, 0, 128), 25));
        assert_eq!(first(&subnet(24, range), &[]), Some([10, 0, 0, 128]));
        for (last, fine) in [
            (0, false),
            (1, false),
            (2, true),
            (253, true),
            (254, false),
            (255, false),
        ] {
            let address = Ipv4Addr::new(10, 0, 0, last);
            assert_eq!(subnet(24, None).is_for_members(address), fine, "{address}");
        }
    }

    #[test]
    fn hardware_addresses_follow_addresses() {
        assert_eq!(mac_of(Ipv4Addr::new(10, 87, 0, 2)), [2, 0x72, 10, 87, 0, 2]);
        assert_eq!(
            link_local([2, 0x72, 10, 87, 0, 2]).to_string(),
            "fe80::72:aff:fe57:2"
        );
    }
}
