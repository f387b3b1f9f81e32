//! The bytes of an entry in a ring.
//!
//! | bytes | |
//! |---|---|
//! | 4 | CRC32C of all that follows |
//! | 4 | length of the payload |
//! | 8 | its position: bytes that were put into the ring before it, ever |
//! | 4 | which open it ends: an eighth of that one's position; all ones for none |
//! | 1 | kind; all ones for the end of a lap |
//! | 3 | zero |
//! | | payload, and zeros up to a multiple of 8 |
//!
//! All numbers are little endian. An entry lies in one piece: what does not fit behind the last one
//! begins the next lap, and an entry that says so ends this one, unless there is not even room for
//! that. The position is the entry's sequence number, and tells it from what stood at this place
//! a lap before.

/// Bytes of an entry without its payload.
pub const HEADER_BYTES: usize = 24;
/// Of these, the checksum.
const CRC_BYTES: usize = 4;
/// An entry begins at a multiple of so many bytes.
pub const ALIGN: usize = 8;
/// Names no open.
pub const NO_OPEN: u32 = u32::MAX;
/// The kind of what ends a lap.
const WRAP: u8 = u8::MAX;

/// Which entry at `position` it is, where an end names its beginning. Such names come again after
/// 32 GiB: who is named must be asked whether it is.
pub fn name_of(position: u64) -> u32 {
    (position / ALIGN as u64) as u32
}

/// Bytes of an entry with so many of payload.
pub fn size(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(ALIGN)
}

/// A draft with this payload.
#[cfg(test)]
pub fn draft(payload: &[u8]) -> Vec<u8> {
    let mut draft = Vec::new();
    begin(&mut draft);
    draft.extend_from_slice(payload);
    draft
}

/// What an entry says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where it stands.
    pub position: u64,
    /// [`name_of`] the open that it ends, or [`NO_OPEN`].
    pub open: u32,
    /// What it is, as the spool numbers it.
    pub kind: u8,
}

impl Header {
    /// What ends a lap at this position.
    pub fn wrap(position: u64) -> Header {
        Header { position, open: NO_OPEN, kind: WRAP }
    }

    /// Its bytes in front of so many of payload, all but the checksum, which is zero.
    fn to_bytes(self, length: usize) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        // Whoever pushes keeps to what a ring takes, which fits into four bytes.
        bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.open.to_le_bytes());
        bytes[20] = self.kind;
        bytes
    }

    /// Puts it into the room that [`begin`] left in front of the payload, of which a last part may
    /// lie elsewhere.
    pub fn seal(self, draft: &mut [u8], last: &[u8]) {
        let length = draft.len().saturating_sub(HEADER_BYTES) + last.len();
        let Some(header) = draft.first_chunk_mut::<HEADER_BYTES>() else { return };
        *header = self.to_bytes(length);
        // In one go: for bytes as few as these it is the calls that cost.
        let crc = crc32c::crc32c(draft.get(CRC_BYTES..).unwrap_or_default());
        let crc = if last.is_empty() { crc } else { crc32c::crc32c_append(crc, last) };
        if let Some(place) = draft.first_chunk_mut() {
            *place = crc.to_le_bytes();
        }
    }
}

/// Makes room for a header, behind which the payload is to be put.
pub fn begin(draft: &mut Vec<u8>) {
    draft.clear();
    draft.extend_from_slice(&[0; HEADER_BYTES]);
}

/// An entry, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it says of itself.
    pub header: Header,
    /// Where its payload begins among the bytes that are walked.
    pub at: usize,
    /// What it is for.
    pub payload: &'a [u8],
}

/// True for the bytes of an entry, without the zeros behind it, that are as they were written.
pub fn is_whole(entry: &[u8]) -> bool {
    let parts = entry.split_first_chunk::<CRC_BYTES>();
    parts.is_some_and(|(crc, rest)| crc32c::crc32c(rest) == u32::from_le_bytes(*crc))
}

/// When a walk looks at the checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// At that of each entry.
    Each,
    /// At none: whoever takes an entry's word for anything asks [`is_whole`] before.
    Later,
}

/// A walk over the entries of one lap, from one that begins at `position` to the last. What is
/// no entry ends it: behind that nothing can be told from what a client wrote into a payload.
#[derive(Debug)]
pub struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    start: u64,
    check: Check,
    is_damaged: bool,
}

impl<'a> Walk<'a> {
    /// Over these bytes, the first of which stands at this position.
    pub fn new(bytes: &'a [u8], start: u64, check: Check) -> Walk<'a> {
        Walk { bytes, at: 0, start, check, is_damaged: false }
    }

    /// True when it ended at what is no entry.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// The entry that begins here; `None`: there is none.
    fn read(&self) -> Option<Entry<'a>> {
        let position = self.start.checked_add(self.at as u64)?;
        let rest = self.bytes.get(self.at..)?;
        let (bytes, behind) = rest.split_first_chunk::<HEADER_BYTES>()?;
        let number = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
        let payload = behind.get(..usize::try_from(number(4)?).ok()?)?;
        let header = Header { position, open: number(16)?, kind: bytes[20] };
        let is_like = header.to_bytes(payload.len())[CRC_BYTES..] == bytes[CRC_BYTES..];
        let is_good = match self.check {
            Check::Each => is_like && is_whole(rest.get(..HEADER_BYTES + payload.len())?),
            Check::Later => is_like,
        };
        is_good.then_some(Entry { header, at: self.at + HEADER_BYTES, payload })
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.bytes.len().saturating_sub(self.at) < HEADER_BYTES {
            self.at = self.bytes.len();
            return None;
        }
        let Some(entry) = self.read() else {
            self.is_damaged = true;
            self.at = self.bytes.len();
            return None;
        };
        if entry.header.kind == WRAP {
            self.at = self.bytes.len();
            return None;
        }
        self.at += size(entry.payload.len());
        Some(entry)
    }
}
