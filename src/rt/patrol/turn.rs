//! A turn of the worker's loop: who does much in one lets all others have theirs before it goes on.
//!
//! A task that merely wakes itself again would keep the loop from looking at sockets and timers
//! (monoio#322), and a timer of no length waits for the next millisecond, also where the worker has
//! nothing else to do. So whoever waits rings a bell that is heard as the sockets are: behind it,
//! all that had come had its turn. The bell calls all who wait at that moment, so that nobody's
//! turn comes the later the more others wait. Who begins to wait meanwhile is not called with them,
//! and the bell rings again when the last of them has come: if each rang, the loop would find some
//! of them running at any time, and never come to its timers.

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
    /// How many of those who were called have not come yet. While there are such, nobody rings; at
    /// any other time in which somebody waits, the bell was rung and will be heard.
    called: Cell<usize>,
}

/// A place among those who wait. The last who was called rings for those who wait by then, also
/// when it does not come, but gives up.
struct Place<'a> {
    bell: &'a Bell,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.bell.waiting.borrow_mut();
        if waiting.remove(&self.number).is_some() {
            return;
        }
        self.bell.called.set(self.bell.called.get().saturating_sub(1));
        if self.bell.called.get() == 0 && !waiting.is_empty() {
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
        Ok(Bell { fd, waiting: RefCell::default(), places: Cell::new(0), called: Cell::new(0) })
    }

    /// It was heard: all who wait go on.
    pub(super) fn hear(&self) {
        let all = self.waiting.take();
        self.called.set(self.called.get() + all.len());
        all.into_values().for_each(Waker::wake);
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
        let mut waits = false;
        poll_fn(|cx| {
            let mut waiting = bell.waiting.borrow_mut();
            if waits && !waiting.contains_key(&place.number) {
                return Poll::Ready(());
            }
            if waiting.is_empty() && bell.called.get() == 0 {
                bell.ring();
            }
            waiting.insert(place.number, cx.waker().clone());
            waits = true;
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::ring::Ring;
    use std::future::Future;
    use std::os::unix::net::UnixStream;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::Context;
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

    type Turn = Pin<Box<dyn Future<Output = ()>>>;

    fn has_come(turn: &mut Turn) -> bool {
        turn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Catches: a bell that nobody rings any more because who was called, or waited, gave up; and
    /// one that calls who began to wait only behind it.
    #[test]
    fn who_gives_up_keeps_nobody_waiting() {
        Ring::build().unwrap().block_on(async {
            let patrol = Patrol::start().unwrap();
            let mut turns: Vec<Turn> = Vec::new();
            for _ in 0..5 {
                let patrol = Rc::clone(&patrol);
                turns.push(Box::pin(async move { patrol.next_turn().await }));
            }
            let mut late = turns.split_off(3);
            assert!(!turns.iter_mut().any(has_come), "nobody was called yet");
            while patrol.bell.called.get() == 0 {
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(!late.iter_mut().any(has_come));
            assert!(has_come(&mut turns[0]) && has_come(&mut turns[1]));
            monoio::time::sleep(Duration::from_millis(1)).await;
            assert!(!late.iter_mut().any(has_come), "not while one who was called is to come");
            // That one gives up, and so does one of those who wait.
            drop((turns, late.pop()));
            monoio::time::timeout(Duration::from_secs(10), late.remove(0)).await.unwrap();
            monoio::time::timeout(Duration::from_secs(10), patrol.next_turn()).await.unwrap();
            assert!(patrol.bell.waiting.borrow().is_empty() && patrol.bell.called.get() == 0);
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
