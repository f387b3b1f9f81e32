//! How fast a request body arrives. A client that sends a byte now and then would hold what it sent
//! before, however much that is, for as long as it likes; so the last seconds count, and not the
//! average.

use crate::base::limits::{
    BODY_RATE_BYTES_PER_S_MIN, BODY_RATE_WINDOW_S, SCARCE_HELD_S_MAX, SCARCE_RATE_BYTES_PER_S_MIN,
    SCARCE_RATE_WINDOW_S,
};

/// The window, and the second that is under way.
const SECONDS: usize = BODY_RATE_WINDOW_S as usize + 1;
const _: () = assert!(SCARCE_RATE_WINDOW_S <= BODY_RATE_WINDOW_S);

/// What came in each of the last seconds.
#[derive(Default)]
pub struct Pace {
    /// Bytes that the body holds beside the client's inbox.
    pub beside: usize,
    bytes: [u32; SECONDS],
    now: u64,
    /// The second in which too little was first found.
    low_since: Option<u64>,
}

impl Pace {
    /// Notes bytes that came in a second of the body (from 0, never before the last one), or that
    /// none did.
    pub fn note(&mut self, second: u64, bytes: usize) {
        let passed = (second.saturating_sub(self.now) as usize).min(SECONDS);
        for gone in 1..=passed {
            self.bytes[(self.now as usize + gone) % SECONDS] = 0;
        }
        self.now = second;
        let current = &mut self.bytes[second as usize % SECONDS];
        *current = current.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// To be asked when bytes came. True when what came in the window is too little for a second
    /// time: a client that paused, which it may for `server.body_timeout`, has this long to go on.
    pub fn is_too_slow(&mut self) -> bool {
        let enough = BODY_RATE_WINDOW_S * BODY_RATE_BYTES_PER_S_MIN;
        if self.now < BODY_RATE_WINDOW_S || self.last(BODY_RATE_WINDOW_S) >= enough {
            self.low_since = None;
            return false;
        }
        self.now > *self.low_since.get_or_insert(self.now)
    }

    /// While bytes or connections are scarce: true when a body that holds so many bytes comes so
    /// slowly, or pauses, that others should have them.
    pub fn is_too_slow_for(&self, held: usize) -> bool {
        let per_s = SCARCE_RATE_BYTES_PER_S_MIN.max(held as u64 / SCARCE_HELD_S_MAX);
        let is_judged = self.now >= SCARCE_RATE_WINDOW_S;
        is_judged && self.last(SCARCE_RATE_WINDOW_S) < SCARCE_RATE_WINDOW_S * per_s
    }

    /// Bytes that came in the last seconds, the one under way beside them.
    fn last(&self, seconds: u64) -> u64 {
        let of = |ago| u64::from(self.bytes[self.now.saturating_sub(ago) as usize % SECONDS]);
        (0..=seconds.min(self.now)).map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The second in which a body of these pieces is cut.
    fn cut(pieces: impl IntoIterator<Item = (u64, usize)>) -> Option<u64> {
        let mut pace = Pace::default();
        let mut is_cut = |(second, bytes): &(u64, usize)| {
            pace.note(*second, *bytes);
            pace.is_too_slow()
        };
        pieces.into_iter().find(|piece| is_cut(piece)).map(|piece| piece.0)
    }

    /// The same while bytes are scarce, of a body that holds so much.
    fn cut_when_scarce(held: usize, pieces: impl IntoIterator<Item = (u64, usize)>) -> Option<u64> {
        let mut pace = Pace::default();
        let mut is_cut = |(second, bytes): &(u64, usize)| {
            pace.note(*second, *bytes);
            pace.is_too_slow_for(held)
        };
        pieces.into_iter().find(|piece| is_cut(piece)).map(|piece| piece.0)
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

    #[test]
    fn when_bytes_are_scarce_who_holds_more_must_come_faster() {
        let steady = |bytes| (0..100).map(move |second| (second, bytes));
        assert_eq!(cut_when_scarce(32 << 20, [(0, 31 << 20), (3, 0), (4, 0)]), Some(4));
        assert_eq!(cut_when_scarce(32 << 20, steady(800_000)), Some(3));
        assert_eq!(cut_when_scarce(32 << 20, steady(1_200_000)), None);
        assert_eq!(cut_when_scarce(64 << 10, steady(17 << 10)), None);
        assert_eq!(cut_when_scarce(64 << 10, steady(11 << 10)), Some(3));
        assert_eq!(cut_when_scarce(16 << 10, [(0, 10), (1, 0), (2, 0)]), None, "it has just begun");
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
                pace.note(second, bytes);
                for window in [SCARCE_RATE_WINDOW_S, BODY_RATE_WINDOW_S] {
                    let recent = all.iter().filter(|(at, _)| at + window >= second);
                    prop_assert_eq!(pace.last(window), recent.map(|(_, bytes)| bytes).sum::<u64>());
                }
            }
        }
    }
}
