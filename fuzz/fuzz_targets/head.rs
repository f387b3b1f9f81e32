//! Bytes of a client through the relay of the conformance tests: any cut of them must give the
//! same requests, and what would be forwarded must read back in one way only.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/conformance/readback.rs"]
mod readback;
#[path = "../../tests/conformance/relay.rs"]
mod relay;

use relay::{relay, End};

fuzz_target!(|input: &[u8]| {
    let Some((step, text)) = input.split_first() else { return };
    let (whole, end) = relay(text, text.len());
    let (cut, cut_end) = relay(text, usize::from(*step));
    assert_eq!(whole, cut);
    match (&end, &cut_end) {
        (End::Refused(..), End::Refused(..)) => {}
        _ => assert_eq!(end, cut_end),
    }
    for request in &whole {
        assert_eq!(readback::leak(request), None);
    }
});
