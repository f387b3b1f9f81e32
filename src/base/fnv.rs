//! FNV-1a (Fowler, Noll, Vo), 64 bits: a hash that is the same in each process and version. For
//! what nobody chooses so that hashes are equal, or gains nothing by.

/// The hash of these bytes.
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    /// Catches: names of records in a spool that another version does not find.
    #[test]
    fn it_is_the_published_one() {
        let of = |text: &str| super::hash(text.bytes());
        assert_eq!(of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(of("foobar"), 0x8594_4171_f739_67e8);
    }
}
