//! Every answer of `tests/fixtures/dialects`, read by all that watches an answer, whole and cut.

use super::*;
use crate::llm::error::{write_last_event, write_last_line};
use crate::llm::sse::{EventFraming, SseScan};
use crate::llm::usage::Usage;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Prompt, completion, total, cached, reasoning.
type Tokens = (u64, u64, u64, Option<u64>, Option<u64>);

/// What is found in an answer.
#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    usage: Option<Tokens>,
    ended: Option<bool>,
    error: bool,
    events: u64,
    /// Events in which the model said something.
    #[serde(default)]
    content: u64,
    id: Option<String>,
    /// The code of the error.
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    seconds: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Expected {
    path: String,
    #[serde(flatten)]
    found: Found,
}

struct Answer {
    name: String,
    dialect: Dialect,
    framing: Option<EventFraming>,
    bytes: Vec<u8>,
    found: Found,
}

static ANSWERS: LazyLock<Vec<Answer>> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialects");
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let table: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let is_answer = |name: &str| {
        let other = ["expected.json", "README.md", "packed"];
        !other.contains(&name)
    };
    let names = files.map(|file| file.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| is_answer(name)).collect();
    names.sort();
    assert_eq!(names, Vec::from_iter(table.keys().cloned()), "each file has its line");
    let answer = |(name, expected): (String, Expected)| Answer {
        dialect: Dialect::of(expected.path.as_bytes()),
        framing: match name.rsplit('.').next() {
            Some("sse") => Some(EventFraming::Events),
            Some("ndjson") => Some(EventFraming::Lines),
            _ => None,
        },
        bytes: std::fs::read(folder.join(&name)).unwrap(),
        name,
        found: expected.found,
    };
    table.into_iter().map(answer).collect()
});

fn found<'a>(
    dialect: Dialect,
    framing: Option<EventFraming>,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Found {
    let mut usage = UsageScan::default();
    // As on a kept connection, which had another answer before.
    usage.expect(Dialect::Ollama, Some(EventFraming::Lines));
    usage.feed(b"{\"done\":true,\"eval_count\":7}\n{\"error\":\"no\"}\n{\"x\":[\"");
    usage.reset();
    usage.expect(dialect, framing);
    let mut events = framing.map(SseScan::new);
    for piece in pieces {
        usage.feed(piece);
        if let Some(events) = events.as_mut() {
            events.feed(piece);
        }
    }
    let tokens = |u: Usage| {
        let sums = (u.prompt_tokens, u.completion_tokens, u.total_tokens);
        (sums.0, sums.1, sums.2, u.cached_tokens, u.reasoning_tokens)
    };
    Found {
        usage: usage.usage().map(tokens),
        ended: framing.and_then(|_| ended(dialect, &usage)),
        error: usage.facts().error(),
        events: events.as_ref().map_or(0, SseScan::events),
        content: usage.facts().content_events(),
        code: usage.facts().error_code().map(str::to_owned),
        seconds: usage.facts().seconds(),
        id: usage.upstream_id().map(str::to_owned),
    }
}

/// Catches: an engine whose counts, end or errors are not found, or are found only when its bytes
/// happen to arrive in one piece.
#[test]
fn every_answer_is_read_cut_at_every_byte() {
    for Answer { name, dialect, framing, bytes, found: expected } in ANSWERS.iter() {
        assert_eq!(found(*dialect, *framing, [&bytes[..]]), *expected, "{name}");
        assert_eq!(found(*dialect, *framing, bytes.chunks(1)), *expected, "{name} byte by byte");
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(found(*dialect, *framing, [a, b]), *expected, "{name} cut at {cut}");
        }
    }
}

/// Catches: a stream that was cut off and counts as ended, and one that was not and does not.
#[test]
fn no_stream_has_ended_before_its_mark() {
    for Answer { name, dialect, framing, bytes, found: whole } in ANSWERS.iter() {
        let ends: Vec<usize> = (0..bytes.len())
            .filter(|cut| found(*dialect, *framing, [&bytes[..*cut]]).ended == Some(true))
            .collect();
        // From the mark on it stays so.
        let first = *ends.first().unwrap_or(&bytes.len());
        assert_eq!(ends.len(), bytes.len() - first, "{name}");
        assert!(whole.ended == Some(true) || ends.is_empty(), "{name}");
    }
}

