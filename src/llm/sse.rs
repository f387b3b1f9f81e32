//! Event boundaries of a server-sent event stream that passes (contract).

/// Watches bytes of an event stream.
#[derive(Debug, Default)]
pub struct SseScan {}

impl SseScan {
    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) { let _ = bytes; todo!() }
    /// Events with at least one `data` line that ended so far (`[DONE]` not counted).
    pub fn events(&self) -> u64 { todo!() }
    /// True when the last byte seen ended an event (or nothing was seen): an event of ours may follow.
    pub fn at_boundary(&self) -> bool { todo!() }
    /// `data: [DONE]` was seen.
    pub fn done(&self) -> bool { todo!() }
}
