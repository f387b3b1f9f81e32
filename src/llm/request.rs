//! The facts of a JSON request body that decide policy, found in one strict walk without a tree.
//!
//! Strict, because the engine reads the same bytes with another parser: where two parsers could
//! disagree about `model` or `stream` (a key that stands twice, a key in another spelling, bytes
//! behind the end), a client could be admitted for one model and served by another, or get a stream
//! that nobody counts. Such a body is refused, and this one reader feeds routing, limits and
//! billing. Where engines agree it reads what they read: `"stream": "true"` is a stream.

mod fault;
pub mod prompt;
mod spelling;
mod splice;

use super::json::{JsonStep, JsonWalk, Reader};
use crate::base::limits::{MODEL_NAME_BYTES_MAX, WATCHED_VALUE_BYTES_MAX};
pub use fault::ScanFault;
use prompt::PromptSpans;
pub use splice::{edited, Edit, SpliceForm, UsageSplice};
use std::borrow::Cow;
use std::ops::Range;

/// What a request says of itself. Borrowed from the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// Top-level `model`; `None` when absent or null. Owned only when it was written with
    /// escapes (PHP writes every slash as `\/`). Where the old name of the key counts
    /// ([`BodyScan::with_old_name`]), it may be the value of that.
    pub model: Option<Cow<'a, str>>,
    /// Where that value stands in the body, quotes included: another name is put there.
    pub model_span: Option<Range<usize>>,
    /// The body is a form: the name stands there as it is, without quotes and escapes.
    pub is_form: bool,
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
    /// It has `messages`, a `prompt` or `prompt_embeds`: an endpoint that is told by its body
    /// generates.
    pub generates: bool,
    /// How usage can be asked for, of a stream that does not ask. `None` where there is nothing to
    /// ask for: no stream, or one that asks already.
    pub usage_splice: Option<UsageSplice>,
}

/// Scans a whole body, which may be any JSON value (only an object has facts).
///
/// # Errors
/// A [`ScanFault`] for everything that is not strict JSON or that could be read in two ways.
pub fn scan(body: &[u8]) -> Result<RequestFacts<'_>, ScanFault> {
    let mut scan = BodyScan::new(body);
    loop {
        if let Some(found) = scan.step(usize::MAX) {
            return found;
        }
    }
}

/// A scan in steps, for a body that is too large to be read in one go by a thread that others wait
/// for.
pub struct BodyScan<'a> {
    body: &'a [u8],
    reader: Reader<'a>,
    walk: JsonWalk,
    watched: Watched<'a>,
    place: Place,
    opening: Option<u8>,
    /// Where the prompt stands, if anybody wants to know.
    prompt: Option<PromptSpans>,
}

/// How far a scan has come.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Within the value.
    Value,
    /// In the white space behind it.
    Behind,
    /// The walk is over, and what comes of it is known. Of the text so much was checked.
    Text { met: Result<(), ScanFault>, checked: usize },
}

impl<'a> BodyScan<'a> {
    /// Of a whole body.
    pub fn new(body: &'a [u8]) -> BodyScan<'a> {
        let reader = Reader::behind_mark(body);
        let walk = JsonWalk::new(&reader);
        BodyScan {
            body,
            reader,
            walk,
            watched: Watched::default(),
            place: Place::Value,
            opening: None,
            prompt: None,
        }
    }

    /// Notes where the prompt stands.
    pub fn with_prompt(mut self) -> BodyScan<'a> {
        self.prompt = Some(PromptSpans::default());
        self.walk = self.walk.with_items();
        self
    }

    /// Where it stands, once the scan is over; `None`: nobody wanted to know.
    pub fn prompt(&self) -> Option<&PromptSpans> {
        self.prompt.as_ref()
    }

    /// Reads the model by the old name of its key, too.
    ///
    /// Ollama's endpoints that are about a model instead of asking it (`/api/show`, `/api/delete`,
    /// ...) take it from `name` where `model` is absent or empty.
    pub fn with_old_name(mut self) -> BodyScan<'a> {
        self.watched.reads_old_name = true;
        self
    }

    /// The first byte that is neither of a byte order mark nor white space, once the scan is there.
    pub fn opening(&self) -> Option<u8> {
        self.opening
    }

    /// Reads about so many bytes more; `None`: there is still more to be read.
    pub fn step(&mut self, bytes: usize) -> Option<Result<RequestFacts<'a>, ScanFault>> {
        let (met, checked) = match self.place {
            Place::Text { met, checked } => (met, checked),
            _ => (self.walk(self.reader.offset().saturating_add(bytes)).transpose()?, 0),
        };
        // Most bodies are ASCII, which the walk sees on its way: those need no second one. That a
        // body is not even text is the first thing to say of it.
        if met.is_err() || self.reader.saw_non_ascii() {
            match text_end(self.body, checked, bytes) {
                Some(end) if end < self.body.len() => {
                    self.place = Place::Text { met, checked: end };
                    return None;
                }
                Some(_) if !is_wide(self.body) => {}
                _ => return Some(Err(ScanFault::NotUtf8)),
            }
        }
        Some(met.map(|()| std::mem::take(&mut self.watched).into_facts()))
    }

    /// Walks on to a byte of the body; `None`: there is still more.
    fn walk(&mut self, stop: usize) -> Result<Option<()>, ScanFault> {
        let BodyScan { body, reader, walk, watched, place, opening, prompt } = self;
        if opening.is_none() {
            if !reader.pass_space(stop) {
                return Ok(None);
            }
            *opening = reader.peek();
        }
        while let Place::Value = place {
            match walk.step(reader, stop)? {
                JsonStep::Paused => return Ok(None),
                JsonStep::Member { key, value } => {
                    let name = body.get(key).unwrap_or_default();
                    prompt.iter_mut().for_each(|prompt| prompt.note(name, &value));
                    watched.member(name, &mut Reader::within(body, value))?;
                }
                JsonStep::Item { key, array, end } => {
                    let name = body.get(key).unwrap_or_default();
                    prompt.iter_mut().for_each(|prompt| prompt.note_item(name, array, end));
                }
                JsonStep::Whole => *place = Place::Behind,
            }
        }
        if !reader.pass_space(stop) {
            return Ok(None);
        }
        reader.end().map_err(|_| ScanFault::Trailing { offset: reader.offset() })?;
        Ok(Some(()))
    }
}

