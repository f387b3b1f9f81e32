use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// What reaches the client of a stream that comes in these slices.
fn filtered<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    filtered_for(false, slices)
}

/// The same of a client that asked for counts in each event, or not.
fn filtered_for<'a>(counts: bool, slices: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut filter, mut out) = (ExtraEvent::new(counts), Vec::new());
    for slice in slices {
        match filter.passes(slice) {
            true => out.extend_from_slice(slice),
            false => filter.feed(slice, &mut out),
        }
        assert!(filter.held.len() <= EVENT_HELD_BYTES_MAX);
    }
    filter.finish(&mut out);
    out
}

/// The same by the plainest means: the whole stream, a tree for each event.
fn reference(stream: &[u8]) -> Vec<u8> {
    let (mut out, mut event, mut rest) = (Vec::new(), Vec::new(), stream);
    // Nothing is touched any more, and the event that waits.
    let (mut is_untouched, mut waiting) = (false, String::new());
    while !rest.is_empty() {
        let text = rest.iter().take_while(|b| !matches!(b, b'\n' | b'\r')).count();
        let end = match rest.get(text..) {
            Some([b'\r', b'\n', ..]) => 2,
            Some([_, ..]) => 1,
            _ => 0,
        };
        event.extend_from_slice(&rest[..text + end]);
        rest = &rest[text + end..];
        if text > 0 {
            continue;
        }
        let event = String::from_utf8(std::mem::take(&mut event)).unwrap();
        let tree = tree(&event);
        let (choices, usage) = (tree["choices"].as_array(), &tree["usage"]);
        let finishes = choices.is_some_and(|choices| {
            choices.iter().any(|c| c["finish_reason"].as_str().is_some_and(|why| !why.is_empty()))
        });
        let event = match (choices.map(Vec::is_empty), usage.is_object() && !is_untouched) {
            (Some(true), true) => {
                let moved = with_moved(&std::mem::take(&mut waiting), &tree);
                out.extend_from_slice(moved.as_bytes());
                continue;
            }
            (Some(false), true)
                if usage.to_string().contains(|c: char| ('1'..='9').contains(&c)) =>
            {
                is_untouched = true;
                event
            }
            (Some(false), true) => without_usage(&event),
            _ => event,
        };
        out.extend_from_slice(std::mem::take(&mut waiting).as_bytes());
        match finishes && !is_untouched {
            true => waiting = event,
            false => out.extend_from_slice(event.as_bytes()),
        }
    }
    [out, waiting.into_bytes(), event].concat()
}

/// What the data of an event says; null when it is no JSON.
fn tree(event: &str) -> Value {
    let text = event.replace("\r\n", "\n").replace('\r', "\n");
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
    serde_json::from_str(&data.join("\n")).unwrap_or_default()
}

/// What stands before, in and behind the only line of data; `None` when there are several.
fn data_line(event: &str) -> Option<[&str; 3]> {
    let mut lines = event.split(['\n', '\r']).filter(|line| line.starts_with("data:"));
    let line = lines.next().filter(|_| lines.next().is_none())?;
    let (before, rest) = event.split_at(line.as_ptr() as usize - event.as_ptr() as usize);
    Some([before, line, rest.split_at(line.len()).1])
}

/// An event without its usage; as it is when its data has several lines.
fn without_usage(event: &str) -> String {
    let Some([before, line, behind]) = data_line(event) else { return event.to_owned() };
    before.to_owned() + &line_without_usage(line) + behind
}

fn line_without_usage(line: &str) -> String {
    let mut keys = line.match_indices("\"usage\"").map(|(at, _)| line.split_at(at));
    let (before, member) = keys.find(|(before, _)| !before.ends_with('\\')).unwrap();
    let (_, value) = member.split_once(':').unwrap();
    let mut values = serde_json::Deserializer::from_str(value).into_iter::<Value>();
    assert!(values.next().unwrap().unwrap().is_object());
    let (_, behind) = value.split_at(values.byte_offset());
    match before.trim_end().strip_suffix(',') {
        Some(before) => before.trim_end().to_owned() + behind,
        None => before.trim_end().to_owned() + behind.split_once(',').unwrap().1,
    }
}

