//! TLS on a client's connection. rustls is driven directly, over the readiness of the socket, as
//! towards engines. What one send takes is in records at once, and no more is taken before the
//! kernel has them all: the session holds 64 KiB at most, and a slow client holds up its engine.

use super::buffer::Aside;
use super::socket::Socket;
use super::tls::Wire;
use crate::base::certificate::CHALLENGE_PROTOCOL;
use crate::base::limits::HANDSHAKE_BYTES_MAX;
use rustls::{CipherSuite, ProtocolVersion, ServerConfig, ServerConnection};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

/// Bytes that one read gives at most: a record holds no more. Room is cleared before it is read
/// into, and that of a large body must not be cleared again for each of its records.
const READ_BYTES_MAX: usize = 16 * 1024;
/// Reads of the socket for one read of ours. Beyond, others have their turn: records may be empty.
const FILLS_MAX: usize = 16;

/// What a handshake waits for.
pub(super) enum Shake {
    /// Nothing: it is done.
    Done,
    /// Bytes of the client.
    Read,
    /// Room in the socket.
    Write,
}

/// A session with a client.
pub(super) struct Seal {
    session: RefCell<ServerConnection>,
    /// Decrypted bytes may be waiting in it: do not wait for the socket.
    may_hold: Cell<bool>,
    /// Bytes of the handshake so far.
    shaken: Cell<usize>,
    /// What it holds of bytes that are on their way.
    aside: Aside,
}

