use super::*;
use proptest::prelude::*;

fn fed(pieces: &[&[u8]]) -> (u64, bool, bool) {
    let mut scan = SseScan::default();
    pieces.iter().for_each(|piece| scan.feed(piece));
    (scan.events(), scan.at_boundary(), scan.done())
}

#[test]
fn counts_events_and_knows_boundaries() {
    for (stream, expected) in [
        ("", (0, true, false)),
        ("data: {}\n\n", (1, true, false)),
        ("data:{}\n\n", (1, true, false)),
        ("data\n\n", (1, true, false)),
        ("data: {}\r\n\r\ndata: {}\r\n\r\n", (2, true, false)),
        ("data: {}\r\rdata: {}\r\r", (2, true, false)),
        ("data: a\ndata: b\n\n", (1, true, false)),
        ("event: error\ndata: {}\n\n", (1, true, false)),
        ("data: {}\n\ndata: [DONE]\n\n", (1, true, true)),
        ("data: {}\n\ndata:[DONE]\n\n", (1, true, true)),
        ("data: [DONE] \n\n", (1, true, false)),
        ("data:  [DONE]\n\n", (1, true, false)),
        ("data: {\"c\":\"data: [DONE]\"}\n\n", (1, true, false)),
        (": ping\n\n", (0, true, false)),
        (": ping - 2026-01-01\r\n\r\n", (0, true, false)),
        ("database: x\n\n", (0, true, false)),
        (" data: x\n\n", (0, true, false)),
        ("\n\n\n", (0, true, false)),
        // Not at a boundary: an event of ours would be merged with what stands here.
        ("d", (0, false, false)),
        ("data: {}", (0, false, false)),
        ("data: {}\n", (0, false, false)),
        ("data: {}\r\n", (0, false, false)),
        ("data: {}\n\nevent: x\n", (1, false, false)),
        ("data: {}\n\ndata: [DONE]", (1, false, false)),
    ] {
        assert_eq!(fed(&[stream.as_bytes()]), expected, "{stream:?}");
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(fed(&bytes), expected, "{stream:?} byte by byte");
        for cut in 0..stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            assert_eq!(fed(&[a, b]), expected, "{stream:?} cut at {cut}");
        }
    }
}

#[test]
fn the_middle_of_a_crlf_that_ends_an_event_is_a_boundary() {
    // A CR alone ends a line, so the event is over; a LF that still comes is a blank line more.
    assert_eq!(fed(&[b"data: x\r\n\r"]), (1, true, false));
    assert_eq!(fed(&[b"data: x\r\n\r", b"\n"]), (1, true, false));
    assert_eq!(fed(&[b"data: x\r", b"\n"]), (0, false, false));
}

/// The standard's algorithm on the whole text: split into lines, then into events.
fn by_the_book(stream: &str) -> (u64, bool, bool) {
    let text = stream.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    let unfinished = lines.pop().unwrap_or("");
    let (mut events, mut done, mut data, mut inside) = (0, false, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match (line, name) {
            ("", _) => {
                events += u64::from(data);
                (data, inside) = (false, false);
                continue;
            }
            (_, "data") if value.strip_prefix(' ').unwrap_or(value) == "[DONE]" => done = true,
            (_, "data") => data = true,
            _ => {}
        }
        inside = true;
    }
    (events, !inside && unfinished.is_empty(), done)
}

proptest! {
    #[test]
    fn agrees_with_the_book_at_every_cut(
        parts in prop::collection::vec(prop::sample::select(vec![
            "\n", "\r", "\r\n", "\n\n", "data", "data:", "data: ", "[DONE]", "data: [DONE]", "{}",
            ":", "event: x", " ", "data: {\"a long line\": \"of more than the head\"}",
        ]), 0..30),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> =
            cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(fed(&pieces), by_the_book(&stream));
    }
}

/// What a stream said beside its events: error, message_stop, end of a response.
fn said(framing: Framing, stream: &str) -> (bool, bool, bool) {
    let judge = |pieces: &[&[u8]]| {
        let mut scan = SseScan::new(framing);
        pieces.iter().for_each(|piece| scan.feed(piece));
        (scan.in_band_error(), scan.message_stopped(), scan.response_ended())
    };
    let bytes = stream.as_bytes();
    let whole = judge(&[bytes]);
    for cut in 0..bytes.len() {
        let (a, b) = bytes.split_at(cut);
        assert_eq!(judge(&[a, b]), whole, "{stream:?} cut at {cut}");
    }
    whole
}

