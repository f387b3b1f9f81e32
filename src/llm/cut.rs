//! The end of a stream that is cut because its key has used up its tokens: what an engine writes
//! when an answer is as long as it may be (`finish_reason: "length"`), so that clients keep what
//! they have and do not take it for an error.

use super::dialect::Dialect;
use super::usage::choices::Choices;
use crate::base::utc::Stamp;
use serde_json::{json, Value};

/// What is known of the answer.
pub struct CutAnswer<'a> {
    /// Of the path.
    pub dialect: Dialect,
    /// A chat, where a dialect has chats and plain texts.
    pub is_chat: bool,
    /// The engine's own id of it.
    pub id: Option<&'a str>,
    /// As the client calls it.
    pub model: &'a str,
    /// Now.
    pub now_ms: u64,
    /// Those that the engine has told of.
    pub choices: Choices,
    /// No text is begun that has not ended.
    pub is_text_over: bool,
    /// Events that the client had.
    pub events: u64,
    /// Events among them in which the model said something.
    pub tokens: u64,
}

/// Whether streams of this dialect can be ended.
pub fn is_known(dialect: Dialect) -> bool {
    match dialect {
        Dialect::OpenAi
        | Dialect::Completions
        | Dialect::Responses
        | Dialect::Messages
        | Dialect::Generate
        | Dialect::LlamaCpp
        | Dialect::Ollama => true,
        Dialect::Embeddings | Dialect::Transcriptions | Dialect::Other => false,
    }
}

