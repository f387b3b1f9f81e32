//! Where usage is read and where not, how later counts change earlier ones, and what is no count.
//! The engines' own answers are read in `llm/ending/tests.rs`.

mod merging;
mod places;
mod reference;

use super::*;

/// Prompt, completion, total, cached, reasoning.
type Tokens = (u64, u64, u64, Option<u64>, Option<u64>);

const EVENTS: Option<EventFraming> = Some(EventFraming::Events);

/// A scan that has seen these pieces.
fn scan<'a>(
    dialect: Dialect,
    framing: Option<EventFraming>,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> UsageScan {
    let mut scan = UsageScan::default();
    scan.expect(dialect, framing);
    pieces.into_iter().for_each(|piece| scan.feed(piece));
    scan
}

fn tokens(usage: Usage) -> Tokens {
    let sums = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens);
    (sums.0, sums.1, sums.2, usage.cached_tokens, usage.reasoning_tokens)
}

/// Reads an answer whole, byte by byte and cut once at each byte: all say the same.
fn read(dialect: Dialect, framing: Option<EventFraming>, answer: &str) -> UsageScan {
    let bytes = answer.as_bytes();
    let whole = scan(dialect, framing, [bytes]);
    let said = |scan: &UsageScan| {
        let facts = scan.facts();
        let errors = (facts.error(), facts.error_code().map(str::to_owned), facts.fault());
        let counts = (facts.content_events(), facts.choices(), facts.oddities());
        let id = scan.upstream_id().map(str::to_owned);
        (scan.usage(), facts.seconds(), errors, counts, id, scan.done())
    };
    let expected = said(&whole);
    assert_eq!(said(&scan(dialect, framing, bytes.chunks(1))), expected, "{answer} byte by byte");
    for cut in 0..bytes.len() {
        let (a, b) = bytes.split_at(cut);
        assert_eq!(said(&scan(dialect, framing, [a, b])), expected, "{answer} cut at {cut}");
    }
    whole
}

/// The tokens of a stream of `/v1/chat/completions` whose events have this data.
fn chat(events: &[&str]) -> Option<Tokens> {
    let stream: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
    read(Dialect::OpenAi, EVENTS, &stream).usage().map(tokens)
}

/// The tokens of a whole answer.
fn whole(dialect: Dialect, answer: &str) -> Option<Tokens> {
    read(dialect, None, answer).usage().map(tokens)
}

#[test]
fn the_state_of_a_stream_is_small() {
    assert!(std::mem::size_of::<UsageScan>() <= 480, "{}", std::mem::size_of::<UsageScan>());
}
