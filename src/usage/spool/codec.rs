//! A usage record as bytes: a row of fields, each a tag and a value, and only those that are
//! there. Written for each request by its worker, so nothing is formatted.
//!
//! A tag is the field's number, doubled; odd tags are followed by a length and so many bytes, even
//! ones by one number. So a reader can step over a field that it does not know, and an older
//! version reads what a newer one wrote. Numbers are LEB128: seven bits a byte, lowest first.

use crate::base::id::RequestId;
use crate::config::plan::KeyForm;
use crate::llm::tokens::{Oddities, Usage};
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::{Outcome, UsageRecord};

/// Numbers of fields. What was used once is never used for something else.
mod field {
    pub const REQUEST_ID: u8 = 1;
    pub const CLIENT_REQUEST_ID: u8 = 2;
    pub const TIMESTAMP: u8 = 3;
    pub const USER_ID: u8 = 4;
    pub const API_KEY: u8 = 5;
    pub const MODEL: u8 = 6;
    pub const METHOD: u8 = 7;
    pub const PATH: u8 = 8;
    pub const BACKEND_URL: u8 = 9;
    pub const STATUS_CODE: u8 = 10;
    pub const FLAGS: u8 = 11;
    pub const PROMPT_TOKENS: u8 = 12;
    pub const COMPLETION_TOKENS: u8 = 13;
    pub const TOTAL_TOKENS: u8 = 14;
    pub const CACHED_TOKENS: u8 = 15;
    pub const REASONING_TOKENS: u8 = 16;
    pub const COUNTED: u8 = 17;
    pub const MISSING_REASON: u8 = 18;
    pub const LATENCY: u8 = 19;
    pub const TTFT: u8 = 20;
    pub const RETRIES: u8 = 21;
    pub const OUTCOME: u8 = 22;
    pub const ERROR: u8 = 23;
    pub const UPSTREAM_ID: u8 = 24;
    pub const REQUEST_BYTES: u8 = 25;
    pub const RESPONSE_BYTES: u8 = 26;
    pub const EVENTS: u8 = 27;
    pub const REQUEST_BODY: u8 = 28;
    pub const FIRST_BYTE: u8 = 29;
    pub const AUDIO_SECONDS: u8 = 30;
    pub const ODDITIES: u8 = 31;
    pub const ENGINE_ERROR: u8 = 32;
    pub const KEY_NAME: u8 = 33;
    pub const KEY_ID: u8 = 34;
    pub const BACKEND: u8 = 40;
    pub const KEY_METADATA: u8 = 41;
    pub const QUOTA_TOKENS: u8 = 42;
}

const STREAM: u64 = 1;
const FALLBACK: u64 = 2;
/// Two bits above them: the form of the key.
const FORM_SHIFT: u32 = 2;

/// Appends the record's bytes.
pub fn encode(record: &RecordRef<'_>, into: &mut Vec<u8>) {
    encode_bare(record, into);
    if let Some(body) = record.request_body {
        begin_body(body.len(), into);
        into.extend_from_slice(body);
    }
}

/// Appends what goes before a request body of this length, which goes last.
pub fn begin_body(len: usize, into: &mut Vec<u8>) {
    into.push(field::REQUEST_BODY * 2 + 1);
    write_number(into, len as u64);
}

