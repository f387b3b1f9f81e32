use super::*;
use proptest::prelude::*;

/// What an answer's bytes amount to: prompt, completion, total, cached, reasoning.
type Tokens = (u64, u64, u64, Option<u64>, Option<u64>);

fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Option<Tokens>, Option<String>) {
    let mut scan = UsageScan::default();
    pieces.into_iter().for_each(|piece| scan.feed(piece));
    let usage = scan.usage().map(|u| {
        let sums = (u.prompt_tokens, u.completion_tokens, u.total_tokens);
        (sums.0, sums.1, sums.2, u.cached_tokens, u.reasoning_tokens)
    });
    (usage, scan.upstream_id().map(str::to_owned))
}

/// Answers as the serialisers of the engines write them: name, bytes, usage, id.
const ANSWERS: &[(&str, &str, Option<Tokens>, Option<&str>)] = &[
    (
        "vLLM chat stream",
        concat!(
            r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","#,
            r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"#,
            r#""finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
            "\n\n",
            r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","#,
            r#""choices":[{"index":0,"#,
            r#""delta":{"content":"the \"usage\": {\"prompt_tokens\":9} of it"},"logprobs":null,"#,
            r#""finish_reason":"stop"}]}"#,
            "\n\n",
            r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1700000000,"#,
            r#""model":"m","choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"#,
            r#""completion_tokens":3},"system_fingerprint":"vllm-0.32.0-1a2b3c4d"}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        Some((12, 3, 15, None, None)),
        Some("chatcmpl-a"),
    ),
    (
        "vLLM continuous usage is cumulative, the last counts",
        concat!(
            r#"data: {"id":"cmpl-a","choices":[{"index":0,"text":"a"}],"#,
            r#""usage":{"prompt_tokens":12,"total_tokens":13,"completion_tokens":1}}"#,
            "\n\n",
            r#"data: {"id":"cmpl-a","choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"#,
            r#""completion_tokens":3,"prompt_tokens_details":{"cached_tokens":64}}}"#,
            "\n\n"
        ),
        Some((12, 3, 15, Some(64), None)),
        Some("cmpl-a"),
    ),
    (
        "vLLM chat body",
        concat!(
            r#"{"id":"chatcmpl-b","object":"chat.completion","created":1,"model":"m","#,
            r#""choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"#,
            r#""finish_reason":"stop"}],"service_tier":null,"usage":{"prompt_tokens":5,"#,
            r#""total_tokens":9,"completion_tokens":4,"prompt_tokens_details":null,"#,
            r#""completion_tokens_details":{"reasoning_tokens":2}},"prompt_logprobs":null}"#,
        ),
        Some((5, 4, 9, None, Some(2))),
        Some("chatcmpl-b"),
    ),
    (
        "SGLang chat stream",
        concat!(
            r#"data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","#,
            r#""choices":[{"index":0,"delta":{"tool_calls":[]}}],"usage":null}"#,
            "\n\n",
            r#"data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m","#,
            r#""choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3,"#,
            r#""prompt_tokens_details":null,"reasoning_tokens":0,"#,
            r#""completion_tokens_details":null}}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        Some((12, 3, 15, None, Some(0))),
        Some("a"),
    ),
    (
        "SGLang completions: a null after the numbers takes nothing back",
        concat!(
            r#"{"id":"x","usage": {"prompt_tokens": 1, "completion_tokens": 2,"#,
            r#" "reasoning_tokens": 1}} {"usage" : null}"#,
        ),
        Some((1, 2, 3, None, Some(1))),
        Some("x"),
    ),
    (
        "TGI chat stream has an empty id",
        concat!(
            r#"data: {"object":"chat.completion.chunk","id":"","created":1,"model":"m","#,
            r#""system_fingerprint":"3.3-native","choices":[{"index":0,"#,
            r#""delta":{"role":"assistant","content":"a"},"logprobs":null,"finish_reason":null}],"#,
            r#""usage":null}"#,
            "\n\n",
            r#"data: {"object":"chat.completion.chunk","id":"","created":1,"model":"m","#,
            r#""system_fingerprint":"3.3-native","choices":[],"usage":{"prompt_tokens":12,"#,
            r#""completion_tokens":3,"total_tokens":15}}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        Some((12, 3, 15, None, None)),
        None,
    ),
    (
        "TGI completions: on the last chunk, with choices",
        concat!(
            r#"data:{"object":"text_completion","id":"","created":1,"choices":[{"index":0,"#,
            r#""text":"x","finish_reason":"length"}],"model":"m","usage":{"prompt_tokens":4,"#,
            r#""completion_tokens":20,"total_tokens":24}}"#,
        ),
        Some((4, 20, 24, None, None)),
        None,
    ),
    (
        "llama.cpp chat stream: usage before the timings, id late",
        concat!(
            r#"data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"#,
            r#""id":"chatcmpl-a","model":"m","system_fingerprint":"b1-x","#,
            r#""object":"chat.completion.chunk"}"#,
            "\n\n",
            r#"data: {"choices":[],"created":1,"id":"chatcmpl-a","model":"m","#,
            r#""system_fingerprint":"b1-x","object":"chat.completion.chunk","#,
            r#""usage":{"completion_tokens":3,"prompt_tokens":12,"total_tokens":15,"#,
            r#""prompt_tokens_details":{"cached_tokens":0}},"timings":{"prompt_n":12,"#,
            r#""prompt_ms":1.5}}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        Some((12, 3, 15, Some(0), None)),
        Some("chatcmpl-a"),
    ),
    (
        "Ollama completions: zeros in every early chunk",
        concat!(
            r#"data: {"id":"cmpl-1","object":"text_completion","created":1,"#,
            r#""choices":[{"text":"a","index":0,"finish_reason":null}],"model":"m","#,
            r#""system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"#,
            r#""total_tokens":0}}"#,
            "\n\n",
            r#"data: {"id":"cmpl-1","object":"text_completion","created":1,"choices":[],"#,
            r#""model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":26,"#,
            r#""completion_tokens":5,"total_tokens":31}}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        Some((26, 5, 31, None, None)),
        Some("cmpl-1"),
    ),
    (
        "Ollama completions cut short: zeros are no usage",
        concat!(
            r#"data: {"id":"cmpl-1","usage":{"prompt_tokens":0,"completion_tokens":0,"#,
            r#""total_tokens":0}}"#,
        ),
        None,
        Some("cmpl-1"),
    ),
    (
        "LocalAI before its fix: zeros, then the sum",
        concat!(
            r#"data: {"created":1,"object":"chat.completion.chunk","id":"u-1","model":"m","#,
            r#""choices":[{"index":0,"finish_reason":"","delta":{"content":"a"}}],"#,
            r#""usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
            "\r\n\r\n",
            r#"data: {"created":1,"object":"chat.completion.chunk","id":"u-1","model":"m","#,
            r#""choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#,
            "\r\n\r\n"
        ),
        Some((7, 2, 9, None, None)),
        Some("u-1"),
    ),
    (
        "embeddings of TEI, infinity, llama.cpp, Ollama",
        concat!(
            r#"{"object":"list","data":[{"object":"embedding","embedding":[0.1,-2e-3],"#,
            r#""index":0}],"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        ),
        Some((8, 0, 8, None, None)),
        None,
    ),
    (
        "embeddings of vLLM",
        concat!(
            r#"{"id":"embd-1","object":"list","created":1,"model":"m","data":[],"#,
            r#""usage":{"prompt_tokens":8,"total_tokens":8,"completion_tokens":0,"#,
            r#""prompt_tokens_details":null}}"#,
        ),
        Some((8, 0, 8, None, None)),
        Some("embd-1"),
    ),
    (
        "Responses",
        concat!(
            "event: response.created\n",
            r#"data: {"type":"response.created","response":{"id":"resp_1","status":"in_progress","#,
            r#""usage":null}}"#,
            "\n\nevent: response.completed\n",
            r#"data: {"type":"response.completed","response":{"id":"resp_1","#,
            r#""tools":[{"parameters":{"properties":{"usage":{"type":"string"}}}}],"#,
            r#""usage":{"input_tokens":30,"input_tokens_details":{"cached_tokens":16,"#,
            r#""input_tokens_per_turn":[30]},"output_tokens":7,"#,
            r#""output_tokens_details":{"reasoning_tokens":4},"total_tokens":37},"user":null}}"#,
            "\n\n"
        ),
        Some((30, 7, 37, Some(16), Some(4))),
        Some("resp_1"),
    ),
    (
        "Messages of llama.cpp: input first, output last",
        concat!(
            "event: message_start\n",
            r#"data: {"type":"message_start","message":{"id":"msg_1","type":"message","#,
            r#""usage":{"cache_read_input_tokens":90,"input_tokens":10,"output_tokens":0}}}"#,
            "\n\nevent: message_delta\n",
            r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"#,
            r#""usage":{"output_tokens":25}}"#,
            "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
        ),
        Some((100, 25, 125, Some(90), None)),
        Some("msg_1"),
    ),
    (
        "Messages of Ollama: the first input is an estimate",
        concat!(
            r#"data: {"type":"message_start","message":{"id":"msg_2","usage":{"input_tokens":10,"#,
            r#""output_tokens":0}}}"#,
            "\n\n",
            r#"data: {"type":"message_delta","usage":{"input_tokens":14,"output_tokens":3}}"#,
            "\n\n"
        ),
        Some((14, 3, 17, None, None)),
        Some("msg_2"),
    ),
    (
        "transcriptions are paid by the second",
        r#"{"text":"hello","usage":{"type":"duration","seconds":12}}"#,
        None,
        None,
    ),
    ("an error body", r#"{"error":{"message":"no","code":400}}"#, None, None),
    ("a string value", r#"{"type":"usage","x":["usage"],"usage":"no"}"#, None, None),
    (
        "braces and quotes inside the object",
        r#"{"usage":{"note":"}\"{\\","prompt_tokens":1,"more":{"a":[{}]},"completion_tokens":1}}"#,
        Some((1, 1, 2, None, None)),
        None,
    ),
];

#[test]
fn reads_every_dialect_cut_at_every_byte() {
    for (name, answer, usage, id) in ANSWERS {
        let bytes = answer.as_bytes();
        let expected = (*usage, id.map(str::to_owned));
        assert_eq!(fed([bytes]), expected, "{name}");
        assert_eq!(fed(bytes.chunks(1)), expected, "{name} byte by byte");
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(fed([a, b]), expected, "{name} cut at {cut}");
        }
    }
}

#[test]
fn numbers_that_cannot_be_are_no_usage() {
    for number in ["-1", "1.5", "1e3", "9007199254740993", "99999999999999999999999"] {
        let body = format!("{{\"usage\":{{\"prompt_tokens\":{number},\"completion_tokens\":2}}}}");
        assert_eq!(fed([body.as_bytes()]).0, None, "{number}");
    }
    // A name without a number is a number that is absent.
    for value in ["null", "\"12\"", "{}", "true"] {
        let body = format!("{{\"usage\":{{\"prompt_tokens\":{value},\"completion_tokens\":2}}}}");
        assert_eq!(fed([body.as_bytes()]).0, Some((0, 2, 2, None, None)), "{value}");
    }
    // What is broken is not read half.
    assert_eq!(fed([&b"{\"usage\":{\"prompt_tokens\":5,}}"[..]]).0, None);
}

#[test]
fn an_object_without_end_is_given_up_at_the_limit() {
    let endless = [&b"{\"usage\":{\"prompt_tokens\":5,\"x\":\""[..], &[b'a'; 100_000]].concat();
    for piece in [1, 7, 4096, 100_000] {
        let mut scan = UsageScan::default();
        for piece in endless.chunks(piece) {
            scan.feed(piece);
            assert!(scan.begun.len() <= USAGE_OBJECT_BYTES_MAX);
        }
        assert_eq!(scan.usage(), None);
        assert_eq!(scan.begun.capacity(), 0, "the memory is given back");
        scan.feed(b"\"}}\n{\"usage\":{\"prompt_tokens\":1}}");
        assert_eq!(scan.usage().map(|u| u.total_tokens), Some(1), "the search goes on");
    }
}

#[test]
fn the_largest_object_is_read_and_one_byte_more_is_not() {
    for (extra, found) in [(0, true), (1, false)] {
        let frame = "{\"prompt_tokens\":5,\"x\":\"\"}".len();
        let filler = "a".repeat(USAGE_OBJECT_BYTES_MAX - frame + extra);
        let body = format!("{{\"usage\":{{\"prompt_tokens\":5,\"x\":\"{filler}\"}}}}");
        assert_eq!(fed([body.as_bytes()]).0.is_some(), found);
        assert_eq!(fed(body.as_bytes().chunks(1000)).0.is_some(), found);
    }
}

#[test]
fn the_id_is_sought_near_the_start_only() {
    let late = |n: usize| format!("{{\"x\":\"{}\",\"id\":\"late\"}}", "a".repeat(n));
    assert_eq!(fed([late(900).as_bytes()]).1.as_deref(), Some("late"));
    assert_eq!(fed([late(1100).as_bytes()]).1, None);
    assert_eq!(fed(late(1100).as_bytes().chunks(3)).1, None);
    let mut scan = UsageScan::default();
    late(1100).as_bytes().chunks(100).for_each(|piece| scan.feed(piece));
    assert_eq!((scan.id.get(), scan.id.held()), (None, 0), "the bytes kept are given back");
    for (answer, id) in [
        (r#"{"id" : "a"}"#, Some("a")),
        (r#"{"id":7,"x":{"id":"b"}}"#, Some("b")),
        (r#"{"type":"id","id":"c"}"#, Some("c")),
        (r#"{"id":"with space"}"#, None),
        (r#"{"id":"esc\u0061ped"}"#, None),
        ("{\"id\":\"\u{e9}\"}", None),
        (r#"{"id":"unfinished"#, None),
    ] {
        assert_eq!(fed([answer.as_bytes()]).1.as_deref(), id, "{answer}");
    }
    let long = format!("{{\"id\":\"{}\"}}", "a".repeat(129));
    assert_eq!(fed([long.as_bytes()]).1, None);
}

#[test]
fn the_state_of_a_stream_is_small() {
    assert!(std::mem::size_of::<UsageScan>() <= 152);
}

/// Pieces of answers, whole and broken.
fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(ANSWERS).prop_map(|answer| answer.1.as_bytes().to_vec()),
        prop::sample::select(vec![
            "\"usage\"",
            "\"usage",
            "usage\"",
            "\"",
            ":",
            " : ",
            "{",
            "}",
            "{}",
            "null",
            "\\",
            "\"id\"",
            "\"id\":\"x\"",
            "\"prompt_tokens\":3",
            "\"input_tokens\":3",
            "\"output_tokens\":-1",
            ",",
        ])
        .prop_map(|piece| piece.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..10),
        Just(vec![b'a'; 5000]),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever arrives, it is read the same however it was cut, and nothing panics.
    #[test]
    fn any_cut_gives_the_same(
        answer in any_answer(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len() + 1)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
        prop_assert_eq!(fed(pieces), fed([&answer[..]]));
    }
}

/// What is begun before a gap does not go on behind it.
#[test]
fn nothing_is_found_across_bytes_that_were_not_seen() {
    let usage = br#""usage":{"prompt_tokens":1,"total_tokens":1}"#;
    for cut in 1..usage.len() {
        let mut scan = UsageScan::default();
        scan.feed(b"{");
        scan.feed(&usage[..cut]);
        scan.skip();
        scan.feed(&usage[cut..]);
        assert_eq!(scan.usage(), None, "{cut}");
        scan.feed(usage);
        assert_eq!(scan.usage().map(|usage| usage.prompt_tokens), Some(1), "{cut}");
    }
}

/// Catches: a key that is missed where the search changes its way.
#[test]
fn the_key_is_found_wherever_it_stands() {
    let usage = br#""usage":{"prompt_tokens":1,"total_tokens":1}"#;
    let dense = br#""a":"b","c":"d","#.as_slice();
    for filler in [b"0.1,".as_slice(), dense, &[dense, &[b'x'; 1500][..]].concat()] {
        for before in (0..24_000).step_by(if cfg!(debug_assertions) { 61 } else { 1 }) {
            let filled: Vec<u8> = filler.iter().copied().cycle().take(before).collect();
            let text = [&filled[..], b"\n", usage, b"}", &[b' '; 2000][..]].concat();
            let mut scan = UsageScan::default();
            scan.feed(&text);
            assert!(scan.usage().is_some(), "behind {before} bytes");
        }
    }
}

/// Catches: a sum where the last counts, and the last where only the sum tells what was done.
#[test]
fn only_what_timings_follow_is_summed() {
    let usage = |prompt: u64, completion: u64| {
        format!("\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion}}}")
    };
    let (one, two, three) = (usage(12, 3), usage(12, 5), usage(1, 1));
    for (text, expected) in [
        (format!("{{{one},\"timings\":{{}}}}{{{two},\"timings\":{{}}}}"), 32),
        (format!("{{{one},\"timings\":0}}{{{two},\"timings\":0}}{{{three},\"timings\":0}}"), 34),
        // The last one is of another kind: whoever sends that, sends counts so far.
        (format!("{{{one},\"timings\":{{}}}}{{{two}}}"), 17),
        (format!("{{{one}}}{{{two},\"timings\":{{}}}}"), 17),
        (format!("{{{one},\"timing\":{{}}}}{{{two},\"timings\":{{}}}}"), 17),
        (format!("{{{one},\"x\":1,\"timings\":{{}}}}{{{two},\"timings\":{{}}}}"), 17),
        // A usage right behind a usage is not overlooked.
        (format!("{{{one},{two}}}"), 17),
        (format!("{{{one},\"timings\":{{}},{two}}}"), 17),
        (format!("{{{one},,{two}}}"), 17),
        (format!("{{{one}{two}}}"), 17),
    ] {
        let total = |pieces: &mut dyn Iterator<Item = &[u8]>| fed(pieces).0.map(|found| found.2);
        let bytes = text.as_bytes();
        assert_eq!(total(&mut [bytes].into_iter()), Some(expected), "{text}");
        assert_eq!(total(&mut bytes.chunks(1)), Some(expected), "{text} byte by byte");
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(total(&mut [a, b].into_iter()), Some(expected), "{text} cut at {cut}");
        }
    }
    let mut scan = UsageScan::default();
    scan.feed(format!("{one},\"timings\"{two},\"timings\"").as_bytes());
    scan.reset();
    scan.feed(format!("{three},\"timings\"").as_bytes());
    assert_eq!(scan.usage().map(|usage| usage.total_tokens), Some(2), "of the new answer alone");
}

/// Catches: an answer read in the dialect of the one before it on its connection.
#[test]
fn of_an_answer_after_another_nothing_is_known() {
    let mut scan = UsageScan::default();
    scan.expect(Dialect::Ollama);
    scan.feed(b"{\"done\":true,\"eval_count\":3}\n");
    assert_eq!(scan.usage().map(|usage| usage.total_tokens), Some(3));
    assert!(scan.native().is_some_and(|native| native.ended()));
    scan.reset();
    assert_eq!((scan.usage(), scan.native().is_none()), (None, true));
    scan.feed(b"{\"usage\":{\"prompt_tokens\":1}}");
    assert_eq!(scan.usage().map(|usage| usage.total_tokens), Some(1));
}
