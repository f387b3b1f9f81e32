//! What a whole event has: choices and their ends, usage and where it stands.

use super::behind;
use crate::llm::dialect::Dialect;
use crate::llm::json::{JsonFault, Reader};
use crate::llm::sse::EventFraming;
use crate::llm::usage::UsageScan;
use memchr::memmem::Finder;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

/// Built once: they hold the vector routines chosen for this CPU.
static FINISH_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
static USAGE_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
/// How an escape of a letter begins.
static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br"\u00"));

/// What engines put on their last event: vLLM its fingerprint, llama.cpp its times.
const MOVED: [&[u8]; 2] = [b"system_fingerprint", b"timings"];
/// A member of SGLang's `usage` that no other engine has there.
const OF_SGLANG: &[u8] = b"reasoning_tokens";

/// Events among these bytes may have usage, or end a choice. Most have neither, and are told by a
/// search from those that have to be read. It finds more than there is (what a client wrote into
/// metadata), and never less: a name has its letters as they are, or an escape in it.
pub fn may_matter(bytes: &[u8]) -> bool {
    USAGE_KEY.find(bytes).is_some() || ESCAPE.find(bytes).is_some() || may_finish(bytes)
}

fn may_finish(bytes: &[u8]) -> bool {
    FINISH_KEY.find_iter(bytes).any(|at| {
        let rest = behind(bytes, at + FINISH_KEY.needle().len()).trim_ascii_start();
        let value = rest.strip_prefix(b":").unwrap_or_default().trim_ascii_start();
        // TGI's text completions say `""` until then.
        !matches!(value, [] | [b'n', ..] | [b'"', b'"', ..])
    })
}

/// A choice ends in this event.
pub fn ends_choice(event: &[u8]) -> bool {
    let mut scan = UsageScan::default();
    scan.expect(Dialect::OpenAi, Some(EventFraming::Events));
    scan.feed(event);
    scan.facts().choices().first_ended().is_some()
}

/// The data of an event: what its `data` lines say, joined by line ends; and where it stands in
/// the event, when that is one line.
pub fn data(event: &[u8]) -> (Cow<'_, [u8]>, Option<usize>) {
    let mut found: Option<(Cow<'_, [u8]>, Option<usize>)> = None;
    let mut at = 0;
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if let Some(value) = line.strip_prefix(b"data:") {
            found = Some(match found {
                None => (Cow::Borrowed(value), Some(at + b"data:".len())),
                Some((before, _)) => (Cow::Owned([&*before, b"\n", value].concat()), None),
            });
        }
        at += line.len() + 1;
    }
    found.unwrap_or_default()
}

/// What the data of an event says of usage.
#[derive(Debug, Default)]
pub struct EventFacts {
    /// Whether it has choices.
    pub choices: ChoiceList,
    /// `usage`, where it is an object.
    pub counts: Option<UsageObject>,
}

/// The list of that name.
#[derive(Debug, Default)]
pub enum ChoiceList {
    /// Not there, or no list.
    #[default]
    Absent,
    /// Empty.
    None,
    /// Not empty.
    Some,
}

/// Such an object.
#[derive(Debug)]
pub struct UsageObject {
    /// What is to be taken out of the object, so that it has no such member.
    pub span: Range<usize>,
    /// Nothing but zeros.
    pub are_zeros: bool,
    /// In SGLang's form.
    pub are_sglangs: bool,
}

impl EventFacts {
    /// Reads the data of an event.
    pub fn of(json: &[u8]) -> Result<EventFacts, JsonFault> {
        let mut facts = EventFacts::default();
        let mut reader = Reader::new(json);
        reader.peek();
        let open = reader.offset() + 1;
        let mut before = open;
        let mut key = reader.enter_object()?;
        while let Some(name) = key {
            let first = reader.peek();
            let start = reader.offset();
            reader.skip_value()?;
            let end = reader.offset();
            let value = json.get(start..end).unwrap_or_default();
            match (&*decoded(name), first) {
                (b"choices", Some(b'[')) => {
                    let is_empty = value.get(1..end - start - 1).is_some_and(is_blank);
                    facts.choices = if is_empty { ChoiceList::None } else { ChoiceList::Some };
                }
                (b"usage", Some(b'{')) => {
                    // With the comma before it, or that behind it where it is the first member.
                    let comma = behind(json, end).iter().position(|byte| *byte == b',');
                    let to = comma.filter(|_| before == open).map_or(end, |at| end + at + 1);
                    facts.counts = Some(UsageObject {
                        span: before..to,
                        are_zeros: !value.iter().any(|byte| matches!(byte, b'1'..=b'9')),
                        are_sglangs: member(value, OF_SGLANG).is_some(),
                    });
                }
                _ => {}
            }
            before = end;
            key = reader.next_key()?;
        }
        reader.end()?;
        Ok(facts)
    }
}

/// The value of a member of an object.
fn member<'a>(json: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut reader = Reader::new(json);
    let mut key = reader.enter_object().ok()?;
    while let Some(name) = key {
        reader.peek();
        let start = reader.offset();
        reader.skip_value().ok()?;
        if name == wanted {
            return json.get(start..reader.offset());
        }
        key = reader.next_key().ok()?;
    }
    None
}

/// A name without its escapes; one that cannot be is as it is.
fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::Borrowed(name);
    }
    let text = serde_json::from_slice::<String>(&[b"\"", name, b"\""].concat());
    text.map_or(Cow::Borrowed(name), |text| Cow::Owned(text.into_bytes()))
}

/// Gives the event that ends a choice what it would have if no usage event had followed it.
pub fn put_back(extra: &[u8], finish: &mut Vec<u8>) {
    let (from, (to, at)) = (data(extra).0, data(finish));
    let moved: Vec<u8> = MOVED
        .into_iter()
        .filter(|name| member(&to, name).is_none())
        .filter_map(|name| Some((name, member(&from, name).filter(|value| *value != b"null")?)))
        .flat_map(|(name, value)| [b",\"", name, b"\":", value].concat())
        .collect();
    let close = to.trim_ascii_end().len().checked_sub(1);
    let (Some(at), Some(close), true) = (at, close, to.trim_ascii_end().ends_with(b"}")) else {
        return;
    };
    finish.splice(at + close..at + close, moved);
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
}
