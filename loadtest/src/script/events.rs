//! /v1/responses and /v1/messages: streams of named events, without `[DONE]`.

use super::envelope::CREATED;
use super::{answer_id, padded_text, token_text, whole_text, Api, Ask, Dialect, Piece};

/// The pieces of a stream: opening events, one delta a token, closing events with the usage.
pub fn stream(ask: &Ask) -> Vec<Piece> {
    let (opening, closing) = match ask.api {
        Api::Responses => (responses_opening(ask), responses_closing(ask)),
        _ => (messages_opening(ask), messages_closing(ask)),
    };
    let mut pieces = opening;
    for step in 0..ask.tokens {
        let text = token_text(ask, step);
        pieces.push(match ask.api {
            Api::Responses => event(
                step,
                "response.output_text.delta",
                &format!(
                    r#","item_id":"msg_0","output_index":0,"content_index":0,"delta":"{text}""#
                ),
            ),
            _ => event(
                step,
                "content_block_delta",
                &format!(r#","index":0,"delta":{{"type":"text_delta","text":"{text}"}}"#),
            ),
        });
    }
    let last = ask.tokens.saturating_sub(1);
    pieces.extend(closing.into_iter().map(|piece| Piece { step: last, ..piece }));
    pieces
}

/// An unstreamed answer.
pub fn whole(ask: &Ask) -> String {
    let with = |text: &str| match ask.api {
        Api::Responses => response(ask, "completed", text, &responses_usage(ask)),
        _ => message(ask, text, &messages_usage(ask, true, true)),
    };
    let empty = with(".").len() - 1; // without any text the content would be an empty list
    with(&padded_text(ask, empty))
}

/// An event whose data repeats its name as `type`; `fields` is JSON text that begins with a comma.
fn event(step: u32, name: &str, fields: &str) -> Piece {
    let text = format!("event: {name}\ndata: {{\"type\":\"{name}\"{fields}}}\n\n");
    Piece { step, events: 1, bytes: text.into_bytes() }
}

fn responses_opening(ask: &Ask) -> Vec<Piece> {
    let begun = response(ask, "in_progress", "", "null");
    let begun = format!(r#","response":{begun}"#);
    vec![
        event(0, "response.created", &begun),
        event(0, "response.in_progress", &begun),
        event(
            0,
            "response.output_item.added",
            r#","output_index":0,"item":{"id":"msg_0","type":"message","role":"assistant","status":"in_progress","content":[]}"#,
        ),
    ]
}

fn responses_closing(ask: &Ask) -> Vec<Piece> {
    let text = whole_text(ask);
    let state = if ask.cut { "incomplete" } else { "completed" };
    // vLLM names the event response.completed whatever the status inside says.
    let name = match ask.dialect {
        Dialect::Sglang if ask.cut => "response.incomplete",
        _ => "response.completed",
    };
    let ended = response(ask, state, &text, &responses_usage(ask));
    vec![
        event(
            0,
            "response.output_text.done",
            &format!(r#","item_id":"msg_0","output_index":0,"content_index":0,"text":"{text}""#),
        ),
        event(0, name, &format!(r#","response":{ended}"#)),
    ]
}

fn response(ask: &Ask, state: &str, text: &str, usage: &str) -> String {
    let (id, model) = (answer_id(ask), &ask.model);
    let output = match state {
        "in_progress" => "[]".to_string(),
        _ => format!(
            r#"[{{"id":"msg_0","type":"message","role":"assistant","status":"completed","content":[{{"type":"output_text","text":"{text}","annotations":[]}}]}}]"#
        ),
    };
    format!(
        r#"{{"id":"resp_{id}","object":"response","created_at":{CREATED},"status":"{state}","model":"{model}","output":{output},"usage":{usage}}}"#
    )
}

fn responses_usage(ask: &Ask) -> String {
    let (input, output, total) = (ask.usage.prompt, ask.usage.completion, ask.usage.total());
    let cached = match ask.dialect {
        Dialect::Ollama => 0, // hardcoded there
        _ => ask.usage.cached.unwrap_or(0),
    };
    let details = match ask.dialect {
        Dialect::Llamacpp => String::new(),
        _ => r#","output_tokens_details":{"reasoning_tokens":0}"#.to_string(),
    };
    format!(
        r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached}}},"output_tokens":{output}{details},"total_tokens":{total}}}"#
    )
}

fn messages_opening(ask: &Ask) -> Vec<Piece> {
    let message = message(ask, "", &messages_usage(ask, true, false));
    vec![
        event(0, "message_start", &format!(r#","message":{message}"#)),
        event(0, "content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#),
    ]
}

fn messages_closing(ask: &Ask) -> Vec<Piece> {
    // vLLM and Ollama repeat the input's count at the end; the others do not.
    let repeats = matches!(ask.dialect, Dialect::Vllm | Dialect::Ollama);
    let usage = messages_usage(ask, repeats, true);
    let why = if ask.cut { "max_tokens" } else { "end_turn" };
    vec![
        event(0, "content_block_stop", r#","index":0"#),
        event(
            0,
            "message_delta",
            &format!(r#","delta":{{"stop_reason":"{why}","stop_sequence":null}},"usage":{usage}"#),
        ),
        event(0, "message_stop", ""),
    ]
}

fn message(ask: &Ask, text: &str, usage: &str) -> String {
    let (id, model) = (answer_id(ask), &ask.model);
    let content = match text {
        "" => "[]".to_string(),
        text => format!(r#"[{{"type":"text","text":"{text}"}}]"#),
    };
    format!(
        r#"{{"id":"msg_{id}","type":"message","role":"assistant","model":"{model}","content":{content},"stop_reason":null,"stop_sequence":null,"usage":{usage}}}"#
    )
}

/// The usage of an Anthropic message: `input_tokens` leaves cached ones out.
fn messages_usage(ask: &Ask, with_input: bool, is_final: bool) -> String {
    let cached = ask.usage.cached.unwrap_or(0);
    let input = match (ask.dialect, is_final) {
        (Dialect::Ollama, false) => ask.usage.prompt / 2, // an estimate, put right at the end
        (Dialect::Ollama, true) => ask.usage.prompt,
        _ => ask.usage.prompt.saturating_sub(cached),
    };
    let output = if is_final { ask.usage.completion } else { 0 };
    let cache = match (ask.dialect, ask.usage.cached) {
        (Dialect::Ollama, _) | (_, None) => String::new(),
        (_, Some(cached)) => format!(r#","cache_read_input_tokens":{cached}"#),
    };
    if with_input {
        return format!(r#"{{"input_tokens":{input},"output_tokens":{output}{cache}}}"#);
    }
    format!(r#"{{"output_tokens":{output}}}"#)
}
