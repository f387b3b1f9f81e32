//! Kept connections of one worker: who may come back, and which one goes out next.

use crate::rt::socket::Heard;
use crate::rt::tls::Link;
use crate::state::fleet::{Fleet, Member};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

/// A connection that idled for so many ticks (at least 100 ms) is preferred to one that was in use
/// a moment ago: what an engine sends late, behind its answer, has arrived by then, and is seen.
const QUIET_TICKS: u32 = 2;
/// After bytes that nobody asked for, only such connections of their backend are used for so many
/// ticks (one minute): an engine that answers twice does it again, and while its second answer is
/// on its way, nothing tells that connection from a clean one.
const WARY_TICKS: u32 = 600;

/// One borrowed connection to a backend. Dropping it closes the connection, which cancels the
/// generation at the engine. It comes back to the pool only through [`Pool::give_back`], and only
/// when everything that its `Standing` asks for was proven.
pub struct Lease {
    link: Link,
    inflight: InFlight,
}

/// What is proven of a connection on which one request was sent. Nothing is, to begin with: a
/// connection on which the rest of a request is still to come, or the rest of an answer, would take
/// the next request for that rest, or give its sender somebody else's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Standing {
    /// All of the request was handed over.
    sent_whole: bool,
    /// The engine said that the connection lives on, in the head of its final answer.
    is_kept: bool,
    /// The answer was read to its exact end, and nothing was behind it.
    is_at_end: bool,
    /// Something happened after which it is not used again, whatever else is true.
    is_spoiled: bool,
}

impl Standing {
    /// The one rule for whether a connection may carry another request.
    fn is_clean(self) -> bool {
        self.sent_whole && self.is_kept && self.is_at_end && !self.is_spoiled
    }
}

/// Counts a request in flight at a backend for as long as it lives, and keeps what is proven of it.
struct InFlight {
    fleet: Arc<Fleet>,
    backend: u32,
    // Here it fits between the others: the future of a stream does not grow.
    standing: Standing,
}

impl InFlight {
    fn enter(fleet: &Arc<Fleet>, backend: u32) -> InFlight {
        if let Some(member) = fleet.get(backend as usize) {
            member.enter();
        }
        InFlight { fleet: Arc::clone(fleet), backend, standing: Standing::default() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(member) = self.fleet.get(self.backend as usize) {
            member.leave();
        }
    }
}

impl Lease {
    /// A lease of a connection that was just made.
    pub fn fresh(link: Link, fleet: &Arc<Fleet>, backend: u32) -> Lease {
        Lease { link, inflight: InFlight::enter(fleet, backend) }
    }

    /// The connection.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// All of the request was handed over.
    pub fn note_sent(&mut self) {
        self.inflight.standing.sent_whole = true;
    }

    /// The head of the final answer was read; it says whether the connection lives on.
    pub fn note_head(&mut self, is_kept: bool) {
        self.inflight.standing.is_kept = is_kept;
    }

    /// The answer was read to its exact end, and nothing was behind it.
    pub fn note_end(&mut self) {
        self.inflight.standing.is_at_end = true;
    }

    /// It is never used again.
    pub fn spoil(&mut self) {
        self.inflight.standing.is_spoiled = true;
    }
}

struct Idle {
    link: Link,
    since: u32,
}

impl Idle {
    /// Ticks since it was last used.
    fn age(&self, now: u32) -> u32 {
        now.saturating_sub(self.since)
    }
}

/// The idle connections of one backend.
#[derive(Default)]
struct Shelf {
    /// The longest quiet one first: they are pushed at the end.
    links: VecDeque<Idle>,
    /// Until this tick, none is used that was in use a moment ago.
    wary_until: u32,
}

/// Closes what idled too long; gives how many.
fn close_expired(links: &mut VecDeque<Idle>, limits: &PoolLimits, now: u32) -> u64 {
    let expired = links.partition_point(|kept| kept.age(now) > limits.idle_ticks);
    links.drain(..expired).count() as u64
}

/// The idle connections of one worker, by backend.
pub struct Pool {
    fleet: Arc<Fleet>,
    limits: Vec<PoolLimits>,
    shelves: RefCell<Vec<Shelf>>,
}

/// What bounds the idle connections of one backend.
#[derive(Debug, Clone)]
pub struct PoolLimits {
    /// Whose they are, for the log.
    pub name: String,
    /// Ticks (of `rt::patrol`) after which an idle connection is not used again.
    pub idle_ticks: u32,
    /// Idle connections kept.
    pub count: usize,
}

impl Pool {
    /// An empty pool for the backends of a fleet.
    pub fn new(fleet: Arc<Fleet>, limits: Vec<PoolLimits>) -> Pool {
        let shelves = RefCell::new(limits.iter().map(|_| Shelf::default()).collect());
        Pool { fleet, limits, shelves }
    }