/// Catches: an error event of ours put into the middle of an engine's, or behind a whole one and
/// not recognised.
#[test]
fn what_we_say_of_an_error_is_an_error_wherever_it_may_stand() {
    let fault = crate::base::refusal::Refusal::new(502, "backend_error", "it \"broke\"\n\n");
    for Answer { name, dialect, framing, bytes, .. } in ANSWERS.iter() {
        let Some(framing) = *framing else { continue };
        for cut in 0..=bytes.len() {
            let mut events = SseScan::new(framing);
            events.feed(&bytes[..cut]);
            let line_end = cut == 0 || matches!(bytes[cut - 1], b'\n' | b'\r');
            assert!(!events.at_boundary() || line_end, "{name} at {cut}");
            if !events.at_boundary() {
                continue;
            }
            let before = events.events();
            let mut ours = Vec::new();
            if events.is_ndjson() {
                write_last_line(&fault, before, &mut ours);
            } else {
                write_last_event(*dialect, &fault, before, &mut ours);
            }
            let all = [&bytes[..cut], &ours].concat();
            let after = found(*dialect, Some(framing), [&all[..]]);
            assert_eq!((after.error, after.events), (true, before + 1), "{name} at {cut}");
        }
    }
}

const DIALECTS: &[Dialect] = &[
    Dialect::OpenAi,
    Dialect::Responses,
    Dialect::Messages,
    Dialect::Generate,
    Dialect::LlamaCpp,
    Dialect::Completions,
    Dialect::Ollama,
    Dialect::Other,
];

/// Answers one after the other, with pieces of them in between.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let some = |answer: prop::sample::Index, from: prop::sample::Index, len: usize| {
        let bytes = &answer.get(&ANSWERS).bytes;
        let from = from.index(bytes.len());
        bytes[from..bytes.len().min(from + len)].to_vec()
    };
    let piece = prop_oneof![
        any::<prop::sample::Index>().prop_map(|at| at.get(&ANSWERS).bytes.clone()),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..60usize)
            .prop_map(move |(answer, from, len)| some(answer, from, len)),
        prop::sample::select(vec![
            "\"",
            "\\",
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\n",
            "\r",
            "\n\n",
            "data: ",
            "null",
            "1",
            "-",
            "\"usage\":{",
            ",\"timings\"",
            "\"details\":{\"prefill\":[",
            "\"meta_info\":{",
            "\"done\":true",
            "\"eval_count\":1",
            "\"stop\":true",
            "\"error\":",
            "{\"error\":\"",
            "event: error\n",
            "event: message_stop",
            "error:",
            "data: [DONE]\n",
            "\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":",
            "\ndata: {\"choices\":[{\"delta\":{\"content\":\"",
            "\\u0061",
            ",\"usage\":null",
            "1.0",
            "\"type\":\"message_stop\"",
        ])
        .prop_map(|piece| piece.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..10),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Catches: a state that does not survive a cut, and bytes that stop the program.
    #[test]
    fn any_cut_gives_the_same(
        bytes in any_bytes(),
        dialect in prop::sample::select(DIALECTS),
        framing in prop::sample::select(vec![EventFraming::Events, EventFraming::Lines]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        let whole = found(dialect, Some(framing), [&bytes[..]]);
        prop_assert_eq!(&found(dialect, Some(framing), pieces), &whole);
        prop_assert_eq!(&found(dialect, Some(framing), bytes.chunks(1)), &whole);
    }
}

/// What a stream said: error, message_stop, end of a response.
fn said(framing: EventFraming, stream: &str) -> (bool, bool, bool) {
    let judge = |pieces: &[&[u8]]| {
        let mut scan = UsageScan::default();
        scan.expect(Dialect::OpenAi, Some(framing));
        pieces.iter().for_each(|piece| scan.feed(piece));
        let facts = scan.facts();
        (facts.error(), facts.message_stopped(), facts.response_ended())
    };
    let bytes = stream.as_bytes();
    let whole = judge(&[bytes]);
    for cut in 0..bytes.len() {
        let (a, b) = bytes.split_at(cut);
        assert_eq!(judge(&[a, b]), whole, "{stream:?} cut at {cut}");
    }
    whole
}

