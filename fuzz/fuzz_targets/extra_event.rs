//! Any stream, cut anywhere, loses the same events as in one piece, and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::llm::extra_event::ExtraEvent;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = filtered([bytes].into_iter());
    assert_eq!(whole, filtered(bytes.chunks(usize::from(piece) + 1)));
    let mut rest = bytes;
    for byte in &whole {
        let at = rest.iter().position(|other| other == byte).expect("no byte is ours");
        rest = &rest[at + 1..];
    }
});

fn filtered<'a>(slices: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut filter, mut out) = (ExtraEvent::default(), Vec::new());
    for slice in slices {
        match filter.passes(slice) {
            true => out.extend_from_slice(slice),
            false => filter.feed(slice, &mut out),
        }
    }
    filter.finish(&mut out);
    out
}
