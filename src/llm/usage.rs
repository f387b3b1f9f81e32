//! Token usage in bytes that pass (contract).

/// Tokens of one request as an engine reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// prompt_tokens / input_tokens
    pub prompt_tokens: u64,
    /// completion_tokens / output_tokens
    pub completion_tokens: u64,
    /// total_tokens, or the sum
    pub total_tokens: u64,
    /// prompt_tokens_details.cached_tokens
    pub cached_tokens: Option<u64>,
    /// completion_tokens_details.reasoning_tokens
    pub reasoning_tokens: Option<u64>,
}

/// Watches bytes of an answer, streamed or not, for `"usage":{...}`; the last non-null one wins.
#[derive(Debug, Default)]
pub struct UsageScan {}

impl UsageScan {
    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) { let _ = bytes; todo!() }
    /// What was found so far.
    pub fn usage(&self) -> Option<Usage> { todo!() }
    /// The answer's own top-level `id` (`chatcmpl-...`), when seen.
    pub fn upstream_id(&self) -> Option<&str> { todo!() }
}
