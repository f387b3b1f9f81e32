//! Kept connections of one worker: who may come back, and which one goes out next.

use crate::base::uptime::Uptime;
use crate::rt::patrol::TICK;
use crate::rt::socket::IdleHeard;
use crate::rt::tls::Link;
use crate::state::member::Member;
use crate::state::queues::Queues;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A connection that idled for so many ticks (at least 100 ms) is preferred to one that was in use
/// a moment ago: what an engine sends late, behind its answer, has arrived by then, and is seen.
const QUIET_TICKS: u32 = 2;
/// After bytes that nobody asked for, only such connections of their backend are used for so many
/// ticks (one minute): an engine that answers twice does it again, and while its second answer is
/// on its way, nothing tells that connection from a clean one.
const WARY_TICKS: u32 = 600;

/// One borrowed connection to a backend. Dropping it closes the connection, which cancels the
/// generation at the engine. It comes back to the pool only through [`Lease::give_back`], and only
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

/// Counts a request in flight at a backend for as long as it lives, from the moment in which that
/// was picked, and keeps what is proven of the connection that it gets there.
pub struct InFlight {
    backend: Rc<LocalMember>,
    // Here these fit between the others: the future of a stream does not grow.
    standing: Standing,
    /// When the backend was picked, or when it was connected to for this.
    since: Uptime,
}

impl InFlight {
    /// One more is on its way there; `None`: as many are there as may be.
    pub fn enter(backend: &Rc<LocalMember>) -> Option<InFlight> {
        let enter = || InFlight {
            backend: Rc::clone(backend),
            standing: Standing::default(),
            since: Uptime::now(),
        };
        let inflight = backend.enter().then(enter)?;
        backend.picked.set(backend.picked.get() + 1);
        Some(inflight)
    }

    /// The time since it was picked, or connected to.
    pub fn age(&self) -> Duration {
        self.since.age()
    }

    /// Where it goes.
    pub fn backend(&self) -> &Rc<LocalMember> {
        &self.backend
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Whoever never got there says nothing of how long others stay.
        if self.backend.plan.max_concurrent > 0 && self.standing.sent_whole {
            self.backend.note_stay(self.age());
        }
        self.backend.leave();
        self.backend.queues.iter().for_each(|queues| queues.note_room(self.backend.id()));
    }
}

impl Lease {
    /// A lease of a connection that was kept, or just made.
    pub fn of(link: Link, inflight: InFlight) -> Lease {
        Lease { link, inflight }
    }

    /// Whose connection it is.
    pub fn backend(&self) -> &Rc<LocalMember> {
        &self.inflight.backend
    }

    /// The connection.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The time since the backend was picked, or since it was connected to for this: how long the
    /// first request of a connection waits for that says nothing of how long the next one will.
    pub fn age(&self) -> Duration {
        self.inflight.age()
    }

