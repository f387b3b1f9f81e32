//! For engines that crash when a connection is cut (llama-swap#980): the rest of an answer is read
//! after its client has left. Nobody gets it, but what the engine counted is in its end.

use super::framing::{Inbound, Sections};
use super::tap::Tap;
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::rt::tls::Link;
use std::io;
use std::time::Duration;

/// Reads the rest of an answer, of which the tap sees all. True when the connection stands at its
/// exact end. `idle` bounds each wait.
pub async fn drain(link: &mut Link, inbound: &mut Inbound, tap: &mut Tap, idle: Duration) -> bool {
    loop {
        match rt::timeout(idle, link.readable()).await {
            Ok(Ok(())) => {}
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
    }
}
