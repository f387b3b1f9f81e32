//! What is counted under which id. An id is half a digest, and no key can be read from it.

use crate::keys::digest::KeyDigest;
use std::net::IpAddr;

/// What ids of different scopes are told apart by.
const SALTS: [u128; 4] = [
    0x3c6e_f372_fe94_f82b_a54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1_9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b_5be0_cd19_137e_2179,
    0xcbbb_9d5d_c105_9ed8_629a_292a_367c_d507,
];
const ADDRESS: u128 = 0x9159_015a_3070_dd17_152f_ecd8_f70e_5939;

/// All requests together.
pub const GLOBAL: u128 = SALTS[0];

/// What a key counts under.
pub fn of_key(digest: &KeyDigest) -> u128 {
    digest.id() ^ SALTS[1]
}

/// What a user counts under.
pub fn of_user(user: &str) -> u128 {
    KeyDigest::of(user.as_bytes()).id() ^ SALTS[2]
}

/// What an address counts under. Of IPv6 it is the network of 64 bits: a machine has all of it.
pub fn of_address(address: IpAddr) -> u128 {
    let bits = match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
    };
    // Spread, as the upper half tells most of the ids apart.
    bits.wrapping_mul(ADDRESS | 1).rotate_left(64) ^ ADDRESS
}

/// What a group of models counts under.
pub fn of_model(pattern: &str) -> u128 {
    KeyDigest::of(pattern.as_bytes()).id() ^ SALTS[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: scopes, addresses or networks that count as one and are not, or the reverse.
    #[test]
    fn ids_tell_apart_what_is_not_the_same() {
        let address = |text: &str| of_address(text.parse().unwrap());
        assert_eq!(address("10.0.0.1"), address("::ffff:10.0.0.1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
        assert_ne!(of_key(&KeyDigest::of(b"a")), of_user("a"));
        // The upper halves of neighbours are not the same: the table goes by them.
        let halves: std::collections::HashSet<_> =
            (0..=255u8).map(|n| of_address(IpAddr::from([10, 0, 0, n])) >> 64).collect();
        assert_eq!(halves.len(), 256);
    }
}