    /// The request is handed over: to a connection that was kept, or just made.
    pub fn begin(&mut self, is_reused: bool) {
        if !is_reused {
            self.inflight.since = Uptime::now();
        }
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

    /// Closes the connection; the request goes on to count at the backend.
    pub fn close(self) -> InFlight {
        self.inflight
    }

    /// The only way back: keeps a connection that is clean, and closes any other.
    pub fn give_back(self, now: u32) {
        let Lease { link, inflight } = self;
        let backend = &inflight.backend;
        let mut idle = backend.idle.borrow_mut();
        let has_room = idle.links.len() < backend.plan.max_idle_conns && !idle.is_retired;
        if inflight.standing.is_clean() && has_room {
            idle.links.push_back(Idle { link, since: now });
        }
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
struct IdleLinks {
    /// The longest quiet one first: they are pushed at the end.
    links: VecDeque<Idle>,
    /// Until this tick, none is used that was in use a moment ago.
    wary_until: u32,
    /// The backend was taken out of the configuration: nothing is kept any more.
    is_retired: bool,
}

impl IdleLinks {
    /// Closes what idled too long; gives how many.
    fn close_expired(&mut self, idle_ticks: u32, now: u32) -> u64 {
        let expired = self.links.partition_point(|kept| kept.age(now) > idle_ticks);
        self.links.drain(..expired).count() as u64
    }
}

/// A backend as one worker has it: what all threads share of it, and the connections that this
/// worker keeps to it. A connection belongs to its backend from the first to the last, so that none
/// can carry a request for another one.
pub struct LocalMember {
    member: Arc<Member>,
    /// Shared by the same backend in earlier and later views.
    idle: Rc<RefCell<IdleLinks>>,
    /// Ticks (of `rt::patrol`) after which an idle connection is not used again.
    idle_ticks: u32,
    /// Losses of it that this worker has seen.
    losses_seen: Cell<u32>,
    /// Tries of this worker that it got; shared as `idle` is.
    picked: Rc<Cell<u64>>,
    /// Where requests may wait for room here.
    queues: Option<Arc<Queues>>,
}

impl Deref for LocalMember {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

impl LocalMember {
    /// A backend to which nothing is kept, or, if `before` is the same backend in an earlier view,
    /// what was kept there.
    pub fn new(
        member: &Arc<Member>,
        before: Option<&LocalMember>,
        queues: Option<&Arc<Queues>>,
    ) -> LocalMember {
        let is_bounded = member.plan.max_concurrent > 0;
        let none = Rc::<RefCell<IdleLinks>>::default;
        let seen = before.map_or(member.losses(), |old| old.losses_seen.get());
        LocalMember {
            member: Arc::clone(member),
            idle: before.map_or_else(none, |old| Rc::clone(&old.idle)),
            idle_ticks: ticks(member.plan.keepalive_timeout),
            losses_seen: Cell::new(seen),
            picked: before.map_or_else(Rc::default, |old| Rc::clone(&old.picked)),
            queues: queues.filter(|_| is_bounded).cloned(),
        }
    }

    /// Tries of this worker that it got.
    pub fn picked(&self) -> u64 {
        self.picked.get()
    }

    /// It has taken the place of another one, which is gone: what was counted there goes on here.
    pub fn inherit(&self, gone: &LocalMember) {
        self.picked.set(self.picked.get() + gone.picked.take());
    }

    /// True when it was found as good as dead since this was last asked.
    pub fn has_departed(&self) -> bool {
        let now = self.losses();
        self.losses_seen.replace(now) != now
    }

    /// A kept connection that is alive, if there is one. `now` in ticks.
    ///
    /// Of several, the last used of those that have been quiet for a while, so that what a burst
    /// left behind idles out; where there is none such, the one that has been quiet for longest.
    pub fn take(&self, now: u32) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        idle.close_expired(self.idle_ticks, now);
        let IdleLinks { links, wary_until, .. } = &mut *idle;
        loop {
            let quiet = links.partition_point(|kept| kept.age(now) >= QUIET_TICKS);
            if quiet == 0 && now < *wary_until {
                return None;
            }
            let mut kept = links.remove(quiet.saturating_sub(1))?;
            // Nothing is awaited between this and the first byte of the request.
            match kept.link.heard() {
                IdleHeard::Nothing => return Some(kept.link),
                IdleHeard::End => {}
                IdleHeard::Bytes => {
                    self.note_unasked();
                    if now >= *wary_until {
                        tracing::warn!(
                            backend = %self.name,
                            "the backend sent bytes that nobody asked for: for a minute, its \
                             connections are used again only after a pause"
                        );
                    }
                    *wary_until = now.saturating_add(WARY_TICKS);
                }
            }
        }
    }

    /// Closes all that are kept: an answer came from there that belongs to another request.
    pub fn distrust(&self, now: u32) {
        let mut idle = self.idle.borrow_mut();
        idle.links.clear();
        idle.wary_until = now.saturating_add(WARY_TICKS);
    }

    /// Closes what idled too long; gives how many.
    pub fn sweep(&self, now: u32) -> u64 {
        let mut idle = self.idle.borrow_mut();
        let closed = idle.close_expired(self.idle_ticks, now);
        if idle.links.is_empty() && idle.links.capacity() > 16 {
            idle.links.shrink_to_fit();
        }
        closed
    }

    /// Closes all that are kept: the worker drains.
    pub fn clear(&self) {
        self.idle.borrow_mut().links.clear();
    }

    /// The backend was taken out of the configuration: what is kept is closed, and what comes back.
    pub fn retire(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.is_retired = true;
        idle.links.clear();
    }

    /// The backend is in the configuration again before the last request of its last time was over.
    pub fn revive(&self) {
        self.idle.borrow_mut().is_retired = false;
    }

    /// True when somebody beside the caller has this backend, in whatever view: a request that is
    /// not over holds its view and its lease.
    pub fn is_used_beside(this: &Rc<LocalMember>) -> bool {
        Rc::strong_count(this) > 1 || Rc::strong_count(&this.idle) > 1
    }

    /// Number of idle connections.
    pub fn idle(&self) -> usize {
        self.idle.borrow().links.len()
    }
}

/// A time in ticks of the patrol.
fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Backend;
    use crate::rt::ring::Ring;
    use crate::rt::socket::Socket;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const COUNT: usize = 3;

    /// Runs on a ring, with a backend to which nothing is kept.
    fn with_pool(test: impl FnOnce(Rc<LocalMember>)) {
        let keepalive_timeout = 30 * TICK;
        let plan =
            Backend { keepalive_timeout, max_idle_conns: COUNT, ..Backend::sample("engine") };
        let member = Arc::new(Member::new(plan, None));
        Ring::build().unwrap().block_on(async {
            test(Rc::new(LocalMember::new(&member, None, None)));
        });
    }

    /// A connection that was just made, and the engine's end of it.
    fn connection(pool: &Rc<LocalMember>) -> (Lease, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let link = Link::plain(Socket::from_fd(ours.into()).unwrap());
        (Lease::of(link, InFlight::enter(pool).unwrap()), theirs)
    }

    /// A connection that went through a whole request and was given back at a tick.
    fn keep(pool: &Rc<LocalMember>, now: u32) -> UnixStream {
        let (mut lease, engine) = connection(pool);
        lease.inflight.standing = CLEAN;
        lease.give_back(now);
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
                lease.give_back(0);
                assert_eq!(pool.idle(), usize::from(wanted), "{bits:04b}");
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
            let lease = Lease::of(pool.take(1).unwrap(), InFlight::enter(&pool).unwrap());
            assert_eq!(lease.inflight.standing, Standing::default());
            lease.give_back(1);
            assert!(pool.idle() == 0);
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
                    let mut link = pool.take(now).unwrap();
                    link.try_send(&[std::io::IoSlice::new(b"x")]).unwrap();
                    let heard = engines.iter().position(|(_, engine)| {
                        engine.set_nonblocking(true).unwrap();
                        std::io::Read::read(&mut &*engine, &mut [0]).is_ok()
                    });
                    assert_eq!(engines.remove(heard.unwrap()).0, at, "{since:?} at {now}");
                }
                assert!(pool.take(now).is_none());
            });
        }
    }

    /// Catches: the next client given what an engine, which is known to answer twice, has on its
    /// way on a connection that was in use a moment ago.
    #[test]
    fn a_backend_that_spoke_unasked_gets_only_connections_that_were_quiet_for_a_while() {
        with_pool(|pool| {
            let engines = [keep(&pool, 10), keep(&pool, 10), keep(&pool, 10)];
            drop(pool.take(10).unwrap());
            (&engines[1]).write_all(b"HTTP/1.1 200 OK").unwrap();
            assert!(pool.take(11).is_none(), "one has spoken, the other may be about to");
            assert_eq!(pool.unasked(), 1);
            assert_eq!(pool.idle(), 1);
            assert!(pool.take(12).is_some());
            let _later = keep(&pool, 610);
            assert!(pool.take(610).is_none());
            assert!(pool.take(611).is_some(), "a minute later");
        });
        with_pool(|pool| {
            let engines = [keep(&pool, 10), keep(&pool, 10)];
            drop(engines.into_iter().next());
            assert!(pool.take(10).is_none() && pool.idle() == 0);
            assert_eq!(pool.unasked(), 0);
            let _closing_is_no_speech = keep(&pool, 10);
            assert!(pool.take(10).is_some());
        });
    }

    #[test]
    fn what_idled_too_long_or_is_not_quiet_is_closed_instead_of_taken() {
        with_pool(|pool| {
            let (_old, mut loud) = (keep(&pool, 0), keep(&pool, 5));
            let closed = keep(&pool, 6);
            loud.write_all(b"HTTP/1.1 200 OK").unwrap();
            drop(closed);
            assert!(pool.take(31).is_none());
            assert!(pool.idle() == 0);
            let _kept: Vec<_> = (0..4).map(|_| keep(&pool, 0)).collect();
            assert_eq!(pool.idle(), COUNT, "no more than are allowed");
            assert_eq!((pool.sweep(30), pool.sweep(31)), (0, 3));
        });
    }
}
