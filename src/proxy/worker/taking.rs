//! Taking clients in: who gets a place, whose place that was, who is turned away.

use super::Worker;
use crate::base::id::RequestId;
use crate::base::refusal::Refusal;
use crate::config::plan::ListenerSpeech;
use crate::http::head::Version;
use crate::proxy::answer::{write_refusal, Frame};
use crate::proxy::connection;
use crate::proxy::place::NO_ROOM;
use crate::rt::buffer::Buffer;
use crate::rt::listen::Arrival;
use crate::rt::patrol::Rank;
use crate::rt::socket::Socket;
use crate::state::pulse::Look;
use std::io::IoSlice;
use std::net::IpAddr;

impl Worker {
    /// Takes in what the accept loop tells.
    pub(super) fn arrive(&self, arrival: Arrival, speech: ListenerSpeech) {
        let w = &*self.shared;
        if matches!(self.pulse.look(), Look::Asleep(_)) {
            // What comes is measured by the clock, and from now on the watchdog expects us to beat.
            self.pulse.wake_up();
            w.shelf.look_at_the_clock();
            w.upstreams.look_at_the_board();
            // Nobody waited there while we slept.
            w.upstreams.see_departures(&w.patrol);
        }
        match arrival {
            Arrival::Client(socket, peer) => self.take_in(socket, (peer, speech)),
            Arrival::Exhausted => {
                w.shelf.meters.borrow_mut().accept_pauses += 1;
                if w.shelf.may_log("accept_paused") {
                    tracing::warn!("out of file descriptors or memory: accepting pauses");
                }
            }
        }
    }

    fn take_in(&self, socket: Socket, (peer, speech): (IpAddr, ListenerSpeech)) {
        let w = &self.shared;
        let (connections, patrol) = (&w.connections, &w.patrol);
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
            {
                let mut meters = w.shelf.meters.borrow_mut();
                meters.connections[1] += 1;
                *meters.rejected.entry(refusal.code).or_default() += 1;
            }
            let is_plain = speech == ListenerSpeech::Plain;
            if !is_plain && w.view().shared.client_tls.is_some() || speech == ListenerSpeech::Tls {
                // Words would have to wait for a handshake.
                return;
            }
            return turn_away(&socket, w.shelf.next_id(), &refusal);
        }
        w.shelf.meters.borrow_mut().connections[0] += 1;
        match connection::serve(w.enter_live(), socket, (peer, speech), !has_room) {
            // Boxed: an async block around a future by value would double it.
            Some(serving) => w.spawn_guarded(Box::pin(serving)),
            // Out of memory or epoll watches; the client sees a closed connection.
            None => w.shelf.meters.borrow_mut().connections[1] += 1,
        }
    }
}

/// One more client than there is room for hears so. What fits in the socket's buffer is enough.
fn turn_away(socket: &Socket, id: RequestId, refusal: &Refusal) {
    let mut bytes = Buffer::take();
    let frame = Frame {
        request_id: id.as_str(),
        version: Version::Http11,
        close: true,
        head_only: false,
        limits: [None; 2],
        cors: Vec::new(),
    };
    write_refusal(&mut bytes, &frame, refusal);
    let _ = socket.try_send(&[IoSlice::new(&bytes)]);
    // A close with unread bytes would be a reset, and the answer lost.
    let _ = socket.try_recv(&mut Buffer::take());
    socket.shutdown(std::net::Shutdown::Write);
}
