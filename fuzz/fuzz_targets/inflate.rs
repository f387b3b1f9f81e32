//! Any bytes get an answer under every coding: no panic (not even a caught one), no endless loop,
//! and no more memory than the limits allow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::inflate::{usage_of, Coding};

fuzz_target!(|bytes: &[u8]| {
    for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd, Coding::Brotli] {
        let _ = usage_of(coding, bytes, Dialect::OpenAi);
    }
});
