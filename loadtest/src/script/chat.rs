//! /v1/chat/completions, /v1/completions and /v1/embeddings.

use super::envelope::{object, timings, usage, CREATED};
use super::{answer_id, finish_reason, padded_text, token_text, Api, Ask, Dialect, Piece, Usage};

/// The pieces of a stream: role (where the dialect has one), content, finish, usage, `[DONE]`.
pub fn stream(ask: &Ask) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(ask.tokens as usize + 4);
    if let Some(role) = role_choice(ask) {
        let tail = match ask.dialect {
            Dialect::Vllm => r#","prompt_token_ids":null,"prompt_text":null"#,
            _ => "",
        };
        pieces.push(event(0, &chunk(ask, &role, &(early_usage(ask, 0) + tail))));
    }
    for step in 0..ask.tokens {
        let choice = content_choice(ask, &token_text(ask, step));
        pieces.push(event(step, &chunk(ask, &choice, &early_usage(ask, u64::from(step) + 1))));
    }
    pieces.append(&mut ending(ask, ask.tokens.saturating_sub(1)));
    let step = pieces.last().map_or(0, |piece| piece.step);
    pieces.push(Piece { step, events: 1, bytes: b"data: [DONE]\n\n".to_vec() });
    pieces
}

/// What vLLM says of itself in the last event of a stream, be it the usage event or not.
const FINGERPRINT: &str = r#","system_fingerprint":"vllm-0.32.0-1a2b3c4d""#;

/// The usage event is sent.
fn tells_usage(ask: &Ask) -> bool {
    let is_forced = ask.forced_usage && matches!(ask.dialect, Dialect::Vllm | Dialect::Sglang);
    ask.include_usage || is_forced
}

