//! Buffers: what is lent, kept, given up and counted.

use super::*;

#[test]
fn buffers_come_back_empty() {
    let mut first = Buffer::take();
    first.extend_from_slice(b"secret of another stream");
    assert_eq!(Buffer::counts(), (1, 0));
    drop(first);
    assert_eq!(Buffer::counts(), (0, 1));
    let again = Buffer::take();
    assert!(again.is_empty(), "a pooled buffer must not show another stream's bytes");
    drop(again);
    let many: Vec<_> = (0..BUFFERS_IDLE_MAX + 10).map(|_| Buffer::take()).collect();
    drop(many);
    assert_eq!(Buffer::counts(), (0, BUFFERS_IDLE_MAX));
}

#[test]
fn what_a_burst_left_is_given_up_and_what_is_needed_stays() {
    let many: Vec<_> = (0..BUFFERS_IDLE_MAX).map(|_| Buffer::take()).collect();
    drop(many);
    let needed = Buffer::take();
    let held: *const u8 = needed.as_ptr();
    for _ in 0..BUFFERS_IDLE_MAX {
        Buffer::sweep();
    }
    assert_eq!(Buffer::counts(), (1, BUFFERS_IDLE_MIN));
    drop(needed);
    Buffer::sweep();
    assert_eq!(Buffer::counts(), (0, BUFFERS_IDLE_MIN));
    assert_eq!(Buffer::take().as_ptr(), held, "the warmest one is kept");
}

#[test]
fn a_body_moves_into_larger_buffers_and_on() {
    let mut body = Buffer::take();
    body.resize(BUFFER_BYTES, b'a');
    assert!(body.grow(1));
    assert_eq!(body.capacity(), MEDIUM_BUFFER_BYTES);
    assert_eq!(Buffer::counts(), (1, 1), "the small one went back");
    assert!(body.len() == BUFFER_BYTES && body.iter().all(|byte| *byte == b'a'));
    body.resize(MEDIUM_BUFFER_BYTES, b'b');
    assert!(body.grow(1));
    assert_eq!(body.capacity(), LARGE_BUFFER_BYTES);
    body.resize(LARGE_BUFFER_BYTES, b'c');
    assert!(body.grow(LARGE_BUFFER_BYTES));
    assert_eq!(body.capacity(), 2 * LARGE_BUFFER_BYTES);
    assert!(body.starts_with(b"aa") && body.ends_with(b"c"));
    drop(body);
    assert_eq!(Buffer::counts(), (0, 3), "and all three sizes are kept");
}

/// Catches: a client that sends 17 KiB, announces more, and makes us hold fifteen times as much;
/// one that gets the buffer of somebody else's large body.
#[test]
fn nobody_holds_more_than_four_times_what_came() {
    let idle = |bytes: usize| {
        let mut body = Buffer::take();
        body.resize(bytes, b'x');
        body
    };
    drop([idle(4 * LARGE_BUFFER_BYTES), idle(2 * LARGE_BUFFER_BYTES)]);
    let mut body = Buffer::take();
    while body.capacity() < 4 * LARGE_BUFFER_BYTES {
        let full = body.capacity();
        body.resize(full, b'x');
        assert!(body.double(1 << 30));
        assert!(body.capacity() <= 4 * body.len(), "{} of {}", body.len(), body.capacity());
    }
}

/// Catches: memory fresh from the system where an idle buffer would do.
#[test]
fn what_lies_idle_is_used_first() {
    let mut large = Buffer::take();
    large.resize(3 * LARGE_BUFFER_BYTES, b'x');
    let held = large.as_ptr();
    drop(large);
    let mut body = Buffer::take();
    body.resize(LARGE_BUFFER_BYTES, b'c');
    assert!(body.grow(1));
    assert_eq!((body.as_ptr(), body.len()), (held, LARGE_BUFFER_BYTES));
    assert!(body.iter().all(|byte| *byte == b'c'));
}