/// Catches: an error inside a stream of status 200 that passes for an answer, or an answer that
/// speaks of errors and passes for one.
#[test]
fn errors_and_ends_are_told_from_what_only_looks_like_them() {
    let (error, stop, end) = ((true, false, false), (false, true, false), (false, false, true));
    let none = (false, false, false);
    for (stream, expected) in [
        ("data: {\"error\":{\"code\":500}}\n\n", error),
        ("data: {\"error\": {\"message\": \"x\"}}\n\n", error),
        ("data:{\"error\":\"x\",\"error_type\":\"overloaded\"}\n\n", error),
        ("data:  { \"error\"  :  { }}\r\n\r\n", error),
        ("data: {\"object\":\"error\",\"message\":\"x\"}\n\n", error),
        ("data: {\"type\":\"error\",\"error\":{}}\n\n", error),
        ("event: error\ndata: {}\n\n", error),
        ("event:error\ndata: {}\n\n", error),
        ("error: {\"code\":500}\n\n", error),
        ("event: response.failed\ndata: {}\n\n", (true, false, true)),
        ("event: response.completed\ndata: {}\n\n", end),
        ("event: response.incomplete\ndata: {}\n\n", end),
        ("data: {\"type\":\"response.incomplete\",\"response\":{}}\n\n", end),
        ("event: message_stop\ndata: {}\n\n", stop),
        ("data: {\"type\": \"message_stop\"}\n\n", stop),
        // What only looks like it.
        ("data: {\"error\":null,\"id\":\"x\"}\n\n", none),
        ("data: {\"errors\":{}}\n\n", none),
        ("data: {\"id\":\"x\",\"text\":\"{\\\"error\\\":{\"}\n\n", none),
        ("data: \"error\"\n\n", none),
        ("data: error: {\n\n", none),
        ("data: event: error\n\n", none),
        ("data: {\"object\":\"error.chunk\"}\n\n", none),
        ("data: {\"type\":\"message_stopped\"}\n\n", none),
        // Too far from the beginning of its line, however that was cut.
        ("data: {                                \"error\":{}}\n\n", none),
        (": event: error\n\n", none),
        ("event: errors\n\n", none),
        ("event: response.completed.x\n\n", none),
        ("event: error", none),
        ("xevent: error\n\n", none),
    ] {
        assert_eq!(said(Framing::Events, stream), expected, "{stream:?}");
    }
    assert_eq!(said(Framing::Lines, "{}\n{\"error\":\"x\"}\n"), error);
    assert_eq!(said(Framing::Lines, "{ \"error\" : \"x\" }\r\n"), error);
    assert_eq!(said(Framing::Lines, "{\"x\":1,\"error\":\"x\"}\n"), none, "left to the members");
    assert_eq!(said(Framing::Lines, "event: error\n"), none);
}

/// Catches: lines of JSON that are counted as server-sent events, and an error of ours put into
/// the middle of one.
#[test]
fn a_line_of_json_is_an_event() {
    for (stream, events, boundary) in [
        ("", 0, true),
        ("{}", 0, false),
        ("{}\n", 1, true),
        ("{}\r\n{}\n", 2, true),
        ("{}\n\n \n{}\n", 2, true),
        ("{}\n{\"data\":1", 1, false),
    ] {
        for cut in 0..=stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            let mut scan = SseScan::new(Framing::Lines);
            scan.feed(a);
            scan.feed(b);
            assert_eq!((scan.events(), scan.at_boundary()), (events, boundary), "{stream:?}");
            assert!(scan.is_ndjson() && !scan.done());
        }
    }
}

#[test]
fn the_media_type_tells_the_framing() {
    for (field, framing) in [
        ("text/event-stream", Some(Framing::Events)),
        ("Text/Event-Stream; charset=utf-8", Some(Framing::Events)),
        ("application/x-ndjson", Some(Framing::Lines)),
        ("application/x-ndjson;charset=utf-8", Some(Framing::Lines)),
        ("application/jsonl", Some(Framing::Lines)),
        ("application/json", None),
        ("text/event-streams", None),
        ("", None),
    ] {
        assert_eq!(Framing::of(field.as_bytes()), framing, "{field}");
    }
}