    /// A kept connection that is alive, if there is one. `now` in ticks.
    ///
    /// Of several, the last used of those that have been quiet for a while, so that what a burst
    /// left behind idles out; where there is none such, the one that has been quiet for longest.
    pub fn take(&self, backend: u32, now: u32) -> Option<Lease> {
        let limits = self.limits.get(backend as usize)?;
        let mut shelves = self.shelves.borrow_mut();
        let Shelf { links, wary_until } = shelves.get_mut(backend as usize)?;
        close_expired(links, limits, now);
        loop {
            let quiet = links.partition_point(|kept| kept.age(now) >= QUIET_TICKS);
            if quiet == 0 && now < *wary_until {
                return None;
            }
            let mut kept = links.remove(quiet.saturating_sub(1))?;
            // Nothing is awaited between this and the first byte of the request.
            match kept.link.heard() {
                Heard::Nothing => return Some(Lease::fresh(kept.link, &self.fleet, backend)),
                Heard::End => {}
                Heard::Bytes => {
                    self.fleet.get(backend as usize).into_iter().for_each(Member::note_unasked);
                    if now >= *wary_until {
                        tracing::warn!(
                            backend = %limits.name,
                            "the backend sent bytes that nobody asked for: for a minute, its \
                             connections are used again only after a pause"
                        );
                    }
                    *wary_until = now.saturating_add(WARY_TICKS);
                }
            }
        }
    }

    /// The only way back: keeps a connection that is clean, and closes any other.
    pub fn give_back(&self, lease: Lease, now: u32) {
        let backend = lease.inflight.backend as usize;
        let Some(limits) = self.limits.get(backend) else { return };
        if let Some(Shelf { links, .. }) = self.shelves.borrow_mut().get_mut(backend) {
            if lease.inflight.standing.is_clean() && links.len() < limits.count {
                links.push_back(Idle { link: lease.link, since: now });
            }
        }
    }

    /// Closes all that a backend has: an answer came from there that belongs to another request.
    pub fn distrust(&self, backend: u32, now: u32) {
        if let Some(shelf) = self.shelves.borrow_mut().get_mut(backend as usize) {
            shelf.links.clear();
            shelf.wary_until = now.saturating_add(WARY_TICKS);
        }
    }

    /// Closes what idled too long; gives how many.
    pub fn sweep(&self, now: u32) -> u64 {
        let mut closed = 0;
        for (shelf, limits) in self.shelves.borrow_mut().iter_mut().zip(&self.limits) {
            let links = &mut shelf.links;
            closed += close_expired(links, limits, now);
            if links.is_empty() && links.capacity() > 16 {
                links.shrink_to_fit();
            }
        }
        closed
    }

    /// Closes all of them: the worker drains.
    pub fn clear(&self) {
        self.shelves.borrow_mut().iter_mut().for_each(|shelf| shelf.links.clear());
    }