/// Catches: an error inside a stream of status 200 that passes for an answer, or an answer that
/// speaks of errors and passes for one.
#[test]
fn errors_and_ends_are_told_from_what_only_looks_like_them() {
    let (error, stop, end) = ((true, false, false), (false, true, false), (false, false, true));
    let none = (false, false, false);
    for (stream, expected) in [
        ("data: {\"error\":{\"code\":500}}\n\n", error),
        ("data: {\"error\": {\"message\": \"x\"}}\n\n", error),
        ("data:{\"error\":\"x\",\"error_type\":\"overloaded\"}\n\n", error),
        ("data:  { \"error\"  :  { }}\r\n\r\n", error),
        ("data: {\"id\":\"x\",\"error\":{}}\n\n", error),
        ("data: {\"object\":\"error\",\"message\":\"x\"}\n\n", error),
        ("data: {\"type\":\"error\",\"error\":{}}\n\n", error),
        ("event: error\ndata: {}\n\n", error),
        ("event:error\ndata: {}\n\n", error),
        ("error: {\"code\":500}\n\n", error),
        ("event: response.failed\ndata: {}\n\n", (true, false, true)),
        ("event: response.completed\ndata: {}\n\n", end),
        ("event: response.incomplete\ndata: {}\n\n", end),
        ("data: {\"response\":{},\"type\":\"response.incomplete\"}\n\n", end),
        ("event: message_stop\ndata: {}\n\n", stop),
        ("data: {\"type\": \"message_stop\"}\n\n", stop),
        ("data: {                                \"error\":{}}\n\n", error),
        // What only looks like it.
        ("data: {\"error\":null,\"id\":\"x\"}\n\n", none),
        ("data: {\"error\":\"\",\"id\":\"x\"}\n\n", none),
        ("data: {\"errors\":{}}\n\n", none),
        ("data: {\"x\":{\"error\":{\"code\":1}}}\n\n", none),
        ("data: {\"id\":\"x\",\"text\":\"{\\\"error\\\":{\"}\n\n", none),
        ("data: \"error\"\n\n", none),
        ("data: error: {\n\n", none),
        ("data: event: error\n\n", none),
        ("data: {\"object\":\"error.chunk\"}\n\n", none),
        ("data: {\"type\":\"message_stopped\"}\n\n", none),
        (": event: error\n\n", none),
        ("event: errors\n\n", none),
        ("event: response.completed.x\n\n", none),
        ("event: error", none),
        ("xevent: error\n\n", none),
    ] {
        assert_eq!(said(EventFraming::Events, stream), expected, "{stream:?}");
    }
    assert_eq!(said(EventFraming::Lines, "{}\n{\"error\":\"x\"}\n"), error);
    assert_eq!(said(EventFraming::Lines, "{\"x\":1,\"error\":\"x\"}\n"), error);
    assert_eq!(said(EventFraming::Lines, "event: error\n"), none);
}

/// Catches: an answer that was cut off and counts as whole, and one that is whole and does not,
/// because of a mark that is there or not.
#[test]
fn facts_end_an_answer_and_a_mark_alone_does_not() {
    let finish = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let delta = r#"data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
    for (stream, whole) in [
        (format!("{delta}\n\n{finish}\n\n{usage}\n\n"), true),
        (format!("{delta}\n\n{finish}\n\n{usage}"), true),
        (format!("{delta}\n\ndata: [DONE]\n\n"), true),
        (format!("{delta}\n\ndata: [DONE]\n"), true),
        (format!("{delta}\n\ndata: [DONE]"), true),
        (format!("{delta}\n\ndata: [DONE"), false),
        (format!("{delta}\n\ndata: [DONE]x"), false),
        (format!("{delta}\n\n{finish}\n\n"), false),
        (format!("{delta}\n\n{usage}\n\n"), false),
        (delta.to_owned(), false),
        ("data: [DONE]\n\n".to_owned(), false),
        (": ping\n\ndata: [DONE]\n\n".to_owned(), false),
        (String::new(), false),
    ] {
        for piece in [1, 5, usize::MAX] {
            let found =
                found(Dialect::OpenAi, Some(EventFraming::Events), stream.as_bytes().chunks(piece));
            assert_eq!(found.ended, Some(whole), "{stream:?} in {piece}s");
        }
    }
    let delta = "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},";
    let usage = "\"usage\":{\"output_tokens\":1}}\n\n";
    let ended = |stream: &str| {
        found(Dialect::Messages, Some(EventFraming::Events), [stream.as_bytes()]).ended
    };
    assert_eq!(ended(&format!("{delta}{usage}")), Some(true));
    assert_eq!(ended(&format!("{delta}\"x\":1}}\n\n")), Some(false));
}

