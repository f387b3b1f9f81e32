//! The patrol walks past every connection of a worker: it notices clients that left and deadlines
//! that passed, and rouses the task that waits. One epoll descriptor and one coarse clock serve
//! ten thousand connections; no stream carries a timer of its own (640 bytes each in monoio).
//!
//! A client that left: `EPOLLRDHUP` fires on FIN or RST within some 30 µs, also behind pipelined
//! bytes that nobody has read, where a wait for readability would say nothing.

use super::moment::Moment;
use super::seal::Seal;
use super::socket::Socket;
use super::wait::ONE_TURN;
use crowd::{Crowd, Stage};
use monoio::net::UnixStream;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use sealed::Handshakes;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::{poll_fn, Future};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use turn::{Bell, BELL};

mod crowd;
mod line;
mod post;
mod sealed;
mod turn;
mod unread;

pub use crowd::{Part, Rank};
pub use post::{Pen, Post, Watched};
pub use sealed::HandshakePlace;

/// Deadlines are kept in ticks of this length, and checked as often.
pub const TICK: Duration = Duration::from_millis(TICK_MS);
const TICK_MS: u64 = 100;
/// A sweep that comes so much too late finds that the worker stood still.
const LATE: Duration = TICK;
/// Looks at the clock in a row that may be late and cost nobody time. More are no standstill, but a
/// worker that has too much to do, and its clock must go on.
const LATE_LOOKS_MAX: u8 = 3;
/// Tasks roused by one sweep; the rest follow a millisecond later. A quarter of the ring's
/// entries, so that ten thousand connections that end together never overrun it.
const ROUSED_PER_SWEEP_MAX: usize = 1024;
/// While the worker drains, a request that is on its way may pause for so long. A client on a bad
/// line loses a packet or two and goes on after three seconds.
const DRAIN_SILENCE_MAX: Duration = Duration::from_secs(5);
const DRAIN_SILENCE_TICKS: u32 = (DRAIN_SILENCE_MAX.as_millis() / TICK.as_millis()) as u32;
/// Hang-ups taken from the kernel at a time.
const HANGUPS_PER_WAIT: usize = 64;
const NEVER: u32 = u32::MAX;

/// Why a wait ended before what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The armed deadline passed.
    Expired,
    /// The client is gone, as [`Patrol::watch`] was told to understand that.
    Gone,
    /// The worker ends this connection: drained while idle, or cut at the drain deadline.
    Ended,
    /// Whoever it waits for is not worth waiting for any more: [`Patrol::call_off`].
    CalledOff,
}

/// For whom a connection waits while somebody else would do: numbers of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// Where it waits.
    pub place: u32,
    /// What it wants there, by which it is told who else would do.
    pub aim: u32,
}

/// When a client counts as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// At its FIN: it closed, or it only says that it sends no more. Nobody can tell which.
    AtFin,
    /// At its reset: it certainly reads nothing more.
    AtReset,
}

/// The patrol of one worker.
pub struct Patrol {
    epoll: OwnedFd,
    start: Instant,
    /// When the clock was looked at last, from the start.
    looked: Cell<Duration>,
    /// Looks in a row that were late.
    late_looks: Cell<u8>,
    /// Time since the start that does not count: the worker stood still, and heard nobody.
    lost: Cell<Duration>,
    tick: Cell<u32>,
    /// No more clients are taken in, and those that are here leave behind their next answer.
    parting: Moment,
    draining: Moment,
    /// The tick in which that began.
    draining_since: Cell<u32>,
    ending: Moment,
    posts: RefCell<Posts>,
    crowd: Crowd,
    bell: Bell,
    unread: unread::Round,
    handshakes: Handshakes,
    /// Whoever sweeps, while it rests because nothing is on the round.
    resting: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Posts {
    slots: Vec<Option<Rc<State>>>,
    free: Vec<usize>,
}

struct State {
    socket: Socket,
    /// With TLS, once the handshake is done. Boxed: plain connections carry a word for it.
    seal: OnceCell<Box<Seal>>,
    /// When it counts as gone.
    gone_at: Gone,
    deadline: Cell<u32>,
    expired: Cell<bool>,
    gone: Cell<bool>,
    ended: Cell<bool>,
    stage: Cell<Stage>,
    /// The tick in which the stage began.
    since: Cell<u32>,
    /// The tick in which bytes of the client came last, or the stage began.
    heard: Cell<u32>,
    /// For whom it waits, when somebody else would do: [`Post::stand_at`].
    stands_at: Cell<Option<Stand>>,
    called_off: Cell<bool>,
    /// Waits in a row that were over before they began.
    unwaited: Cell<u32>,
    rank: Cell<Rank>,
    waker: RefCell<Option<Waker>>,
}

impl Patrol {
    /// Starts the patrol on the current worker (spawns the task that hears hang-ups).
    pub fn start() -> io::Result<Rc<Patrol>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = Bell::hung_on(&epoll)?;
        let heard = epoll.try_clone()?;
        let patrol = Rc::new(Patrol {
            epoll,
            start: Instant::now(),
            looked: Cell::default(),
            late_looks: Cell::default(),
            lost: Cell::default(),
            tick: Cell::new(0),
            parting: Moment::default(),
            draining: Moment::default(),
            draining_since: Cell::new(0),
            ending: Moment::default(),
            posts: RefCell::default(),
            crowd: Crowd::default(),
            bell,
            unread: unread::Round::default(),
            handshakes: Handshakes::default(),
            resting: RefCell::default(),
        });
        // monoio has no AsyncFd: the epoll descriptor sits in a stream of which nothing but
        // `readable` is ever called.
        let heard = UnixStream::from_std(heard.into())?;
        let me = Rc::clone(&patrol);
        monoio::spawn(async move {
            while heard.readable(false).await.is_ok() {
                me.hear_hangups();
            }
        });
        Ok(patrol)
    }

