//! Any bytes, in any dialect and framing and cut anywhere, say the same as in one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::ending::ended;
use llmproxy::llm::sse::{EventFraming, SseScan};
use llmproxy::llm::usage::{Usage, UsageScan};

const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/audio/transcriptions",
    "/generate",
    "/completion",
    "/completions",
    "/api/chat",
    "/other",
];

type Said = (Option<Usage>, Option<bool>, bool, u64, bool);

fn read<'a>(
    dialect: Dialect,
    framing: EventFraming,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Said {
    let mut usage = UsageScan::default();
    usage.expect(dialect, Some(framing));
    let mut events = SseScan::new(framing);
    for piece in pieces {
        usage.feed(piece);
        events.feed(piece);
    }
    let (ended, error) = (ended(dialect, &usage), usage.facts().error());
    (usage.usage(), ended, error, events.events(), events.at_boundary())
}

fuzz_target!(|input: (u8, u8, bool, &[u8])| {
    let (piece, path, lines, bytes) = input;
    let path = PATHS[usize::from(path) % PATHS.len()];
    let dialect = Dialect::of(path.as_bytes());
    let framing = if lines { EventFraming::Lines } else { EventFraming::Events };
    let whole = read(dialect, framing, std::iter::once(bytes));
    let cut = read(dialect, framing, bytes.chunks(usize::from(piece) + 1));
    assert_eq!(whole, cut);
});
