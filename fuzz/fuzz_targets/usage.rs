//! Any bytes, cut anywhere, give the same usage and id as in one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::usage::UsageScan;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let mut whole = UsageScan::default();
    whole.feed(bytes);
    let mut cut = UsageScan::default();
    bytes.chunks(usize::from(piece) + 1).for_each(|piece| cut.feed(piece));
    assert_eq!(whole.usage(), cut.usage());
    assert_eq!(whole.upstream_id(), cut.upstream_id());
});
