//! The event that ends a choice, in a stream of which something is taken out: it waits for what
//! follows it, and goes alone when nothing does.

use super::Relay;
use crate::base::fault::Fault;
use crate::rt;
use crate::rt::tls::Link;
use std::time::Duration;

impl Relay<'_> {
    /// Waits so long for what follows. False when nothing does; a client that left, or whatever
    /// else ends the wait, is met again by who waits next.
    pub(super) async fn is_followed(&mut self, link: &mut Link, left: Duration) -> bool {
        let post = &self.client.post;
        // The deadline that was armed last is no concern of this wait.
        post.arm(left);
        !matches!(post.attended(rt::timeout(left, link.readable())).await, Ok(Err(_)))
    }

    /// Sends what waits.
    pub(super) async fn release(&mut self) -> Result<(), Fault> {
        let Some(strip) = self.strip.as_mut() else { return Ok(()) };
        let part = strip.release();
        self.send(&[], &part.sections, &part.bytes).await?;
        self.observe_part(&part, true);
        Ok(())
    }
}
