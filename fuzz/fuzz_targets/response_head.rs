//! Bytes of a backend: any cut gives the same head, and what the client would get means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::base::limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use llmproxy::http::framing::ResponseFraming;
use llmproxy::http::head::{Field, Parse, Version};
use llmproxy::http::request::Method;
use llmproxy::http::response::{BadResponse, ResponseHead};
use llmproxy::http::write::{self, ForwardResponse, OutFraming};

/// Parses in reads of `step` bytes; `None` when the head has no end.
fn parse(
    text: &[u8],
    step: usize,
    to: Method,
) -> Result<Option<(ResponseHead, usize)>, BadResponse> {
    let mut head = ResponseHead::default();
    let step = step.max(1);
    for end in (step..text.len()).step_by(step).chain([text.len()]) {
        if let Parse::Done { len } = head.parse(&text[..end], to, HEAD_BYTES_MAX)? {
            return Ok(Some((head, len)));
        }
    }
    Ok(None)
}

fuzz_target!(|input: &[u8]| {
    let Some((knob, text)) = input.split_first() else { return };
    let to = if knob & 1 == 0 { Method::Post } else { Method::Head };
    let whole = parse(text, text.len(), to);
    let cut = parse(text, usize::from(knob >> 1), to);
    match (&whole, &cut) {
        (Ok(Some((a, len))), Ok(Some((b, cut_len)))) => {
            assert_eq!((a.status, a.framing, a.keep_alive), (b.status, b.framing, b.keep_alive));
            assert_eq!((a.fields.len(), len), (b.fields.len(), cut_len));
        }
        (Err(_), Err(_)) | (Ok(None), Ok(None)) => {}
        (a, b) => panic!("whole: {a:?}, cut: {b:?}"),
    }
    let Ok(Some((head, _))) = whole else { return };
    // Our x-request-id and framing must fit below the limit for the head to be read back.
    if head.status >= 200 && head.fields.len() <= HEAD_FIELDS_MAX - 2 {
        forward(&head, text, to);
    }
});

/// What goes to the client, read back.
fn forward(head: &ResponseHead, text: &[u8], to: Method) {
    let framing = match head.framing {
        ResponseFraming::None => head.content_length.map_or(OutFraming::None, OutFraming::Length),
        ResponseFraming::Length(length) => OutFraming::Length(length),
        ResponseFraming::Chunked | ResponseFraming::UntilClose => OutFraming::Chunked,
    };
    let how = ForwardResponse {
        client: Version::Http11,
        framing,
        close: false,
        request_id: "r",
        fields: &[],
        at_ours: &|_| None,
    };
    let mut out = Vec::new();
    write::response(&mut out, head, text, &how);
    let (again, len) = parse(&out, out.len(), to).expect("we write what we read").expect("an end");
    assert_eq!(len, out.len());
    assert_eq!(again.status, head.status);
    assert_eq!(again.reason.of(&out), head.reason.of(text));
    let travels = |head: &ResponseHead, bytes: &[u8]| -> Vec<(Vec<u8>, Vec<u8>)> {
        let id = |f: &&Field| !f.stays && !f.name.of(bytes).eq_ignore_ascii_case(b"x-request-id");
        let pair = |f: &Field| (f.name.of(bytes).to_vec(), f.value.of(bytes).to_vec());
        head.fields.iter().filter(id).map(pair).collect()
    };
    assert_eq!(travels(&again, &out), travels(head, text));
    if matches!(framing, OutFraming::Chunked) && again.framing != ResponseFraming::None {
        assert_eq!(again.framing, ResponseFraming::Chunked);
    }
}