/// The same without the request body.
pub fn encode_bare(record: &RecordRef<'_>, into: &mut Vec<u8>) {
    // Taken apart without `..`: a field that is new does not compile until it is kept here.
    let RecordRef {
        request_id,
        client_request_id,
        timestamp_ms,
        user_id,
        key_name,
        key_metadata,
        key_id,
        api_key,
        model,
        method,
        path,
        backend,
        backend_url,
        status_code,
        is_stream,
        usage,
        counted,
        audio_seconds,
        quota_tokens,
        oddities,
        usage_missing_reason,
        latency_ms,
        ttft_ms,
        first_byte_ms,
        retry_count,
        fallback_used,
        key_form,
        outcome,
        error,
        engine_error,
        upstream_id,
        request_bytes,
        response_bytes,
        events,
        // `encode` appends it.
        request_body: _,
    } = *record;
    let mut out = Out { into };
    // First of all: by it an end is paired with its beginning.
    out.text(field::REQUEST_ID, request_id);
    out.maybe(field::CLIENT_REQUEST_ID, client_request_id.filter(|id| !id.is_empty()));
    out.maybe(field::USER_ID, user_id);
    out.maybe(field::KEY_NAME, key_name);
    out.maybe(field::KEY_METADATA, key_metadata);
    out.maybe(field::API_KEY, api_key);
    out.maybe(field::MODEL, model);
    out.text(field::METHOD, method);
    out.text(field::PATH, path);
    out.maybe(field::BACKEND, backend);
    out.maybe(field::BACKEND_URL, backend_url);
    out.maybe(field::MISSING_REASON, usage_missing_reason);
    out.maybe(field::ERROR, error);
    out.maybe(field::ENGINE_ERROR, engine_error);
    out.maybe(field::UPSTREAM_ID, upstream_id);
    let mut numbers = Numbers::default();
    numbers.count(field::TIMESTAMP, timestamp_ms);
    numbers.count(field::STATUS_CODE, u64::from(status_code));
    numbers.count(field::FLAGS, flags_of(is_stream, fallback_used, key_form));
    numbers.tokens(usage, counted, quota_tokens);
    numbers.some(field::KEY_ID, key_id);
    numbers.some(field::AUDIO_SECONDS, audio_seconds);
    numbers.count(field::ODDITIES, u64::from(oddities.bits()));
    numbers.count(field::LATENCY, latency_ms);
    numbers.some(field::TTFT, ttft_ms);
    numbers.some(field::FIRST_BYTE, first_byte_ms);
    numbers.count(field::RETRIES, u64::from(retry_count));
    numbers.count(field::OUTCOME, number_of(outcome));
    numbers.count(field::REQUEST_BYTES, request_bytes);
    numbers.count(field::RESPONSE_BYTES, response_bytes);
    numbers.count(field::EVENTS, events);
    numbers.end(out.into);
}

fn flags_of(is_stream: bool, fallback_used: bool, key_form: KeyForm) -> u64 {
    let stream = if is_stream { STREAM } else { 0 };
    let fallback = if fallback_used { FALLBACK } else { 0 };
    let form = match key_form {
        KeyForm::None => 0,
        KeyForm::Plain => 1,
        KeyForm::Masked => 2,
        KeyForm::Sha256 => 3,
    };
    stream | fallback | form << FORM_SHIFT
}

/// The request id in a record's bytes, which is all that pairs an end with a beginning.
pub fn request_id_of(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(request_id_bytes(bytes)?).ok()
}

/// The same, without a look at whether it is text.
pub fn request_id_bytes(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    while let Some((tag, more)) = rest.split_first() {
        rest = more;
        let number = read_number(&mut rest)?;
        if tag & 1 == 1 {
            let (value, more) = rest.split_at_checked(usize::try_from(number).ok()?)?;
            if tag / 2 == field::REQUEST_ID {
                return Some(value);
            }
            rest = more;
        }
    }
    None
}

/// The record of these bytes. `None` when they are none: cut, or not text where text must be. What
/// it allocates is never more than the bytes.
pub fn decode(bytes: &[u8]) -> Option<UsageRecord> {
    decode_ref(bytes).map(|record| record.to_record())
}

/// The same, borrowed: it allocates nothing.
pub fn decode_ref(bytes: &[u8]) -> Option<RecordRef<'_>> {
    decode_after(bytes, &RecordRef::default())
}

/// The same, with the record before: where they say the same, it is known to be text.
pub fn decode_after<'a>(bytes: &'a [u8], before: &RecordRef<'a>) -> Option<RecordRef<'a>> {
    let mut record = RecordRef { key_form: KeyForm::None, ..RecordRef::default() };
    let mut rest = bytes;
    while let Some((tag, more)) = rest.split_first() {
        rest = more;
        let number = read_number(&mut rest)?;
        if tag & 1 == 0 {
            set_number(&mut record, tag / 2, number);
        } else {
            let (value, more) = rest.split_at_checked(usize::try_from(number).ok()?)?;
            rest = more;
            set_bytes(&mut record, (tag / 2, value), before)?;
        }
    }
    Some(record)
}

