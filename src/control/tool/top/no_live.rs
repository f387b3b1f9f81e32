//! In place of the live view in a build without the feature `top`.

use super::{said, Watcher};
use crate::config::cli::{Printout, WOULD_NOT_START};
use std::time::Duration;

/// Says that there is none.
pub fn run(_: Watcher, _: Duration) -> Printout {
    let message = "llmproxy top: this program was built without the live view: use --once\n";
    said(message.to_owned(), WOULD_NOT_START)
}
