//! Request ids: ours is unique, printable and cheap; a client's own is kept when it is harmless.

use super::word::hex;
use std::fmt;

/// Bytes that may stand in an id: `[A-Za-z0-9._-]`. A table, since the ids of each record that is
/// read are looked at.
const FINE: [bool; 256] = {
    let mut fine = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let is_mark = matches!(byte as u8, b'.' | b'_' | b'-');
        fine[byte] = is_mark || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    fine
};

/// Bytes of the longest id that is kept.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// The id of one request, at most [`REQUEST_ID_BYTES_MAX`] bytes of `[A-Za-z0-9._-]`. One
/// goes to the client and the engine as `x-request-id`; the key of the usage record is always ours.
///
/// Aligned to words, in which [`RequestId::as_str`] looks at it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(align(8))]
pub struct RequestId {
    bytes: [u8; REQUEST_ID_BYTES_MAX],
    len: u8,
}

impl RequestId {
    /// Takes over a client's id; `None` when it is empty, too long or has other characters.
    pub fn from_client(value: &[u8]) -> Option<Self> {
        if !RequestId::is_one(value) {
            return None;
        }
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        bytes[..value.len()].copy_from_slice(value);
        Some(RequestId { bytes, len: value.len() as u8 })
    }

    /// True for bytes that [`RequestId::from_client`] takes over.
    pub fn is_one(value: &[u8]) -> bool {
        !value.is_empty()
            && value.len() <= REQUEST_ID_BYTES_MAX
            && value.iter().all(|byte| FINE[usize::from(*byte)])
    }

    /// The id as bytes, without a look at what they are.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
}

impl Default for RequestId {
    /// No id.
    fn default() -> Self {
        RequestId { bytes: [0; REQUEST_ID_BYTES_MAX], len: 0 }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes ids for one worker: 32 hexadecimal digits, of which 64 bits are random per process and
/// worker and 64 bits are a counter, so that no two are ever equal.
///
/// They come in order: every table of records has an index of them, where ids in a random order
/// would touch (and write) another page for each.
pub struct RequestIds {
    prefix: u64,
    counter: u64,
}

impl RequestIds {
    /// `seed` must differ between workers and between processes (random).
    pub fn new(seed: u64) -> Self {
        RequestIds { prefix: seed, counter: 0 }
    }

    /// True for an id that this has made, or may yet make.
    pub fn made(&self, id: &[u8]) -> bool {
        id.len() == 32 && id.starts_with(&hex(self.prefix))
    }

    /// The next id.
    pub fn next_id(&mut self) -> RequestId {
        self.counter = self.counter.wrapping_add(1);
        // It does not begin at zero: an id is not to look like the number of a request.
        let number = self.counter.wrapping_add(self.prefix.rotate_left(32));
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        for (digits, word) in bytes.chunks_exact_mut(16).zip([self.prefix, number]) {
            digits.copy_from_slice(&hex(word));
        }
        RequestId { bytes, len: 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_printable() {
        let mut ids = RequestIds::new(7);
        let mut seen = std::collections::HashSet::new();
        let mut last = String::new();
        for _ in 0..10_000 {
            let id = ids.next_id();
            assert!(last.as_str() < id.as_str(), "an index wants them in order");
            last = id.as_str().to_owned();
            assert_eq!(id.as_str().len(), 32);
            assert!(RequestId::from_client(id.as_str().as_bytes()).is_some());
            assert!(seen.insert(id.as_str().to_owned()));
            assert!(ids.made(id.as_str().as_bytes()));
        }
        assert!(!ids.made(RequestIds::new(8).next_id().as_str().as_bytes()));
        assert!(!ids.made(b"0000000000000007"));
    }

    #[test]
    fn a_client_id_that_could_harm_a_header_or_a_log_is_not_kept() {
        for bad in ["", "a b", "a\r\nb", "x\"y", &"a".repeat(65)] {
            assert_eq!(RequestId::from_client(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(RequestId::from_client(b"req-1.A_b").unwrap().as_str(), "req-1.A_b");
    }
}
