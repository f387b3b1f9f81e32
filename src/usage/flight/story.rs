//! One request's story, as the flight recorder keeps it: what its record says, and its tries. A
//! worker puts it into plain words; the control plane makes texts of them.

use super::picked::PickedBy;
use super::{FlightPen, FlightReader, FlightWords};
use crate::base::id::REQUEST_ID_BYTES_MAX;
use crate::base::utc::Stamp;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::{key_id_text, Outcome};
use crate::usage::spans::{SpanTry, TryFailure};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bytes that are kept of texts; the rest of a longer one is cut.
const OWN_ID_BYTES: usize = 32;
const MODEL_BYTES: usize = 64;
const PATH_BYTES: usize = 48;
const NAME_BYTES: usize = 40;
const CODE_BYTES: usize = 32;
const METHOD_BYTES: usize = 8;
/// Failed tries that are kept of one request, the first ones: how many there were is told in any
/// case.
const TRIES: usize = 4;

const SOURCES: [&str; 3] = ["missing", "counted", "engine"];
const OUTCOMES: [Outcome; 6] = [
    Outcome::Complete,
    Outcome::ClientLeft,
    Outcome::BackendError,
    Outcome::TimedOut,
    Outcome::Refused,
    Outcome::Aborted,
];

/// What a story is made of. Times are from the complete head of the request on.
pub struct FlightFacts<'a> {
    /// What happened.
    pub record: RecordRef<'a>,
    /// What the engines call the model, where that is another name.
    pub served_model: Option<&'a str>,
    /// For how long it waited for a backend, if it had to.
    pub queue_wait: Option<Duration>,
    /// When the last try began, if there was one, and why its backend got it.
    pub began: Option<Duration>,
    /// The same.
    pub picked_by: PickedBy,
    /// Tries that were followed by another one.
    pub failed: &'a [SpanTry],
}

/// A story, for whoever reads it. Times are in milliseconds from the complete head of the request
/// on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlightStory {
    /// Ours, unique.
    pub request_id: String,
    /// The client's own, when it sent a harmless one: the one that it was told.
    pub client_request_id: Option<String>,
    /// When its head was complete, RFC 3339.
    pub timestamp: String,
    /// Whose it is, as logs and records have it.
    pub key_id: Option<String>,
    /// Label of the key.
    pub key_name: Option<String>,
    /// Owner of the key.
    pub user_id: Option<String>,
    /// Request method; empty when its head could not be read.
    pub method: String,
    /// Request path, without the query.
    pub path: String,
    /// As the client asked for it.
    pub model: Option<String>,
    /// What the engines call it, where that is another name.
    pub served_model: Option<String>,
    /// It is a stream.
    pub is_stream: bool,
    /// For how long it waited for a backend; `None`: it did not have to.
    pub queue_wait_ms: Option<u64>,
    /// The first tries that failed.
    pub failed_tries: Vec<FailedTry>,
    /// How many failed, those that are not kept among them.
    pub failed_count: u64,
    /// Tries after the first.
    pub retry_count: u32,
    /// Another backend than the first answered.
    pub fallback_used: bool,
    /// That answered, or was tried last; `None`: none was.
    pub backend: Option<String>,
    /// Why that one: [`PickedBy`].
    pub picked_by: Option<String>,
    /// When it was picked.
    pub picked_ms: Option<u64>,
    /// Status that the client got.
    pub status_code: u16,
    /// How it ended, as records have it.
    pub status: String,
    /// Code of what ended it.
    pub error: Option<String>,
    /// The engine's own code or type of an error that it told of inside its answer.
    pub engine_error: Option<String>,
    /// To the first byte of the answer's body.
    pub first_byte_ms: Option<u64>,
    /// To its first token.
    pub ttft_ms: Option<u64>,
    /// To its end.
    pub latency_ms: u64,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Events of its stream.
    pub events: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
    /// Of the prompt, from the engine's cache.
    pub cached_tokens: Option<u64>,
    /// Where the tokens come from, as records have it; `None`: no engine was asked.
    pub usage_source: Option<String>,
    /// Why there are none.
    pub usage_missing_reason: Option<String>,
}

