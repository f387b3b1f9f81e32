//! What the microbenchmarks share. The comparison with other proxies is `bench/compare`.

use std::time::Instant;

/// One event as vLLM writes it.
pub const EVENT: &[u8] = concat!(
    r#"data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","#,
    r#""created":1700000000,"model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{"index":0,"#,
    r#""delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}"#,
    "\n\n"
)
.as_bytes();

/// Prints the nanoseconds of one call, and the bytes per second if it looks at `bytes`, else 0:
/// the best of many rounds, because the rest is the machine.
pub fn measure(name: &str, bytes: usize, mut call: impl FnMut()) {
    let calls = (4_000_000 / bytes.max(1)).clamp(10, 20_000);
    let round = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let best = (0..30).map(round).fold(f64::MAX, f64::min);
    match bytes {
        0 => println!("{name:32} {best:10.1} ns"),
        _ => println!("{name:32} {best:10.1} ns {:8.2} GB/s", bytes as f64 / best),
    }
}