    fn hear_hangups(&self) {
        let mut events: Vec<Event> = Vec::with_capacity(HANGUPS_PER_WAIT);
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&rustix::event::Timespec::default())).is_err() {
            return;
        }
        let posts = self.posts.borrow();
        for event in &events {
            if event.data.u64() == BELL {
                self.bell.hear();
                continue;
            }
            let slot = posts.slots.get(event.data.u64() as usize);
            if let Some(Some(post)) = slot {
                post.gone.set(true);
                post.rouse();
            }
        }
    }

    /// Begins to watch a client's socket, for what `gone` says. That must end before the socket
    /// closes, or a reused descriptor number would be reported; `Post` keeps the order by owning
    /// the socket.
    pub fn watch(self: &Rc<Self>, socket: Socket, gone: Gone) -> io::Result<Post> {
        if let Some(resting) = self.resting.take() {
            self.end_rest();
            resting.wake();
        }
        let state = Rc::new(State {
            socket,
            seal: OnceCell::new(),
            gone_at: gone,
            deadline: Cell::new(NEVER),
            expired: Cell::new(false),
            gone: Cell::new(false),
            ended: Cell::new(false),
            stage: Cell::new(Stage::Silent),
            since: Cell::new(self.now()),
            heard: Cell::new(self.now()),
            stands_at: Cell::new(None),
            called_off: Cell::new(false),
            unwaited: Cell::new(0),
            rank: Cell::new(Rank::Stranger),
            waker: RefCell::default(),
        });
        let slot = self.posts.borrow_mut().put(Rc::clone(&state));
        self.crowd.join(slot, Rank::Stranger);
        let post = Post { patrol: Rc::clone(self), state, slot };
        // A reset (HUP, ERR) is always reported.
        let flags = match gone {
            Gone::AtFin => EventFlags::RDHUP | EventFlags::ONESHOT,
            Gone::AtReset => EventFlags::ONESHOT,
        };
        let data = EventData::new_u64(slot as u64);
        epoll::add(&self.epoll, post.socket(), data, flags)?;
        Ok(post)
    }

    /// Waits for a tick and sweeps. When that comes late, tasks run first which have something to
    /// read: what is in a socket was in time, and an alarm would say that it was not. While nothing
    /// is on the round and `may_rest` says that nothing else needs the clock, it runs no timer, and
    /// waits for a new post or for `called` instead.
    pub async fn next_sweep(&self, may_rest: bool, called: impl Future<Output = ()>) {
        if may_rest && self.posts.borrow().is_empty() {
            self.rest(called).await;
            self.end_rest();
        } else {
            monoio::time::sleep(TICK).await;
            if self.advance() {
                monoio::time::sleep(ONE_TURN).await;
            }
        }
        self.look_for_unread();
        while self.sweep() {
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn rest(&self, called: impl Future<Output = ()>) {
        let mut called = pin!(called);
        poll_fn(|cx| {
            if !self.posts.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.resting.replace(Some(cx.waker().clone()));
            called.as_mut().poll(cx)
        })
        .await;
        self.resting.take();
    }

    /// The clock stood while nothing was on the round; deadlines are set by it from now on.
    fn end_rest(&self) {
        self.looked.set(self.start.elapsed());
        self.advance();
    }

    /// Looks at the clock. True when the worker stood still since it did so last (a busy machine,
    /// SIGSTOP, a long turn). Of that time one tick counts, so that a deadline is always so much
    /// time in which we would have heard the peer; that also holds for one that is set behind a
    /// standstill, before the next look. Where each look is late, all of the time counts: the
    /// worker hears its peers between any two of them.
    fn advance(&self) -> bool {
        self.look(self.start.elapsed())
    }

    fn look(&self, elapsed: Duration) -> bool {
        let since = elapsed.saturating_sub(self.looked.replace(elapsed));
        let stood_still = since > TICK + LATE;
        if stood_still {
            self.late_looks.set(self.late_looks.get().saturating_add(1));
        } else if since >= TICK {
            // One that comes sooner, such as the second of a sweep, proves nothing.
            self.late_looks.set(0);
        }
        if stood_still && self.late_looks.get() <= LATE_LOOKS_MAX {
            self.lost.set(self.lost.get() + since.saturating_sub(TICK));
        }
        let counted = elapsed.saturating_sub(self.lost.get());
        self.tick.set((counted.as_millis() / TICK.as_millis()) as u32);
        stood_still
    }

    /// Advances the clock and rouses what expired. True when more is due than one sweep rouses:
    /// to be called again after a millisecond.
    fn sweep(&self) -> bool {
        self.advance();
        let (now, mut roused) = (self.now(), 0);
        for post in self.posts.borrow().slots.iter().flatten() {
            let drained = self.is_over(post, now) && !post.ended.get();
            let expired =
                !post.expired.get() && (post.deadline.get() <= now || self.is_too_late(post, now));
            if drained || expired {
                post.ended.set(post.ended.get() || drained);
                post.expired.set(post.expired.get() || expired);
                post.rouse();
                roused += 1;
                if roused == ROUSED_PER_SWEEP_MAX {
                    return true;
                }
            }
        }
        false
    }

    /// True when a connection should end. While the worker drains: those that are idle, and those
    /// whose request has stopped coming before it was whole, of which no engine knows.
    fn is_over(&self, post: &State, now: u32) -> bool {
        self.ending.has_come()
            || self.draining.has_come()
                && match post.stage.get() {
                    Stage::Silent | Stage::Idle => true,
                    Stage::Head | Stage::Body => {
                        let since = post.heard.get().max(self.draining_since.get());
                        now.saturating_sub(since) > DRAIN_SILENCE_TICKS
                    }
                    Stage::Busy | Stage::Last => false,
                }
    }

    /// Ends the waits of those who stand at this place, with [`Alarm::CalledOff`]; who of them is
    /// said by what they wait for.
    pub fn call_off(&self, place: u32, is_meant: impl Fn(u32) -> bool) {
        for post in self.posts.borrow().slots.iter().flatten() {
            let stand = post.stands_at.get();
            if stand.is_some_and(|stand| stand.place == place && is_meant(stand.aim)) {
                post.called_off.set(true);
                post.rouse();
            }
        }
    }

    /// From now on the accept loops stop. Connections go on: another process serves new ones, and
    /// no client notices by more than an answer that closes its connection.
    pub fn part(&self) {
        self.parting.come();
    }

    /// True once [`Patrol::part`] or [`Patrol::drain`] was called: an answer is the last one.
    pub fn is_parting(&self) -> bool {
        self.parting.has_come()
    }

    /// From now on idle connections end, and the accept loops stop.
    pub fn drain(&self) {
        if !self.draining.has_come() {
            self.advance();
            self.draining_since.set(self.now());
        }
        self.draining.come();
        self.parting.come();
    }

    /// True once [`Patrol::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.has_come()
    }

    /// From now on sweeps end every connection, idle or not: the drain deadline passed.
    pub fn end_all(&self) {
        self.ending.come();
    }

    /// Ticks since the start, as of the last sweep, without those in which the worker stood still.
    /// Costs no system call.
    pub fn now(&self) -> u32 {
        self.tick.get()
    }

    /// Time since a tick, by the same clock.
    pub fn since(&self, tick: u32) -> Duration {
        TICK * self.now().saturating_sub(tick)
    }

    /// The future's result, or `None` when the worker ends every connection first. For what has no
    /// client any more, and so no post.
    pub async fn until_end<F: Future>(&self, future: F) -> Option<F::Output> {
        self.ending.unless(future).await
    }

    /// The future's result, or `None` when the worker takes no more clients first.
    pub async fn until_parting<F: Future>(&self, future: F) -> Option<F::Output> {
        self.parting.unless(future).await
    }
}

impl Posts {
    fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    fn put(&mut self, state: Rc<State>) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(state);
                slot
            }
            None => {
                self.slots.push(Some(state));
                self.slots.len() - 1
            }
        }
    }
}

impl State {
    fn rouse(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        // A connection is one task: after the first wait its waker stays the same.
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

#[cfg(test)]
mod tests;
