use super::*;
use proptest::prelude::*;

/// Prompt, completion, cached; ended; error.
type Found = (Option<(u64, u64, Option<u64>)>, bool, bool);

fn fed<'a>(dialect: Dialect, pieces: impl IntoIterator<Item = &'a [u8]>) -> Found {
    let mut scan = NativeScan::default();
    scan.reset(dialect);
    pieces.into_iter().for_each(|piece| scan.feed(piece));
    let usage = scan.usage().map(|u| {
        assert_eq!(u.total_tokens, u.prompt_tokens + u.completion_tokens);
        (u.prompt_tokens, u.completion_tokens, u.cached_tokens)
    });
    (usage, scan.ended(), scan.error())
}

fn read(dialect: Dialect, answer: &str) -> Found {
    let whole = fed(dialect, [answer.as_bytes()]);
    assert_eq!(fed(dialect, answer.as_bytes().chunks(1)), whole, "{answer} byte by byte");
    whole
}

/// Catches: counts that a model wrote into the arguments of a tool call, or a client into its
/// settings, and that are taken for the engine's.
#[test]
fn only_members_of_the_answer_itself_count() {
    for text in [
        r#"{"message":{"tool_calls":[{"x":{"done":true,"eval_count":9}}]},"done":false}"#,
        r#"{"message":{"content":"\"done\":true,\"eval_count\":9,\\"},"done":false}"#,
        r#"{"x":[{"done":true,"eval_count":9},["}"],"]"],"done":false}"#,
        r#"{"x":{"a":"}","b":[{}],"error":"x"},"details":{"eval_count":9},"done":false}"#,
        r#"{"\u0064one":true,"done\"":true,"xdone":true,"dones":true,"done":false}"#,
        r#""done":true,"eval_count":9"#,
    ] {
        assert_eq!(read(Dialect::Ollama, text), (None, false, false), "{text}");
    }
    let llama = r#"{"generation_settings":{"stop":true,"tokens_predicted":9},"stop":false,
        "timings":{"x":{"prompt_n":9}},"prompt_n":9,"tokens_predicted":1}"#;
    assert_eq!(read(Dialect::LlamaCpp, llama).0, Some((0, 1, None)));
    assert!(!read(Dialect::LlamaCpp, llama).1);
    // Each engine's names are its own.
    let other = r#"{"stop":true,"meta_info":{"prompt_tokens":9},"generated_text":"x"}"#;
    assert_eq!(read(Dialect::Ollama, other), (None, false, false));
}

/// Catches: white space, order or unknown members that hide the counts.
#[test]
fn any_way_to_write_an_object_is_read() {
    for text in [
        r#"{"done":true,"prompt_eval_count":2,"eval_count":3}"#,
        "{ \"eval_count\" : 3 ,\r\n\t\"done\" : true , \"prompt_eval_count\" : 2 }",
        r#"{"eval_count":1,"eval_count":3,"x":{},"y":[],"z":"","prompt_eval_count":2,"done":true}"#,
        r#"{"a":-1.5e+3,"b":007,"c":null,"done":true,"eval_count":3,"prompt_eval_count":2}"#,
        r#"[{"done":true,"prompt_eval_count":2,"eval_count":3}]"#,
    ] {
        assert_eq!(read(Dialect::Ollama, text), (Some((2, 3, None)), true, false), "{text}");
    }
}

/// Catches: a bill made of what is not a number of tokens, or of half an object.
#[test]
fn what_cannot_be_is_no_usage() {
    for number in ["-1", "1.5", "1e3", "007", "9007199254740993", "99999999999999999999999"] {
        let text = format!("{{\"done\":true,\"eval_count\":{number},\"prompt_eval_count\":2}}");
        assert_eq!(read(Dialect::Ollama, &text), (None, true, false), "{number}");
    }
    for text in [
        r#"{"done":true,"eval_count":3"#,
        r#"{"done":true,"eval_count":3,]"#,
        r#"{"done":true,"eval_count":3 "x":1"#,
        r#"{"done":true;"eval_count":3}"#,
        r#"{"done" true,"eval_count":3}"#,
        r#"{"done":true,"eval_count":3,"x":}"#,
        "{\"done\":true,\"eval_count\":3,\"x\":\"\n}",
    ] {
        assert_eq!(read(Dialect::Ollama, text), (None, false, false), "{text}");
    }
    // What is not a number where one should be is a count that is absent.
    let text = r#"{"done":true,"eval_count":"3","prompt_eval_count":null}"#;
    assert_eq!(read(Dialect::Ollama, text), (Some((0, 0, None)), true, false));
}

