//! Taking clients in: who gets a place, whose place that was, who is turned away.

use super::Worker;
use crate::base::id::RequestId;
use crate::base::refusal::Refusal;
use crate::http::head::Version;
use crate::proxy::admit::path::Kind;
use crate::proxy::answer::{write_refusal, Frame};
use crate::proxy::connection;
use crate::proxy::repute;
use crate::rt::buffer::Buffer;
use crate::rt::listen::Arrival;
use crate::rt::patrol::{Post, Rank};
use crate::rt::socket::Socket;
use crate::state::pulse::Look;
use std::io::IoSlice;
use std::net::IpAddr;
use std::rc::Rc;

impl Worker {
    /// Takes in what the accept loop tells.
    pub(super) fn arrive(self: &Rc<Self>, arrival: Arrival) {
        if matches!(self.pulse.look(), Look::Asleep(_)) {
            // What comes is measured by the clock, and from now on the watchdog expects us to beat.
            self.look_at_the_clock();
            self.look_at_the_board();
            repute::forget_departures(&self.view());
        }
        match arrival {
            Arrival::Client(socket, peer) => self.take_in(socket, peer),
            Arrival::Exhausted => {
                self.meters.borrow_mut().accept_pauses += 1;
                if self.may_log("accept_paused") {
                    tracing::warn!("out of file descriptors or memory: accepting pauses");
                }
            }
        }
    }

    fn take_in(self: &Rc<Self>, socket: Socket, peer: IpAddr) {
        let (connections, patrol) = (&self.connections, &self.patrol);
        let ended = |rank| patrol.end_for_newcomer(rank);
        // Nobody knows yet what it wants: it takes the place of one that has not asked for an
        // engine either and had time to, or is a guest, until it asks for one.
        let has_room =
            connections.have_room() || connections.have_room_by_turns() && ended(Rank::Stranger);
        let may_stay = has_room
            || connections.have_room_for_guests()
            || connections.have_room_for_guests_by_turns() && ended(Rank::Guest);
        if !may_stay {
            let refusal = NO_ROOM.with_retry_after(1);
            let mut meters = self.meters.borrow_mut();
            meters.connections[1] += 1;
            *meters.rejected.entry(refusal.code).or_default() += 1;
            return turn_away(&socket, self.next_id(), &refusal);
        }
        self.meters.borrow_mut().connections[0] += 1;
        match connection::serve(self.enter_live(), socket, peer, !has_room) {
            // Boxed: an async block around a future by value would double it.
            Some(serving) => self.spawn_guarded(Box::pin(serving)),
            // Out of memory or epoll watches; the client sees a closed connection.
            None => self.meters.borrow_mut().connections[1] += 1,
        }
    }

    /// Finds a place for whoever asks for an engine. A guest takes that of another client, the one
    /// that has waited longest to ask; an error when all of this worker are being served. Our own
    /// pages are for guests too, and cost nobody a place: whoever looks after us must get an answer
    /// when everything is taken.
    pub fn find_place(&self, kind: Kind, post: &Post) -> Result<(), Refusal> {
        if kind != Kind::Forward {
            return Ok(());
        }
        let ended = |rank| self.patrol.end_longest_waiting(rank);
        if !post.is_guest()
            || self.connections.all_have_room()
            || ended(Rank::Stranger)
            || ended(Rank::Regular)
        {
            post.set_rank(Rank::Regular);
            return Ok(());
        }
        self.meters.borrow_mut().connections[1] += 1;
        Err(NO_ROOM.with_retry_after(1))
    }

    /// Counts a connection until the guard is dropped.
    fn enter_live(self: &Rc<Self>) -> Live {
        self.live.set(self.live.get() + 1);
        self.connections.enter();
        Live(Rc::clone(self))
    }
}

const NO_ROOM: Refusal =
    Refusal::closing(503, "overloaded", "The proxy has no room for a connection.");

/// One more client than there is room for hears so. What fits in the socket's buffer is enough.
fn turn_away(socket: &Socket, id: RequestId, refusal: &Refusal) {
    let mut bytes = Buffer::take();
    let frame =
        Frame { request_id: id.as_str(), version: Version::Http11, close: true, head_only: false };
    write_refusal(&mut bytes, &frame, refusal);
    let _ = socket.try_send(&[IoSlice::new(&bytes)]);
    // A close with unread bytes would be a reset, and the answer lost.
    let _ = socket.try_recv(&mut Buffer::take());
    socket.shutdown(std::net::Shutdown::Write);
}

/// Counts a connection for as long as it lives.
pub struct Live(Rc<Worker>);

impl Live {
    /// Whose connection it is.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.0
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
        self.0.connections.leave();
    }
}
