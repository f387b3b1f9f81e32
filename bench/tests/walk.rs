//! Reading an answer costs no allocation for each event, also where no event is like the last one,
//! so that each is walked through: the answers of all engines that are at hand, in every dialect.

#![allow(clippy::unwrap_used, reason = "a test stops loudly")]

mod counting;

use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::sse::EventFraming;
use llmproxy::llm::usage::UsageScan;
use std::path::Path;

/// Dialects that have streams.
const EVERY_STREAM: [Dialect; 8] = [
    Dialect::OpenAi,
    Dialect::Responses,
    Dialect::Messages,
    Dialect::Transcriptions,
    Dialect::Generate,
    Dialect::LlamaCpp,
    Dialect::Completions,
    Dialect::Ollama,
];

struct Answer {
    name: String,
    dialect: Dialect,
    framing: Option<EventFraming>,
    bytes: Vec<u8>,
}

fn answers() -> Vec<Answer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/dialects");
    let table = std::fs::read(folder.join("expected.json")).unwrap();
    let table: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&table).unwrap();
    let answer = |(name, expected): (String, serde_json::Value)| Answer {
        dialect: Dialect::of(expected["path"].as_str().unwrap().as_bytes()),
        framing: match name.rsplit('.').next() {
            Some("sse") => Some(EventFraming::Events),
            Some("ndjson") => Some(EventFraming::Lines),
            _ => None,
        },
        bytes: std::fs::read(folder.join(&name)).unwrap(),
        name,
    };
    table.into_iter().map(answer).collect()
}

impl Answer {
    /// Its events, each so many times, with a member that no other event has.
    fn events(&self, times: usize) -> Vec<Vec<u8>> {
        let is_end = |line: &&[u8]| match self.framing {
            Some(EventFraming::Events) => line.trim_ascii().is_empty(),
            _ => true,
        };
        let lines: Vec<&[u8]> = self.bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let events = lines.split_inclusive(is_end).enumerate();
        let repeated = events.flat_map(|(number, event)| {
            (0..times).map(move |time| {
                let lines = event.iter().map(|line| unlike_others(number * times + time, line));
                lines.collect::<Vec<_>>().concat()
            })
        });
        repeated.collect()
    }
}

/// The line with one more member at the beginning of its object, if it has one.
fn unlike_others(number: usize, line: &[u8]) -> Vec<u8> {
    let from = line.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
    let (before, behind) = line.split_at(from);
    let is_data = [&b"{"[..], b"data: {", b"data:{"].contains(&before);
    if !is_data || behind.trim_ascii().starts_with(b"}") {
        return line.to_vec();
    }
    let member = format!("\"member {number}\":[{{\"usage\":{number}}}],");
    [before, member.as_bytes(), behind].concat()
}

/// Reads it, and gives how often memory was asked for.
fn read(scan: &mut UsageScan, answer: &Answer, events: &[Vec<u8>], piece_bytes: usize) -> u64 {
    let before = counting::counted();
    scan.expect(answer.dialect, answer.framing);
    let pieces = events.iter().flat_map(|event| event.chunks(piece_bytes));
    pieces.for_each(|piece| scan.feed(piece));
    counting::counted() - before
}

fn found(scan: &UsageScan) -> impl PartialEq + std::fmt::Debug {
    let facts = scan.facts();
    (scan.usage(), facts.content_events(), facts.error(), facts.seconds(), scan.done())
}

/// Catches: an allocation for each event, and a member of whatever name that hides the others.
#[test]
fn an_event_that_is_walked_allocates_nothing() {
    let answers = answers();
    let streams: Vec<&Answer> = answers.iter().filter(|a| a.framing.is_some()).collect();
    assert!(EVERY_STREAM.iter().all(|it| streams.iter().any(|stream| stream.dialect == *it)));
    counting::count_this_thread();
    let mut scan = UsageScan::default();
    for answer in streams {
        for piece_bytes in [usize::MAX, 100, 7, 1] {
            let what = format!("{} in pieces of {piece_bytes}", answer.name);
            read(&mut scan, answer, std::slice::from_ref(&answer.bytes), piece_bytes);
            let plain = found(&scan);
            read(&mut scan, answer, &answer.events(1), piece_bytes);
            assert_eq!(found(&scan), plain, "{what}");
            // What an answer needs once, a longer one needs once too.
            let (short, long) = (answer.events(8), answer.events(24));
            let of_short = read(&mut scan, answer, &short, piece_bytes);
            let of_long = read(&mut scan, answer, &long, piece_bytes);
            // The code of an error is kept, of each that comes.
            if scan.facts().error_code().is_none() {
                assert_eq!(of_long, of_short, "{what}: allocations");
                assert!(of_short <= 2, "{what}: {of_short} allocations");
            }
        }
    }
    assert!(counting::counted() > 0, "nothing is counted");
}
