//! Reading answers: HTTP/1.1 responses, in pieces of any size.
//!
//! Written for this crate alone and without a parser library, so that it agrees with the gateway
//! only where both agree with RFC 9112. It is strict: a byte that the RFC does not allow is an
//! error of the answer, not something to get along with.

/// Why an answer is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wrong {
    /// The status line is none
    StatusLine,
    /// A field line is none, or has control bytes
    Field,
    /// The head is longer than 256 KiB
    HeadTooLong,
    /// Content-Length and Transfer-Encoding together, either one twice, or one unreadable
    Framing,
    /// A chunk size line is none
    ChunkSize,
    /// Chunk data without its CRLF
    ChunkEnd,
    /// The connection ended before the answer
    Eof,
    /// Bytes behind the end of the answer
    Extra,
}

const HEAD_BYTES_MAX: usize = 256 << 10;
const CHUNK_LINE_BYTES_MAX: usize = 4096;

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkCrlf,
    Trailer,
    UntilClose,
    Done,
}

/// Facts of the answer's head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// The status
    pub status: u16,
    /// The connection cannot be used again
    pub closes: bool,
    /// 1xx answers that came first
    pub interim: u32,
}

/// Reads one answer. Make a new one for the next.
#[derive(Debug)]
pub struct Answer {
    state: State,
    /// An incomplete line or head
    held: Vec<u8>,
    head: Head,
}

impl Default for Answer {
    fn default() -> Self {
        Answer { state: State::Head, held: Vec::new(), head: Head::default() }
    }
}