/// A try that came to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedTry {
    /// At whom.
    pub backend: String,
    /// Why there: [`PickedBy`].
    pub picked_by: String,
    /// When it was picked.
    pub picked_ms: u64,
    /// When it was known to have failed.
    pub failed_ms: u64,
    /// A code, or a status.
    pub reason: String,
}

/// Puts a story into words. On a worker: nothing is allocated, nothing formatted.
pub fn tell(facts: &FlightFacts<'_>, pen: &mut FlightPen<'_>) {
    let FlightFacts { record, served_model, queue_wait, began, picked_by, failed } = facts;
    for (text, most) in [
        (Some(record.request_id), OWN_ID_BYTES),
        (record.client_request_id, REQUEST_ID_BYTES_MAX),
        (record.key_name, NAME_BYTES),
        (record.user_id, NAME_BYTES),
        (Some(record.method), METHOD_BYTES),
        (Some(record.path), PATH_BYTES),
        (record.model, MODEL_BYTES),
        (*served_model, MODEL_BYTES),
        (record.backend, NAME_BYTES),
        (record.error, CODE_BYTES),
        (record.engine_error, CODE_BYTES),
        (record.usage_missing_reason, CODE_BYTES),
    ] {
        pen.text(text, most);
    }
    pen.number(u64::from(record.key_id.is_some()));
    pen.number(record.key_id.unwrap_or(0));
    let outcome = OUTCOMES.iter().position(|one| *one == record.outcome).unwrap_or(0) as u64;
    let source = record.usage_source();
    let source = SOURCES.iter().position(|one| *one == source).unwrap_or(0) as u64;
    let flags = u64::from(record.is_stream) | u64::from(record.fallback_used) << 1;
    pen.number(flags | source << 8 | outcome << 16 | picked_by.number() << 24);
    pen.number(u64::from(record.status_code) << 32 | u64::from(record.retry_count));
    pen.number(record.timestamp_ms);
    pen.number(record.latency_ms);
    pen.number(record.request_bytes);
    pen.number(record.response_bytes);
    pen.number(record.events);
    let usage = record.usage.as_ref();
    pen.maybe(usage.map(|usage| usage.prompt_tokens));
    pen.maybe(record.completion_tokens());
    pen.maybe(usage.and_then(|usage| usage.cached_tokens));
    pen.maybe(record.first_byte_ms);
    pen.maybe(record.ttft_ms);
    pen.maybe(queue_wait.map(millis));
    pen.maybe(began.map(millis));
    pen.number(failed.len() as u64);
    failed.iter().take(TRIES).for_each(|one| tell_try(one, pen));
}

fn tell_try(one: &SpanTry, pen: &mut FlightPen<'_>) {
    let (status, code) = match one.reason {
        TryFailure::Code(code) => (0, Some(code)),
        TryFailure::Status(status) => (status, None),
    };
    pen.number(millis(one.began));
    pen.number(millis(one.at));
    pen.number(u64::from(status) | one.picked_by.number() << 24);
    pen.text(Some(&one.backend), NAME_BYTES);
    pen.text(code, CODE_BYTES);
}

/// Not `as_millis`: its 128 bits are not needed.
fn millis(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1000).saturating_add(time.subsec_millis().into())
}

