//! The bytes, compared with what the engines' own serialisers write.

use super::errors::{error_body, in_stream};
use super::*;

fn ask(dialect: Dialect, api: Api) -> Ask {
    let usage = Usage { prompt: 12, completion: 3, cached: None };
    Ask { dialect, api, tokens: 3, usage, ..Ask::default() }
}

/// The events of a stream as text.
fn events(ask: &Ask) -> Vec<String> {
    let text = String::from_utf8(expected_stream(ask)).expect("UTF-8");
    text.split_inclusive("\n\n").map(str::to_string).collect()
}

const DIALECTS: [Dialect; 5] =
    [Dialect::Vllm, Dialect::Sglang, Dialect::Tgi, Dialect::Llamacpp, Dialect::Ollama];

#[test]
fn chat_usage_events_are_the_engines_bytes() {
    let last_but_one = |dialect, cached| {
        let ask = ask(dialect, Api::Chat);
        let ask = Ask { include_usage: true, usage: Usage { cached, ..ask.usage }, ..ask };
        let all = events(&ask);
        assert_eq!(all.last().map(String::as_str), Some("data: [DONE]\n\n"));
        all[all.len() - 2].clone()
    };
    assert_eq!(
        last_but_one(Dialect::Vllm, None),
        "data: {\"id\":\"chatcmpl-000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3},\"system_fingerprint\":\"vllm-0.32.0-1a2b3c4d\"}\n\n"
    );
    assert!(last_but_one(Dialect::Vllm, Some(64))
        .contains("\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":64}}"));
    let llama = last_but_one(Dialect::Llamacpp, None);
    assert!(llama.starts_with(
        "data: {\"choices\":[],\"created\":1700000000,\"id\":\"chatcmpl-000000000000\",\"model\":\"m\",\"system_fingerprint\":\"b1-x\",\"object\":\"chat.completion.chunk\",\"usage\":{\"completion_tokens\":3,\"prompt_tokens\":12,\"total_tokens\":15,\"prompt_tokens_details\":{\"cached_tokens\":0}},\"timings\":{"
    ));
    assert_eq!(
        last_but_one(Dialect::Tgi, None),
        "data: {\"object\":\"chat.completion.chunk\",\"id\":\"\",\"created\":1700000000,\"model\":\"m\",\"system_fingerprint\":\"3.3-native\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3,\"total_tokens\":15}}\n\n"
    );
    assert_eq!(
        last_but_one(Dialect::Sglang, None),
        "data: {\"id\":\"000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3,\"prompt_tokens_details\":null,\"reasoning_tokens\":0,\"completion_tokens_details\":null}}\n\n"
    );
}

#[test]
fn the_first_vllm_event_is_the_role() {
    assert_eq!(
        events(&ask(Dialect::Vllm, Api::Chat))[0],
        "data: {\"id\":\"chatcmpl-000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],\"prompt_token_ids\":null,\"prompt_text\":null}\n\n"
    );
}

/// How many events carry a counted usage, a null one, and an all-zero one.
fn usage_kinds(ask: &Ask) -> (usize, usize, usize) {
    let all = events(ask);
    let count = |what: &str| all.iter().filter(|event| event.contains(what)).count();
    let counted = count("\"prompt_tokens\":12");
    (counted, count("\"usage\":null"), count("\"usage\":{\"prompt_tokens\":0"))
}

#[test]
fn usage_is_where_each_dialect_puts_it() {
    // (dialect, api, include_usage) -> events with counts, with null, with zeros
    for (dialect, api, asked, expected) in [
        (Dialect::Vllm, Api::Chat, false, (0, 0, 0)),
        (Dialect::Vllm, Api::Chat, true, (1, 0, 0)),
        (Dialect::Vllm, Api::Completions, false, (0, 0, 0)),
        (Dialect::Sglang, Api::Chat, true, (1, 0, 0)),
        (Dialect::Sglang, Api::Completions, true, (1, 4, 0)),
        (Dialect::Tgi, Api::Chat, false, (0, 4, 0)),
        (Dialect::Tgi, Api::Chat, true, (1, 4, 0)),
        (Dialect::Tgi, Api::Completions, false, (1, 0, 0)),
        (Dialect::Llamacpp, Api::Chat, false, (0, 0, 0)),
        (Dialect::Llamacpp, Api::Chat, true, (1, 0, 0)),
        (Dialect::Llamacpp, Api::Completions, false, (1, 0, 0)),
        (Dialect::Ollama, Api::Chat, false, (0, 0, 0)),
        (Dialect::Ollama, Api::Chat, true, (1, 0, 0)),
        (Dialect::Ollama, Api::Completions, false, (0, 0, 0)),
        (Dialect::Ollama, Api::Completions, true, (1, 0, 4)),
    ] {
        let ask = Ask { include_usage: asked, ..ask(dialect, api) };
        assert_eq!(usage_kinds(&ask), expected, "{dialect:?} {api:?} include_usage={asked}");
    }
}