/// A slow client holds what its answer is read with: that is of a stated size.
#[test]
fn what_grew_for_a_prompt_reads_no_answer() {
    let mut prompt = Buffer::take();
    assert!(prompt.grow(LARGE_BUFFER_BYTES));
    prompt.reserve(2 * LARGE_BUFFER_BYTES);
    let capacity = prompt.capacity();
    drop(prompt);
    assert_eq!(Buffer::take_large().capacity(), LARGE_BUFFER_BYTES);
    assert!(POOL.with_borrow(|pool| pool.larger.iter().any(|b| b.capacity() == capacity)));
}

#[test]
fn only_so_many_read_with_large_buffers() {
    let many: Vec<_> = (0..LARGE_BUFFERS_READING_MAX).map(|_| Buffer::take_large()).collect();
    assert!(many.iter().all(|buffer| buffer.capacity() == LARGE_BUFFER_BYTES));
    let next = Buffer::take_large();
    assert_eq!((next.capacity(), Buffer::large_denied()), (BUFFER_BYTES, 1));
    drop((many, next));
    assert_eq!(Buffer::take_large().capacity(), LARGE_BUFFER_BYTES);
}

#[test]
fn the_pool_of_large_buffers_is_bounded_and_shrinks() {
    let grow = |_| {
        let mut body = Buffer::take();
        assert!(body.grow(LARGE_BUFFER_BYTES));
        body
    };
    let kept = LARGE_IDLE_BYTES_MAX / LARGE_BUFFER_BYTES;
    drop((0..kept + 5).map(grow).collect::<Vec<_>>());
    let idle_large = || POOL.with_borrow(|pool| pool.larger.len());
    let sweep = || (0..SWEEPS_TO_SHRINK).for_each(|_| Buffer::sweep());
    assert_eq!(idle_large(), kept);
    sweep();
    assert_eq!(idle_large(), kept, "they were needed a moment ago");
    drop((0..3).map(grow).collect::<Vec<_>>());
    sweep();
    assert_eq!(idle_large(), 3, "what was needed stays");
    sweep();
    assert_eq!(idle_large(), 0);
    assert_eq!(POOL.with_borrow(|pool| pool.larger_bytes), 0);
    // A body that nobody else will have the like of is not kept.
    let mut huge = Buffer::take();
    huge.reserve(LARGE_IDLE_BYTES_MAX + 1);
    drop(huge);
    assert_eq!(idle_large(), 0);
}

/// Runs with a budget of so many small buffers; gives what is held of it at the end.
fn with_budget(small: usize, test: impl FnOnce(&Budget)) -> u64 {
    let budget = Arc::new(Budget::new((small * BUFFER_BYTES) as u64));
    Buffer::count_against(&budget);
    test(&budget);
    Buffer::sweep();
    budget.held()
}

/// Catches: a buffer that grows beyond the budget, or that loses its bytes when it may not;
/// one that counts for less than it holds; bytes that are never given back, by a panic either.
#[test]
fn what_is_on_loan_counts_until_it_is_given_back() {
    let left = with_budget(100, |budget| {
        let small: Vec<_> = (0..32).map(|_| Buffer::take()).collect();
        assert_eq!(budget.held(), (32 * BUFFER_BYTES) as u64);
        let mut body = Buffer::take();
        body.resize(BUFFER_BYTES, b'a');
        assert!(body.grow(LARGE_BUFFER_BYTES));
        body.resize(LARGE_BUFFER_BYTES, b'b');
        assert!(body.grow(20 * BUFFER_BYTES), "32 + 16 + 20 of 100");
        assert_eq!(body.capacity(), 36 * BUFFER_BYTES, "no more than was asked for");
        body.resize(36 * BUFFER_BYTES, b'c');
        Buffer::sweep();
        assert_eq!(budget.held(), (68 * BUFFER_BYTES) as u64);
        assert!(!body.grow(33 * BUFFER_BYTES));
        assert_eq!((body.len(), body.capacity()), (36 * BUFFER_BYTES, 36 * BUFFER_BYTES));
        assert!(!Buffer::is_budget_spent());
        assert!(!body.grow(20 * BUFFER_BYTES), "an eighth is for small ones");
        assert!(body.grow(19 * BUFFER_BYTES) && !Buffer::is_budget_spent());
        let more: Vec<_> = (0..64).map(|_| Buffer::take()).collect();
        assert!(
            Buffer::is_budget_spent() && budget.held() > budget.max(),
            "small ones are had all the same"
        );
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = (body, more);
            panic!("as a test");
        }));
        assert!(panicked.is_err());
        Buffer::sweep();
        assert_eq!(budget.held(), (32 * BUFFER_BYTES) as u64);
        drop(small);
    });
    assert_eq!(left, 0);
}