/// Catches: an event that was cut off and takes the next ones with it.
#[test]
fn a_text_without_end_ends_with_its_line() {
    let text = "data: {\"content\":\"half\n\ndata: {\"stop\":true,\"tokens_predicted\":3}\n\n";
    assert_eq!(read(Dialect::LlamaCpp, text), (Some((0, 3, None)), true, false));
    let text = "data: {\"half\n\ndata: {\"stop\":true,\"tokens_predicted\":3}\n\n";
    assert_eq!(read(Dialect::LlamaCpp, text), (Some((0, 3, None)), true, false));
}

#[test]
fn llama_cpp_tells_what_was_cached_in_two_ways() {
    let read = |members: &str| read(Dialect::LlamaCpp, &format!("{{\"stop\":true,{members}}}")).0;
    let counts = r#""tokens_evaluated":12,"tokens_predicted":3"#;
    assert_eq!(read(&format!("{counts},\"tokens_cached\":6")), Some((12, 3, Some(6))));
    assert_eq!(read(&format!("{counts},\"tokens_cached\":14")), Some((12, 3, None)));
    assert_eq!(read(&format!("{counts},\"tokens_cached\":12")), Some((12, 3, None)));
    let timings = r#""timings":{"cache_n":8,"prompt_n":4,"prompt_ms":1.5,"predicted_n":3}"#;
    assert_eq!(read(&format!("{counts},\"tokens_cached\":6,{timings}")), Some((12, 3, Some(8))));
    assert_eq!(read(timings), Some((12, 3, Some(8))), "without the other counts");
}

/// Catches: a prompt that is counted by something else than its tokens.
#[test]
fn tgi_lists_the_tokens_of_the_prompt() {
    let read = |prefill: &str| {
        let details = format!("{{\"generated_tokens\":3,\"prefill\":{prefill},\"tokens\":[{{}}]}}");
        read(Dialect::Generate, &format!("{{\"generated_text\":\"x\",\"details\":{details}}}")).0
    };
    assert_eq!(read(r#"[{"id":1,"text":"]"},{"x":{"y":{}},"z":[]},{}]"#), Some((3, 3, None)));
    assert_eq!(read("[]"), Some((0, 3, None)));
    assert_eq!(read(r#"[],"input_length":7"#), Some((7, 3, None)));
}

/// Catches: a null or empty error that fails an answer.
#[test]
fn only_an_error_is_an_error() {
    for dialect in [Dialect::Ollama, Dialect::LlamaCpp, Dialect::Generate] {
        assert!(read(dialect, r#"{"error":"x"}"#).2);
        assert!(read(dialect, r#"{"x":1,"error":{"message":"x"}}"#).2);
        for fine in [r#"{"error":null}"#, r#"{"error":false}"#, r#"{"x":"error"}"#] {
            assert!(!read(dialect, fine).2, "{fine}");
        }
    }
}

#[test]
fn the_state_of_a_stream_is_small() {
    assert!(std::mem::size_of::<NativeScan>() <= 512);
}

/// Catches: a gap that is bridged, so that two halves of different objects make one.
#[test]
fn nothing_goes_on_across_bytes_that_were_not_seen() {
    let text = br#"{"done":true,"eval_count":3}"#;
    for cut in 1..text.len() {
        let mut scan = NativeScan::default();
        scan.reset(Dialect::Ollama);
        scan.feed(&text[..cut]);
        scan.skip();
        scan.feed(&text[cut..]);
        assert_eq!(scan.usage(), None, "{cut}");
        scan.feed(text);
        assert_eq!(scan.usage().map(|usage| usage.completion_tokens), Some(3), "{cut}");
    }
}

/// Any JSON.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let names = || {
        prop::sample::select(vec!["done", "eval_count", "prompt_eval_count", "error", "x", "a\"b"])
    };
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u32>().prop_map(Into::into),
        "[a-z\"\\\\{}\\[\\]\n,:]{0,6}".prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(names().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(names().prop_map(str::to_owned), value, 0..6)
        .prop_map(|map| serde_json::Value::Object(map.into_iter().collect()))
}

proptest! {
    /// Catches: a walk that loses its place in an object, as serde_json does not.
    #[test]
    fn agrees_with_serde_json(object in any_json(), pretty in any::<bool>()) {
        let text = if pretty {
            serde_json::to_string_pretty(&object).unwrap()
        } else {
            object.to_string()
        };
        let done = object["done"] == true;
        let count = |name: &str| object[name].as_u64();
        let (prompt, completion) = (count("prompt_eval_count"), count("eval_count"));
        let told = done || prompt.is_some() || completion.is_some();
        let expected = told.then_some((prompt.unwrap_or(0), completion.unwrap_or(0), None));
        let error = object["error"].is_string() || object["error"].is_object();
        prop_assert_eq!(read(Dialect::Ollama, &text), (expected, done, error), "{}", text);
    }
}
