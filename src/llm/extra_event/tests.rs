use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// What reaches the client of a stream that comes in these slices.
fn filtered<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut filter, mut out) = (ExtraEvent::default(), Vec::new());
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
    while !rest.is_empty() {
        let text = rest.iter().take_while(|b| !matches!(b, b'\n' | b'\r')).count();
        let end = match rest.get(text..) {
            Some([b'\r', b'\n', ..]) => 2,
            Some([_, ..]) => 1,
            _ => 0,
        };
        event.extend_from_slice(&rest[..text + end]);
        rest = &rest[text + end..];
        if text == 0 {
            let event = std::mem::take(&mut event);
            if !is_extra_by_tree(&event) {
                out.extend_from_slice(&event);
            }
        }
    }
    [out, event].concat()
}

fn is_extra_by_tree(event: &[u8]) -> bool {
    let text = std::str::from_utf8(event).unwrap().replace("\r\n", "\n").replace('\r', "\n");
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
    let tree: Value = serde_json::from_str(&data.join("\n")).unwrap_or_default();
    tree["choices"].as_array().is_some_and(Vec::is_empty) && tree["usage"].is_object()
}

/// Streams as engines write them (`<` and `>` stand around what must go), by the serialisers.
const STREAMS: &[(&str, &str)] = &[
    (
        "vllm",
        concat!(
            r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
            "\n\n",
            ": keep-alive\n\n",
            r#"data: {"id":"chatcmpl-a","choices":[{"index":0,"delta":{"content":"\"usage\":{\"choices\":[]}"},"finish_reason":null}]}"#,
            "\n\n",
            r#"<data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3},"system_fingerprint":"vllm-0.32.0-1a2b3c4d"}"#,
            "\n\n>",
            "data: [DONE]\n\n",
        ),
    ),
    (
        "vllm, continuous",
        concat!(
            r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":12,"total_tokens":13,"completion_tokens":1}}"#,
            "\n\n",
            r#"data: {"id":"a","choices":[{"index":0,"delta":{"content":"y"}}],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2}}"#,
            "\n\n",
            r#"<data: {"id":"a","choices":[],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2}}"#,
            "\n\n>",
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
            r#"data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"id":"chatcmpl-a"}"#,
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
            r#"data: {"id":"cmpl-1","choices":[{"text":"x","index":0,"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
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

/// The stream that an engine sends, and what of it reaches the client.
fn of_marks(marked: &str) -> (String, String) {
    // In no fixture do the marks stand for themselves.
    let sent = marked.replace(['<', '>'], "");
    let parts = marked.split('<').map(|part| part.split_once('>').map_or(part, |(_, rest)| rest));
    (sent, parts.collect())
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

/// Catches: a copy of every event, for streams that bring whole ones.
#[test]
fn whole_events_pass_where_they_lie() {
    let filter = ExtraEvent::default();
    for passing in [
        "data: {\"choices\":[{}]}\n\n",
        ":\n\n",
        "data: {\"choices\":[{}],\"usage\":null}\n\ndata: [DONE]\n\n",
        "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\r\n\r\n",
    ] {
        assert!(filter.passes(passing.as_bytes()), "{passing}");
    }
    for held in ["data: {}\n", "data: {\"choices\":[],\"usage\":{}}\n\n", "d", "data: x\n\n:"] {
        assert!(!filter.passes(held.as_bytes()), "{held}");
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
    let usage = prop::sample::select(vec!["{}", "null", "{\"a\":[1]}", "0", "\"usage\""]);
    let choices = prop::sample::select(vec!["[]", "[ ]", "[{}]", "null", "{}", "[[]]"]);
    let object = (usage, choices, "[ \t]{0,2}", any::<bool>()).prop_map(|(u, c, space, first)| {
        let (u, c) = (format!("\"usage\"{space}:{u}"), format!("\"choices\":{space}{c}"));
        let (a, b) = if first { (u, c) } else { (c, u) };
        format!("{{\"id\":\"é\\\"usage\\\":{{}}\",{a}{space},{b}}}")
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