fn set_number(record: &mut RecordRef<'_>, field: u8, value: u64) {
    let usage = &mut record.usage;
    match field {
        field::TIMESTAMP => record.timestamp_ms = value,
        field::STATUS_CODE => record.status_code = u16::try_from(value).unwrap_or_default(),
        field::FLAGS => {
            record.is_stream = value & STREAM != 0;
            record.fallback_used = value & FALLBACK != 0;
            record.key_form = match value >> FORM_SHIFT & 3 {
                1 => KeyForm::Plain,
                2 => KeyForm::Masked,
                3 => KeyForm::Sha256,
                _ => KeyForm::None,
            };
        }
        field::PROMPT_TOKENS => usage.get_or_insert_default().prompt_tokens = value,
        field::COMPLETION_TOKENS => usage.get_or_insert_default().completion_tokens = value,
        field::TOTAL_TOKENS => usage.get_or_insert_default().total_tokens = value,
        field::CACHED_TOKENS => usage.get_or_insert_default().cached_tokens = Some(value),
        field::REASONING_TOKENS => usage.get_or_insert_default().reasoning_tokens = Some(value),
        field::KEY_ID => record.key_id = Some(value),
        field::COUNTED => record.counted = Some(value),
        field::LATENCY => record.latency_ms = value,
        field::TTFT => record.ttft_ms = Some(value),
        field::FIRST_BYTE => record.first_byte_ms = Some(value),
        field::AUDIO_SECONDS => record.audio_seconds = Some(value),
        field::QUOTA_TOKENS => record.quota_tokens = Some(value),
        field::ODDITIES => record.oddities = Oddities::from_bits(value as u8),
        field::RETRIES => record.retry_count = u32::try_from(value).unwrap_or(u32::MAX),
        field::OUTCOME => record.outcome = outcome_of(value),
        field::REQUEST_BYTES => record.request_bytes = value,
        field::RESPONSE_BYTES => record.response_bytes = value,
        field::EVENTS => record.events = value,
        _ => {}
    }
}

fn set_bytes<'a>(
    record: &mut RecordRef<'a>,
    (field, value): (u8, &'a [u8]),
    before: &RecordRef<'a>,
) -> Option<()> {
    let again = |known: Option<&'a str>| known.filter(|text| text.as_bytes() == value);
    let text = || std::str::from_utf8(value).ok();
    match field {
        field::REQUEST_ID => record.request_id = id_of(value)?,
        field::CLIENT_REQUEST_ID => record.client_request_id = id_of(value),
        field::USER_ID => record.user_id = Some(again(before.user_id).or_else(text)?),
        field::KEY_NAME => record.key_name = Some(again(before.key_name).or_else(text)?),
        field::KEY_METADATA => {
            record.key_metadata = Some(again(before.key_metadata).or_else(text)?);
        }
        field::API_KEY => record.api_key = Some(again(before.api_key).or_else(text)?),
        field::MODEL => record.model = Some(again(before.model).or_else(text)?),
        field::METHOD => record.method = again(Some(before.method)).or_else(text)?,
        field::PATH => record.path = again(Some(before.path)).or_else(text)?,
        field::BACKEND => record.backend = Some(again(before.backend).or_else(text)?),
        field::BACKEND_URL => {
            record.backend_url = Some(again(before.backend_url).or_else(text)?);
        }
        field::MISSING_REASON => record.usage_missing_reason = Some(text()?),
        field::ERROR => record.error = Some(text()?),
        field::ENGINE_ERROR => record.engine_error = Some(text()?),
        field::UPSTREAM_ID => record.upstream_id = Some(text()?),
        field::REQUEST_BODY => record.request_body = Some(value),
        _ => {}
    }
    Some(())
}

fn id_of(value: &[u8]) -> Option<&str> {
    RequestId::is_one(value).then(|| std::str::from_utf8(value).ok()).flatten()
}

/// The number of an outcome; the most frequent has none, since a zero is not written.
fn number_of(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Complete => 0,
        Outcome::ClientLeft => 1,
        Outcome::BackendError => 2,
        Outcome::TimedOut => 3,
        Outcome::Refused => 4,
        Outcome::Aborted => 5,
    }
}