#[test]
fn usage_on_the_finish_event_has_choices() {
    for dialect in [Dialect::Tgi, Dialect::Llamacpp] {
        let all = events(&ask(dialect, Api::Completions));
        let finish = &all[all.len() - 2];
        assert!(finish.contains("\"finish_reason\":\"stop\"") && finish.contains("\"usage\":{"));
    }
}

#[test]
fn continuous_usage_counts_up_to_the_total() {
    let ask = Ask { include_usage: true, continuous_usage: true, ..ask(Dialect::Vllm, Api::Chat) };
    let counts: Vec<String> = events(&ask)
        .iter()
        .filter_map(|event| {
            let (_, rest) = event.split_once("\"completion_tokens\":")?;
            Some(rest.chars().take_while(char::is_ascii_digit).collect())
        })
        .collect();
    assert_eq!(counts, ["0", "1", "2", "3", "3", "3"], "role, three tokens, finish, total");
}

#[test]
fn llamacpp_sends_finish_and_usage_in_one_chunk() {
    let ask = Ask { include_usage: true, ..ask(Dialect::Llamacpp, Api::Chat) };
    let counts: Vec<u32> = stream_pieces(&ask).iter().map(|piece| piece.events).collect();
    assert_eq!(counts, [1, 1, 1, 1, 2, 1], "role, three tokens, finish with usage, [DONE]");
}

#[test]
fn every_event_and_every_body_is_json() {
    for dialect in DIALECTS {
        for api in [
            Api::Chat,
            Api::Completions,
            Api::Embeddings,
            Api::Responses,
            Api::Messages,
            Api::Generate,
            Api::Completion,
            Api::OllamaChat,
            Api::OllamaGenerate,
        ] {
            for tricky in [false, true] {
                let ask = Ask {
                    tricky,
                    include_usage: true,
                    details: true,
                    seed: 9,
                    ..ask(dialect, api)
                };
                assert_json(&ask);
            }
        }
    }
}

fn assert_json(ask: &Ask) {
    let parse = |text: &str| {
        let read: Result<serde_json::Value, _> = serde_json::from_str(text);
        assert!(read.is_ok(), "{ask:?}: {text}");
    };
    parse(std::str::from_utf8(&answer_body(ask)).expect("UTF-8"));
    let stream = String::from_utf8(expected_stream(ask)).expect("UTF-8");
    let is_data = |line: &&str| !line.is_empty() && !line.starts_with("event: ");
    for line in stream.lines().filter(is_data) {
        let data = line.strip_prefix("data: ").unwrap_or(line);
        if data != "[DONE]" {
            parse(data);
        }
    }
}

#[test]
fn tricky_text_reads_back_as_text() {
    // A reader that looks for "usage" without minding escapes would find 999999 tokens.
    let ask = Ask { tricky: true, ..ask(Dialect::Vllm, Api::Chat) };
    let body: serde_json::Value = serde_json::from_slice(&answer_body(&ask)).expect("JSON");
    let text = body["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(text.contains("\"usage\":{\"prompt_tokens\":999999") && text.contains("\n\ndata: "));
    assert_eq!(body["usage"]["completion_tokens"], 3);
}

#[test]
fn sizes_and_seeds_do_what_they_say() {
    let base = ask(Dialect::Vllm, Api::Chat);
    let long = Ask { event_bytes: 300, ..base.clone() };
    assert_eq!(events(&long)[1].len(), events(&base)[1].len() + 294);
    assert_ne!(expected_stream(&base), expected_stream(&Ask { seed: 1, ..base.clone() }));
    for dialect in DIALECTS {
        let whole = Ask { answer_bytes: 5000, stream: false, ..ask(dialect, Api::Chat) };
        assert_eq!(answer_body(&whole).len(), 5000);
        for api in [Api::Completions, Api::Responses, Api::Messages, Api::Generate] {
            let whole = Ask { api, ..whole.clone() };
            assert_eq!(answer_body(&whole).len(), 5000, "{dialect:?} {api:?}");
        }
        let vector = Ask { answer_bytes: 100_000, ..ask(dialect, Api::Embeddings) };
        assert!((99_980..=100_000).contains(&answer_body(&vector).len()));
    }
}