impl Answer {
    /// Takes the next bytes and gives every body byte in them to `body`, in order.
    ///
    /// # Errors
    /// The first thing that is wrong; the answer is of no use afterwards.
    pub fn feed(&mut self, mut bytes: &[u8], mut body: impl FnMut(&[u8])) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Head => self.read_head(bytes)?,
                State::Length(left) => {
                    let (data, rest) = split(bytes, left);
                    body(data);
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    rest
                }
                State::ChunkSize => self.read_chunk_size(bytes)?,
                State::ChunkData(left) => {
                    let (data, rest) = split(bytes, left);
                    body(data);
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::ChunkCrlf } else { State::ChunkData(left) };
                    rest
                }
                State::ChunkCrlf => self.read_chunk_crlf(bytes)?,
                State::Trailer => self.read_trailer(bytes)?,
                State::UntilClose => {
                    body(bytes);
                    &[]
                }
                State::Done => return Err(Wrong::Extra),
            };
        }
        Ok(())
    }

    /// The connection ended; gives whether the answer was complete.
    ///
    /// # Errors
    /// [`Wrong::Eof`] when it was not.
    pub fn end(&mut self) -> Result<(), Wrong> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Wrong::Eof),
        }
    }

    /// Every byte of the answer was read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The head, once it was read.
    pub fn head(&self) -> Option<Head> {
        (self.head.status != 0).then_some(self.head)
    }

    fn read_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        // Common case: the whole head is in one read and nothing is copied.
        if self.held.is_empty() {
            if let Some(end) = head_end(bytes, 0) {
                self.take_head(bytes.get(..end).unwrap_or_default())?;
                return Ok(bytes.get(end..).unwrap_or_default());
            }
        }
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        let Some(end) = head_end(&self.held, before.saturating_sub(3)) else {
            let is_long = self.held.len() > HEAD_BYTES_MAX;
            return if is_long { Err(Wrong::HeadTooLong) } else { Ok(&[]) };
        };
        let held = std::mem::take(&mut self.held);
        self.take_head(held.get(..end).unwrap_or_default())?;
        Ok(bytes.get(end - before..).unwrap_or_default())
    }

    /// `head` ends with its empty line.
    fn take_head(&mut self, head: &[u8]) -> Result<(), Wrong> {
        let mut lines = Lines(head);
        let (minor, status) = status_line(lines.next().unwrap_or_default())?;
        let (mut length, mut chunked, mut closes) = (None, false, minor == b'0');
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = field(line)?;
            if name.eq_ignore_ascii_case(b"content-length") {
                if length.replace(decimal(value).ok_or(Wrong::Framing)?).is_some() {
                    return Err(Wrong::Framing);
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Wrong::Framing);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case(b"connection") {
                closes |= value.eq_ignore_ascii_case(b"close");
            }
        }
        if (100..200).contains(&status) {
            self.head.interim += 1;
            return Ok(()); // the state stays Head: the final answer follows
        }
        self.head = Head { status, closes, interim: self.head.interim };
        self.state = match (chunked, length) {
            (true, Some(_)) => return Err(Wrong::Framing),
            _ if matches!(status, 204 | 304) => State::Done,
            (true, None) => State::ChunkSize,
            (false, Some(0)) => State::Done,
            (false, Some(length)) => State::Length(length),
            (false, None) => {
                self.head.closes = true;
                State::UntilClose
            }
        };
        Ok(())
    }

    fn read_chunk_size<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        let (size, rest) = match self.line(bytes)? {
            None => return Ok(&[]),
            Some((line, rest)) => (chunk_size(&line).ok_or(Wrong::ChunkSize)?, rest),
        };
        self.state = if size == 0 { State::Trailer } else { State::ChunkData(size) };
        Ok(rest)
    }

    fn read_chunk_crlf<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        for (at, byte) in bytes.iter().enumerate() {
            match (self.held.is_empty(), byte) {
                (true, b'\r') => self.held.push(b'\r'),
                (false, b'\n') => {
                    self.held.clear();
                    self.state = State::ChunkSize;
                    return Ok(bytes.get(at + 1..).unwrap_or_default());
                }
                _ => return Err(Wrong::ChunkEnd),
            }
        }
        Ok(&[])
    }

    fn read_trailer<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Wrong> {
        match self.line(bytes)? {
            None => Ok(&[]),
            Some((line, rest)) => {
                if line.is_empty() {
                    self.state = State::Done;
                } else {
                    field(&line)?;
                }
                Ok(rest)
            }
        }
    }

    /// The next CRLF line, without its end; None while it is incomplete.
    #[allow(clippy::type_complexity, reason = "the line may be borrowed or gathered")]
    fn line<'a>(
        &mut self,
        bytes: &'a [u8],
    ) -> Result<Option<(std::borrow::Cow<'a, [u8]>, &'a [u8])>, Wrong> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.held.extend_from_slice(bytes);
            let is_long = self.held.len() > CHUNK_LINE_BYTES_MAX;
            return if is_long { Err(Wrong::ChunkSize) } else { Ok(None) };
        };
        let (line, rest) = bytes.split_at(end + 1);
        let line: std::borrow::Cow<'a, [u8]> = if self.held.is_empty() {
            line.into()
        } else {
            self.held.extend_from_slice(line);
            std::mem::take(&mut self.held).into()
        };
        let bare = line.strip_suffix(b"\r\n").ok_or(Wrong::ChunkSize)?.len();
        let line = match line {
            std::borrow::Cow::Borrowed(line) => line.get(..bare).unwrap_or_default().into(),
            std::borrow::Cow::Owned(mut line) => {
                line.truncate(bare);
                line.into()
            }
        };
        Ok(Some((line, rest)))
    }
}

/// At most `most` bytes, and what follows them.
fn split(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len()))
}

/// The offset behind the empty line; the search starts at `from`.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let searched = bytes.get(from..)?;
    Some(from + memchr::memmem::find(searched, b"\r\n\r\n")? + 4)
}

/// CRLF lines, without their ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memmem::find(self.0, b"\r\n")?;
        let line = self.0.get(..end)?;
        self.0 = self.0.get(end + 2..)?;
        Some(line)
    }
}