/// The finish event and, where it is asked for or always sent, the usage.
fn ending(ask: &Ask, last: u32) -> Vec<Piece> {
    let total = format!(r#","usage":{}"#, usage(ask, &ask.usage));
    let finish = finish_choice(ask);
    // llama.cpp and TGI put the usage of text completions on the finish event, asked or not.
    if ask.api == Api::Completions && matches!(ask.dialect, Dialect::Tgi | Dialect::Llamacpp) {
        let times =
            if ask.dialect == Dialect::Llamacpp { timings(&ask.usage) } else { String::new() };
        return vec![event(last, &chunk(ask, &finish, &(total + &times)))];
    }
    if !tells_usage(ask) {
        let tail = match ask.dialect {
            Dialect::Vllm => FINGERPRINT.to_string(),
            Dialect::Llamacpp => timings(&ask.usage),
            _ => early_usage(ask, ask.usage.completion),
        };
        return vec![event(last, &chunk(ask, &finish, &tail))];
    }
    let tail = match ask.dialect {
        Dialect::Vllm => total + FINGERPRINT,
        Dialect::Llamacpp => total + &timings(&ask.usage),
        _ => total,
    };
    let finish = event(last, &chunk(ask, &finish, &early_usage(ask, ask.usage.completion)));
    let told = last + ask.usage_steps;
    let total = event(told, &object(ask, chunk_name(ask), "[]", &tail));
    if ask.dialect == Dialect::Llamacpp {
        // Both events leave in one chunk: one event is not one chunk.
        let bytes = [finish.bytes, total.bytes].concat();
        return vec![Piece { step: last, events: 2, bytes }];
    }
    vec![finish, total]
}

/// The `usage` key of an event before the usage event: absent, null, zero or cumulative.
fn early_usage(ask: &Ask, so_far: u64) -> String {
    let continuous = match ask.dialect {
        Dialect::Vllm => ask.forced_usage || (ask.continuous_usage && ask.include_usage),
        Dialect::Sglang => ask.continuous_usage,
        _ => false,
    };
    if continuous {
        let counts = Usage { completion: so_far.min(ask.usage.completion), ..ask.usage };
        return format!(r#","usage":{}"#, usage(ask, &counts));
    }
    match (ask.dialect, ask.api) {
        (Dialect::Tgi, Api::Chat) | (Dialect::Sglang, Api::Completions) => {
            r#","usage":null"#.to_string()
        }
        (Dialect::Ollama, Api::Completions) if ask.include_usage => {
            r#","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#.to_string()
        }
        _ => String::new(),
    }
}

fn event(step: u32, json: &str) -> Piece {
    Piece { step, events: 1, bytes: format!("data: {json}\n\n").into_bytes() }
}

fn chunk(ask: &Ask, choice: &str, tail: &str) -> String {
    object(ask, chunk_name(ask), &format!("[{choice}]"), tail)
}

fn chunk_name(ask: &Ask) -> &'static str {
    match ask.api {
        Api::Chat => "chat.completion.chunk",
        _ => "text_completion",
    }
}

fn role_choice(ask: &Ask) -> Option<String> {
    if ask.api != Api::Chat {
        return None;
    }
    let choice = match ask.dialect {
        Dialect::Vllm => {
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#
        }
        Dialect::Sglang => {
            r#"{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}"#
        }
        Dialect::Llamacpp => {
            r#"{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}"#
        }
        // These repeat the role in every delta instead.
        Dialect::Tgi | Dialect::Ollama => return None,
    };
    Some(choice.to_string())
}

fn content_choice(ask: &Ask, text: &str) -> String {
    match (ask.api, ask.dialect) {
        (Api::Chat, Dialect::Vllm) => format!(
            r#"{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null,"token_ids":null}}"#
        ),
        (Api::Chat, Dialect::Sglang) => format!(
            r#"{{"index":0,"delta":{{"role":null,"content":"{text}","reasoning_content":null,"tool_calls":null}},"logprobs":null,"finish_reason":null,"matched_stop":null}}"#
        ),
        (Api::Chat, Dialect::Tgi) => format!(
            r#"{{"index":0,"delta":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":null}}"#
        ),
        (Api::Chat, Dialect::Llamacpp) => {
            format!(r#"{{"finish_reason":null,"index":0,"delta":{{"content":"{text}"}}}}"#)
        }
        (Api::Chat, Dialect::Ollama) => format!(
            r#"{{"index":0,"delta":{{"role":"assistant","content":"{text}"}},"finish_reason":null}}"#
        ),
        (_, Dialect::Vllm) => format!(
            r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}"#
        ),
        (_, Dialect::Sglang) => format!(
            r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":null,"matched_stop":null}}"#
        ),
        (_, Dialect::Tgi) => {
            format!(r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":""}}"#)
        }
        (_, Dialect::Llamacpp) => {
            format!(r#"{{"text":"{text}","index":0,"logprobs":null,"finish_reason":null}}"#)
        }
        (_, Dialect::Ollama) => format!(r#"{{"text":"{text}","index":0,"finish_reason":null}}"#),
    }
}

fn finish_choice(ask: &Ask) -> String {
    let why = finish_reason(ask);
    match (ask.api, ask.dialect) {
        (Api::Chat, Dialect::Vllm) => format!(
            r#"{{"index":0,"delta":{{"content":""}},"logprobs":null,"finish_reason":"{why}","stop_reason":null,"token_ids":null}}"#
        ),
        (Api::Chat, Dialect::Llamacpp) => {
            format!(r#"{{"finish_reason":"{why}","index":0,"delta":{{}}}}"#)
        }
        (_, Dialect::Tgi) => content_choice(ask, "")
            .replace(r#""finish_reason":"""#, r#""finish_reason":null"#)
            .replace(r#""finish_reason":null"#, &format!(r#""finish_reason":"{why}""#)),
        _ => content_choice(ask, "")
            .replace(r#""finish_reason":null"#, &format!(r#""finish_reason":"{why}""#)),
    }
}

/// An unstreamed chat or text completion.
pub fn whole(ask: &Ask) -> String {
    let empty = whole_with(ask, "").len();
    whole_with(ask, &padded_text(ask, empty))
}

fn whole_with(ask: &Ask, text: &str) -> String {
    let why = finish_reason(ask);
    let tail = format!(r#","usage":{}"#, usage(ask, &ask.usage));
    let (name, choice) = match ask.api {
        Api::Chat => ("chat.completion", whole_message(ask.dialect, text, why)),
        _ => (
            "text_completion",
            format!(r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":"{why}"}}"#),
        ),
    };
    let tail = match ask.dialect {
        Dialect::Vllm => {
            r#","service_tier":null"#.to_string()
                + FINGERPRINT
                + &tail
                + r#","prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null"#
        }
        Dialect::Sglang => tail + r#","metadata":{"weight_version":"default"}"#,
        Dialect::Llamacpp => tail + &timings(&ask.usage),
        _ => tail,
    };
    object(ask, name, &format!("[{choice}]"), &tail)
}

fn whole_message(dialect: Dialect, text: &str, why: &str) -> String {
    match dialect {
        Dialect::Vllm => format!(
            r#"{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning_content":null}},"logprobs":null,"finish_reason":"{why}","stop_reason":null,"token_ids":null}}"#
        ),
        Dialect::Sglang => format!(
            r#"{{"index":0,"message":{{"role":"assistant","content":"{text}","reasoning_content":null,"tool_calls":null}},"logprobs":null,"finish_reason":"{why}","matched_stop":null}}"#
        ),
        Dialect::Llamacpp => format!(
            r#"{{"finish_reason":"{why}","index":0,"message":{{"role":"assistant","content":"{text}"}}}}"#
        ),
        Dialect::Tgi => format!(
            r#"{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"{why}"}}"#
        ),
        Dialect::Ollama => format!(
            r#"{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"{why}"}}"#
        ),
    }
}

/// Embeddings as `float32` in a row: `answer_bytes` of them, 8 numbers at least.
pub fn raw_embeddings(ask: &Ask) -> Vec<u8> {
    let count = u64::from(ask.answer_bytes / 4).max(8);
    (0..count).flat_map(|at| ((ask.seed + at) as f32 / 1e3).to_le_bytes()).collect()
}

/// What vLLM says in the head of raw embeddings.
pub fn metadata(ask: &Ask) -> String {
    let (id, model, prompt) = (answer_id(ask), &ask.model, ask.usage.prompt);
    format!(
        r#"{{"id": "embd-{id}", "created": {CREATED}, "model": "{model}", "data": [{{"index": 0, "embed_dtype": "float32", "endianness": "little"}}], "usage": {{"prompt_tokens": {prompt}, "total_tokens": {prompt}}}}}"#
    )
}

/// An embeddings answer; its vector is as long as `answer_bytes` allows, 8 numbers at least.
pub fn embeddings(ask: &Ask) -> String {
    let Usage { prompt, .. } = ask.usage;
    let counts = match ask.dialect {
        Dialect::Vllm => format!(
            r#"{{"prompt_tokens":{prompt},"total_tokens":{prompt},"completion_tokens":0,"prompt_tokens_details":null}}"#
        ),
        _ => format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{prompt}}}"#),
    };
    let (id, model) = (answer_id(ask), &ask.model);
    let (before, after) = match ask.dialect {
        Dialect::Vllm | Dialect::Sglang => (
            format!(
                r#"{{"id":"embd-{id}","object":"list","created":{CREATED},"model":"{model}","data":[{{"index":0,"object":"embedding","embedding":["#
            ),
            format!(r#"]}}],"usage":{counts}}}"#),
        ),
        _ => (
            r#"{"object":"list","data":[{"object":"embedding","embedding":["#.to_string(),
            format!(r#"],"index":0}}],"model":"{model}","usage":{counts}}}"#),
        ),
    };
    const NUMBER: usize = 12; // "-0.01234567," without the last comma
    let room = (ask.answer_bytes as usize).saturating_sub(before.len() + after.len());
    let count = ((room + 1) / NUMBER).max(8);
    let mut body = String::with_capacity(before.len() + after.len() + count * NUMBER);
    body.push_str(&before);
    for at in 0..count as u64 {
        let draw = (ask.seed ^ at).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let comma = if at == 0 { "" } else { "," };
        body.push_str(&format!("{comma}-0.{:08}", draw % 100_000_000));
    }
    body + &after
}
