//! The bytes of a segment: a header, then entries one behind the other.
//!
//! | header | bytes | | entry | bytes |
//! |---|---|---|---|---|
//! | magic | 8 | | marker | 4 |
//! | version | 4 | | length of the payload | 4 |
//! | marker | 4 | | CRC32C of all but marker and itself | 4 |
//! | first sequence | 8 | | sequence | 8 |
//! | CRC32C of the above | 4 | | kind | 1 |
//! | | | | payload | |
//!
//! All numbers are little endian. The marker is where reading goes on behind damage. It is random,
//! one for each start of the program: a client whose request body lies in a payload cannot write
//! what would be taken for an entry.

use crate::base::limits::SPOOL_PAYLOAD_BYTES_MAX;

/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 28;
/// Bytes of an entry without its payload.
pub const ENTRY_BYTES: usize = 21;

const MAGIC: [u8; 8] = *b"LLMPSPL\n";
/// Grows when an older program could not read what a newer one writes. New kinds of entries and
/// new fields in payloads are no such change.
const VERSION: u32 = 1;

const NEW_SUFFIX: &str = ".new";

/// What starts each entry.
pub type Marker = [u8; 4];

/// What an entry says. A reader steps over kinds that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request was admitted; what is known of it then.
    Open,
    /// A snapshot of one that is still running.
    Note,
    /// One that is over: the record that reporters get.
    Close,
    /// A record for one reporter alone, once more: its name with its length before it, then the
    /// record.
    Again,
}

impl Kind {
    /// Its byte.
    pub fn byte(self) -> u8 {
        match self {
            Kind::Open => 1,
            Kind::Note => 2,
            Kind::Close => 3,
            Kind::Again => 4,
        }
    }

    /// The kind of a byte; `None` for one of a newer version.
    pub fn of(byte: u8) -> Option<Kind> {
        [Kind::Open, Kind::Note, Kind::Close, Kind::Again].into_iter().find(|k| k.byte() == byte)
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the entries in this segment.
    pub marker: Marker,
    /// The lowest sequence that may be in it.
    pub first: u64,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHeader {
    /// Cut or damaged.
    Damaged,
    /// Whole, and of a version that this program cannot read.
    Newer(u32),
}

impl Header {
    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields =
            [MAGIC.as_slice(), &VERSION.to_le_bytes(), &self.marker, &self.first.to_le_bytes()];
        let mut rest = bytes.as_mut_slice();
        for field in fields {
            let (place, more) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = more;
        }
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the beginning of a segment.
    ///
    /// # Errors
    /// There is no header that this program can read.
    pub fn read(bytes: &[u8]) -> Result<Header, NoHeader> {
        let (bytes, _) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(NoHeader::Damaged)?;
        let mut rest = bytes.as_slice();
        let magic = take::<8>(&mut rest).ok_or(NoHeader::Damaged)?;
        let version = take(&mut rest).map(u32::from_le_bytes).ok_or(NoHeader::Damaged)?;
        let marker = take(&mut rest).ok_or(NoHeader::Damaged)?;
        let first = take(&mut rest).map(u64::from_le_bytes).ok_or(NoHeader::Damaged)?;
        let crc = take(&mut rest).map(u32::from_le_bytes).ok_or(NoHeader::Damaged)?;
        if magic != MAGIC || crc != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(NoHeader::Damaged);
        }
        if version != VERSION {
            return Err(NoHeader::Newer(version));
        }
        Ok(Header { marker, first })
    }
}

/// One entry, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its number; grows by one from entry to entry, over all segments.
    pub sequence: u64,
    /// [`Kind`] as a byte.
    pub kind: u8,
    /// What it says.
    pub payload: &'a [u8],
}

impl Entry<'_> {
    /// Its bytes in the segment.
    pub fn size(&self) -> usize {
        ENTRY_BYTES + self.payload.len()
    }
}

/// What stands at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// An entry.
    Entry(Entry<'a>),
    /// Perhaps an entry, if the bytes went on to this length.
    Cut(usize),
    /// No entry.
    Damage,
}

/// Appends an entry whose payload is what `fill` appends.
pub fn push(
    into: &mut Vec<u8>,
    marker: Marker,
    (sequence, kind): (u64, Kind),
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = into.len();
    into.extend_from_slice(&marker);
    into.extend_from_slice(&[0; 8]);
    into.extend_from_slice(&sequence.to_le_bytes());
    into.push(kind.byte());
    fill(into);
    // The caller keeps to `SPOOL_PAYLOAD_BYTES_MAX`, which fits.
    let length = (into.len() - start - ENTRY_BYTES) as u32;
    let entry = &mut into[start..];
    entry[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(entry);
    entry[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The entry at the beginning of bytes that are known to be one or the beginning of one, and its
/// checksum, which is not looked at; `None` when it is cut.
pub fn framed(bytes: &[u8]) -> Option<(Entry<'_>, u32)> {
    let mut rest = bytes.get(4..)?;
    let length = u32::from_le_bytes(take(&mut rest)?) as usize;
    let crc = u32::from_le_bytes(take(&mut rest)?);
    let sequence = u64::from_le_bytes(take(&mut rest)?);
    let [kind] = take(&mut rest)?;
    Some((Entry { sequence, kind, payload: rest.get(..length)? }, crc))
}

/// Looks at the beginning of `bytes`.
pub fn parse(bytes: &[u8], marker: Marker) -> Parsed<'_> {
    let shared = bytes.len().min(marker.len());
    if bytes[..shared] != marker[..shared] {
        return Parsed::Damage;
    }
    let Some(length) = bytes.get(4..ENTRY_BYTES).and_then(<[u8]>::first_chunk) else {
        return Parsed::Cut(ENTRY_BYTES);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > SPOOL_PAYLOAD_BYTES_MAX {
        return Parsed::Damage;
    }
    match framed(bytes) {
        None => Parsed::Cut(ENTRY_BYTES + length),
        Some((entry, crc)) if checksum(&bytes[..entry.size()]) == crc => Parsed::Entry(entry),
        Some(_) => Parsed::Damage,
    }
}

/// Of a whole entry.
fn checksum(entry: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&entry[4..8]), &entry[12..])
}

/// Takes an array off the front.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, more) = rest.split_first_chunk()?;
    *rest = more;
    Some(*array)
}

/// The file of the segment that begins with this sequence.
pub fn file_name(first: u64) -> String {
    format!("{first:016x}.seg")
}

/// The file in which that segment is made; what a killed process left of one says nothing.
pub fn new_file_name(first: u64) -> String {
    format!("{}{NEW_SUFFIX}", file_name(first))
}

/// True for a segment that was not finished.
pub fn is_new(name: &str) -> bool {
    name.strip_suffix(NEW_SUFFIX).is_some_and(|name| first_of(name).is_some())
}

/// The first sequence of the segment in this file; `None` when it is not one's name.
pub fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 16 || !digits.bytes().all(plain) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}
