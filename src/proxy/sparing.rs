//! Log lines about single requests, sparingly: at most so many a second of one code, and then how
//! many more there were. An engine that is down would else fill the disk with its clients' errors.

use crate::base::limits::LOG_LINES_OF_A_CODE_MAX;
use std::time::{Duration, Instant};

/// A second, of which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// What one worker has logged in this second. It holds the few codes that failed in it.
#[derive(Debug, Default)]
pub struct Sparing {
    since: Option<Instant>,
    codes: Vec<(&'static str, u32)>,
}

impl Sparing {
    /// True when a line of this code may be written now; else it is counted.
    pub fn may_log(&mut self, code: &'static str, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let count = match self.codes.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => count,
            None => {
                self.codes.push((code, 0));
                let Some((_, count)) = self.codes.last_mut() else { return true };
                count
            }
        };
        *count = count.saturating_add(1);
        *count <= LOG_LINES_OF_A_CODE_MAX
    }

    /// Says what was held back once the second is over.
    pub fn sweep(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) >= WINDOW) {
            self.finish();
        }
    }

    /// Says what was held back so far.
    pub fn finish(&mut self) {
        self.since = None;
        for (code, more) in self.held_back() {
            tracing::warn!(code, more, "and so many more like this in the last second");
        }
    }

    /// True when nothing is to be said any more.
    pub fn is_settled(&self) -> bool {
        self.since.is_none()
    }

    fn held_back(&mut self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        let more = |(code, count)| (code, u32::saturating_sub(count, LOG_LINES_OF_A_CODE_MAX));
        self.codes.drain(..).map(more).filter(|(_, more)| *more > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a code that is silenced by another one's lines, lines that are neither written nor
    /// counted, and a second that never ends.
    #[test]
    fn each_code_has_its_lines_and_the_rest_is_counted() {
        let (mut sparing, start) = (Sparing::default(), Instant::now());
        let written =
            |sparing: &mut Sparing, code| (0..25).filter(|_| sparing.may_log(code, start)).count();
        let most = LOG_LINES_OF_A_CODE_MAX as usize;
        assert_eq!(written(&mut sparing, "connect_failed"), most);
        assert_eq!(written(&mut sparing, "backend_closed"), most);
        sparing.sweep(start + Duration::from_millis(999));
        assert!(!sparing.is_settled() && !sparing.may_log("connect_failed", start));
        let more: Vec<_> = sparing.held_back().collect();
        let rest = 25 - LOG_LINES_OF_A_CODE_MAX;
        assert_eq!(more, [("connect_failed", rest + 1), ("backend_closed", rest)]);
        sparing.sweep(start + Duration::from_secs(1));
        assert!(sparing.is_settled() && sparing.may_log("connect_failed", start));
        sparing.sweep(start + Duration::from_secs(1));
        assert!(sparing.held_back().next().is_none(), "one line is not held back");
    }
}
