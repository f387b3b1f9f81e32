//! In place of `llmproxy keys` in a build without the feature `sql`.

use crate::config::cli::{KeysAsk, Printout, WOULD_NOT_START};

/// Says that there is no store.
pub fn run(_ask: &KeysAsk) -> Printout {
    let stderr = "llmproxy keys: this program was built without SQL\n".to_owned();
    Printout { stdout: String::new(), stderr, code: WOULD_NOT_START }
}
