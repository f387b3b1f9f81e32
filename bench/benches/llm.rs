//! Nanoseconds per call of what `llm` does with every byte of a request or an answer:
//! `cargo bench -p bench --bench llm`. The best of many rounds, because the rest is the machine.

use llmproxy::llm::{request, sse::SseScan, usage::UsageScan};
use std::hint::black_box;
use std::time::Instant;

const EVENT: &[u8] = concat!(
    r#"data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","#,
    r#""created":1700000000,"model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{"index":0,"#,
    r#""delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}"#,
    "\n\n"
)
.as_bytes();
const USAGE_EVENT: &[u8] = concat!(
    r#"data: {"id":"chatcmpl-a","object":"chat.completion.chunk","created":1,"model":"m","#,
    r#""choices":[],"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3,"#,
    r#""prompt_tokens_details":{"cached_tokens":64}}}"#,
    "\n\n"
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
        let prompt = text.repeat(200_000 / text.len());
        let body = chat(&prompt);
        measure(&format!("scan, 200 KB of {name}"), body.len(), || {
            assert!(black_box(request::scan(black_box(&body))).is_ok());
        });
    }
    let body = chat("Hello, who are you?");
    measure("scan, small", body.len(), || {
        assert!(black_box(request::scan(black_box(&body))).is_ok());
    });

    let mut usage = UsageScan::default();
    measure("usage, one event", EVENT.len(), || usage.feed(black_box(EVENT)));
    measure("usage, the usage event", USAGE_EVENT.len(), || usage.feed(black_box(USAGE_EVENT)));
    let mut sse = SseScan::default();
    measure("sse, one event", EVENT.len(), || sse.feed(black_box(EVENT)));
    let slice = EVENT.repeat(64);
    measure("usage, 64 events", slice.len(), || usage.feed(black_box(&slice)));
    measure("sse, 64 events", slice.len(), || sse.feed(black_box(&slice)));
    black_box((usage, sse));
}

fn chat(prompt: &str) -> Vec<u8> {
    let messages = format!("[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]");
    format!("{{\"model\":\"m\",\"messages\":{messages},\"stream\":true,\"max_tokens\":100}}")
        .into_bytes()
}

fn measure(name: &str, bytes: usize, mut call: impl FnMut()) {
    let calls = (4_000_000 / bytes).max(10);
    let round = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let best = (0..30).map(round).fold(f64::MAX, f64::min);
    println!("{name:28} {best:10.1} ns {:8.2} GB/s", bytes as f64 / best);
}
