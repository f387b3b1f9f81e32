//! What each engine says, as bytes.
//!
//! Everything here is a pure function of the [`Ask`], so that a client which knows the ask knows
//! every byte of the answer and can prove that a gateway changed none.

mod chat;
mod envelope;
/// Error bodies and in-stream errors of each dialect.
pub mod errors;
mod events;
mod native;

use std::str::FromStr;

/// The engine whose bytes are imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// vLLM 0.32 on uvicorn
    Vllm,
    /// SGLang 0.5 on uvicorn
    Sglang,
    /// text-generation-inference on axum
    Tgi,
    /// llama.cpp's server on cpp-httplib
    Llamacpp,
    /// Ollama on Go's net/http
    Ollama,
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "vllm" => Dialect::Vllm,
            "sglang" => Dialect::Sglang,
            "tgi" => Dialect::Tgi,
            "llamacpp" => Dialect::Llamacpp,
            "ollama" => Dialect::Ollama,
            _ => return Err(format!("{name}: not one of vllm, sglang, tgi, llamacpp, ollama")),
        })
    }
}

/// The endpoint that was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
    /// /v1/embeddings
    Embeddings,
    /// /v1/responses
    Responses,
    /// /v1/messages
    Messages,
    /// /generate and /generate_stream of TGI, /generate of SGLang
    Generate,
    /// /completion of llama.cpp
    Completion,
    /// /api/chat of Ollama
    OllamaChat,
    /// /api/generate of Ollama
    OllamaGenerate,
}

/// Token counts that the answer reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Usage {
    /// Tokens of the prompt
    pub prompt: u64,
    /// Tokens of the answer
    pub completion: u64,
    /// Prompt tokens served from the cache, where the engine reports them
    pub cached: Option<u64>,
}

impl Usage {
    /// Prompt and answer together.
    pub fn total(&self) -> u64 {
        self.prompt + self.completion
    }
}

