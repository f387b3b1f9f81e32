//! How an answer said that it is over, and whether it said that something went wrong: a status of
//! 200 tells neither.

use super::dialect::Dialect;
use super::usage::UsageScan;

/// True when a stream of this dialect, whose bytes all came, is a whole answer; false when it is
/// not; `None` when the dialect has no mark for that.
///
/// The mark tells, and so do the facts it stands for: an engine that said why its choices ended
/// and what they cost has said all that there is, even if what they cost is no count. A mark behind
/// nothing is no answer.
pub fn ended(dialect: Dialect, scan: &UsageScan) -> Option<bool> {
    let facts = scan.facts();
    let is_told = facts.is_accounted();
    let mark = match dialect {
        Dialect::OpenAi => scan.done() || is_told,
        Dialect::Responses => facts.response_ended(),
        Dialect::Messages => facts.message_stopped() || is_told,
        // SGLang ends with `[DONE]`, TGI with the whole text; on llama.cpp's `/completions`
        // something else may answer, as on `/v1`.
        Dialect::Generate | Dialect::LlamaCpp | Dialect::Completions => {
            scan.done() || facts.native_end() || is_told
        }
        Dialect::Ollama => facts.native_end(),
        Dialect::Embeddings | Dialect::Transcriptions | Dialect::Other => return None,
    };
    Some(mark && scan.has_data())
}

#[cfg(test)]
mod tests;
