//! The JSON around choices: key order and extra keys of each dialect's serialiser.

use super::{answer_id, Api, Ask, Dialect, Usage};

/// `created` in every answer: a constant, because answers are compared byte by byte.
pub const CREATED: u64 = 1_700_000_000;

/// One JSON object of the OpenAI family: `object` names it, `choices` and `tail` are JSON text.
pub fn object(ask: &Ask, object: &str, choices: &str, tail: &str) -> String {
    let (id, model) = (object_id(ask), &ask.model);
    match ask.dialect {
        Dialect::Vllm | Dialect::Sglang => format!(
            r#"{{"id":"{id}","object":"{object}","created":{CREATED},"model":"{model}","choices":{choices}{tail}}}"#
        ),
        // TGI leaves the id empty and lets the tag come first.
        Dialect::Tgi => format!(
            r#"{{"object":"{object}","id":"","created":{CREATED},"model":"{model}","system_fingerprint":"3.3-native","choices":{choices}{tail}}}"#
        ),
        // nlohmann::json keeps insertion order here: choices first, object last.
        Dialect::Llamacpp => format!(
            r#"{{"choices":{choices},"created":{CREATED},"id":"{id}","model":"{model}","system_fingerprint":"b1-x","object":"{object}"{tail}}}"#
        ),
        Dialect::Ollama => format!(
            r#"{{"id":"{id}","object":"{object}","created":{CREATED},"model":"{model}","system_fingerprint":"fp_ollama","choices":{choices}{tail}}}"#
        ),
    }
}

fn object_id(ask: &Ask) -> String {
    let id = answer_id(ask);
    match (ask.dialect, ask.api) {
        (Dialect::Sglang, _) => id,
        (_, Api::Completions) => format!("cmpl-{id}"),
        _ => format!("chatcmpl-{id}"),
    }
}

/// The value of `usage`, with the nulls and details that the dialect writes.
pub fn usage(ask: &Ask, usage: &Usage) -> String {
    let Usage { prompt, completion, cached } = *usage;
    let total = usage.total();
    match ask.dialect {
        Dialect::Vllm => {
            // Streams leave unset fields out, whole answers dump them as null.
            let details = match cached {
                Some(n) => format!(r#","prompt_tokens_details":{{"cached_tokens":{n}}}"#),
                None if ask.stream => String::new(),
                None => r#","prompt_tokens_details":null"#.to_string(),
            };
            format!(
                r#"{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion}{details}}}"#
            )
        }
        Dialect::Sglang => {
            let details = match cached {
                Some(n) => format!(r#"{{"cached_tokens":{n}}}"#),
                None => "null".to_string(),
            };
            format!(
                r#"{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion},"prompt_tokens_details":{details},"reasoning_tokens":0,"completion_tokens_details":null}}"#
            )
        }
        Dialect::Llamacpp => format!(
            r#"{{"completion_tokens":{completion},"prompt_tokens":{prompt},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{}}}}}"#,
            cached.unwrap_or(0)
        ),
        Dialect::Tgi | Dialect::Ollama => format!(
            r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}}}"#
        ),
    }
}

/// llama.cpp's `timings`, which ride on its last object always.
pub fn timings(usage: &Usage) -> String {
    let Usage { prompt, completion, cached } = *usage;
    let cached = cached.unwrap_or(0);
    // What was found in the cache is not in it.
    let prompt = prompt.saturating_sub(cached);
    format!(
        r#","timings":{{"cache_n":{cached},"prompt_n":{prompt},"prompt_ms":1.5,"prompt_per_token_ms":0.125,"prompt_per_second":8000.0,"predicted_n":{completion},"predicted_ms":3.0,"predicted_per_token_ms":1.0,"predicted_per_second":1000.0}}"#
    )
}
