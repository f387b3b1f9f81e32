//! What stops a program at chosen moments: `trace.py`, which says how.

use crate::harness::process::run;
use crate::harness::skip;
use std::path::Path;
use std::time::Duration;

/// The script.
pub const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/trace.py");

/// False where processes may not be traced, or there is no Python.
pub fn may_trace() -> bool {
    let may = run(Path::new("python3"), &[TRACE, "may"], Duration::from_secs(30)).code == Some(0);
    if !may {
        skip("processes may not be traced here, or there is no python3");
    }
    may
}
