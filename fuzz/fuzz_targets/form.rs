//! A form is read the same whole and in slices, and the model that is found stands where it is said
//! to stand, in a part that a parser which splits at the boundary finds too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::form::FormScan;

const TYPE: &[u8] = b"multipart/form-data; boundary=b";

fuzz_target!(|body: &[u8]| {
    let body = [b"--b", body].concat();
    let found = FormScan::new(TYPE, b"b", &body).step(usize::MAX).expect("all of it was read");
    let mut slices = FormScan::new(TYPE, b"b", &body);
    let sliced = std::iter::repeat_with(|| slices.step(7)).flatten().next();
    assert_eq!(sliced.as_ref(), Some(&found));
    let Ok(Some((name, place))) = found else { return };
    assert_eq!(&body[place.clone()], name.as_bytes());
    assert!(body[..place.start].ends_with(b"\r\n\r\n"));
    assert!(body[place.end..].starts_with(b"\r\n--b"));
});
