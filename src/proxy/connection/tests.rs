use super::*;
use std::mem::size_of;

mod panics;

/// Bytes of the future that a function of three arguments returns.
fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

/// What a stream that runs for minutes costs, beside its two sockets' own. What is needed only
/// now and then (connecting, waiting for a slow client, draining) is boxed instead of growing
/// it. The allocator rounds 1 024 up to nothing, and the next byte to 1 280.
#[test]
fn a_stream_stays_small() {
    let sizes = [size_of_future(converse), size_of::<Talk>(), size_of::<Client>()];
    println!("connection's future, talk, client: {sizes:?} bytes");
    for (size, stated) in sizes.into_iter().zip([1024, 1024, 72]) {
        assert!(size <= stated, "{size} bytes, {stated} are stated");
    }
}
