//! Ids of traces and of the spans in them: random, as the W3C's Trace Context wants them, and never
//! zero, which means that there is none. No secret hangs on them.

/// Bits of a trace id that say whether a share of all traces has it: the last 56, which are random
/// in all traces (Trace Context level 2, section 3.2.2.5).
const SHARE_BITS: u64 = (1 << 56) - 1;

/// Makes ids for one worker: SplitMix64 (Steele, Lea and Flood, 2014).
pub struct SpanIds(u64);

impl SpanIds {
    /// `seed` must differ between workers and between processes (random).
    pub fn new(seed: u64) -> SpanIds {
        SpanIds(seed)
    }

    /// The id of a trace that begins.
    pub fn trace_id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        for half in id.chunks_exact_mut(8) {
            half.copy_from_slice(&self.span_id());
        }
        id
    }

    /// The id of a span.
    pub fn span_id(&mut self) -> [u8; 8] {
        loop {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let mixed = mixed ^ (mixed >> 31);
            if mixed != 0 {
                return mixed.to_be_bytes();
            }
        }
    }
}

/// Whether a trace is one of such a share (0 to 1) of all. Everybody who asks for the same share
/// gets the same answer.
pub fn is_in_share(trace_id: &[u8; 16], share: f64) -> bool {
    let bits = trace_id.last_chunk().map_or(0, |last| u64::from_be_bytes(*last)) & SHARE_BITS;
    // In whole numbers: those of floating point would round the last ids up to all of the share.
    bits < (share * (SHARE_BITS + 1) as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: spans of which a receiver takes one for another.
    #[test]
    fn ids_are_distinct_and_never_zero() {
        let mut seen = std::collections::HashSet::new();
        for seed in [0, 1, u64::MAX] {
            let mut ids = SpanIds::new(seed);
            for _ in 0..3_000 {
                assert!(seen.insert(ids.span_id()));
                assert_ne!(ids.trace_id(), [0; 16]);
            }
        }
    }

    /// Catches: all traces or none where a share was asked for, and one that is off at its ends.
    #[test]
    fn a_share_is_one() {
        let mut ids = SpanIds::new(7);
        let all: Vec<_> = (0..10_000).map(|_| ids.trace_id()).collect();
        let count = |share: f64| all.iter().filter(|id| is_in_share(id, share)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((900..1_100).contains(&count(0.1)), "{}", count(0.1));
        assert!(is_in_share(&[0xff; 16], 1.0) && !is_in_share(&[0; 16], 0.0));
    }
}