/// Catches: a large buffer that lies idle, lost when the budget does not have it.
#[test]
fn an_idle_buffer_beyond_the_budget_stays_idle() {
    let mut body = Buffer::take();
    assert!(body.grow(LARGE_BUFFER_BYTES));
    drop(body);
    let left = with_budget(8, |_| {
        let mut body = Buffer::take();
        body.resize(MEDIUM_BUFFER_BYTES, b'a');
        assert!(!body.grow(1));
        assert_eq!(POOL.with_borrow(|pool| pool.larger.len()), 1);
    });
    assert_eq!(left, 0);
}

/// Catches: bytes that are scarce before anybody needs them, or for ever after.
#[test]
fn bytes_are_scarce_near_the_end_of_the_budget_and_for_a_while_after() {
    let left = with_budget(100, |_| {
        let mut many: Vec<_> = (0..79).map(|_| Buffer::take()).collect();
        Buffer::sweep();
        assert!(!Buffer::are_scarce());
        many.push(Buffer::take());
        Buffer::sweep();
        assert!(Buffer::are_scarce());
        drop(many);
        (0..SCARCE_SWEEPS - 1).for_each(|_| Buffer::sweep());
        assert!(Buffer::are_scarce());
        Buffer::sweep();
        Buffer::sweep();
        assert!(!Buffer::are_scarce());
        // Somebody needs more than there is.
        assert!(!Buffer::take().grow(99 * BUFFER_BYTES));
        Buffer::sweep();
        assert!(Buffer::are_scarce());
    });
    assert_eq!(left, 0);
}

#[test]
fn what_is_appended_grows_by_doubling_up_to_the_most() {
    let most = 5 * LARGE_BUFFER_BYTES;
    // With the eighth that is not for large ones.
    let left = with_budget(92, |_| {
        let (mut body, mut capacities) = (Buffer::take(), Vec::new());
        for _ in 0..most / BUFFER_BYTES {
            assert!(body.append(&[b'x'; BUFFER_BYTES], most));
            capacities.push(body.capacity() / LARGE_BUFFER_BYTES);
        }
        capacities.dedup();
        assert_eq!((capacities, body.len()), (vec![0, 1, 2, 4, 5], most));
        Buffer::sweep();
        assert!(!body.append(&[b'x'; BUFFER_BYTES], most));
        assert_eq!(body.len(), most);
    });
    assert_eq!(left, 0);
}

/// Catches: what TLS sessions hold for slow clients, that nobody counts, or counts for ever.
#[test]
fn what_is_held_aside_counts() {
    let budget = Arc::new(Budget::new(u64::MAX));
    Buffer::count_against(&budget);
    let (one, other) = (Aside::default(), Aside::default());
    one.set(BUDGET_STEP);
    other.set(2 * BUDGET_STEP);
    assert_eq!(budget.held(), 3 * BUDGET_STEP as u64);
    one.set(0);
    drop(other);
    Buffer::sweep();
    assert_eq!(budget.held(), 0);
}
