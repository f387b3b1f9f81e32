//! Lua's patterns, with a meter: the same rules as those of `string.find` and its kin, but a match
//! that takes too long ends with an error. In C it would run on for minutes, and the worker with
//! it.
//!
//! The rules are those of the reference manual of Lua 5.4, section 6.4.1.

/// Captures of one pattern.
const CAPTURES_MAX: usize = 32;
/// Calls of the matcher within one another. Lua has the same bound.
const DEPTH_MAX: u32 = 200;
const ESCAPE: u8 = b'%';

/// Why a match came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternFault {
    /// The pattern is none.
    Malformed(&'static str),
    /// The meter said stop.
    OutOfTime,
}

/// Told of each piece of work; says false when it was enough.
pub type Meter<'a> = dyn Fn(usize) -> bool + 'a;

/// What a capture holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Bytes of the text, from and to.
    Text(usize, usize),
    /// A place in the text, from 1: what `()` captures.
    Position(usize),
}

#[derive(Debug, Clone, Copy)]
enum Held {
    Open,
    Position,
    Closed(usize),
}

/// A pattern at work on a text.
pub struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    meter: &'a Meter<'a>,
    depth: u32,
    captures: [(usize, Held); CAPTURES_MAX],
    level: usize,
}

type Matched = Result<Option<usize>, PatternFault>;

/// True for a pattern that stands for itself.
pub fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte))
}

