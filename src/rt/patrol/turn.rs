//! A turn of the worker's loop: who does much in one lets all others have theirs before it goes on.
//!
//! A task that merely wakes itself again would keep the loop from looking at sockets and timers
//! (monoio#322), and a timer of no length waits for the next millisecond, also where the worker has
//! nothing else to do. So whoever waits rings a bell that is heard as the sockets are: behind it,
//! all that had come had its turn. The bell wakes one of those who wait, which rings for the next:
//! if it woke them all, the loop would find them running again and again, and never come to its
//! timers.

use super::Patrol;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{eventfd, EventfdFlags};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Poll, Waker};

/// What the patrol's epoll says of the bell; a post says its slot.
pub(super) const BELL: u64 = u64::MAX;

/// The bell, and who waits until it is heard.
pub(super) struct Bell {
    fd: OwnedFd,
    /// By their places, which are given in order.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    places: Cell<u64>,
}

/// A place among those who wait. Whoever leaves it, called or not, rings for the next.
struct Place<'a> {
    bell: &'a Bell,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.bell.waiting.borrow_mut();
        waiting.remove(&self.number);
        if !waiting.is_empty() {
            self.bell.ring();
        }
    }
}

impl Bell {
    /// One that an epoll hears.
    pub(super) fn hung_on(epoll: &OwnedFd) -> io::Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Each ring is told once, and nobody has to read it back.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(epoll, &fd, EventData::new_u64(BELL), flags)?;
        Ok(Bell { fd, waiting: RefCell::default(), places: Cell::new(0) })
    }

    /// It was heard: who has waited longest goes on.
    pub(super) fn hear(&self) {
        let first = self.waiting.borrow_mut().pop_first();
        first.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn ring(&self) {
        // It fails only when it was rung 2^64 times.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

impl Patrol {
    /// Waits for the next turn of the loop: at once where nobody else has anything to do.
    pub async fn next_turn(&self) {
        let bell = &self.bell;
        let place = Place { bell, number: bell.places.get() };
        bell.places.set(place.number + 1);
        let mut has_rung = false;
        poll_fn(|cx| {
            let mut waiting = bell.waiting.borrow_mut();
            if has_rung && !waiting.contains_key(&place.number) {
                return Poll::Ready(());
            }
            waiting.insert(place.number, cx.waker().clone());
            if !has_rung {
                bell.ring();
                has_rung = true;
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::ring::Ring;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    /// Catches: turns that keep sockets or timers waiting for as long as somebody takes them.
    #[test]
    fn sockets_and_timers_have_their_turn_too() {
        Ring::build().unwrap().block_on(async {
            let patrol = Patrol::start().unwrap();
            let done = Rc::new(Cell::new(0));
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let socket = crate::rt::socket::Socket::from_fd(ours.into()).unwrap();
            let (by_socket, by_timer) = (Rc::clone(&done), Rc::clone(&done));
            monoio::spawn(async move {
                socket.readable().await.unwrap();
                by_socket.set(by_socket.get() + 1);
            });
            monoio::spawn(async move {
                monoio::time::sleep(Duration::from_millis(5)).await;
                by_timer.set(by_timer.get() + 1);
            });
            patrol.next_turn().await;
            std::io::Write::write_all(&mut &theirs, b"x").unwrap();
            let others: Vec<_> = (0..30)
                .map(|_| {
                    let (patrol, done) = (Rc::clone(&patrol), Rc::clone(&done));
                    monoio::spawn(async move {
                        while done.get() < 2 {
                            patrol.next_turn().await;
                        }
                    })
                })
                .collect();
            for other in others {
                other.await;
            }
            assert!(patrol.bell.waiting.borrow().is_empty());
        });
    }

    /// Catches: a turn that waits for a timer, where the worker has nothing else to do or where it
    /// has; and one that comes before others had theirs.
    #[test]
    fn a_turn_needs_no_timer_and_lets_others_run() {
        let mut without = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        without.block_on(async {
            let patrol = Patrol::start().unwrap();
            let done = Rc::new(Cell::new(0));
            for turn in 0..100 {
                let by_task = Rc::clone(&done);
                monoio::spawn(async move { by_task.set(by_task.get() + 1) });
                patrol.next_turn().await;
                assert_eq!(done.get(), turn + 1);
            }
        });
    }
}
