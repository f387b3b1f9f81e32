//! How a stream said that it is over, and whether it said that something went wrong: a status of
//! 200 tells neither. Both stand in lines of their own ([`SseScan`]) or, in the engines' own
//! forms, in members of their objects ([`UsageScan`]).

use super::dialect::Dialect;
use super::sse::SseScan;
use super::usage::UsageScan;

/// True when the mark that ends streams of this dialect was seen, false when it was not; `None`
/// when the dialect has none. Both scans saw the whole stream.
pub fn ended(dialect: Dialect, events: &SseScan, usage: &UsageScan) -> Option<bool> {
    let native = usage.native().is_some_and(|native| native.ended());
    match dialect {
        Dialect::OpenAi => Some(events.done()),
        Dialect::Responses => Some(events.response_ended()),
        Dialect::Messages => Some(events.message_stopped()),
        // SGLang ends with `[DONE]`, TGI with the whole text; on llama.cpp's `/completions`
        // something else may answer, as on `/v1`.
        Dialect::Generate | Dialect::LlamaCpp => Some(events.done() || native),
        Dialect::Ollama => Some(native),
        Dialect::Embeddings | Dialect::Transcriptions | Dialect::Other => None,
    }
}

/// True when the stream told of an error after its head had said 200.
pub fn in_band_error(events: &SseScan, usage: &UsageScan) -> bool {
    events.in_band_error() || usage.native().is_some_and(|native| native.error())
}

#[cfg(test)]
mod tests;
