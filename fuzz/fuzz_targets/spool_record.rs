//! Any bytes are a record or none; a record is written and read as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::usage::spool::codec;

fuzz_target!(|bytes: &[u8]| {
    let _ = codec::request_id_of(bytes);
    let Some(record) = codec::decode(bytes) else { return };
    let mut written = Vec::new();
    codec::encode(&record.borrowed(), &mut written);
    let again = codec::decode(&written).expect("what was written can be read");
    assert_eq!(format!("{record:?}"), format!("{again:?}"));
});
