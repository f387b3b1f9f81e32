//! A client's bytes, in and out, with TLS or without.

use super::{Alarm, Patrol, Post};
use crate::base::limits::HANDSHAKES_MAX;
use crate::rt::patrol::line::Line;
use crate::rt::seal::{Seal, Shake};
use rustls::ServerConfig;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;

/// Who has said nothing for so many ticks may lose its place to a newcomer.
const SILENT_TICKS: u32 = 5;

/// The handshakes that are under way.
#[derive(Default)]
pub(super) struct Handshakes {
    count: Cell<usize>,
    /// Their posts, by their slots: who has said nothing for longest stands first.
    silent: RefCell<Line>,
}

/// A handshake's place among them.
pub struct HandshakePlace(Rc<Patrol>, usize);

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        let HandshakePlace(patrol, slot) = self;
        let handshakes = &patrol.handshakes;
        handshakes.count.set(handshakes.count.get() - 1);
        handshakes.silent.borrow_mut().leave(*slot);
    }
}

impl Patrol {
    /// Ends the handshake that has said nothing for longest, with [`Alarm::CalledOff`]; false when
    /// each has just said something.
    fn end_most_silent_handshake(&self) -> bool {
        let first = self.handshakes.silent.borrow().first();
        let Some(slot) = first else { return false };
        let posts = self.posts.borrow();
        let Some(Some(post)) = posts.slots.get(slot) else { return false };
        if self.now().saturating_sub(post.heard.get()) < SILENT_TICKS {
            return false;
        }
        post.called_off.set(true);
        post.rouse();
        self.handshakes.silent.borrow_mut().leave(slot);
        true
    }
}

impl Post {
    /// A place for a handshake, perhaps that of one that says nothing. `None`: there is none.
    pub fn enter_handshake(&self) -> Option<HandshakePlace> {
        let handshakes = &self.patrol.handshakes;
        // One that was ended leaves when it has its turn: each newcomer ends one more.
        let is_full = handshakes.count.get() >= HANDSHAKES_MAX;
        if is_full && !self.patrol.end_most_silent_handshake() {
            return None;
        }
        handshakes.count.set(handshakes.count.get() + 1);
        handshakes.silent.borrow_mut().join(self.slot);
        Some(HandshakePlace(Rc::clone(&self.patrol), self.slot))
    }

    /// The client of a handshake said something.
    fn hear_handshake(&self) {
        self.hear();
        self.patrol.handshakes.silent.borrow_mut().join(self.slot);
    }

    /// Does the TLS handshake, under the armed deadline. `early` are bytes that were read already.
    pub async fn shake_hands(
        &self,
        config: Arc<ServerConfig>,
        mut early: &[u8],
    ) -> Result<io::Result<()>, Alarm> {
        let seal = match Seal::new(config) {
            Ok(seal) => Box::new(seal),
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let waited = match seal.shake(self.socket(), &mut early) {
                Ok(Shake::Done) => break,
                Ok(Shake::Read) => self.within(self.socket().readable()).await?,
                Ok(Shake::Write) => self.within(self.socket().writable()).await?,
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                return Ok(Err(error));
            }
            self.hear_handshake();
            self.take_turns().await;
        }
        // It is the first: a connection has one handshake.
        let _ = self.state.seal.set(seal);
        Ok(Ok(()))
    }

    /// True when the client speaks TLS: its bytes are not those of the socket.
    pub fn is_sealed(&self) -> bool {
        self.state.seal.get().is_some()
    }

    /// Version and cipher of a client that speaks TLS.
    pub fn seal_label(&self) -> Option<&'static str> {
        self.state.seal.get().map(|seal| seal.label())
    }

    /// True when the client speaks TLS 1.3.
    pub fn has_newest_seal(&self) -> bool {
        self.state.seal.get().is_some_and(|seal| seal.is_newest())
    }

    /// True when the client only looks which certificate it gets, as authorities do.
    pub fn is_challenge(&self) -> bool {
        self.state.seal.get().is_some_and(|seal| seal.is_challenge())
    }

    /// True while [`Post::try_recv_at_most`] may give something that has left the socket already.
    pub fn may_hold(&self) -> bool {
        self.state.seal.get().is_some_and(|seal| seal.may_hold())
    }

    /// Appends what has arrived, at most so many bytes (not 0). `Ok(0)`: the client closed.
    pub fn try_recv_at_most(&self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        match self.state.seal.get() {
            None => self.socket().try_recv_at_most(into, most),
            Some(seal) => seal.try_recv(self.socket(), into, most),
        }
    }

    /// Takes as much of the slices as there is room for now. With TLS it is out only when
    /// [`Post::flush`] says so.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.state.seal.get() {
            None => self.socket().try_send(slices),
            Some(seal) => seal.try_send(self.socket(), slices),
        }
    }

    /// Sends what was taken. True when the kernel has all of it.
    pub fn flush(&self) -> io::Result<bool> {
        self.state.seal.get().map_or(Ok(true), |seal| seal.flush(self.socket()))
    }

    /// Tells a client with TLS that all was sent: without that it must take what it has for cut.
    pub fn say_goodbye(&self) {
        if let Some(seal) = self.state.seal.get() {
            seal.say_goodbye(self.socket());
        }
    }
}
