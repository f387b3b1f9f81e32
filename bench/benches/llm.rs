//! Nanoseconds per call of what `llm` does with every byte of a request or an answer:
//! `cargo bench -p bench --bench llm`. The best of many rounds, because the rest is the machine.

use bench::{measure, EVENT};
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::sse::{EventFraming, SseScan};
use llmproxy::llm::{request, usage::UsageScan};
use std::hint::black_box;

const USAGE_EVENT: &[u8] = concat!(
    r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","#,
    r#""choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3,"#,
    r#""prompt_tokens_details":{"cached_tokens":64}}}"#,
    "\n\n"
)
.as_bytes();
/// An answer of vLLM that is no stream.
const ANSWER: &[u8] = concat!(
    r#"{"id":"chatcmpl-000000000000","object":"chat.completion","created":1700000000,"model":"m","#,
    r#""choices":[{"index":0,"message":{"role":"assistant","content":"a word or two","#,
    r#""refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"#,
    r#""reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,"#,
    r#""token_ids":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-1a2b3c4d","#,
    r#""usage":{"prompt_tokens":12,"total_tokens":28,"completion_tokens":16,"#,
    r#""prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"#,
    r#""kv_transfer_params":null}"#
)
.as_bytes();
/// Text of prompts, as it stands inside a JSON string.
const PROMPTS: &[(&str, &str)] = &[
    ("code", r#"fn main() {\n    let x = call(\"abc\", 12);\n    // says why\n    go(x);\n}\n\n"#),
    ("prose", "The quick brown fox jumps over the lazy dog and goes on without any escape. "),
    ("nested JSON", r#"{\"path\":\"a.rs\",\"text\":\"line\\nline \\\"x\\\" and more\\n\"} and "#),
    ("\\u escapes", r"\u4f60\u597d\u4e16\u754c abc "),
    ("Chinese", "你好，世界。这是一个很长的提示。"),
];

fn main() {
    for (name, text) in PROMPTS {
        scan(&format!("scan, 200 KB of {name}"), &text.repeat(200_000 / text.len()));
    }
    let code = PROMPTS[0].1;
    scan("scan, 1 KB of code", &code.repeat(1_000 / code.len()));
    scan("scan, 1 MB of code", &code.repeat(1_000_000 / code.len()));

    let mut usage = UsageScan::default();
    measure("usage, a whole answer", ANSWER.len(), || {
        usage.expect(Dialect::OpenAi, None);
        usage.feed(black_box(ANSWER));
    });
    usage.expect(Dialect::OpenAi, Some(EventFraming::Events));
    measure("usage, one event", EVENT.len(), || usage.feed(black_box(EVENT)));
    measure("usage, the usage event", USAGE_EVENT.len(), || usage.feed(black_box(USAGE_EVENT)));
    usage_of_long_events();
    let mut sse = SseScan::default();
    measure("sse, one event", EVENT.len(), || sse.feed(black_box(EVENT)));
    let slice = EVENT.repeat(64);
    measure("usage, 64 events", slice.len(), || usage.feed(black_box(&slice)));
    measure("sse, 64 events", slice.len(), || sse.feed(black_box(&slice)));
    black_box((usage, sse));
}

/// Events that the tap walks through, and what it costs to find their lines alone: what counts is
/// the ratio of the two. Each is another one than the last, so that none is only compared with it.
fn usage_of_long_events() {
    let text = |text: &str| format!("\"text\":\"{text}\",\"logprobs\":null");
    let token = r#"{"token":" a\"b","logprob":-0.125,"bytes":[32,97,34,98],"top_logprobs":[]},"#;
    let logprobs = |bytes: usize| {
        let tokens = token.repeat(bytes / token.len());
        format!("\"text\":\"a\",\"logprobs\":{{\"content\":[{tokens}null]}}")
    };
    let vector = format!("\"embedding\":[{}0]", "-0.01234567,".repeat(1_000_000 / 12));
    let code = PROMPTS[0].1;
    for (name, member) in [
        ("200 B, walked", text("word")),
        ("3 KB of logprobs", logprobs(3_000)),
        ("1 MB of logprobs", logprobs(1_000_000)),
        ("1 MB of code", text(&code.repeat(1_000_000 / code.len()))),
        ("1 MB of prose", text(&PROMPTS[1].1.repeat(1_000_000 / PROMPTS[1].1.len()))),
        ("1 MB of vectors", vector),
    ] {
        let event = |id: u8| {
            format!(
                "data: {{\"id\":\"chatcmpl-{id}\",\"object\":\"chat.completion.chunk\",\
                 \"created\":1700000000,\"model\":\"m\",\"choices\":[{{\"index\":0,{member},\
                 \"finish_reason\":null}}]}}\n\n"
            )
        };
        let events = [event(1), event(2)];
        let mut turn = events.iter().cycle();
        let mut usage = UsageScan::default();
        usage.expect(Dialect::OpenAi, Some(EventFraming::Events));
        measure(&format!("usage, {name}"), events[0].len(), || {
            let event = turn.next().map_or(&[][..], |event| event.as_bytes());
            usage.feed(black_box(event));
        });
        let mut sse = SseScan::default();
        measure(&format!("sse, {name}"), events[0].len(), || {
            sse.feed(black_box(events[0].as_bytes()));
        });
        black_box((usage, sse));
    }
}

fn scan(name: &str, prompt: &str) {
    let body = chat(prompt);
    measure(name, body.len(), || {
        assert!(black_box(request::scan(black_box(&body))).is_ok());
    });
}

fn chat(prompt: &str) -> Vec<u8> {
    let messages = format!("[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]");
    format!("{{\"model\":\"m\",\"messages\":{messages},\"stream\":true,\"max_tokens\":100}}")
        .into_bytes()
}
