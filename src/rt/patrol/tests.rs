use super::*;
use crate::rt::ring::Ring;
use std::io::Write;

/// Catches: a deadline that is held against a peer for time in which this thread heard nobody; one
/// that never comes.
#[test]
fn time_in_which_the_worker_stood_still_does_not_count() {
    const LIMIT: Duration = Duration::from_millis(300);
    let waits = Ring::build().unwrap().block_on(async {
        let patrol = Patrol::start().unwrap();
        let sweeping = Rc::clone(&patrol);
        monoio::spawn(async move {
            loop {
                sweeping.next_sweep(false, std::future::pending()).await;
            }
        });
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let post = patrol.watch(Socket::from_fd(ours.into()).unwrap(), Gone::AtFin).unwrap();
        monoio::time::sleep(TICK).await;
        let began = Instant::now();
        while began.elapsed() < 4 * LIMIT {
            std::thread::park_timeout(4 * LIMIT);
        }
        // By the clock as it was before.
        post.arm(LIMIT);
        let mut writer = theirs.try_clone().unwrap();
        monoio::spawn(async move {
            monoio::time::sleep(TICK / 2).await;
            writer.write_all(b"x").unwrap();
        });
        let first = post.within(post.socket().readable()).await;
        post.socket().try_recv(&mut Vec::with_capacity(8)).unwrap();
        post.arm(LIMIT);
        let second = post.within(post.socket().readable()).await;
        drop(theirs);
        (first.is_ok(), second.err())
    });
    assert_eq!(waits, (true, Some(Alarm::Expired)));
}

/// What the clock of a worker says that looks at it at these times, in milliseconds.
fn counted(looks: impl IntoIterator<Item = u64>) -> Duration {
    Ring::build().unwrap().block_on(async {
        let patrol = Patrol::start().unwrap();
        for look in looks {
            patrol.look(Duration::from_millis(look));
        }
        patrol.since(0)
    })
}

/// Catches: timeouts that take many times as long, without end, because a worker that has too much
/// to do looks at its clock late each time; and a standstill that counts, behind which it does not.
#[test]
fn only_a_standstill_costs_the_clock_time() {
    let each = |length: u64, until: u64| (1..=until / length).map(move |n| n * length);
    assert!(counted(each(300, 2000)) >= Duration::from_secs(1));
    assert!(counted(each(1000, 60_000)) >= Duration::from_secs(57));
    let twice = (1..=100).flat_map(|n| [n * 600, n * 600 + 1]);
    assert!(counted(twice) >= Duration::from_secs(57));
    let still = [100, 200, 6200, 6201, 6301, 6401];
    assert_eq!(counted(still), Duration::from_millis(500));
    // Standstills between which it is in time are single ones.
    let again = (0..10).flat_map(|n| [100, 6100].map(|at| n * 6100 + at));
    assert_eq!(counted(again), Duration::from_secs(2));
}