/// An ending that only a newer version knows is at least not a whole answer.
fn outcome_of(number: u64) -> Outcome {
    match number {
        0 => Outcome::Complete,
        1 => Outcome::ClientLeft,
        2 => Outcome::BackendError,
        3 => Outcome::TimedOut,
        4 => Outcome::Refused,
        _ => Outcome::Aborted,
    }
}

/// Texts of a record, on their way into its bytes.
struct Out<'a> {
    into: &'a mut Vec<u8>,
}

impl Out<'_> {
    fn bytes(&mut self, field: u8, value: &[u8]) {
        let (tag, len) = (field * 2 + 1, value.len());
        if len < LONG as usize {
            self.into.extend_from_slice(&[tag, len as u8]);
        } else {
            self.into.push(tag);
            write_number(self.into, len as u64);
        }
        self.into.extend_from_slice(value);
    }

    /// A text whose absence means an empty one.
    fn text(&mut self, field: u8, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }

    fn maybe(&mut self, field: u8, value: Option<&str>) {
        if let Some(value) = value {
            self.bytes(field, value.as_bytes());
        }
    }
}

/// Bytes of a number and its tag at most.
const NUMBER_BYTES_MAX: usize = 11;
/// Fields that are numbers.
const NUMBERS: usize = 21;

/// Numbers of a record. They are put together in room of their own, since to look for each whether
/// a vector has to grow takes longer than to write it.
struct Numbers {
    room: [u8; NUMBERS * NUMBER_BYTES_MAX],
    len: usize,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers { room: [0; NUMBERS * NUMBER_BYTES_MAX], len: 0 }
    }
}

impl Numbers {
    #[inline(always)]
    fn number(&mut self, field: u8, value: u64) {
        let room = self.room.get_mut(self.len..).and_then(|room| room.first_chunk_mut());
        match room.filter(|_| value < LONG) {
            Some(room) => {
                *room = [field * 2, value as u8];
                self.len += 2;
            }
            None => self.long_number(field, value),
        }
    }

    #[inline(never)]
    fn long_number(&mut self, field: u8, mut value: u64) {
        let mut put = |byte| {
            if let Some(place) = self.room.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        };
        put(field * 2);
        while value >= LONG {
            put(value as u8 | LONG as u8);
            value >>= 7;
        }
        put(value as u8);
    }

    /// A number whose absence means zero.
    #[inline(always)]
    fn count(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.number(field, value);
        }
    }

    #[inline(always)]
    fn some(&mut self, field: u8, value: Option<u64>) {
        if let Some(value) = value {
            self.number(field, value);
        }
    }

    fn tokens(&mut self, usage: Option<Usage>, counted: Option<u64>, debited: Option<u64>) {
        self.usage(usage);
        self.some(field::COUNTED, counted);
        self.some(field::QUOTA_TOKENS, debited);
    }

    fn usage(&mut self, usage: Option<Usage>) {
        let Some(usage) = usage else { return };
        // Also when it is zero: it says that there is usage.
        self.number(field::PROMPT_TOKENS, usage.prompt_tokens);
        self.count(field::COMPLETION_TOKENS, usage.completion_tokens);
        self.count(field::TOTAL_TOKENS, usage.total_tokens);
        self.some(field::CACHED_TOKENS, usage.cached_tokens);
        self.some(field::REASONING_TOKENS, usage.reasoning_tokens);
    }

    fn end(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.room.get(..self.len).unwrap_or_default());
    }
}

/// Numbers from here on take more than one byte.
const LONG: u64 = 0x80;

/// Appends a number.
pub(super) fn write_number(into: &mut Vec<u8>, mut value: u64) {
    while value >= LONG {
        into.push(value as u8 | LONG as u8);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Takes a number off the front. `None` when it is cut, or has more than 64 bits.
pub(super) fn read_number(rest: &mut &[u8]) -> Option<u64> {
    match *rest {
        // Most are short.
        [byte @ ..0x80, more @ ..] => {
            *rest = more;
            Some(u64::from(*byte))
        }
        _ => read_long(rest),
    }
}

fn read_long(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has one bit left.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
