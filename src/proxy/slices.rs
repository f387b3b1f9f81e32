//! How much of a request body is read at a time: a small one is read in one go, and a large one in
//! slices, between which all other connections of the worker have their turn. Nothing that a client
//! sends may hold a worker for long.

use crate::base::limits::{
    SCANNING_MAX, SCAN_BYTES, SCAN_BYTES_PER_TICK_MAX, SCAN_SLICE_BYTES_MIN,
};
use crate::rt::turns::Turns;
use std::cell::Cell;

/// How much of request bodies a worker reads at a time.
pub struct Slices {
    /// Those of the bodies that are read in slices.
    pub turns: Turns,
    /// Bytes that were read in one go in this tick of the worker's clock.
    tick: Cell<u32>,
    bytes: Cell<usize>,
}

impl Default for Slices {
    fn default() -> Slices {
        Slices { turns: Turns::new(SCANNING_MAX), tick: Cell::new(0), bytes: Cell::new(0) }
    }
}

impl Slices {
    /// Whether a body may be read in one go; counts it as read then. A body that is no longer than
    /// the shortest slice always may: large ones must not make it wait.
    pub fn takes(&self, now: u32, len: usize) -> bool {
        if len <= SCAN_SLICE_BYTES_MIN {
            return true;
        }
        if self.tick.replace(now) != now {
            self.bytes.set(0);
        }
        let bytes = self.bytes.get().saturating_add(len);
        let takes = len <= SCAN_BYTES && bytes <= SCAN_BYTES_PER_TICK_MAX;
        if takes {
            self.bytes.set(bytes);
        }
        takes
    }

    /// The next slice of each body. All have one in a turn of the loop, so together they are about
    /// as long as one body that is read in one go.
    pub fn next(&self) -> usize {
        (SCAN_BYTES / self.turns.taken().max(1)).max(SCAN_SLICE_BYTES_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;
    use crate::rt::patrol::Patrol;
    use crate::rt::ring::Ring;
    use std::future::{poll_fn, Future};
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::Poll;
    use std::time::Duration;

    /// Catches: many bodies, each short enough to be read in one go, in one turn of the loop.
    #[test]
    fn what_is_read_in_one_go_is_bounded_in_all() {
        let slices = Slices::default();
        assert!(!slices.takes(1, SCAN_BYTES + 1));
        let taken = (0..1000).filter(|_| slices.takes(1, SCAN_BYTES)).count();
        assert_eq!(taken, SCAN_BYTES_PER_TICK_MAX / SCAN_BYTES);
        assert!(!slices.takes(1, SCAN_BYTES) && slices.takes(2, SCAN_BYTES));
        assert!(slices.takes(1, SCAN_SLICE_BYTES_MIN), "small ones do not wait for large ones");
    }

    /// Catches: slices that are a turn's work each, of many bodies.
    #[test]
    fn the_more_bodies_the_shorter_the_slices() {
        let slices = Slices::default();
        let mut turns = Vec::new();
        Ring::build().unwrap().block_on(async {
            for readers in 1..=SCANNING_MAX {
                turns.push(slices.turns.take().await);
                assert_eq!(slices.next(), SCAN_BYTES / readers);
            }
        });
        assert_eq!(slices.next(), SCAN_SLICE_BYTES_MIN);
        drop(turns);
        assert_eq!(slices.next(), SCAN_BYTES);
    }

    /// Catches: bodies that wait for each other's slices, or for those who send much, though a turn
    /// of the loop takes long; and slices of more than one body's length in one turn.
    #[test]
    fn in_each_turn_of_the_loop_all_bodies_have_their_slice() {
        const TURNS: usize = 10;
        let (slices, bytes) = (Rc::new(Slices::default()), Rc::new(Cell::new(0)));
        let done = Rc::new(Cell::new(false));
        let read = Ring::build().unwrap().block_on(async {
            let patrol = Patrol::start().unwrap();
            let mut taken = Vec::new();
            for _ in 0..SCANNING_MAX {
                taken.push(slices.turns.take().await);
            }
            for number in 0..3 * SCANNING_MAX {
                let (patrol, slices) = (Rc::clone(&patrol), Rc::clone(&slices));
                let (bytes, done) = (Rc::clone(&bytes), Rc::clone(&done));
                rt::spawn(async move {
                    while !done.get() {
                        patrol.next_turn().await;
                        // The others are streams that send much.
                        if number < SCANNING_MAX {
                            bytes.set(bytes.get() + slices.next());
                        }
                    }
                });
            }
            let mut read = Vec::new();
            for _ in 0..TURNS {
                // It is due before this turn of the loop ends, and so wakes us in the next one.
                let mut next = pin!(rt::sleep(Duration::from_millis(1)));
                poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_ready())).await;
                std::thread::park_timeout(Duration::from_millis(3));
                next.await;
                read.push(bytes.take());
            }
            done.set(true);
            read
        });
        let average = read.iter().sum::<usize>() / TURNS;
        assert!(read.iter().all(|bytes| *bytes <= SCAN_BYTES), "{read:?}");
        assert!(average >= SCAN_BYTES / 2, "{read:?}");
    }
}