#[test]
fn native_streams_end_as_their_engines_do() {
    let last = |dialect, api| {
        let text = String::from_utf8(expected_stream(&ask(dialect, api))).expect("UTF-8");
        text.trim_end().lines().next_back().unwrap_or_default().to_string()
    };
    assert_eq!(last(Dialect::Sglang, Api::Generate), "data: [DONE]");
    let tgi = last(Dialect::Tgi, Api::Generate);
    assert!(tgi.contains("\"generated_text\":\" ") && tgi.ends_with("\"details\":null}"), "{tgi}");
    let llama = last(Dialect::Llamacpp, Api::Completion);
    assert!(
        llama.contains("\"stop\":true") && llama.contains("\"tokens_evaluated\":12"),
        "{llama}"
    );
    let ollama = last(Dialect::Ollama, Api::OllamaChat);
    assert!(ollama.contains("\"done\":true") && ollama.contains("\"eval_count\":3"), "{ollama}");
    // omitempty: a count of zero is absent.
    let none = Usage { prompt: 0, completion: 3, cached: None };
    let ask = Ask { usage: none, ..ask(Dialect::Ollama, Api::OllamaChat) };
    assert!(!String::from_utf8_lossy(&expected_stream(&ask)).contains("prompt_eval_count"));
}

#[test]
fn responses_report_usage_in_the_last_event_only() {
    let ask = ask(Dialect::Vllm, Api::Responses);
    let all = events(&ask);
    assert!(
        all[0].starts_with("event: response.created\ndata: ") && all[0].contains("\"usage\":null")
    );
    let last = all.last().expect("events");
    assert!(last.starts_with("event: response.completed\n"), "{last}");
    assert!(last.contains(
        "\"usage\":{\"input_tokens\":12,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":3,\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":15}"
    ));
    assert_eq!(all.iter().filter(|event| event.contains("\"input_tokens\"")).count(), 1);
}

#[test]
fn messages_split_their_usage_over_two_events() {
    let usages = |dialect, cached| {
        let ask = ask(dialect, Api::Messages);
        let ask = Ask { usage: Usage { cached, ..ask.usage }, ..ask };
        let all = events(&ask);
        assert!(all.last().expect("events").starts_with("event: message_stop\n"));
        let usage = |event: &str| {
            let (_, rest) = event.split_once("\"usage\":").expect("a usage");
            rest.split_inclusive('}').next().expect("an object").to_string()
        };
        (usage(&all[0]), usage(&all[all.len() - 2]))
    };
    let (start, end) = usages(Dialect::Vllm, Some(8));
    assert_eq!(start, r#"{"input_tokens":4,"output_tokens":0,"cache_read_input_tokens":8}"#);
    assert_eq!(end, r#"{"input_tokens":4,"output_tokens":3,"cache_read_input_tokens":8}"#);
    let (start, end) = usages(Dialect::Llamacpp, None);
    assert_eq!(start, r#"{"input_tokens":12,"output_tokens":0}"#);
    assert_eq!(end, r#"{"output_tokens":3}"#);
    let (start, end) = usages(Dialect::Ollama, None);
    assert_eq!(start, r#"{"input_tokens":6,"output_tokens":0}"#, "an estimate");
    assert_eq!(end, r#"{"input_tokens":12,"output_tokens":3}"#);
}

#[test]
fn errors_have_each_dialects_shape() {
    let text = |pieces: Vec<Piece>| {
        String::from_utf8(pieces.into_iter().flat_map(|piece| piece.bytes).collect())
            .expect("UTF-8")
    };
    let vllm = text(in_stream(Dialect::Vllm, Api::Chat, 0));
    assert!(vllm.starts_with("data: {\"error\": {") && vllm.ends_with("data: [DONE]\n\n"));
    assert!(!text(in_stream(Dialect::Llamacpp, Api::Chat, 0)).contains("[DONE]"));
    assert!(text(in_stream(Dialect::Ollama, Api::OllamaChat, 0)).ends_with("\"}\n"));
    assert!(error_body(Dialect::Sglang, 503).1.starts_with("{\"object\":\"error\","));
    for dialect in DIALECTS {
        for status in [400, 401, 404, 429, 500, 503] {
            let body = error_body(dialect, status).1;
            assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok(), "{body}");
        }
    }
}