impl FlightStory {
    /// Of its words. Also when its request ended, milliseconds since 1970.
    pub fn read(words: &FlightWords) -> (u64, FlightStory) {
        let mut from = FlightReader::new(words);
        let mut story = FlightStory {
            request_id: from.text(OWN_ID_BYTES).unwrap_or_default(),
            client_request_id: from.text(REQUEST_ID_BYTES_MAX),
            key_name: from.text(NAME_BYTES),
            user_id: from.text(NAME_BYTES),
            method: from.text(METHOD_BYTES).unwrap_or_default(),
            path: from.text(PATH_BYTES).unwrap_or_default(),
            model: from.text(MODEL_BYTES),
            served_model: from.text(MODEL_BYTES),
            backend: from.text(NAME_BYTES),
            error: from.text(CODE_BYTES),
            engine_error: from.text(CODE_BYTES),
            usage_missing_reason: from.text(CODE_BYTES),
            ..FlightStory::default()
        };
        let (has_key, key, flags, counts) =
            (from.number() != 0, from.number(), from.number(), from.number());
        let at = |shift: u32| usize::from((flags >> shift) as u8);
        story.key_id = has_key.then(|| key_id_text(key));
        story.is_stream = flags & 1 != 0;
        story.fallback_used = flags & 2 != 0;
        let source = SOURCES.get(at(8)).copied().unwrap_or_default();
        story.usage_source = story.backend.as_ref().map(|_| source.to_owned());
        story.status = OUTCOMES.get(at(16)).copied().unwrap_or_default().as_str().to_owned();
        story.status_code = (counts >> 32) as u16;
        story.retry_count = counts as u32;
        let arrived_ms = from.number();
        story.timestamp = Stamp::of(arrived_ms).map_or(String::new(), |at| at.as_str().to_owned());
        story.latency_ms = from.number();
        story.request_bytes = from.number();
        story.response_bytes = from.number();
        story.events = from.number();
        story.prompt_tokens = from.maybe();
        story.completion_tokens = from.maybe();
        story.cached_tokens = from.maybe();
        story.first_byte_ms = from.maybe();
        story.ttft_ms = from.maybe();
        story.queue_wait_ms = from.maybe();
        story.picked_ms = from.maybe();
        let picked_by = PickedBy::of(at(24) as u64).as_str();
        story.picked_by = story.picked_ms.map(|_| picked_by.to_owned());
        story.failed_count = from.number();
        let tries = story.failed_count.min(TRIES as u64);
        story.failed_tries = (0..tries).map(|_| FailedTry::read(&mut from)).collect();
        (arrived_ms.saturating_add(story.latency_ms), story)
    }

    /// Whether it is the story of the request with this id, of ours or of the client's.
    pub fn is_of(&self, id: &str) -> bool {
        self.request_id == id || self.client_request_id.as_deref() == Some(id)
    }
}

