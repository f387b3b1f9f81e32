//! A client's socket on the patrol's round, and the waits that an alarm can end.

use super::crowd::{Part, Rank, Stage};
use super::{Alarm, Patrol, Stand, State, NEVER, TICK_MS};
use crate::rt::socket::Socket;
use pin_project_lite::pin_project;
use rustix::event::epoll;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Waits in a row that may be over before they began, before others get a turn.
const UNWAITED_MAX: u32 = 16;

/// A way to write to a client while somebody else has its [`Post`], and waits for another peer.
pub struct Pen(Rc<State>);

impl Pen {
    /// Sends what the kernel takes now. Never waits.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.seal.get() {
            None => self.0.socket.try_send(&[IoSlice::new(bytes)]),
            Some(seal) => seal.try_send(&self.0.socket, &[IoSlice::new(bytes)]),
        }
    }
}

/// A client's socket on the patrol's round.
pub struct Post {
    pub(super) patrol: Rc<Patrol>,
    pub(super) state: Rc<State>,
    pub(super) slot: usize,
}

impl Post {
    /// The socket that is watched.
    pub fn socket(&self) -> &Socket {
        &self.state.socket
    }

    /// A pen beside it. Nothing may be sent here while that is in use.
    pub fn pen(&self) -> Pen {
        Pen(Rc::clone(&self.state))
    }

    /// Sets the deadline of the waits that follow, replacing the one before. Rounded up to a tick.
    pub fn arm(&self, after: Duration) {
        // No division of 128 bits, which `as_millis` would bring: this runs four times a request.
        let ms = after.as_secs().saturating_mul(1000).saturating_add(after.subsec_millis().into());
        let ticks = ms.div_ceil(TICK_MS).min(u64::from(NEVER / 2)) as u32;
        // The tick under way is partly over: without the extra one the wait could be short.
        self.state.deadline.set(self.patrol.now().saturating_add(ticks).saturating_add(1));
        self.state.expired.set(false);
    }

    /// Says for whom the waits that follow are: [`Patrol::call_off`] ends them. `None`: they cannot
    /// be called off.
    pub fn stand_at(&self, stand: Option<Stand>) {
        self.state.stands_at.set(stand);
        self.state.called_off.set(false);
    }

    /// Marks the connection as idle (between two requests): a drain ends it.
    pub fn set_idle(&self) {
        if self.state.stage.get() != Stage::Silent {
            self.set_stage(Stage::Idle);
        }
    }

    /// Marks the connection as one whose request has begun to come, and is waited for.
    pub fn set_receiving(&self, part: Part) {
        self.set_stage(match part {
            Part::Head => Stage::Head,
            Part::Body => Stage::Body,
        });
    }

    /// Marks the connection as busy. A request that came while the drain began is still served.
    pub fn set_busy(&self) {
        self.set_stage(Stage::Busy);
        self.state.ended.set(self.patrol.ending.has_come());
    }

    /// Notes that bytes of the client came: what was about to end for want of them goes on.
    pub fn hear(&self) {
        self.state.heard.set(self.patrol.now());
        self.state.ended.set(self.patrol.ending.has_come());
    }

    /// Marks the connection as busy with its last answer. What its client still sends, as the rest
    /// of a body that was refused, is no train of requests, and no reason to take it for gone.
    pub fn set_last(&self) {
        self.set_busy();
        self.set_stage(Stage::Last);
    }

    /// The patrol's clock, in ticks.
    pub fn now(&self) -> u32 {
        self.patrol.now()
    }

    /// Time since a tick, by the same clock.
    pub fn since(&self, tick: u32) -> Duration {
        self.patrol.since(tick)
    }

    /// For how long no byte of the client has come, by the patrol's clock.
    pub fn silence(&self) -> Duration {
        self.patrol.since(self.state.heard.get())
    }

    /// For how long the connection has stood where it stands, by the patrol's clock.
    pub fn stage_age(&self) -> Duration {
        self.patrol.since(self.state.since.get())
    }

    fn set_stage(&self, stage: Stage) {
        self.state.stage.set(stage);
        self.state.since.set(self.patrol.now());
        self.state.heard.set(self.patrol.now());
        self.stand();
    }