impl<'a> Matcher<'a> {
    /// Of a pattern without its anchor.
    pub fn new(text: &'a [u8], pattern: &'a [u8], meter: &'a Meter<'a>) -> Matcher<'a> {
        Matcher {
            text,
            pattern,
            meter,
            depth: 0,
            captures: [(0, Held::Open); CAPTURES_MAX],
            level: 0,
        }
    }

    /// Where a match that begins at `start` ends.
    pub fn at(&mut self, start: usize) -> Matched {
        self.level = 0;
        self.depth = 0;
        self.run(start, 0)
    }

    /// How many values the captures of the last match are: without any, the whole match is one
    /// where `whole` says so.
    pub fn count(&self, whole: bool) -> usize {
        if self.level == 0 && whole {
            1
        } else {
            self.level
        }
    }

    /// A capture of the last match, which went from and to.
    pub fn capture(
        &self,
        index: usize,
        (start, end): (usize, usize),
    ) -> Result<Capture, PatternFault> {
        if index >= self.level {
            return match index {
                0 => Ok(Capture::Text(start, end)),
                _ => Err(PatternFault::Malformed("invalid capture index")),
            };
        }
        match self.captures[index] {
            (_, Held::Open) => Err(PatternFault::Malformed("unfinished capture")),
            (from, Held::Position) => Ok(Capture::Position(from + 1)),
            (from, Held::Closed(to)) => Ok(Capture::Text(from, to)),
        }
    }

    fn spend(&self, work: usize) -> Result<(), PatternFault> {
        match (self.meter)(work) {
            true => Ok(()),
            false => Err(PatternFault::OutOfTime),
        }
    }

    fn run(&mut self, text: usize, pattern: usize) -> Matched {
        if self.depth == DEPTH_MAX {
            return Err(PatternFault::Malformed("pattern too complex"));
        }
        self.depth += 1;
        let matched = self.steps(text, pattern);
        self.depth -= 1;
        matched
    }

    /// Goes on in the pattern for as long as there is only one way to.
    fn steps(&mut self, mut s: usize, mut p: usize) -> Matched {
        loop {
            self.spend(1)?;
            match (self.pattern.get(p).copied(), self.pattern.get(p + 1).copied()) {
                (None, _) => return Ok(Some(s)),
                (Some(b'('), Some(b')')) => return self.open(s, p + 2, Held::Position),
                (Some(b'('), _) => return self.open(s, p + 1, Held::Open),
                (Some(b')'), _) => return self.close(s, p + 1),
                (Some(b'$'), None) => return Ok((s == self.text.len()).then_some(s)),
                (Some(ESCAPE), Some(b'b')) => match self.balance(s, p + 2)? {
                    Some(end) => (s, p) = (end, p + 4),
                    None => return Ok(None),
                },
                (Some(ESCAPE), Some(b'f')) => match self.frontier(s, p + 2)? {
                    Some(end) => p = end,
                    None => return Ok(None),
                },
                (Some(ESCAPE), Some(digit @ b'0'..=b'9')) => match self.again(s, digit)? {
                    Some(end) => (s, p) = (end, p + 2),
                    None => return Ok(None),
                },
                (Some(_), _) => match self.single(s, p)? {
                    Step::On(next_s, next_p) => (s, p) = (next_s, next_p),
                    Step::Done(matched) => return Ok(matched),
                },
            }
        }
    }

    /// One class, with what may stand behind it: `*`, `+`, `-`, `?`.
    fn single(&mut self, s: usize, p: usize) -> Result<Step, PatternFault> {
        let end = self.class_end(p)?;
        let behind = self.pattern.get(end).copied();
        let fits = self.fits(s, p, end)?;
        Ok(match (behind, fits) {
            (Some(b'?'), true) => match self.run(s + 1, end + 1)? {
                Some(matched) => Step::Done(Some(matched)),
                None => Step::On(s, end + 1),
            },
            (Some(b'*' | b'?' | b'-'), false) => Step::On(s, end + 1),
            (Some(b'+'), true) => Step::Done(self.most(s + 1, p, end)?),
            (Some(b'*'), true) => Step::Done(self.most(s, p, end)?),
            (Some(b'-'), true) => Step::Done(self.least(s, p, end)?),
            (_, false) => Step::Done(None),
            (_, true) => Step::On(s + 1, end),
        })
    }

    /// As many as there are, then fewer.
    fn most(&mut self, s: usize, p: usize, end: usize) -> Matched {
        let mut count = 0;
        while self.fits(s + count, p, end)? {
            count += 1;
        }
        loop {
            if let Some(matched) = self.run(s + count, end + 1)? {
                return Ok(Some(matched));
            }
            if count == 0 {
                return Ok(None);
            }
            count -= 1;
        }
    }

    /// As few as will do.
    fn least(&mut self, mut s: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(matched) = self.run(s, end + 1)? {
                return Ok(Some(matched));
            }
            if !self.fits(s, p, end)? {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn open(&mut self, s: usize, p: usize, how: Held) -> Matched {
        if self.level >= CAPTURES_MAX {
            return Err(PatternFault::Malformed("too many captures"));
        }
        self.captures[self.level] = (s, how);
        self.level += 1;
        let matched = self.run(s, p)?;
        if matched.is_none() {
            self.level -= 1;
        }
        Ok(matched)
    }

    fn close(&mut self, s: usize, p: usize) -> Matched {
        let open = self.captures[..self.level].iter().rposition(|(_, h)| matches!(h, Held::Open));
        let Some(open) = open else {
            return Err(PatternFault::Malformed("invalid pattern capture"));
        };
        self.captures[open].1 = Held::Closed(s);
        let matched = self.run(s, p)?;
        if matched.is_none() {
            self.captures[open].1 = Held::Open;
        }
        Ok(matched)
    }

    /// `%bxy`.
    fn balance(&self, s: usize, p: usize) -> Matched {
        let [open, close] = match self.pattern.get(p..p + 2) {
            Some([open, close]) => [*open, *close],
            _ => return Err(PatternFault::Malformed("missing arguments to '%b'")),
        };
        if self.text.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for (at, byte) in self.text.iter().enumerate().skip(s + 1) {
            self.spend(1)?;
            if *byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if *byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    /// `%f[set]`: where the pattern goes on.
    fn frontier(&self, s: usize, p: usize) -> Matched {
        if self.pattern.get(p) != Some(&b'[') {
            return Err(PatternFault::Malformed("missing '[' after '%f' in pattern"));
        }
        let end = self.class_end(p)?;
        let before = s.checked_sub(1).and_then(|at| self.text.get(at)).copied().unwrap_or(0);
        let here = self.text.get(s).copied().unwrap_or(0);
        self.spend(end - p)?;
        let is_edge = !self.in_set(before, p, end - 1) && self.in_set(here, p, end - 1);
        Ok(is_edge.then_some(end))
    }

    /// `%1`: what a capture holds, once more.
    fn again(&self, s: usize, digit: u8) -> Matched {
        let index = usize::from(digit).wrapping_sub(usize::from(b'1'));
        let (start, end) = match self.captures[..self.level].get(index) {
            Some((start, Held::Closed(end))) => (*start, *end),
            // A place is no text, and so is nowhere again.
            Some((_, Held::Position)) => return Ok(None),
            _ => return Err(PatternFault::Malformed("invalid capture index")),
        };
        let held = self.text.get(start..end).unwrap_or_default();
        self.spend(held.len() / 16)?;
        let is_there = self.text.get(s..).is_some_and(|rest| rest.starts_with(held));
        Ok(is_there.then_some(s + held.len()))
    }

    /// Behind the class that begins here.
    fn class_end(&self, p: usize) -> Result<usize, PatternFault> {
        match self.pattern.get(p).copied() {
            Some(ESCAPE) if self.pattern.get(p + 1).is_none() => {
                Err(PatternFault::Malformed("malformed pattern (ends with '%')"))
            }
            Some(ESCAPE) => Ok(p + 2),
            Some(b'[') => self.set_end(p + 1),
            _ => Ok(p + 1),
        }
    }

    fn set_end(&self, mut p: usize) -> Result<usize, PatternFault> {
        const OPEN: PatternFault = PatternFault::Malformed("malformed pattern (missing ']')");
        let start = p;
        p += usize::from(self.pattern.get(p) == Some(&b'^'));
        // A `]` that comes first is one of the set.
        let first = p;
        loop {
            match self.pattern.get(p).copied() {
                None => return Err(OPEN),
                Some(b']') if p > first => break,
                Some(ESCAPE) if self.pattern.get(p + 1).is_none() => return Err(OPEN),
                Some(ESCAPE) => p += 2,
                Some(_) => p += 1,
            }
        }
        self.spend((p - start) / 8)?;
        Ok(p + 1)
    }

    fn fits(&self, s: usize, p: usize, end: usize) -> Result<bool, PatternFault> {
        self.spend(1 + (end - p) / 4)?;
        let Some(byte) = self.text.get(s).copied() else { return Ok(false) };
        Ok(match self.pattern[p] {
            b'.' => true,
            ESCAPE => in_class(byte, self.pattern[p + 1]),
            b'[' => self.in_set(byte, p, end - 1),
            other => other == byte,
        })
    }

    /// Whether a byte is in the set whose brackets stand at `p` and `last`.
    fn in_set(&self, byte: u8, mut p: usize, last: usize) -> bool {
        p += 1;
        let is_wanted = self.pattern[p] != b'^';
        p += usize::from(!is_wanted);
        while p < last {
            if self.pattern[p] == ESCAPE {
                if in_class(byte, self.pattern[p + 1]) {
                    return is_wanted;
                }
                p += 2;
            } else if self.pattern[p + 1] == b'-' && p + 2 < last {
                if (self.pattern[p]..=self.pattern[p + 2]).contains(&byte) {
                    return is_wanted;
                }
                p += 3;
            } else {
                if self.pattern[p] == byte {
                    return is_wanted;
                }
                p += 1;
            }
        }
        !is_wanted
    }
}

enum Step {
    On(usize, usize),
    Done(Option<usize>),
}

/// `%a` and its kin; any other letter stands for itself.
fn in_class(byte: u8, class: u8) -> bool {
    let is_in = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        // C counts the vertical tab, which Rust does not.
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    is_in != class.is_ascii_uppercase()
}