/// The minor version as a digit, and the status (RFC 9112, 4).
fn status_line(line: &[u8]) -> Result<(u8, u16), Wrong> {
    let read = || {
        let rest = line.strip_prefix(b"HTTP/1.")?;
        let (minor, rest) = rest.split_first()?;
        let (status, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
        let status = u16::try_from(decimal(status)?).ok()?;
        // The space before an empty reason is required, yet many leave it out.
        let is_clean = reason.is_empty() || (reason.starts_with(b" ") && is_text(reason));
        let is_known = matches!(minor, b'0' | b'1') && (100..600).contains(&status);
        (is_clean && is_known).then_some((*minor, status))
    };
    read().ok_or(Wrong::StatusLine)
}

/// Name and value of a field line (RFC 9112, 5; no folding, no blank before the colon).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Wrong> {
    let colon = memchr::memchr(b':', line).ok_or(Wrong::Field)?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    let is_token = !name.is_empty()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b));
    if is_token && is_text(value) {
        return Ok((name, value));
    }
    Err(Wrong::Field)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f))
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The size before any chunk extension (RFC 9112, 7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|b| *b == b';').map_or(line, |end| line.split_at(end).0);
    let digits = digits.trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |sum, byte| Some(sum * 16 + u64::from((*byte as char).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in parts of `size` and ends; gives the body, or what is wrong.
    fn read(bytes: &[u8], size: usize) -> Result<(Head, Vec<u8>), Wrong> {
        let (mut answer, mut body) = (Answer::default(), Vec::new());
        for part in bytes.chunks(size) {
            answer.feed(part, |data| body.extend_from_slice(data))?;
        }
        answer.end()?;
        Ok((answer.head().ok_or(Wrong::Eof)?, body))
    }

    #[test]
    fn any_split_reads_the_same() {
        for bytes in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nhe\r\n3 ;a=b\r\nllo\r\n0\r\nt: 1\r\n\r\n",
            "HTTP/1.0 200\r\n\r\nhello",
            "HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello",
        ] {
            for size in 1..=bytes.len() {
                let (head, body) = read(bytes.as_bytes(), size).expect(bytes);
                assert_eq!((head.status, body.as_slice()), (200, b"hello".as_slice()), "{size}");
            }
        }
        for bytes in ["HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 304 N\r\ncontent-length: 9\r\n\r\n"] {
            assert_eq!(read(bytes.as_bytes(), 3).expect(bytes).1, b"");
        }
    }

    #[test]
    fn whether_the_connection_closes() {
        let closes = |bytes: &str| read(bytes.as_bytes(), 1000).expect(bytes).0.closes;
        assert!(!closes("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(closes("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n"));
        assert!(closes("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(closes("HTTP/1.1 200 OK\r\n\r\n"));
    }

    #[test]
    fn what_the_rfc_does_not_allow_is_wrong_at_any_split() {
        for (bytes, wrong) in [
            ("HTTP/2.0 200 OK\r\n\r\n", Wrong::StatusLine),
            ("HTTP/1.1  200 OK\r\n\r\n", Wrong::StatusLine),
            ("HTTP/1.1 2000 OK\r\n\r\n", Wrong::StatusLine),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Wrong::Field),
            ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", Wrong::Field),
            ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", Wrong::Field),
            ("HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n", Wrong::Field),
            ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx", Wrong::Framing),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx", Wrong::Framing),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Wrong::Framing),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                Wrong::Framing,
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", Wrong::ChunkSize),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n", Wrong::ChunkSize),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\nx", Wrong::ChunkSize),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxy\r\n", Wrong::ChunkEnd),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n", Wrong::Eof),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx", Wrong::Eof),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxy", Wrong::Extra),
        ] {
            for size in 1..=bytes.len() {
                assert_eq!(read(bytes.as_bytes(), size).err(), Some(wrong), "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let mut answer = Answer::default();
        let line = [b'x'; 1 << 16];
        let results: Vec<_> = (0..5).map(|_| answer.feed(&line, |_| ())).collect();
        assert_eq!(results.last(), Some(&Err(Wrong::HeadTooLong)));
    }
}