impl FailedTry {
    fn read(from: &mut FlightReader<'_>) -> FailedTry {
        let (picked_ms, failed_ms, flags) = (from.number(), from.number(), from.number());
        let backend = from.text(NAME_BYTES).unwrap_or_default();
        let reason = from.text(CODE_BYTES);
        FailedTry {
            backend,
            picked_by: PickedBy::of(flags >> 24).as_str().to_owned(),
            picked_ms,
            failed_ms,
            reason: reason.unwrap_or_else(|| format!("status_{}", flags & 0xffff)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::FlightRecorder;
    use super::*;
    use crate::llm::tokens::Usage;

    fn kept(facts: &FlightFacts<'_>) -> (u64, FlightStory) {
        let recorder = FlightRecorder::new(1, 1).unwrap();
        let lane = recorder.of_worker(0).unwrap();
        lane.write(|pen| tell(facts, pen));
        let words = lane.newest_first().next().unwrap();
        FlightStory::read(&words)
    }

    fn tried(reason: TryFailure) -> SpanTry {
        SpanTry {
            began: Duration::from_millis(3),
            at: Duration::from_millis(7),
            backend: "b".repeat(90).into(),
            picked_by: PickedBy::Session,
            reason,
        }
    }

    /// Catches: a fact that comes out as another one, or a try that is lost, also where each text
    /// has its full length and all tries are there: the words must have room.
    #[test]
    fn a_story_comes_out_as_it_was_put_in() {
        let (own, id) = ("o".repeat(OWN_ID_BYTES), "i".repeat(REQUEST_ID_BYTES_MAX));
        let long = "n".repeat(300);
        let failed = [
            tried(TryFailure::Code("connect_failed")),
            tried(TryFailure::Status(503)),
            tried(TryFailure::Code("backend_closed")),
            tried(TryFailure::Code("abcdefghijklmnopqrstuvwxyzabcdefghijkl")),
            tried(TryFailure::Status(500)),
        ];
        let record = RecordRef {
            request_id: &own,
            client_request_id: Some(&id),
            model: Some(&long),
            user_id: Some(&long),
            key_name: Some("laptop"),
            backend: Some(&long),
            error: Some("backend_timeout"),
            engine_error: Some(&long),
            method: "POST",
            path: &long,
            key_id: Some(0xab),
            status_code: 504,
            retry_count: 5,
            fallback_used: true,
            outcome: Outcome::TimedOut,
            ttft_ms: Some(0),
            timestamp_ms: 1_000,
            latency_ms: 12,
            response_bytes: u64::MAX,
            counted: Some(4),
            ..RecordRef::default()
        };
        let facts = FlightFacts {
            record,
            served_model: Some("served"),
            queue_wait: Some(Duration::from_secs(2)),
            began: Some(Duration::from_millis(9)),
            picked_by: PickedBy::Again,
            failed: &failed,
        };
        let (ended_ms, story) = kept(&facts);
        assert!(story.is_of(&id) && story.is_of(&own) && !story.is_of("i"), "{story:?}");
        let cut = |bytes: usize| long.get(..bytes);
        assert_eq!((ended_ms, story.timestamp.as_str()), (1_012, "1970-01-01T00:00:01.000Z"));
        assert_eq!((story.model.as_deref(), Some(&*story.path)), (cut(64), cut(48)));
        assert_eq!(story.served_model.as_deref(), Some("served"));
        assert_eq!((story.backend.as_deref(), story.user_id.as_deref()), (cut(40), cut(40)));
        assert_eq!((story.engine_error.as_deref(), story.method.as_str()), (cut(32), "POST"));
        assert_eq!((story.status.as_str(), story.error.as_deref()), {
            ("timed_out", Some("backend_timeout"))
        });
        assert_eq!((story.status_code, story.retry_count), (504, 5));
        assert_eq!(story.key_id.as_deref(), Some("00000000000000ab"));
        assert_eq!((story.ttft_ms, story.first_byte_ms, story.latency_ms), (Some(0), None, 12));
        assert_eq!((story.response_bytes, story.prompt_tokens), (u64::MAX, None));
        assert_eq!(
            (story.usage_source.as_deref(), story.completion_tokens),
            (Some("counted"), Some(4))
        );
        assert_eq!((story.queue_wait_ms, story.picked_ms), (Some(2_000), Some(9)));
        assert_eq!((story.picked_by.as_deref(), story.key_name.as_deref()), {
            (Some("again"), Some("laptop"))
        });
        assert!(story.fallback_used && !story.is_stream);
        are_those_that_failed(&story.failed_tries);
    }

    fn are_those_that_failed(tries: &[FailedTry]) {
        let reasons: Vec<_> = tries.iter().map(|one| one.reason.as_str()).collect();
        let code = "abcdefghijklmnopqrstuvwxyzabcdef";
        assert_eq!(reasons, ["connect_failed", "status_503", "backend_closed", code]);
        for one in tries {
            assert_eq!((one.backend.len(), one.picked_by.as_str()), (NAME_BYTES, "session"));
            assert_eq!((one.picked_ms, one.failed_ms), (3, 7));
        }
    }

    /// Catches: figures of an engine that are told as somebody else's, and what an older story left
    /// in the place of a newer one that has less to tell.
    #[test]
    fn what_is_not_there_is_not_told() {
        let usage = Usage { prompt_tokens: 3, completion_tokens: 0, ..Usage::default() };
        let record = RecordRef { backend: Some("b"), usage: Some(usage), ..RecordRef::default() };
        let failed = [tried(TryFailure::Status(500))];
        let facts = FlightFacts {
            record,
            served_model: None,
            queue_wait: None,
            began: Some(Duration::ZERO),
            picked_by: PickedBy::OnlyOne,
            failed: &failed,
        };
        let recorder = FlightRecorder::new(1, 1).unwrap();
        let lane = recorder.of_worker(0).unwrap();
        lane.write(|pen| tell(&facts, pen));
        let read = || FlightStory::read(&lane.newest_first().next().unwrap()).1;
        let first = read();
        assert_eq!(first.usage_source.as_deref(), Some("engine"));
        assert_eq!((first.prompt_tokens, first.completion_tokens), (Some(3), Some(0)));
        assert_eq!((first.picked_ms, first.served_model), (Some(0), None));
        let record = RecordRef { outcome: Outcome::Refused, ..RecordRef::default() };
        lane.write(|pen| tell(&FlightFacts { record, began: None, failed: &[], ..facts }, pen));
        let second = FlightStory {
            status: "refused".into(),
            timestamp: "1970-01-01T00:00:00.000Z".into(),
            ..FlightStory::default()
        };
        assert_eq!(read(), second);
    }
}