/// Catches: an answer that counts as whole because one of its choices is.
#[test]
fn an_answer_is_whole_when_each_choice_is() {
    let event = |index: u8, reason: &str, more: &str| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":{reason},\"index\":{index},\"delta\":{{}}}}]\
             {more}}}\n\n"
        )
    };
    let counts = ",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}";
    let whole = format!("data: {{\"choices\":[]{counts}}}\n\n");
    let running = |index| event(index, "null", counts);
    let over = |index| event(index, "\"stop\"", counts);
    let silent = |index| event(index, "\"stop\"", "");
    let timed = format!("data: {{\"choices\":[]{counts},\"timings\":{{\"predicted_n\":1}}}}\n\n");
    // Whether it is whole, and whether its counts are still to come.
    for (stream, ended, awaits) in [
        (running(0) + &running(1) + &over(0), false, false),
        (running(0) + &running(1) + &over(1) + &over(0), true, false),
        (silent(0) + &running(1) + &whole, false, false),
        (running(0) + &silent(1), false, false),
        (silent(0), false, true),
        (silent(0) + &running(0), true, false),
        (silent(0) + &silent(1), false, true),
        (silent(0) + &silent(1) + &whole, true, false),
        (silent(1) + &timed + &silent(0), false, true),
        (silent(1) + &timed + &silent(0) + &timed, true, false),
        (event(0, "\"\"", ""), false, false),
        (silent(40), false, false),
        (silent(40) + &whole, false, false),
        (silent(0) + "data: {\"error\":{}}\n\n", false, false),
    ] {
        for piece in [1, 7, usize::MAX] {
            let mut scan = UsageScan::default();
            scan.expect(Dialect::OpenAi, Some(EventFraming::Events));
            stream.as_bytes().chunks(piece).for_each(|piece| scan.feed(piece));
            let said = (super::ended(Dialect::OpenAi, &scan), scan.facts().awaits_counts());
            assert_eq!(said, (Some(ended), awaits), "{stream} in {piece}s");
        }
    }
    let of = |dialect, stream: &str| {
        found(dialect, Some(EventFraming::Events), [stream.as_bytes()]).ended.unwrap()
    };
    let stop =
        |index: u8| format!("data: {{\"index\":{index},\"content\":\"\",\"stop\":true}}\n\n");
    let text =
        |index: u8| format!("data: {{\"index\":{index},\"content\":\"a\",\"stop\":false}}\n\n");
    assert!(!of(Dialect::LlamaCpp, &(text(0) + &text(1) + &stop(0))));
    assert!(of(Dialect::LlamaCpp, &(text(0) + &text(1) + &stop(0) + &stop(1))));
    // TGI's index is that of a token.
    let token = "data: {\"index\":1,\"token\":{\"text\":\"a\"},\"generated_text\":null}\n\n";
    let last = token.replace("null", "\"a\"").replace(":1,", ":2,");
    assert!(of(Dialect::Generate, &(token.to_owned() + &last)));
}

/// Catches: the code of an error that is lost, or is not the engine's.
#[test]
fn the_code_of_an_error_is_kept() {
    for (event, code) in [
        (r#"{"error":{"message":"x","code":503}}"#, Some("503")),
        (r#"{"error":{"code":"overloaded","type":"y"}}"#, Some("overloaded")),
        (r#"{"error":{"type":"y","code":null}}"#, Some("y")),
        (r#"{"error":{"type":"y","code":504}}"#, Some("504")),
        (r#"{"error":{"message":"x","http_status_code":422}}"#, Some("422")),
        (r#"{"error":"x","error_type":"overloaded"}"#, Some("overloaded")),
        (r#"{"object":"error","message":"x","type":"y","param":null,"code":400}"#, Some("400")),
        (r#"{"type":"error","error":{"type":"overloaded_error"}}"#, Some("overloaded_error")),
        (r#"{"error":{"code":"two words"}}"#, None),
        (r#"{"error":{"a":{"code":1}}}"#, None),
        (r#"{"code":500,"choices":[]}"#, None),
    ] {
        for piece in [1, usize::MAX] {
            let stream = format!("data: {event}\n\n");
            let found =
                found(Dialect::OpenAi, Some(EventFraming::Events), stream.as_bytes().chunks(piece));
            assert_eq!(found.code.as_deref(), code, "{event}");
        }
    }
}
