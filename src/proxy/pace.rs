//! How fast a request body arrives. A client that sends a byte now and then would hold what it sent
//! before, however much that is, for as long as it likes; so the last seconds count, and not the
//! average.

use crate::base::limits::{BODY_RATE_BYTES_PER_S_MIN, BODY_RATE_WINDOW_S};

/// The window, and the second that is under way.
const SECONDS: usize = BODY_RATE_WINDOW_S as usize + 1;

/// What came in each of the last seconds.
#[derive(Default)]
pub struct Pace {
    bytes: [u32; SECONDS],
    now: u64,
    /// The second in which too little was first found.
    low_since: Option<u64>,
}

impl Pace {
    /// Notes bytes that came in a second (from 0, never before the last one). True when what came
    /// in the window is too little for a second time: a client that paused, which it may for
    /// `server.body_timeout`, has this long to go on.
    pub fn is_too_slow(&mut self, second: u64, bytes: usize) -> bool {
        let passed = (second.saturating_sub(self.now) as usize).min(SECONDS);
        for gone in 1..=passed {
            self.bytes[(self.now as usize + gone) % SECONDS] = 0;
        }
        self.now = second;
        let current = &mut self.bytes[second as usize % SECONDS];
        *current = current.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        let sum: u64 = self.bytes.iter().map(|bytes| u64::from(*bytes)).sum();
        if second < BODY_RATE_WINDOW_S || sum >= BODY_RATE_WINDOW_S * BODY_RATE_BYTES_PER_S_MIN {
            self.low_since = None;
            return false;
        }
        second > *self.low_since.get_or_insert(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The second in which a body of these pieces is cut.
    fn cut(pieces: impl IntoIterator<Item = (u64, usize)>) -> Option<u64> {
        let mut pace = Pace::default();
        pieces.into_iter().find(|(second, bytes)| pace.is_too_slow(*second, *bytes)).map(|p| p.0)
    }

    #[test]
    fn what_drips_is_cut_whatever_came_before() {
        let drip = |from| (from..from + 100).map(|second| (second, 1));
        assert_eq!(cut(drip(0)), Some(11));
        assert_eq!(cut([(0, 32 << 20)].into_iter().chain(drip(1))), Some(12));
        assert_eq!(cut([(0, 1), (29, 1), (58, 1)]), Some(58), "a byte within every timeout");
        assert_eq!(cut((0..100).map(|second| (second, 900))), Some(11));
    }

    #[test]
    fn what_flows_or_pauses_passes() {
        assert_eq!(cut((0..100).map(|second| (second, 1024))), None);
        assert_eq!(cut((0..10).map(|i| (i * 10, 10 * 1024))), None);
        // Behind a pause the first packet is small, and the next ones follow at once.
        let pause = [(0, 1 << 20), (25, 1400), (25, 1400), (25, 64 << 10), (26, 1), (27, 1)];
        assert_eq!(cut(pause), None);
    }

    proptest! {
        /// Catches: seconds that are forgotten too late or too soon, for any gaps.
        #[test]
        fn it_counts_the_window_and_nothing_else(
            pieces in proptest::collection::vec((0u64..25, 0usize..4000), 1..60),
        ) {
            let (mut pace, mut second, mut all) = (Pace::default(), 0, Vec::new());
            for (gap, bytes) in pieces {
                second += gap;
                all.push((second, bytes as u64));
                pace.is_too_slow(second, bytes);
                let recent = all.iter().filter(|(at, _)| at + SECONDS as u64 > second);
                let sum: u64 = pace.bytes.iter().map(|bytes| u64::from(*bytes)).sum();
                prop_assert_eq!(sum, recent.map(|(_, bytes)| bytes).sum::<u64>());
            }
        }
    }
}
