//! Reading a segment: entry after entry, over damage, a window at a time.

use super::disk::DiskFile;
use super::segment::{self, Entry, Header, Marker, NoHeader, Parsed, HEADER_BYTES};
use std::io;

/// Bytes that are read at a time at most, but for entries that are longer.
const WINDOW_BYTES: usize = 64 * 1024;
/// Bytes that are read first, twice as many each time after. Who is behind with its delivery often
/// wants a single record more.
const FIRST_BYTES: usize = 8 * 1024;

/// What stands at a place of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// An entry.
    Entry(Entry<'a>),
    /// So many bytes that are none, and behind which one follows, or the end.
    Damage(u64),
}

/// A walk through a segment.
pub struct Scan<'f> {
    file: &'f dyn DiskFile,
    marker: Marker,
    /// Where the next step begins.
    at: u64,
    /// Where the segment ends.
    end: u64,
    window: ReadWindow,
}

/// Bytes of a file that were read and may be looked at again. Kept from walk to walk, it saves the
/// room.
#[derive(Default)]
pub struct ReadWindow {
    /// What was read, and behind it what is left of longer reads: so the room need not be filled
    /// with zeros for each of them.
    room: Vec<u8>,
    /// Bytes that were read.
    len: usize,
    /// Where they begin in the file.
    at: u64,
    /// Bytes that were asked for last.
    asked: usize,
}

/// The header of a segment; `None` when it is damaged.
///
/// # Errors
/// The file cannot be read, or is of a newer version.
pub fn header_of(file: &dyn DiskFile) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let read = read_fully(file, &mut bytes, 0)?;
    match Header::read(bytes.get(..read).unwrap_or_default()) {
        Ok(header) => Ok(Some(header)),
        Err(NoHeader::Damaged) => Ok(None),
        Err(NoHeader::Newer(version)) => {
            let message = format!("a segment of a newer llmproxy (format {version})");
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }
}

/// The marker of a segment whose end is at `end`, and whether its header is whole. A damaged header
/// is made up for by the markers that are known in its folder, or else by the first entry behind
/// it. `None` when nothing can be found.
///
/// # Errors
/// The file cannot be read, or is of a newer version.
pub fn marker_of(
    file: &dyn DiskFile,
    end: u64,
    known: &[Marker],
) -> io::Result<Option<(Marker, bool)>> {
    if let Some(header) = header_of(file)? {
        return Ok(Some((header.marker, true)));
    }
    for marker in known {
        let mut scan = Scan::new(file, *marker, (HEADER_BYTES as u64, end));
        while let Some(step) = scan.step()? {
            if matches!(step, Step::Entry(_)) {
                return Ok(Some((*marker, false)));
            }
        }
    }
    let mut marker = [0; 4];
    if read_fully(file, &mut marker, HEADER_BYTES as u64)? < marker.len() {
        return Ok(None);
    }
    let mut scan = Scan::new(file, marker, (HEADER_BYTES as u64, end));
    let found = matches!(scan.step()?, Some(Step::Entry(_)));
    Ok(found.then_some((marker, false)))
}

impl<'f> Scan<'f> {
    /// From one place of a segment to another.
    pub fn new(file: &'f dyn DiskFile, marker: Marker, range: (u64, u64)) -> Self {
        Scan::with(file, marker, range, ReadWindow::default())
    }

    /// The same, with a window that was used before. It is emptied: the file may be another.
    pub fn with(
        file: &'f dyn DiskFile,
        marker: Marker,
        (at, end): (u64, u64),
        mut window: ReadWindow,
    ) -> Self {
        window.len = 0;
        window.asked = 0;
        Scan { file, marker, at, end, window }
    }

    /// Where the next step begins.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Gives the window back; one that grew for a long entry shrinks.
    pub fn into_window(mut self) -> ReadWindow {
        self.window.room.truncate(WINDOW_BYTES);
        self.window.room.shrink_to(WINDOW_BYTES);
        self.window
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn step(&mut self) -> io::Result<Option<Step<'_>>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let begin = self.at;
        let Some(len) = self.entry_at(begin)? else {
            self.at = self.find(begin + 1)?;
            return Ok(Some(Step::Damage(self.at - begin)));
        };
        self.at = begin + len as u64;
        // These bytes were looked at a moment ago, checksum and all.
        Ok(Some(match segment::framed(self.window.from(begin)) {
            Some((entry, _)) => Step::Entry(entry),
            None => Step::Damage(len as u64),
        }))
    }

    /// The length of the entry at a place; `None` when there is none.
    fn entry_at(&mut self, at: u64) -> io::Result<Option<usize>> {
        let mut wanted = segment::ENTRY_BYTES;
        loop {
            let bytes = self.window.ensure(self.file, at, wanted, self.end)?;
            match segment::parse(bytes, self.marker) {
                Parsed::Entry(entry) => return Ok(Some(entry.size())),
                Parsed::Cut(needs) if bytes.len() < needs && needs > wanted => wanted = needs,
                Parsed::Cut(_) | Parsed::Damage => return Ok(None),
            }
        }
    }

    /// The first entry from a place on, or the end.
    fn find(&mut self, from: u64) -> io::Result<u64> {
        let mut at = from;
        loop {
            let marker = self.marker;
            let bytes = self.window.ensure(self.file, at, WINDOW_BYTES, self.end)?;
            let seen = bytes.len();
            match memchr::memmem::find(bytes, &marker) {
                Some(skip) => {
                    at += skip as u64;
                    if self.entry_at(at)?.is_some() {
                        return Ok(at);
                    }
                    at += 1;
                }
                None if at + seen as u64 >= self.end || seen < marker.len() => {
                    return Ok(self.end);
                }
                // A marker may lie over the edge.
                None => at += (seen + 1 - marker.len()) as u64,
            }
        }
    }
}

impl ReadWindow {
    fn bytes(&self) -> &[u8] {
        self.room.get(..self.len).unwrap_or_default()
    }

    /// What was read from `at` on.
    fn from(&self, at: u64) -> &[u8] {
        let offset = at.checked_sub(self.at).and_then(|n| usize::try_from(n).ok());
        offset.and_then(|n| self.bytes().get(n..)).unwrap_or_default()
    }

    /// The bytes from `at` on, `len` of them or more, fewer only where the segment or the file
    /// ends.
    fn ensure(&mut self, file: &dyn DiskFile, at: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let held = self.from(at).len();
        if held < len || held == 0 {
            self.at = at;
            // Before the read: one that fails leaves nothing that could be taken for the file's.
            self.len = 0;
            self.asked = (2 * self.asked).clamp(FIRST_BYTES, WINDOW_BYTES);
            let wanted = len.max(self.asked.min(left));
            if self.room.len() < wanted {
                self.room.resize(wanted, 0);
            }
            let room = self.room.get_mut(..wanted).unwrap_or_default();
            self.len = read_fully(file, room, at)?;
            return Ok(self.bytes());
        }
        Ok(self.from(at))
    }
}

/// Reads until `into` is full or the file ends; gives how much that was.
///
/// # Errors
/// The file cannot be read.
pub fn read_fully(file: &dyn DiskFile, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while let Some(place) = into.get_mut(read..).filter(|place| !place.is_empty()) {
        match file.read_at(place, at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
