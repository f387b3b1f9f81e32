//! The name of this process among the proxies that a request passes. It goes out in the `Via` of
//! every request; one that comes in with it has been here before.

use std::sync::OnceLock;

/// `llmproxy-` and 16 random digits: no two processes share it, and it says nothing of the machine.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        // Without randomness, what is left tells at least the processes of one machine apart.
        let number = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        format!("llmproxy-{number:016x}")
    })
}
