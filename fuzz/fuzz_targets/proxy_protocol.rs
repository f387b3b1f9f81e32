//! The PROXY protocol: any bytes, cut anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::http::proxy_protocol::{parse, ProxyHeader};

fuzz_target!(|bytes: &[u8]| {
    let all = parse(bytes);
    for len in 0..bytes.len() {
        match (parse(&bytes[..len]), &all) {
            // More bytes decide what is open, and change nothing that is decided.
            (Ok(ProxyHeader::Partial), _) => {}
            (decided, all) => assert_eq!(&decided, all, "{len}"),
        }
    }
    if let Ok(ProxyHeader::Whole { len, .. }) = all {
        assert!(len <= bytes.len());
    }
});
