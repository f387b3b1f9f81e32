//! Other values as JSON on one line, by a serialiser: entries of the access log, and the letters
//! around records that nobody took. (Records themselves are written by [`json`](super::json).)

use crate::base::line;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Line ends that stood where none can: each would be a fault of this program.
static MENDED: AtomicU64 = AtomicU64::new(0);

/// How often a line end was found inside such a line since the start, and taken out.
pub fn mended() -> u64 {
    MENDED.load(Relaxed)
}

/// A value as JSON without a line end, in any reader's sense of the word.
pub fn json_of(value: &impl Serialize) -> Vec<u8> {
    // Nothing in a record can fail to serialise: strings, numbers and checked raw JSON.
    one_line(serde_json::to_vec(value).unwrap_or_default())
}

/// The same as a line, with its end.
pub fn line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = json_of(value);
    line.push(b'\n');
    line
}

/// A line end outside of a string is none that the serialisers write: it is counted.
fn one_line(json: Vec<u8>) -> Vec<u8> {
    let (line, taken_out) = line::one_line(json);
    MENDED.fetch_add(taken_out, Relaxed);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a line end that a serialiser let through and that nobody takes out or counts.
    #[test]
    fn a_line_end_that_cannot_be_there_is_taken_out() {
        let before = mended();
        assert_eq!(one_line(b"{\n\"a\":\r1}".to_vec()), b"{ \"a\": 1}");
        assert!(mended() >= before + 2);
    }
}
