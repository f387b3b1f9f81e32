//! Any bytes as a configuration: loading must answer, and what it accepts must print and load
//! again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::config::{load_text, Loaded};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let env = |name: &str| (name == "A").then(|| "value".to_owned());
    if let Ok(Loaded { plan, report }) = load_text("fuzz", text, &env) {
        let printed = llmproxy::config::print(&plan).expect("an accepted plan prints");
        // Masked secrets may collide or be no URL; without any, the print means the same.
        if !printed.contains("***") {
            let again = load_text("printed", &printed, &env).expect("a printed plan loads");
            assert_eq!(plan, again.plan);
        }
        assert!(!report.has_errors());
    }
});