    /// Number of idle connections.
    pub fn len(&self) -> usize {
        self.shelves.borrow().iter().map(|shelf| shelf.links.len()).sum()
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::ring::Ring;
    use crate::rt::socket::Socket;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const COUNT: usize = 3;

    /// Runs on a ring, with an empty pool of one backend.
    fn with_pool(test: impl FnOnce(Pool)) {
        let fleet = Arc::new(Fleet::new(vec![None]));
        Ring::build().unwrap().block_on(async {
            let limits = PoolLimits { name: String::new(), idle_ticks: 30, count: COUNT };
            test(Pool::new(fleet, vec![limits]));
        });
    }

    /// A connection that was just made, and the engine's end of it.
    fn connection(pool: &Pool) -> (Lease, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let link = Link::plain(Socket::from_fd(ours.into()).unwrap());
        (Lease::fresh(link, &pool.fleet, 0), theirs)
    }

    /// A connection that went through a whole request and was given back at a tick.
    fn keep(pool: &Pool, now: u32) -> UnixStream {
        let (mut lease, engine) = connection(pool);
        lease.inflight.standing = CLEAN;
        pool.give_back(lease, now);
        engine
    }

    const CLEAN: Standing =
        Standing { sent_whole: true, is_kept: true, is_at_end: true, is_spoiled: false };

    /// Catches: a connection in the pool on which a request or an answer has not ended.
    #[test]
    fn only_a_connection_of_which_all_is_proven_comes_back() {
        let mut clean = 0;
        for bits in 0..16 {
            let is = |bit: u8| bits & (1 << bit) != 0;
            with_pool(|pool| {
                let (mut lease, _engine) = connection(&pool);
                if is(0) {
                    lease.note_sent();
                }
                lease.note_head(is(1));
                if is(2) {
                    lease.note_end();
                }
                if is(3) {
                    lease.spoil();
                }
                let wanted = bits == 0b0111;
                assert_eq!(
                    lease.inflight.standing.is_clean(),
                    wanted,
                    "{:?}",
                    lease.inflight.standing
                );
                pool.give_back(lease, 0);
                assert_eq!(pool.len(), usize::from(wanted), "{bits:04b}");
                clean += u32::from(wanted);
            });
        }
        assert_eq!(clean, 1);
    }

    /// Catches: what was proven of one request believed of the next one on the same connection.
    #[test]
    fn a_connection_that_is_taken_has_everything_to_prove_anew() {
        with_pool(|pool| {
            let _engine = keep(&pool, 0);
            let lease = pool.take(0, 1).unwrap();
            assert_eq!(lease.inflight.standing, Standing::default());
            pool.give_back(lease, 1);
            assert!(pool.is_empty());
        });
    }

    /// Catches: the connection on which a late second answer is most likely still to come.
    #[test]
    fn the_last_used_of_those_that_were_quiet_for_a_while_goes_first() {
        // When each was given back, the moment, and those that are taken then, in order.
        for (since, now, wanted) in [
            ([1, 2, 10], 11, [2, 1, 10]),
            ([9, 10, 10], 11, [9, 10, 10]),
            ([10, 10, 11], 11, [10, 10, 11]),
            ([1, 2, 3], 30, [3, 2, 1]),
        ] {
            with_pool(|pool| {
                let mut engines: Vec<_> = since.iter().map(|at| (*at, keep(&pool, *at))).collect();
                for at in wanted {
                    let mut lease = pool.take(0, now).unwrap();
                    lease.link().try_send(&[std::io::IoSlice::new(b"x")]).unwrap();
                    let heard = engines.iter().position(|(_, engine)| {
                        engine.set_nonblocking(true).unwrap();
                        std::io::Read::read(&mut &*engine, &mut [0]).is_ok()
                    });
                    assert_eq!(engines.remove(heard.unwrap()).0, at, "{since:?} at {now}");
                }
                assert!(pool.take(0, now).is_none());
            });
        }
    }

    /// Catches: the next client given what an engine, which is known to answer twice, has on its
    /// way on a connection that was in use a moment ago.
    #[test]
    fn a_backend_that_spoke_unasked_gets_only_connections_that_were_quiet_for_a_while() {
        with_pool(|pool| {
            let engines = [keep(&pool, 10), keep(&pool, 10), keep(&pool, 10)];
            drop(pool.take(0, 10).unwrap());
            (&engines[1]).write_all(b"HTTP/1.1 200 OK").unwrap();
            assert!(pool.take(0, 11).is_none(), "one has spoken, the other may be about to");
            assert_eq!(pool.fleet.get(0).unwrap().unasked(), 1);
            assert_eq!(pool.len(), 1);
            assert!(pool.take(0, 12).is_some());
            let _later = keep(&pool, 610);
            assert!(pool.take(0, 610).is_none());
            assert!(pool.take(0, 611).is_some(), "a minute later");
        });
        with_pool(|pool| {
            let engines = [keep(&pool, 10), keep(&pool, 10)];
            drop(engines.into_iter().next());
            assert!(pool.take(0, 10).is_none() && pool.is_empty());
            assert_eq!(pool.fleet.get(0).unwrap().unasked(), 0);
            let _closing_is_no_speech = keep(&pool, 10);
            assert!(pool.take(0, 10).is_some());
        });
    }

    #[test]
    fn what_idled_too_long_or_is_not_quiet_is_closed_instead_of_taken() {
        with_pool(|pool| {
            let (_old, mut loud) = (keep(&pool, 0), keep(&pool, 5));
            let closed = keep(&pool, 6);
            loud.write_all(b"HTTP/1.1 200 OK").unwrap();
            drop(closed);
            assert!(pool.take(0, 31).is_none());
            assert!(pool.is_empty());
            let _kept: Vec<_> = (0..4).map(|_| keep(&pool, 0)).collect();
            assert_eq!(pool.len(), COUNT, "no more than are allowed");
            assert_eq!((pool.sweep(30), pool.sweep(31)), (0, 3));
        });
    }
}
