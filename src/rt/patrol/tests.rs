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
