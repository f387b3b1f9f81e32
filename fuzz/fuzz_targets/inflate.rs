//! Any bytes get an answer under every coding: no panic (not even a caught one), no endless loop,
//! and no more memory than the limits allow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::inflate::{self, Coding};
use llmproxy::llm::sse::EventFraming;
use llmproxy::llm::unpack::BodyUnpacking;

fuzz_target!(|bytes: &[u8]| {
    for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd, Coding::Brotli] {
        let _ = inflate::read(coding, bytes, (Dialect::OpenAi, Some(EventFraming::Events)));
        let Ok(mut unpacking) = BodyUnpacking::new(coding, bytes, 1 << 22) else { continue };
        while matches!(unpacking.step(), Ok((_, false))) {}
    }
});