impl Seal {
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Seal> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        let session = RefCell::new(session);
        let (may_hold, shaken) = (Cell::new(true), Cell::new(0));
        Ok(Seal { session, may_hold, shaken, aside: Aside::default() })
    }

    /// Goes on with the handshake as far as it can now. `early` came before the socket was asked.
    pub(super) fn shake(&self, socket: &Socket, early: &mut &[u8]) -> io::Result<Shake> {
        let session = &mut *self.session.borrow_mut();
        loop {
            if !flush(session, socket)? {
                return Ok(Shake::Write);
            }
            if !session.is_handshaking() && early.is_empty() {
                self.aside.set(0);
                return Ok(Shake::Done);
            }
            let got = match early.is_empty() {
                false => session.read_tls(early),
                true => session.read_tls(&mut Wire(socket)),
            };
            match got {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.shaken.set(self.shaken.get() + n);
                    self.aside.set(self.shaken.get());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Shake::Read),
                Err(e) => return Err(e),
            }
            if self.shaken.get() > HANDSHAKE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            process(session, socket)?;
        }
    }

    /// Version and cipher, by the names that OpenSSL and nginx have for them.
    pub(super) fn label(&self) -> &'static str {
        let session = self.session.borrow();
        label_of(session.negotiated_cipher_suite().map(|suite| suite.suite()))
    }

    /// The version that both sides speak.
    pub(super) fn is_newest(&self) -> bool {
        self.session.borrow().protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// True when the client only looks which certificate it gets, and asks for nothing.
    pub(super) fn is_challenge(&self) -> bool {
        self.session.borrow().alpn_protocol() == Some(CHALLENGE_PROTOCOL)
    }

    /// True while a read may give something without waiting.
    pub(super) fn may_hold(&self) -> bool {
        self.may_hold.get()
    }

    /// Appends what has arrived, at most `most` bytes. `Ok(0)` is an end that the client announced;
    /// one that it did not is an error, as somebody else may have cut the connection.
    pub(super) fn try_recv(
        &self,
        socket: &Socket,
        into: &mut Vec<u8>,
        most: usize,
    ) -> io::Result<usize> {
        let session = &mut *self.session.borrow_mut();
        let len = into.len();
        debug_assert!(into.capacity() > len, "a full buffer reads as an end of stream");
        into.resize(len + (into.capacity() - len).min(most).min(READ_BYTES_MAX), 0);
        let waits = |got: &io::Result<usize>| {
            got.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let mut got = Err(io::ErrorKind::WouldBlock.into());
        let mut is_dry = false;
        for _ in 0..FILLS_MAX {
            got = session.reader().read(into.get_mut(len..).unwrap_or_default());
            if !waits(&got) {
                break;
            }
            let filled = session.read_tls(&mut Wire(socket));
            is_dry = waits(&filled);
            if let Err(error) = filled.and_then(|_| process(session, socket)) {
                got = Err(error);
                break;
            }
        }
        into.truncate(len + got.as_ref().copied().unwrap_or(0));
        // What the last fill brought may be there although nothing was read of it.
        self.may_hold.set(got.is_ok() || (waits(&got) && !is_dry));
        got
    }

    /// Takes as much of the slices as it holds, once all that it took before is out.
    pub(super) fn try_send(&self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let session = &mut *self.session.borrow_mut();
        if !flush(session, socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = session.writer().write_vectored(slices)?;
        let is_out = flush(session, socket)?;
        // What the kernel has of it is no longer held, and how much that is nobody says.
        self.aside.set(if is_out { 0 } else { taken });
        Ok(taken)
    }

    /// Sends what it still holds. True when that is nothing.
    pub(super) fn flush(&self, socket: &Socket) -> io::Result<bool> {
        let is_out = flush(&mut self.session.borrow_mut(), socket)?;
        if is_out {
            self.aside.set(0);
        }
        Ok(is_out)
    }

    /// Takes in what came while nobody wanted to read. True when the client says that it is gone,
    /// or what it says is no TLS. What it has to say beside is kept for who reads next: so much as
    /// fits into the session, and the rest stays in the socket.
    pub(super) fn has_left(&self, socket: &Socket) -> bool {
        let session = &mut *self.session.borrow_mut();
        match session.read_tls(&mut Wire(socket)) {
            Ok(0) => return true,
            Ok(_) => self.may_hold.set(true),
            Err(_) => return false,
        }
        // Whoever reads next finds the same error.
        session.process_new_packets().map_or(true, |state| state.peer_has_closed())
    }

    /// Tells the client that all was sent, if that goes out at once.
    pub(super) fn say_goodbye(&self, socket: &Socket) {
        let session = &mut *self.session.borrow_mut();
        session.send_close_notify();
        // Who does not take it has left, or reads nothing.
        let _ = flush(session, socket);
    }
}

fn label_of(suite: Option<CipherSuite>) -> &'static str {
    match suite {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLSv1.3 TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLSv1.3 TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => {
            "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256"
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => {
            "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384"
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => {
            "TLSv1.2 ECDHE-ECDSA-CHACHA20-POLY1305"
        }
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => {
            "TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256"
        }
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => {
            "TLSv1.2 ECDHE-RSA-AES256-GCM-SHA384"
        }
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => {
            "TLSv1.2 ECDHE-RSA-CHACHA20-POLY1305"
        }
        _ => "TLS",
    }
}

fn flush(session: &mut ServerConnection, socket: &Socket) -> io::Result<bool> {
    while session.wants_write() {
        match session.write_tls(&mut Wire(socket)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Takes in what was read, and sends what the session has to say to that, if there is room.
fn process(session: &mut ServerConnection, socket: &Socket) -> io::Result<()> {
    let processed = session.process_new_packets();
    // An alert says to the client why it is refused.
    let flushed = flush(session, socket);
    processed.map_err(io::Error::other)?;
    flushed.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring::ALL_CIPHER_SUITES;

    /// Catches: a cipher that is spoken and has no name in the access log.
    #[test]
    fn each_cipher_has_a_name() {
        for suite in ALL_CIPHER_SUITES {
            let (label, suite) = (label_of(Some(suite.suite())), suite.suite());
            let is_new = format!("{suite:?}").starts_with("TLS13_");
            let version = if is_new { "TLSv1.3 " } else { "TLSv1.2 " };
            assert!(label.starts_with(version), "{suite:?}: {label}");
        }
        assert_eq!(label_of(None), "TLS");
    }
}