/// How far the text of a body is valid, of which so much was checked before, and so many bytes more
/// are to be; `None`: it is not.
fn text_end(body: &[u8], checked: usize, bytes: usize) -> Option<usize> {
    // In fewer bytes there need not be a character.
    let end = checked.saturating_add(bytes.max(4)).min(body.len());
    let text = body.get(checked..end).unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(_) => Some(end),
        // Half a character at the end, and more of it to come.
        Err(cut) if cut.error_len().is_none() && end < body.len() => {
            Some(checked + cut.valid_up_to())
        }
        Err(_) => None,
    }
}

/// By its first bytes UTF-16 or UTF-32, as Python's `json` tells them (RFC 4627 section 3).
fn is_wide(body: &[u8]) -> bool {
    body.iter().take(4).any(|byte| *byte == 0)
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
    /// `name` stands for `model` where that is not there.
    reads_old_name: bool,
    old_name: Option<Model<'a>>,
}

/// The name of a model, and where it stands in the body.
type Model<'a> = (Cow<'a, str>, Range<usize>);

impl<'a> Watched<'a> {
    fn into_facts(self) -> RequestFacts<'a> {
        let usage_splice = self.usage_splice();
        let limit = self.max_tokens.or(self.max_completion_tokens).or(self.max_output_tokens);
        let mut facts = RequestFacts { max_tokens: limit, usage_splice, ..self.facts };
        if let Some((name, place)) = self.old_name {
            if facts.model.as_deref().unwrap_or_default().is_empty() {
                (facts.model, facts.model_span) = (Some(name), Some(place));
            }
        }
        facts
    }

    /// Reads the value of one top-level key, of which it is known that it is JSON.
    fn member(&mut self, key: &[u8], reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        let is_long = reader.bytes_left() > WATCHED_VALUE_BYTES_MAX;
        if let Some(watched) = WATCHED.iter().find(|w| is_long && w.as_bytes() == key) {
            return Err(ScanFault::ValueTooLong(watched));
        }
        match key {
            b"model" => {
                self.once(0, "model")?;
                (self.facts.model, self.facts.model_span) = model("model", reader)?.unzip();
                Ok(())
            }
            b"name" if self.reads_old_name => {
                self.once(7, "name")?;
                self.old_name = model("name", reader)?;
                Ok(())
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
            _ => {
                self.facts.generates |= judge_spelling(key)?;
                match spelling::plainest(key, &["name"]).filter(|_| self.reads_old_name) {
                    Some((_, true)) => Err(ScanFault::Escaped),
                    Some((name, false)) => Err(ScanFault::Spelling(name)),
                    None => Ok(()),
                }
            }
        }
    }

    fn stream_options(&mut self, reader: &mut Reader<'a>) -> Result<(), ScanFault> {
        let null = reader.peek() == Some(b'n');
        let start = reader.offset();
        if null {
            self.options = Some((start, SpliceForm::NullOptions));
            return Ok(reader.literal(b"null")?);
        }
        if reader.peek() != Some(b'{') {
            // Some engines step over it, others refuse it in words that their clients know.
            self.is_no_flag = true;
            return Ok(reader.skip_value()?);
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
        Some(UsageSplice::new(u32::try_from(at).ok()?, form))
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

/// The name of a model, the value of this key; `None`: null.
fn model<'a>(key: &'static str, reader: &mut Reader<'a>) -> Result<Option<Model<'a>>, ScanFault> {
    if is_null(reader)? {
        return Ok(None);
    }
    if reader.peek() != Some(b'"') {
        return Err(wrong_type(key, reader));
    }
    let start = reader.offset();
    let name = decode(reader.string()?)?;
    if name.len() > MODEL_NAME_BYTES_MAX {
        return Err(ScanFault::ModelTooLong);
    }
    Ok(Some((name, start..reader.offset())))
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

/// The keys of which it matters only that they are there: who has one wants text.
const GENERATING: [&str; 3] = ["messages", "prompt", "prompt_embeds"];

/// Refuses a key that some engine takes for a watched one, though it is written in another way:
/// `"\u006dodel"` is "model" to all of them, and `"Model"` is to Go. True for one of
/// [`GENERATING`], in whatever spelling: nothing is read of its value here.
fn judge_spelling(key: &[u8]) -> Result<bool, ScanFault> {
    if GENERATING.iter().any(|name| name.as_bytes() == key) {
        return Ok(true);
    }
    match spelling::plainest(key, &WATCHED) {
        Some((_, true)) => Err(ScanFault::Escaped),
        Some((watched, false)) => Err(ScanFault::Spelling(watched)),
        None => Ok(spelling::plainest(key, &GENERATING).is_some()),
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

#[cfg(test)]
mod tests;
