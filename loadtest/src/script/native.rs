//! The engines' own endpoints, besides the OpenAI family.

use super::envelope::timings;
use super::{
    answer_id, finish_reason, padded_text, token_text, whole_text, Api, Ask, Dialect, Piece,
};

/// The pieces of a native stream. None of these ends with `[DONE]`, but SGLang's.
pub fn stream(ask: &Ask) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = (0..ask.tokens)
        .map(|step| Piece { step, events: 1, bytes: event(ask, step).into_bytes() })
        .collect();
    let last = ask.tokens.saturating_sub(1);
    let end = match (ask.dialect, ask.api) {
        (Dialect::Sglang, Api::Generate) => "data: [DONE]\n\n".to_string(),
        (_, Api::Generate) => String::new(), // TGI's last token event carries the end
        (_, Api::Completion) => format!("data: {}\n\n", completion_end(ask, "")),
        _ => ollama_line(ask, "", true),
    };
    if !end.is_empty() {
        pieces.push(Piece { step: last, events: 1, bytes: end.into_bytes() });
    }
    pieces
}

fn event(ask: &Ask, step: u32) -> String {
    let text = token_text(ask, step);
    match (ask.dialect, ask.api) {
        (Dialect::Sglang, Api::Generate) => {
            let so_far: String = (0..=step).map(|at| token_text(ask, at)).collect();
            format!("data: {}\n\n", sglang_object(ask, &so_far, u64::from(step) + 1))
        }
        (_, Api::Generate) => tgi_event(ask, step, &text),
        (_, Api::Completion) => format!(
            "data: {{\"index\":0,\"content\":\"{text}\",\"tokens\":[],\"stop\":false,\"id_slot\":0,\"tokens_predicted\":{},\"tokens_evaluated\":{}}}\n\n",
            step + 1, ask.usage.prompt
        ),
        _ => ollama_line(ask, &text, false),
    }
}

fn tgi_event(ask: &Ask, step: u32, text: &str) -> String {
    let is_last = step + 1 == ask.tokens;
    let (full, details) = match (is_last, ask.details) {
        (false, _) => ("null".to_string(), "null".to_string()),
        (true, false) => (format!("\"{}\"", whole_text(ask)), "null".to_string()),
        (true, true) => (format!("\"{}\"", whole_text(ask)), tgi_details(ask)),
    };
    format!(
        "data: {{\"index\":{},\"token\":{{\"id\":{step},\"text\":\"{text}\",\"logprob\":-0.5,\"special\":false}},\"generated_text\":{full},\"details\":{details}}}\n\n",
        step + 1
    )
}

fn tgi_details(ask: &Ask) -> String {
    let why = if ask.cut { "length" } else { "eos_token" };
    // The length of the prompt is told in streams only; elsewhere the head has it.
    let rest = match ask.stream {
        true => format!(r#""input_length":{}"#, ask.usage.prompt),
        false => r#""prefill":[],"tokens":[]"#.to_string(),
    };
    format!(
        r#"{{"finish_reason":"{why}","generated_tokens":{},"seed":null,{rest}}}"#,
        ask.usage.completion
    )
}

fn sglang_object(ask: &Ask, text: &str, completion: u64) -> String {
    let why = if completion >= u64::from(ask.tokens) {
        format!(r#"{{"type":"{}"}}"#, finish_reason(ask))
    } else {
        "null".to_string()
    };
    format!(
        r#"{{"text":"{text}","meta_info":{{"id":"{}","finish_reason":{why},"prompt_tokens":{},"completion_tokens":{},"cached_tokens":{}}}}}"#,
        answer_id(ask),
        ask.usage.prompt,
        // The last one says what the answer is to report, whatever was counted on the way.
        if completion >= u64::from(ask.tokens) {
            ask.usage.completion
        } else {
            completion.min(ask.usage.completion)
        },
        ask.usage.cached.unwrap_or(0)
    )
}

/// llama.cpp's last event, which is also its whole unstreamed answer.
fn completion_end(ask: &Ask, text: &str) -> String {
    let usage = &ask.usage;
    let why = if ask.cut { "limit" } else { "eos" };
    format!(
        r#"{{"index":0,"content":"{text}","tokens":[],"id_slot":0,"stop":true,"model":"{}","tokens_predicted":{},"tokens_evaluated":{},"truncated":false,"stop_type":"{why}","stopping_word":"","tokens_cached":{}{}}}"#,
        ask.model,
        usage.completion,
        usage.prompt,
        usage.total(),
        timings(usage)
    )
}

fn ollama_line(ask: &Ask, text: &str, done: bool) -> String {
    let content = match ask.api {
        Api::OllamaChat => format!(r#""message":{{"role":"assistant","content":"{text}"}}"#),
        _ => format!(r#""response":"{text}""#),
    };
    let end = if done { ollama_counts(ask) } else { String::new() };
    let model = &ask.model;
    format!(
        "{{\"model\":\"{model}\",\"created_at\":\"2023-11-14T22:13:20Z\",{content},\"done\":{done}{end}}}\n"
    )
}

/// All of these are omitempty in Go: a count of zero is absent.
fn ollama_counts(ask: &Ask) -> String {
    let why = finish_reason(ask);
    let count = |name: &str, n: u64| match n {
        0 => String::new(),
        n => format!(r#","{name}":{n}"#),
    };
    format!(r#","done_reason":"{why}","total_duration":5000000,"load_duration":1000000"#)
        + &count("prompt_eval_count", ask.usage.prompt)
        + r#","prompt_eval_duration":1500000"#
        + &count("eval_count", ask.usage.completion)
        + r#","eval_duration":2500000"#
}

/// An unstreamed native answer.
pub fn whole(ask: &Ask) -> String {
    let empty = whole_with(ask, "").len();
    whole_with(ask, &padded_text(ask, empty))
}

fn whole_with(ask: &Ask, text: &str) -> String {
    match (ask.dialect, ask.api) {
        (Dialect::Sglang, Api::Generate) => sglang_object(ask, text, ask.usage.completion),
        (_, Api::Generate) if ask.details => {
            format!(r#"{{"generated_text":"{text}","details":{}}}"#, tgi_details(ask))
        }
        (_, Api::Generate) => format!(r#"{{"generated_text":"{text}"}}"#),
        (_, Api::Completion) => completion_end(ask, text),
        // Go's encoder ends the whole answer with a line end too; gin's does not: c.JSON.
        _ => ollama_line(ask, text, true).trim_end().to_string(),
    }
}