/// Appends the events that end the stream. They must follow the end of an event.
pub fn write_end(answer: &CutAnswer<'_>, out: &mut Vec<u8>) {
    match answer.dialect {
        Dialect::OpenAi if answer.is_chat => {
            let choice = |index| json!({"index": index, "delta": {}, "finish_reason": "length"});
            openai(answer, "chat.completion.chunk", choice, out);
        }
        Dialect::OpenAi | Dialect::Completions => {
            let choice = |index| json!({"index": index, "text": "", "finish_reason": "length"});
            openai(answer, "text_completion", choice, out);
        }
        Dialect::Responses => responses(answer, out),
        Dialect::Messages => messages(answer, out),
        Dialect::Generate => generate(answer, out),
        Dialect::LlamaCpp => event(None, &llama_cpp(answer), out),
        Dialect::Ollama => {
            write(&ollama(answer), out);
            out.push(b'\n');
        }
        Dialect::Embeddings | Dialect::Transcriptions | Dialect::Other => {}
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    // Writing into a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, value);
}

fn event(name: Option<&str>, data: &Value, out: &mut Vec<u8>) {
    for part in name.map(|name| ["event: ", name, "\n"]).into_iter().flatten() {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"data: ");
    write(data, out);
    out.extend_from_slice(b"\n\n");
}

const DONE: &[u8] = b"data: [DONE]\n\n";

/// Each choice ends with an event of its own, as vLLM has it.
fn openai(answer: &CutAnswer<'_>, object: &str, choice: impl Fn(u8) -> Value, out: &mut Vec<u8>) {
    for index in answer.choices.open() {
        let mut said = json!({
            "id": answer.id.unwrap_or_default(),
            "object": object,
            "created": answer.now_ms / 1000,
            "model": answer.model,
            "choices": [choice(index)],
        });
        // Behind `/completions` without its version llama.cpp may answer in its own form.
        if let (Dialect::Completions, Some(members)) = (answer.dialect, said.as_object_mut()) {
            members.extend(llama_cpp(answer).as_object().cloned().unwrap_or_default());
        }
        event(None, &said, out);
    }
    out.extend_from_slice(DONE);
}

fn responses(answer: &CutAnswer<'_>, out: &mut Vec<u8>) {
    let name = "response.incomplete";
    let response = json!({
        "id": answer.id.unwrap_or_default(),
        "object": "response",
        "created_at": answer.now_ms / 1000,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "error": null,
        "model": answer.model,
        "output": [],
        "usage": null,
    });
    // The events of such a stream are numbered from 0.
    let data = json!({"type": name, "sequence_number": answer.events, "response": response});
    event(Some(name), &data, out);
}

fn messages(answer: &CutAnswer<'_>, out: &mut Vec<u8>) {
    let begun = answer.tokens > 0 && !answer.is_text_over;
    // The blocks of a message come one after the other: what is open is the last one.
    if let Some(index) = answer.choices.open().last().filter(|_| begun) {
        let name = "content_block_stop";
        event(Some(name), &json!({"type": name, "index": index}), out);
    }
    let name = "message_delta";
    let delta = json!({"stop_reason": "max_tokens", "stop_sequence": null});
    let usage = json!({"output_tokens": answer.tokens});
    event(Some(name), &json!({"type": name, "delta": delta, "usage": usage}), out);
    let name = "message_stop";
    event(Some(name), &json!({"type": name}), out);
}

/// SGLang's form and TGI's in one: which of them answers is not said anywhere.
fn generate(answer: &CutAnswer<'_>, out: &mut Vec<u8>) {
    let data = json!({
        "text": "",
        "meta_info": {"finish_reason": {"type": "length"}, "completion_tokens": answer.tokens},
        "index": answer.tokens,
        "token": {"id": 0, "text": "", "logprob": 0.0, "special": true},
        "generated_text": "",
        "details": {"finish_reason": "length", "generated_tokens": answer.tokens, "seed": null},
    });
    event(None, &data, out);
    out.extend_from_slice(DONE);
}

fn llama_cpp(answer: &CutAnswer<'_>) -> Value {
    json!({
        "content": "",
        "tokens": [],
        "stop": true,
        "stop_type": "limit",
        "truncated": false,
        "tokens_predicted": answer.tokens,
    })
}

fn ollama(answer: &CutAnswer<'_>) -> Value {
    let stamp = Stamp::of(answer.now_ms);
    let mut line = json!({
        "model": answer.model,
        "created_at": stamp.as_ref().map_or("1970-01-01T00:00:00Z", Stamp::as_str),
        "done": true,
        "done_reason": "length",
        "eval_count": answer.tokens,
    });
    match answer.is_chat {
        true => line["message"] = json!({"role": "assistant", "content": ""}),
        false => line["response"] = json!(""),
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ending;
    use crate::llm::sse::EventFraming;
    use crate::llm::usage::UsageScan;

    const ALL: [(Dialect, bool); 9] = [
        (Dialect::OpenAi, true),
        (Dialect::OpenAi, false),
        (Dialect::Completions, false),
        (Dialect::Responses, false),
        (Dialect::Messages, true),
        (Dialect::Generate, false),
        (Dialect::LlamaCpp, false),
        (Dialect::Ollama, true),
        (Dialect::Ollama, false),
    ];

    fn answer(dialect: Dialect, is_chat: bool) -> CutAnswer<'static> {
        let mut choices = Choices::default();
        choices.see(0, true);
        choices.see(2, false);
        CutAnswer {
            dialect,
            is_chat,
            id: Some("a-1"),
            model: "m",
            now_ms: 1_767_225_600_000,
            choices,
            is_text_over: false,
            events: 7,
            tokens: 5,
        }
    }

    fn written(answer: &CutAnswer<'_>) -> String {
        let mut out = Vec::new();
        write_end(answer, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Catches: an end that whoever reads streams does not take for one, or for an error.
    #[test]
    fn each_end_is_read_as_an_end() {
        for (dialect, is_chat) in ALL {
            let text = written(&answer(dialect, is_chat));
            let framing = match dialect {
                Dialect::Ollama => EventFraming::Lines,
                _ => EventFraming::Events,
            };
            let mut scan = UsageScan::default();
            scan.expect(dialect, Some(framing));
            scan.feed(text.as_bytes());
            assert!(is_known(dialect) && !scan.facts().error(), "{text}");
            assert_eq!(ending::ended(dialect, &scan), Some(true), "{dialect:?}: {text}");
        }
        assert!(!is_known(Dialect::Other) && written(&answer(Dialect::Other, false)).is_empty());
    }

    /// Catches: a choice that is ended twice or not at all, an end mark that is missing, a block
    /// that is closed though it is not open.
    #[test]
    fn what_is_open_ends() {
        let text = written(&answer(Dialect::OpenAi, true));
        assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 1);
        assert!(text.contains("\"index\":2") && text.ends_with("}\n\ndata: [DONE]\n\n"), "{text}");
        assert!(text.contains("\"id\":\"a-1\"") && text.contains("\"created\":1767225600,"));
        let open = written(&answer(Dialect::Messages, true));
        assert!(open.starts_with("event: content_block_stop\n"), "{open}");
        let over = CutAnswer { is_text_over: true, ..answer(Dialect::Messages, true) };
        assert!(written(&over).starts_with("event: message_delta\n"));
        let native = written(&answer(Dialect::Ollama, false));
        assert!(native.contains("\"done_reason\":\"length\"") && native.contains("\"response\":"));
        assert!(native.ends_with("}\n") && native.contains("2026-01-01T00:00:00"), "{native}");
    }
}