/// An event that waited, and what it gets of the one that goes.
fn with_moved(event: &str, gone: &Value) -> String {
    let Some([before, line, behind]) = data_line(event) else { return event.to_owned() };
    let Some(close) = line.rfind('}') else { return event.to_owned() };
    let (object, close) = line.split_at(close);
    let has = |name: &str| tree(event).get(name).is_some();
    let moved: String = ["system_fingerprint", "timings"]
        .into_iter()
        .filter(|name| !has(name) && gone.get(*name).is_some_and(|value| !value.is_null()))
        .map(|name| format!(",\"{name}\":{}", gone[name]))
        .collect();
    format!("{before}{object}{moved}{close}{behind}")
}

/// Streams as engines write them (`<` and `>` stand around what must go, `«` and `»` around what is
/// put back), by the serialisers.
const STREAMS: &[(&str, &str)] = &[
    (
        "vllm",
        concat!(
            r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
            "\n\n",
            ": keep-alive\n\n",
            r#"data: {"id":"chatcmpl-a","choices":[{"index":0,"delta":{"content":"\"usage\":{\"choices\":[]}"},"finish_reason":null}]}"#,
            "\n\n",
            r#"data: {"id":"chatcmpl-a","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]«,"system_fingerprint":"vllm-0.32.0-1a2b3c4d"»}"#,
            "\n\n",
            r#"<data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3},"system_fingerprint":"vllm-0.32.0-1a2b3c4d"}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "vllm that is forced to tell",
        concat!(
            r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":12,"total_tokens":13,"completion_tokens":1}}"#,
            "\n\n",
            r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"y"}}],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2}}"#,
            "\n\n",
            r#"data: {"id":"a","choices":[],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2}}"#,
            "\n\n",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "sglang",
        concat!(
            r#"data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"tool_calls":[]}}],"usage":null}"#,
            "\n\n",
            "event: sglext_ids\n",
            r#"data: {"usage":{},"ids":[1,2]}"#,
            "\n\n",
            r#"<data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3,"prompt_tokens_details":null,"reasoning_tokens":0,"completion_tokens_details":null}}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "tgi chat",
        concat!(
            ":\n\n",
            r#"data: {"object":"chat.completion.chunk","id":"","created":1,"model":"m","system_fingerprint":"3.3-native","choices":[{"index":0,"delta":{"role":"assistant","content":"x"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            "\n\n",
            r#"<data: {"object":"chat.completion.chunk","id":"","created":1,"model":"m","system_fingerprint":"3.3-native","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "tgi completions, without a space",
        concat!(
            r#"data:{"object":"text_completion","choices":[{"index":0,"text":"x","finish_reason":""}]}"#,
            "\n\n",
            r#"data:{"object":"text_completion","choices":[{"index":0,"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}"#,
            "\n\n",
            "data:[DONE]\n\n",
        ),
    ),
    (
        "llama.cpp chat, n = 2",
        concat!(
            r#"data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"id":"chatcmpl-a","model":"m","system_fingerprint":"b1-x"«,"timings":{"cache_n":0}»}"#,
            "\n\n",
            r#"<data: {"choices":[],"created":1,"id":"chatcmpl-a","model":"m","system_fingerprint":"b1-x","object":"chat.completion.chunk","usage":{"completion_tokens":3,"prompt_tokens":12,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":0}},"timings":{"cache_n":0}}"#,
            "\n\n>",
            r#"data: {"choices":[{"finish_reason":"stop","index":1,"delta":{}}],"created":1,"id":"chatcmpl-a"}"#,
            "\n\n",
            r#"<data: {"choices":[],"created":1,"id":"chatcmpl-a","model":"m","usage":{"completion_tokens":3,"prompt_tokens":12,"total_tokens":15}}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "llama.cpp completions",
        concat!(
            r#"data: {"choices":[{"text":"x","index":0,"logprobs":null,"finish_reason":null}],"created":1}"#,
            "\n\n",
            r#"data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"usage":{"completion_tokens":3,"prompt_tokens":12,"total_tokens":15},"timings":{"cache_n":0}}"#,
            "\n\n",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "ollama completions",
        concat!(
            r#"data: {"id":"cmpl-1","choices":[{"text":"x","index":0,"finish_reason":null}]<,"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}>}"#,
            "\n\n",
            r#"<data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","system_fingerprint":"fp_ollama","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "localai, CRLF and spaces",
        concat!(
            ": ping - 2026-01-01\r\n\r\n",
            r#"data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}"#,
            "\r\n\r\n",
            "<event: message\r\n",
            r#"data: { "usage" : {"prompt_tokens": 12} , "choices" : [ ] }"#,
            "\r\n\r\n>",
            "data: [DONE]\r\n\r\n",
        ),
    ),
    (
        "no choice and no usage",
        concat!(
            r#"data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#,
            "\n\n",
            r#"data: {"choices":[],"usage":null}"#,
            "\n\n",
            r#"data: {"x":{"choices":[],"usage":{}}}"#,
            "\n\n",
            r#"data: {"choices":[],"usage":{}"#,
            "\n\n",
            r#"data: {"choices":null,"usage":{}}"#,
            "\n\n",
            r#"{"choices":[],"usage":{}}"#,
            "\n\n",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "several lines of data",
        concat!(
            "<data: {\"choices\":\ndata: [],\"usage\":\ndata: {}}\n\n>",
            "\n\n\n",
            "data: x\n\n",
        ),
    ),
    ("an end inside of an event", "data: {\"choices\":[],\"usage\":{}}\n"),
];

/// The stream that an engine sends, and what of it reaches the client. In no fixture do the marks
/// stand for themselves.
fn of_marks(marked: &str) -> (String, String) {
    let without = |from: char, to: char, text: &str| -> String {
        let parts = text.split(from);
        parts.map(|part| part.split_once(to).map_or(part, |(_, rest)| rest)).collect()
    };
    let sent = without('«', '»', &marked.replace(['<', '>'], ""));
    (sent, without('<', '>', &marked.replace(['«', '»'], "")))
}

/// Catches: an event that goes or stays because of where a read ended.
#[test]
fn the_usage_event_goes_however_the_stream_is_cut() {
    for (name, marked) in STREAMS {
        let (sent, wanted) = of_marks(marked);
        let (sent, shown) = (sent.as_bytes(), |got: Vec<u8>| String::from_utf8(got).unwrap());
        assert_eq!(shown(reference(sent)), wanted, "{name}");
        assert_eq!(shown(filtered([sent])), wanted, "{name}");
        assert_eq!(shown(filtered(sent.chunks(1))), wanted, "{name}, byte by byte");
        for cut in 0..sent.len() {
            let (one, two) = sent.split_at(cut);
            assert_eq!(shown(filtered([one, two])), wanted, "{name}, cut at {cut}");
        }
    }
}

/// Catches: a client that gets anything but what its engine would have sent it without us, byte for
/// byte, as the engines write it.
#[test]
fn a_stream_that_was_asked_about_is_the_one_that_was_not() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/asked");
    let mut pairs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.to_str().unwrap().strip_suffix(".asked.sse") else { continue };
        let asked = std::fs::read(&path).unwrap();
        let unasked = std::fs::read_to_string(format!("{name}.unasked.sse")).unwrap();
        for size in [1, 3, 64, 700, asked.len()] {
            let got = String::from_utf8(filtered(asked.chunks(size))).unwrap();
            assert_eq!(got, unasked, "{name} in pieces of {size}");
        }
        pairs += 1;
    }
    assert!(pairs >= 13, "{pairs}");
}

/// Catches: a copy of every event, for streams that bring whole ones.
#[test]
fn whole_events_pass_where_they_lie() {
    let filter = ExtraEvent::default();
    for passing in [
        "data: {\"choices\":[{}]}\n\n",
        ":\n\n",
        "data: {\"choices\":[{}],\"usage\":null}\n\ndata: [DONE]\n\n",
        "data: {\"choices\":[{\"finish_reason\":null}],\"usage\":null}\r\n\r\n",
        "data: {\"choices\":[{\"finish_reason\":\"\"}]}\n\n",
        // Written by a client, or by the model.
        "data: {\"choices\":[{}],\"metadata\":{\"finish_reason\":\"stop\"}}\n\n",
        "data: {\"choices\":[{\"delta\":{\"finish_reason\":\"stop\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\u0041\"}}]}\n\n",
        "data: {\"choices\":[{}],\"metadata\":{\"usage\":{\"a\":1}}}\n\n",
    ] {
        assert!(filter.passes(passing.as_bytes()), "{passing}");
    }
    for held in [
        "data: {}\n",
        "data: {\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":40,\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"finish_re\\u0061son\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"us\\u0061ge\":{\"a\":1}}\n\n",
        "d",
        "data: x\n\n:",
    ] {
        assert!(!filter.passes(held.as_bytes()), "{held}");
    }
}

/// Catches: an event that is held back for what follows it and is lost, doubled or out of order.
#[test]
fn an_event_that_ends_a_choice_waits_for_what_follows() {
    const FINISH: &str = "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"a\":1},\"timings\":{}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";
    let with_times = FINISH.replace("}]}", "}],\"timings\":{}}");
    let feed = |filter: &mut ExtraEvent, bytes: &str| {
        let mut out = Vec::new();
        filter.feed(bytes.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    };
    let waiting = || {
        let mut filter = ExtraEvent::default();
        assert_eq!(feed(&mut filter, FINISH), "");
        assert!(filter.is_waiting() && !filter.passes(DONE.as_bytes()));
        filter
    };
    for (then, wanted) in [
        (USAGE.to_owned(), with_times.clone()),
        (USAGE.to_owned() + DONE, with_times + DONE),
        (DONE.to_owned(), FINISH.to_owned() + DONE),
        (FINISH.to_owned(), FINISH.to_owned()),
        (": ping\n\n".to_owned(), FINISH.to_owned() + ": ping\n\n"),
    ] {
        let mut filter = waiting();
        assert_eq!(feed(&mut filter, &then), wanted, "{then}");
        assert_eq!(filter.is_waiting(), then == FINISH);
    }
    // Nothing came for too long, but the beginning of an event, which is still held.
    let (mut filter, mut out) = (waiting(), Vec::new());
    let (half, rest) = USAGE.split_at(9);
    assert_eq!(feed(&mut filter, half), "");
    filter.release(&mut out);
    assert_eq!((String::from_utf8(out).unwrap().as_str(), filter.is_waiting()), (FINISH, false));
    assert_eq!(feed(&mut filter, rest), "");
    assert_eq!(feed(&mut filter, DONE), DONE);
}

/// Catches: counts that a client gets although the engine gave them because of us, or that it does
/// not get although the engine would have given them.
#[test]
fn counts_in_each_event_are_whose_they_are() {
    let event = |usage: &str| format!("data: {{\"choices\":[{{}}]{usage}}}\n\n");
    let last =
        |usage: &str| format!("data: {{\"choices\":[{{\"finish_reason\":\"stop\"}}]{usage}}}\n\n");
    let vllm = r#","usage":{"prompt_tokens":12,"total_tokens":13,"completion_tokens":1}"#;
    let sglang = r#","usage":{"prompt_tokens":12,"total_tokens":13,"reasoning_tokens":0}"#;
    let zeros = r#","usage":{"prompt_tokens":0,"total_tokens":0}"#;
    let null = r#","usage":null"#;
    let total = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12}}\n\n";
    // (the client asks for counts in each event, on the events, on the last one) -> (these stay,
    // the usage event goes)
    for (counts, on_events, on_last, stays, goes) in [
        (false, "", "", false, true),
        (false, null, null, true, true),
        (false, zeros, zeros, false, true),
        (false, vllm, vllm, true, false),
        (false, sglang, sglang, true, false),
        (true, "", "", false, true),
        (true, null, null, true, true),
        (true, zeros, zeros, false, true),
        (true, vllm, vllm, false, true),
        (true, sglang, sglang, true, true),
    ] {
        let stream = |events: &str, last_one: &str, end: &str| {
            [event(events), event(events), last(last_one), end.to_owned()].concat()
        };
        let sent = stream(on_events, on_last, total);
        let (on_events, on_last) = if stays { (on_events, on_last) } else { ("", "") };
        let wanted = stream(on_events, on_last, if goes { "" } else { total });
        for size in [1, 7, sent.len()] {
            let got = filtered_for(counts, sent.as_bytes().chunks(size));
            assert_eq!(String::from_utf8(got).unwrap(), wanted, "{counts} {sent}");
        }
    }
    // TGI's and llama.cpp's text completions have them on the last event alone, asked or not.
    for counts in [false, true] {
        let sent = event("") + &last(vllm) + "data: [DONE]\n\n";
        assert_eq!(filtered_for(counts, sent.as_bytes().chunks(7)), sent.as_bytes());
    }
}

/// Catches: a client that sees nothing of an event although all of it is there.
#[test]
fn what_is_complete_is_not_held() {
    let events = ["data: a\n\n", "data: b\r\n\r\n", "data: c\r\r", "data: d\n\r", ": e\n\n\n"];
    let (mut filter, mut out) = (ExtraEvent::default(), Vec::new());
    let mut sent = Vec::new();
    for event in events {
        sent.extend_from_slice(event.as_bytes());
        for byte in event.as_bytes() {
            filter.feed(&[*byte], &mut out);
        }
        assert_eq!(out, sent, "{event:?}");
    }
}

/// Catches: an engine that fills our memory with one event, or stops the filter with it for good.
#[test]
fn an_endless_event_passes_unjudged_and_the_next_is_judged() {
    let extra = "data: {\"choices\":[],\"usage\":{}}\n\n";
    for (spaces, goes) in [(0, true), (1, false)] {
        let filled = EVENT_HELD_BYTES_MAX - extra.len() + spaces;
        let long = extra.replace("[]", &format!("[{}]", " ".repeat(filled)));
        let sent = format!("{long}{extra}data: [DONE]\n\n");
        let wanted = if goes { "" } else { long.as_str() }.to_owned() + "data: [DONE]\n\n";
        for size in [1, 1000, EVENT_HELD_BYTES_MAX, sent.len()] {
            assert!(filtered(sent.as_bytes().chunks(size)) == wanted.as_bytes(), "{size} {spaces}");
            let mut filter = ExtraEvent::default();
            sent.as_bytes().chunks(size).for_each(|c| filter.feed(c, &mut Vec::new()));
            assert_eq!(filter.passed_unjudged(), !goes, "{size} {spaces}");
        }
    }
}

fn any_piece() -> impl Strategy<Value = String> {
    let usage = prop_oneof![
        12 => prop::sample::select(vec!["{}", "null", "{\"a\":[0, {}]}", "0", "\"usage\""]),
        1 => Just("{\"a\":[1]}"),
    ];
    let choices = prop::sample::select(vec![
        "[]",
        "[ ]",
        "[{}]",
        "null",
        "{}",
        "[[]]",
        r#"[{"finish_reason":"stop"}]"#,
        r#"[{},{"finish_reason" : "x"} ]"#,
        r#"[{"finish_reason":null}]"#,
        r#"[{"finish_reason":""}]"#,
    ]);
    let more = prop::sample::select(vec![
        "",
        r#","timings":[1]"#,
        r#","system_fingerprint":"f""#,
        r#","timings":null"#,
    ]);
    let places = (usage, choices, more, "[ \t]{0,2}", any::<[bool; 2]>());
    let object = places.prop_map(|(u, c, more, space, [first, is_lone])| {
        let (u, c) = (format!("\"usage\"{space}:{u}"), format!("\"choices\":{space}{c}"));
        let (a, b) = if first { (u, c) } else { (c, u) };
        let id = if is_lone { "" } else { "\"id\":\"é\\\"usage\\\":{}\"," };
        format!("{{{space}{id}{a}{space},{b}{more}}}")
    });
    prop_oneof![
        6 => (prop::sample::select(vec!["data: ", "data:", "data", "event: ", ""]), object)
            .prop_map(|(field, json)| format!("{field}{json}")),
        1 => prop::sample::select(vec!["data: [DONE]", ": ping", ":", "event: x", "data: {",
            "data: \"choices\":[],\"usage\":{}}"]).prop_map(str::to_owned),
        8 => prop::sample::select(vec!["\n\n", "\n\n", "\r\n\r\n", "\n", "\r\n", "\r", "\r\r"])
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the stream and its cuts: the same bytes as the plainest reader lets through.
    #[test]
    fn agrees_with_a_reader_of_whole_streams(
        pieces in prop::collection::vec(any_piece(), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stream = pieces.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let bytes = stream.as_bytes();
        let wanted = String::from_utf8(reference(bytes)).unwrap();
        let got = filtered(cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]));
        prop_assert_eq!(String::from_utf8(got).unwrap(), wanted.clone(), "{:?}", stream);
        let got = filtered(bytes.chunks(1));
        prop_assert_eq!(String::from_utf8(got).unwrap(), wanted, "{:?}", stream);
    }
}
