//! The rest of an answer is read after its client has left. Nobody gets it, but what the engine
//! counted is in its end: all of it for engines that crash when a connection is cut
//! (llama-swap#980), and its usage alone when the client had all of its text already.

use super::framing::{Inbound, Sections};
use super::tap::Tap;
use crate::base::limits::LATE_USAGE_WAIT;
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::rt::tls::Link;
use std::io;
use std::time::Duration;

/// What is read of the rest of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// All of it; each wait is bounded by this time.
    Whole(Duration),
    /// Its usage, and no more.
    Usage,
}

/// Reads the rest of an answer, of which the tap sees all. True when the connection stands at its
/// exact end.
pub async fn drain(link: &mut Link, inbound: &mut Inbound, tap: &mut Tap, what: Rest) -> bool {
    let idle = match what {
        Rest::Whole(idle) => idle,
        Rest::Usage => LATE_USAGE_WAIT,
    };
    loop {
        match rt::await_peer(idle, link.readable()).await {
            Some(Ok(())) => {}
            _ => return false,
        }
        let mut buffer = Buffer::take();
        match link.try_recv(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return false,
        }
        let mut rest = buffer.as_slice();
        let mut sections = Sections::default();
        while !rest.is_empty() {
            let progress = inbound.decode(rest, true, &mut sections);
            sections.for_each_data(rest, |data| tap.see_unsent(data));
            if progress.broken.is_some() {
                return false;
            }
            rest = rest.get(progress.consumed..).unwrap_or_default();
            if progress.finished {
                return rest.is_empty();
            }
        }
        if what == Rest::Usage && !tap.awaits_usage() {
            return false;
        }
    }
}
