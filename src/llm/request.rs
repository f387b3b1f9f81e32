//! The facts of a JSON request body that decide policy, found in one strict walk without a tree.
//!
//! Strict, because the engine reads the same bytes with another parser: where two parsers could
//! disagree about `model` or `stream` (a key that stands twice, a key in another spelling, bytes
//! behind the end), a client could be admitted for one model and served by another, or get a stream
//! that nobody counts. Such a body is refused, and this one reader feeds routing, limits and
//! billing. Where engines agree it reads what they read: `"stream": "true"` is a stream.

use super::json::{self, Reader};
use crate::base::limits::{JSON_DEPTH_MAX, MODEL_NAME_BYTES_MAX};
use crate::base::refusal::Refusal;
use std::borrow::Cow;
use std::ops::Range;

/// What a request says of itself. Borrowed from the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// Top-level `model`; `None` when absent or null. Owned only when it was written with
    /// escapes (PHP writes every slash as `\/`).
    pub model: Option<Cow<'a, str>>,
    /// Where the value of `model` stands in the body, quotes included: an alias is spliced here.
    pub model_span: Option<Range<usize>>,
    /// Top-level `stream`, as pydantic reads it, and vLLM and SGLang with it (`1` and `"yes"` are
    /// true). `None` when it is absent, null, or nothing that an engine takes.
    pub stream: Option<bool>,
    /// `stream_options.include_usage` is true, as pydantic reads it.
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats` is true: counts in each event are asked for.
    pub continuous_usage: bool,
    /// `max_tokens`, else `max_completion_tokens`, else `max_output_tokens`. `None` when absent,
    /// null, negative (llama.cpp and its clients write -1 for "no limit"), or nothing that an
    /// engine takes for a whole number.
    pub max_tokens: Option<u64>,
    /// It has `messages` or a `prompt`: an endpoint that is told by its body generates.
    pub generates: bool,
    /// How usage can be asked for, of a stream that does not ask. `None` where there is nothing to
    /// ask for: no stream, or one that asks already.
    pub usage_splice: Option<UsageSplice>,
}

/// A change of a request body that asks for usage and touches nothing else: bytes are put in, at
/// most a value that said no is taken out; order and spacing stay as the client wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageSplice {
    at: u32,
    form: SpliceForm,
}

/// What stands in the body where usage is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpliceForm {
    /// No `stream_options`: the key follows the value of `stream`.
    NoOptions,
    /// `stream_options` is null.
    NullOptions,
    /// `stream_options` is an empty object.
    EmptyOptions,
    /// `stream_options` has members, and `include_usage` is none of them.
    OtherOptions,
    /// `include_usage` is null, or no in one of the ways that engines take; in so many bytes.
    No(u8),
}

impl UsageSplice {
    /// One of a form at a byte of the body; the inverse of [`UsageSplice::at`] and
    /// [`UsageSplice::form`], for who keeps the two apart.
    pub fn new(at: u32, form: SpliceForm) -> UsageSplice {
        UsageSplice { at, form }
    }

    /// The byte of the body where it begins.
    pub fn at(self) -> u32 {
        self.at
    }

    /// Its form.
    pub fn form(self) -> SpliceForm {
        self.form
    }

    /// Bytes of the body that are left out.
    fn removed(self) -> usize {
        match self.form {
            SpliceForm::NullOptions => b"null".len(),
            SpliceForm::No(len) => len.into(),
            SpliceForm::NoOptions | SpliceForm::EmptyOptions | SpliceForm::OtherOptions => 0,
        }
    }

    /// The bytes that are put in their place.
    fn inserted(self) -> &'static [u8] {
        match self.form {
            SpliceForm::NoOptions => br#","stream_options":{"include_usage":true}"#,
            SpliceForm::NullOptions => br#"{"include_usage":true}"#,
            SpliceForm::EmptyOptions => br#""include_usage":true"#,
            SpliceForm::OtherOptions => br#""include_usage":true,"#,
            SpliceForm::No(_) => b"true",
        }
    }

    /// The changed body, in three pieces that are to be sent one after the other. `body` is the one
    /// that was scanned.
    pub fn of(self, body: &[u8]) -> [&[u8]; 3] {
        let at = self.at as usize;
        let before = body.get(..at).unwrap_or_default();
        let after = body.get(at + self.removed()..).unwrap_or_default();
        [before, self.inserted(), after]
    }
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanFault {
    /// Not JSON, and where it stops being JSON.
    Malformed {
        /// Byte offset in the body.
        offset: usize,
    },
    /// Bytes behind the JSON: Go and llama.cpp may not look there, others refuse.
    Trailing {
        /// Byte offset of the first.
        offset: usize,
    },
    /// A watched key stands twice.
    Duplicate(&'static str),
    /// A watched key is written with escapes, or `model` with one that means no character.
    Escaped,
    /// A key that Go takes for a watched one (it does not look at the case of letters), and others
    /// do not.
    Spelling(&'static str),
    /// Nested deeper than [`JSON_DEPTH_MAX`].
    TooDeep,
    /// Invalid UTF-8. Python also reads UTF-16 and UTF-32, Go replaces what is invalid.
    NotUtf8,
    /// `model` is longer than [`MODEL_NAME_BYTES_MAX`].
    ModelTooLong,
    /// A key that policy depends on has a value of the wrong type.
    WrongType(&'static str),
}

/// Scans a whole body, which may be any JSON value (only an object has facts).
///
/// # Errors
/// A [`ScanFault`] for everything that is not strict JSON or that could be read in two ways.
pub fn scan(body: &[u8]) -> Result<RequestFacts<'_>, ScanFault> {
    let mut reader = Reader::behind_mark(body);
    let facts = walk(&mut reader);
    // Most bodies are ASCII, which the walk sees on its way: those need no second one. That a body
    // is not even text is the first thing to say of it.
    let is_ascii = facts.is_ok() && !reader.saw_non_ascii();
    if !is_ascii && (std::str::from_utf8(body).is_err() || is_wide(body)) {
        return Err(ScanFault::NotUtf8);
    }
    facts
}

/// By its first bytes UTF-16 or UTF-32, as Python's `json` tells them (RFC 4627 section 3).
fn is_wide(body: &[u8]) -> bool {
    body.iter().take(4).any(|byte| *byte == 0)
}

fn walk<'a>(reader: &mut Reader<'a>) -> Result<RequestFacts<'a>, ScanFault> {
    let mut watched = Watched::default();
    if reader.peek() == Some(b'{') {
        let mut key = reader.enter_object()?;
        while let Some(name) = key {
            watched.member(name, reader)?;
            key = reader.next_key()?;
        }
    } else {
        reader.skip_value()?;
    }
    reader.end().map_err(|_| ScanFault::Trailing { offset: reader.offset() })?;
    let limit = watched.max_tokens.or(watched.max_completion_tokens).or(watched.max_output_tokens);
    watched.facts.max_tokens = limit;
    watched.facts.usage_splice = watched.usage_splice();
    Ok(watched.facts)
}

/// The facts so far, and the keys that were seen.
#[derive(Default)]
struct Watched<'a> {
    facts: RequestFacts<'a>,
    seen: u8,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    /// Offset behind the value of `stream`.
    stream_end: usize,
    /// Where `stream_options` could ask for usage and does not.
    options: Option<(usize, SpliceForm)>,
    /// `include_usage` is nothing that an engine takes: it goes as it is, for the engine to refuse.
    is_no_flag: bool,
}

impl<'a> Watched<'a> {
    /// Reads the value of one top-level key.
    fn member(&mut self, key: &[u8], reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        match key {
            b"model" => {
                self.once(0, "model")?;
                self.model(reader)
            }
            b"stream" => {
                self.once(1, "stream")?;
                self.facts.stream = flag(reader)?;
                self.stream_end = reader.offset();
                Ok(())
            }
            b"stream_options" => {
                self.once(2, "stream_options")?;
                self.stream_options(reader)
            }
            b"max_tokens" => {
                self.once(3, "max_tokens")?;
                self.max_tokens = count(reader)?;
                Ok(())
            }
            b"max_completion_tokens" => {
                self.once(4, "max_completion_tokens")?;
                self.max_completion_tokens = count(reader)?;
                Ok(())
            }
            b"max_output_tokens" => {
                self.once(5, "max_output_tokens")?;
                self.max_output_tokens = count(reader)?;
                Ok(())
            }
            b"messages" | b"prompt" => {
                self.facts.generates = true;
                Ok(reader.skip_value()?)
            }
            _ => {
                judge_spelling(key)?;
                Ok(reader.skip_value()?)
            }
        }
    }

    fn model(&mut self, reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        if is_null(reader)? {
            return Ok(());
        }
        if reader.peek() != Some(b'"') {
            return Err(wrong_type("model", reader));
        }
        let start = reader.offset();
        let raw = reader.string()?;
        let name = decode(raw)?;
        if name.len() > MODEL_NAME_BYTES_MAX {
            return Err(ScanFault::ModelTooLong);
        }
        self.facts.model = Some(name);
        self.facts.model_span = Some(start..reader.offset());
        Ok(())
    }

    fn stream_options(&mut self, reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        let null = reader.peek() == Some(b'n');
        let start = reader.offset();
        if null {
            self.options = Some((start, SpliceForm::NullOptions));
            return Ok(reader.literal(b"null")?);
        }
        if reader.peek() != Some(b'{') {
            return Err(wrong_type("stream_options", reader));
        }
        let mut key = reader.enter_object()?;
        let form = if key.is_some() { SpliceForm::OtherOptions } else { SpliceForm::EmptyOptions };
        self.options = Some((start + 1, form));
        while let Some(name) = key {
            match name {
                b"include_usage" => {
                    self.once(6, "include_usage")?;
                    self.include_usage(reader)?;
                }
                b"continuous_usage_stats" => {
                    self.facts.continuous_usage = flag(reader)? == Some(true);
                }
                _ => {
                    judge_spelling(name)?;
                    reader.skip_value()?;
                }
            }
            key = reader.next_key()?;
        }
        Ok(())
    }

    fn include_usage(&mut self, reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        let is_null = reader.peek() == Some(b'n');
        let start = reader.offset();
        let value = flag(reader)?;
        let len = u8::try_from(reader.offset() - start);
        let len = len.map_err(|_| ScanFault::WrongType("include_usage"))?;
        self.facts.include_usage = value == Some(true);
        self.is_no_flag = value.is_none() && !is_null;
        self.options = Some((start, SpliceForm::No(len)));
        Ok(())
    }

    /// How usage can be asked for, of a stream that does not.
    fn usage_splice(&self) -> Option<UsageSplice> {
        if self.facts.stream != Some(true) || self.facts.include_usage || self.is_no_flag {
            return None;
        }
        let (at, form) = self.options.unwrap_or((self.stream_end, SpliceForm::NoOptions));
        Some(UsageSplice { at: u32::try_from(at).ok()?, form })
    }

    /// Python's parser takes the last of two equal keys, others the first: neither is taken.
    fn once(&mut self, bit: u8, key: &'static str) -> Result<(), ScanFault> {
        let mark = 1 << bit;
        if self.seen & mark != 0 {
            return Err(ScanFault::Duplicate(key));
        }
        self.seen |= mark;
        Ok(())
    }
}

fn is_null(reader: &mut Reader<'_>) -> Result<bool, ScanFault> {
    let null = reader.peek() == Some(b'n');
    if null {
        reader.literal(b"null")?;
    }
    Ok(null)
}

/// The keys that are read, whose other spellings must not be taken for them elsewhere.
const WATCHED: [&str; 7] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "include_usage",
];

/// Refuses a key that some engine takes for a watched one, though it is written in another way:
/// `"\u006dodel"` is "model" to all of them, and `"Model"` is to Go.
fn judge_spelling(key: &[u8]) -> Result<(), ScanFault> {
    let plain = |watched: &&&str| {
        watched.len() == key.len() && watched.as_bytes().eq_ignore_ascii_case(key)
    };
    if let Some(watched) = WATCHED.iter().find(plain) {
        return Err(ScanFault::Spelling(watched));
    }
    let is_escaped = memchr::memchr(b'\\', key).is_some();
    // Six bytes of escape make at least one character, and no watched key has more.
    if (!is_escaped && key.is_ascii()) || key.len() > 6 * "max_completion_tokens".len() {
        return Ok(());
    }
    // Of half a surrogate pair no parser makes a letter.
    let Ok(name) = std::str::from_utf8(key).map_err(|_| ()).and_then(unescape) else {
        return Ok(());
    };
    // The two letters beyond ASCII that Go folds into it.
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    match WATCHED.iter().find(|watched| name.chars().map(fold).eq(watched.chars())) {
        Some(_) if is_escaped => Err(ScanFault::Escaped),
        Some(watched) => Err(ScanFault::Spelling(watched)),
        None => Ok(()),
    }
}

/// What pydantic takes for a boolean; `None` for null and for all that it does not take. llama.cpp
/// takes what is no boolean for absent, and tells its counts all the same; the other engines refuse
/// it themselves.
fn flag(reader: &mut Reader<'_>) -> Result<Option<bool>, ScanFault> {
    const TRUE: [&str; 6] = ["true", "1", "yes", "on", "t", "y"];
    const FALSE: [&str; 6] = ["false", "0", "no", "off", "f", "n"];
    match reader.peek() {
        Some(b't') => Ok(reader.literal(b"true").map(|()| Some(true))?),
        Some(b'f') => Ok(reader.literal(b"false").map(|()| Some(false))?),
        Some(b'"') => {
            let text = short_text(reader.string()?);
            let is = |words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
            Ok(is(TRUE).then_some(true).or(is(FALSE).then_some(false)))
        }
        Some(b'-' | b'0'..=b'9') => Ok(match whole(reader.number()?) {
            Some(1) => Some(true),
            Some(0) => Some(false),
            _ => None,
        }),
        _ => Ok(reader.skip_value().map(|()| None)?),
    }
}

/// What pydantic takes for a whole number: digits, also with a fraction of zero, also in a string.
fn count(reader: &mut Reader<'_>) -> Result<Option<u64>, ScanFault> {
    match reader.peek() {
        Some(b'"') => Ok(whole(short_text(reader.string()?).trim().as_bytes())),
        Some(b'-' | b'0'..=b'9') => Ok(whole(reader.number()?)),
        _ => Ok(reader.skip_value().map(|()| None)?),
    }
}

/// A number that is whole and not negative; one that does not fit is as good as the largest.
fn whole(number: &[u8]) -> Option<u64> {
    let push = |n: u64, digit: &u8| n.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    if !number.is_empty() && number.iter().all(u8::is_ascii_digit) {
        return Some(number.iter().fold(0, push));
    }
    let fits = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-');
    let text = std::str::from_utf8(number).ok().filter(|_| number.iter().all(fits))?;
    // A float that is too large for the integer becomes the largest.
    text.parse().ok().filter(|n: &f64| n.fract() == 0.0 && *n >= 0.0).map(|n| n as u64)
}

/// A string that stands for a number or a word; empty when it is too long for either.
fn short_text(raw: &[u8]) -> Cow<'_, str> {
    const BYTES_MAX: usize = 6 * 24;
    let text = std::str::from_utf8(raw).ok().filter(|_| raw.len() <= BYTES_MAX).unwrap_or_default();
    match raw.contains(&b'\\') {
        true => Cow::Owned(unescape(text).unwrap_or_default()),
        false => Cow::Borrowed(text),
    }
}

/// A value of another type is named as such only when it is JSON at all.
fn wrong_type(key: &'static str, reader: &mut Reader<'_>) -> ScanFault {
    reader.skip_value().map_or_else(ScanFault::from, |()| ScanFault::WrongType(key))
}

fn decode(raw: &[u8]) -> Result<Cow<'_, str>, ScanFault> {
    let text = std::str::from_utf8(raw).map_err(|_| ScanFault::NotUtf8)?;
    if !raw.contains(&b'\\') {
        return Ok(Cow::Borrowed(text));
    }
    // Six bytes of escape make at least one byte of text: cheaper than decoding a megabyte.
    if raw.len() > 6 * MODEL_NAME_BYTES_MAX {
        return Err(ScanFault::ModelTooLong);
    }
    unescape(text).map(Cow::Owned).map_err(|()| ScanFault::Escaped)
}

/// The text that stands between the quotes of a string that was walked. What is left to fail is
/// half a surrogate pair.
fn unescape(text: &str) -> Result<String, ()> {
    serde_json::from_str(&format!("\"{text}\"")).map_err(|_| ())
}

impl From<json::Fault> for ScanFault {
    fn from(fault: json::Fault) -> Self {
        match fault {
            json::Fault::Malformed { offset } => ScanFault::Malformed { offset },
            json::Fault::TooDeep => ScanFault::TooDeep,
        }
    }
}

impl ScanFault {
    /// The answer to the client: always a 400, after which the connection goes on (the body was
    /// read to its end).
    pub fn refusal(self) -> Refusal {
        let (code, message) = match self {
            ScanFault::Malformed { offset } => {
                ("invalid_json", format!("the body is not valid JSON (at byte {offset})"))
            }
            ScanFault::Trailing { offset } => {
                ("invalid_json", format!("something stands behind the JSON (at byte {offset})"))
            }
            ScanFault::NotUtf8 => ("invalid_json", "the body is not UTF-8".to_owned()),
            ScanFault::TooDeep => {
                ("invalid_json", format!("the body is nested deeper than {JSON_DEPTH_MAX} levels"))
            }
            ScanFault::Duplicate(key) => {
                ("duplicate_key", format!("the key `{key}` stands twice in the body"))
            }
            ScanFault::Escaped => (
                "escaped_key",
                "a key that is read here is written with escapes, or `model` with half a surrogate \
                 pair"
                    .to_owned(),
            ),
            ScanFault::Spelling(key) => {
                ("ambiguous_key", format!("a key of the body is `{key}` in another spelling"))
            }
            ScanFault::ModelTooLong => {
                ("invalid_model", format!("`model` is longer than {MODEL_NAME_BYTES_MAX} bytes"))
            }
            ScanFault::WrongType(key) => {
                ("invalid_type", format!("the value of `{key}` has the wrong type"))
            }
        };
        Refusal::new(400, code, "").with_message(message)
    }
}

#[cfg(test)]
mod tests;
