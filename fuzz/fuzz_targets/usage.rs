//! Any bytes, in any dialect, as a whole answer or a stream and cut anywhere, say the same as in
//! one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::sse::EventFraming;
use llmproxy::llm::usage::UsageScan;

const DIALECTS: &[Dialect] = &[
    Dialect::OpenAi,
    Dialect::Responses,
    Dialect::Messages,
    Dialect::Embeddings,
    Dialect::Transcriptions,
    Dialect::Generate,
    Dialect::LlamaCpp,
    Dialect::Completions,
    Dialect::Ollama,
    Dialect::Other,
];

fuzz_target!(|input: (u8, u8, u8, &[u8])| {
    let (dialect, piece, framing, bytes) = input;
    let dialect = DIALECTS[usize::from(dialect) % DIALECTS.len()];
    let framing =
        [None, Some(EventFraming::Events), Some(EventFraming::Lines)][usize::from(framing % 3)];
    let scan = || {
        let mut scan = UsageScan::default();
        scan.expect(dialect, framing);
        scan
    };
    let (mut whole, mut cut) = (scan(), scan());
    whole.feed(bytes);
    bytes.chunks(usize::from(piece) + 1).for_each(|piece| cut.feed(piece));
    assert_eq!(whole.usage(), cut.usage());
    assert_eq!(whole.upstream_id(), cut.upstream_id());
    assert_eq!(whole.facts().fault(), cut.facts().fault());
    assert_eq!(whole.facts().content_events(), cut.facts().content_events());
});
