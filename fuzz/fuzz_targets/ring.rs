//! A ring that a dead process left, with anything in it: nothing panics, nothing loops, and what is
//! shown lies in the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::usage::ring::recover;

fuzz_target!(|data: &[u8]| {
    let mut shown = 0;
    let found = recover::entries(data, &mut |_, payload| shown += payload.len());
    assert!(found.is_err() || shown <= data.len());
});