/// Everything that decides the bytes of one answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Whose bytes
    pub dialect: Dialect,
    /// Which endpoint
    pub api: Api,
    /// Streamed or whole
    pub stream: bool,
    /// `stream_options.include_usage` of the request
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats` of the request
    pub continuous_usage: bool,
    /// The server was started so that it tells without being asked: vLLM's
    /// `--enable-force-include-usage`, in each event too; SGLang's
    /// `--stream-response-default-include-usage`, at the end alone
    pub forced_usage: bool,
    /// Steps that the usage event comes after the one before it, where it is a piece of its own
    pub usage_steps: u32,
    /// `parameters.details` of the request (TGI's native routes)
    pub details: bool,
    /// `encoding_format: "bytes"` of the request (vLLM's embeddings): numbers as they lie in
    /// memory, and the counts in the head
    pub raw: bool,
    /// The model as it stands between the quotes of the request's JSON
    pub model: String,
    /// Content events of a stream
    pub tokens: u32,
    /// Characters of content in each event
    pub event_bytes: u32,
    /// Bytes of an unstreamed body; 0 = as much text as the stream would carry
    pub answer_bytes: u32,
    /// Decides the text
    pub seed: u64,
    /// Finish reason `length` instead of `stop`
    pub cut: bool,
    /// Content with quotes, line ends, non-ASCII and a fake `"usage"` in it
    pub tricky: bool,
    /// What the answer reports
    pub usage: Usage,
}

impl Default for Ask {
    /// A streamed vLLM chat of 16 events, 6 characters each.
    fn default() -> Self {
        Ask {
            dialect: Dialect::Vllm,
            api: Api::Chat,
            stream: true,
            include_usage: false,
            continuous_usage: false,
            forced_usage: false,
            usage_steps: 0,
            details: false,
            raw: false,
            model: "m".to_string(),
            tokens: 16,
            event_bytes: 6,
            answer_bytes: 0,
            seed: 0,
            cut: false,
            tricky: false,
            usage: Usage { prompt: 12, completion: 16, cached: None },
        }
    }
}

/// Bytes that the engine hands to its HTTP stack at once: one chunk on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which step of the generation emits it; pieces of one step leave without a pause
    pub step: u32,
    /// How many events are in it
    pub events: u32,
    /// The body bytes
    pub bytes: Vec<u8>,
}

/// The pieces of a streamed answer, in order.
pub fn stream_pieces(ask: &Ask) -> Vec<Piece> {
    match ask.api {
        Api::Chat | Api::Completions => chat::stream(ask),
        Api::Embeddings => vec![Piece { step: 0, events: 1, bytes: answer_body(ask) }],
        Api::Responses | Api::Messages => events::stream(ask),
        _ => native::stream(ask),
    }
}

/// Every byte of a streamed body, chunk framing taken off.
pub fn expected_stream(ask: &Ask) -> Vec<u8> {
    stream_pieces(ask).into_iter().flat_map(|piece| piece.bytes).collect()
}

/// The value of the `metadata` field beside raw embeddings.
pub fn metadata(ask: &Ask) -> String {
    chat::metadata(ask)
}

/// Every byte of an unstreamed body.
pub fn answer_body(ask: &Ask) -> Vec<u8> {
    if ask.raw && ask.api == Api::Embeddings {
        return chat::raw_embeddings(ask);
    }
    match ask.api {
        Api::Chat | Api::Completions => chat::whole(ask),
        Api::Embeddings => chat::embeddings(ask),
        Api::Responses | Api::Messages => events::whole(ask),
        _ => native::whole(ask),
    }
    .into_bytes()
}

/// The body that `ask` promises, streamed or not.
pub fn expected_body(ask: &Ask) -> Vec<u8> {
    if ask.stream {
        expected_stream(ask)
    } else {
        answer_body(ask)
    }
}

/// FNV-1a, 64 bits: the checksum of bodies in logs and reports.
pub fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The text of one content event: `event_bytes` characters that JSON need not escape, or, when
/// tricky, text that fools a reader which does not follow JSON's escapes.
fn token_text(ask: &Ask, step: u32) -> String {
    if ask.tricky {
        const TRAPS: [&str; 4] = [
            r#"\"usage\":{\"prompt_tokens\":999999,\"completion_tokens\":1}"#,
            r#"\n\ndata: [DONE]\n\n"#,
            "naïve Ω 漢字 🦀",
            r#"\\\"usage\\\": \\"#,
        ];
        return TRAPS[step as usize % TRAPS.len()].to_string();
    }
    // splitmix64 over (seed, step), one character per draw: cheap, and no two steps look alike.
    let mut state = mixed(ask.seed ^ mixed(u64::from(step) + 1));
    (0..ask.event_bytes)
        .map(|at| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            match at {
                0 => ' ',
                _ => char::from(b'a' + (mixed(state) % 26) as u8),
            }
        })
        .collect()
}

fn mixed(state: u64) -> u64 {
    let half = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let full = (half ^ (half >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    full ^ (full >> 31)
}

/// The text of the whole answer.
fn whole_text(ask: &Ask) -> String {
    (0..ask.tokens).map(|step| token_text(ask, step)).collect()
}

/// Text that makes a body, which is `empty` bytes long without it, `answer_bytes` long.
fn padded_text(ask: &Ask, empty: usize) -> String {
    if ask.answer_bytes == 0 {
        return whole_text(ask);
    }
    let wanted = (ask.answer_bytes as usize).saturating_sub(empty);
    let long = Ask { event_bytes: wanted as u32, tricky: false, ..ask.clone() };
    token_text(&long, 0)
}

/// The identity in an answer: the seed, so that answers can be told apart.
fn answer_id(ask: &Ask) -> String {
    format!("{:012x}", ask.seed)
}

fn finish_reason(ask: &Ask) -> &'static str {
    if ask.cut {
        "length"
    } else {
        "stop"
    }
}

#[cfg(test)]
mod tests;