    /// Gives the connection a rank. It has been a [`Rank::Stranger`] so far.
    pub fn set_rank(&self, rank: Rank) {
        if self.state.rank.get() != rank {
            self.patrol.crowd.leave(self.slot, self.state.rank.replace(rank));
            self.stand();
        }
    }

    /// True for a connection beyond the limit.
    pub fn is_guest(&self) -> bool {
        self.state.rank.get() == Rank::Guest
    }

    /// Goes to the end of the line of those that give way, or leaves it.
    fn stand(&self) {
        let State { stage, rank, .. } = &*self.state;
        match stage.get().gives_way() {
            true => self.patrol.crowd.join(self.slot, rank.get()),
            false => self.patrol.crowd.leave(self.slot, rank.get()),
        }
    }

    /// Counts as a wait that was over before it began: what is answered next lay here already.
    pub fn skip_wait(&self) {
        self.state.unwaited.set(self.state.unwaited.get() + 1);
    }

    /// True while bytes or connections are scarce: who is slow should give way.
    pub fn is_crowded(&self) -> bool {
        self.patrol.is_crowded()
    }

    /// Lets others run, when this connection has not had to wait for a while: a readable socket on
    /// epoll, and decrypted bytes on either driver, end a wait without a turn of the loop.
    pub async fn take_turns(&self) {
        if self.state.unwaited.get() >= UNWAITED_MAX {
            self.state.unwaited.set(0);
            Box::pin(self.patrol.next_turn()).await;
        }
    }

    /// See [`Patrol::next_turn`].
    pub fn next_turn(&self) -> impl Future<Output = ()> + '_ {
        self.patrol.next_turn()
    }

    /// True when the client is gone.
    pub fn is_gone(&self) -> bool {
        self.state.gone.get()
    }

    /// The future's result, unless the deadline passes or the worker ends the connection.
    pub fn within<F: Future>(&self, future: F) -> Watched<'_, F> {
        Watched { post: self, gone_ends: false, waited: false, future }
    }

    /// Like [`Post::within`], and also ended by a client that leaves.
    pub fn attended<F: Future>(&self, future: F) -> Watched<'_, F> {
        Watched { post: self, gone_ends: true, waited: false, future }
    }
}

pin_project! {
    /// A wait that an alarm can end. A type of its own instead of an async function: it sits in
    /// the future of every stream, and each async layer would hold what it awaits twice.
    pub struct Watched<'a, F> {
        post: &'a Post,
        gone_ends: bool,
        waited: bool,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Watched<'_, F> {
    type Output = Result<F::Output, Alarm>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let state = &this.post.state;
        // At the drain's deadline a stream ends though there is always more to send.
        if state.ended.get() && this.post.patrol.ending.has_come() && !state.stage.get().is_idle() {
            return Poll::Ready(Err(Alarm::Ended));
        }
        if *this.gone_ends && state.gone.get() {
            return Poll::Ready(Err(Alarm::Gone));
        }
        // What is there already counts, even when the deadline passed at the same moment.
        if let Poll::Ready(output) = this.future.poll(cx) {
            let unwaited = if *this.waited { 0 } else { state.unwaited.get() + 1 };
            state.unwaited.set(unwaited);
            return Poll::Ready(Ok(output));
        }
        if state.ended.get() {
            return Poll::Ready(Err(Alarm::Ended));
        }
        if state.called_off.get() {
            return Poll::Ready(Err(Alarm::CalledOff));
        }
        if state.expired.get() {
            return Poll::Ready(Err(Alarm::Expired));
        }
        *this.waited = true;
        state.remember(cx);
        Poll::Pending
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        // Fields are dropped after this body: the registration ends before the socket closes.
        let _ = epoll::delete(&self.patrol.epoll, self.socket());
        self.patrol.crowd.leave(self.slot, self.state.rank.get());
        let mut posts = self.patrol.posts.borrow_mut();
        if let Some(slot) = posts.slots.get_mut(self.slot) {
            *slot = None;
            posts.free.push(self.slot);
        }
    }
}
