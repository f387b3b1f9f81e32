//! Any bytes, cut anywhere, give the same events and boundary as in one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::sse::SseScan;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let mut whole = SseScan::default();
    whole.feed(bytes);
    let mut cut = SseScan::default();
    bytes.chunks(usize::from(piece) + 1).for_each(|piece| cut.feed(piece));
    assert_eq!(whole.events(), cut.events());
    assert_eq!(whole.at_boundary(), cut.at_boundary());
});
