//! What a client gets while its stream is silent: a comment, which it skips, and by which whoever
//! stands between us and it knows that the stream is alive.

use super::Relay;
use crate::base::fault::Fault;
use crate::proxy::relay::COMMENT;

impl Relay<'_> {
    /// Sends a comment, unless the client has half an event.
    pub(super) async fn send_comment(&mut self) -> Result<(), Fault> {
        if !self.tap.at_event_boundary() {
            return Ok(());
        }
        // What is given up in its middle must not be followed by anything of ours.
        self.state.torn = true;
        self.send_own(COMMENT).await?;
        self.state.torn = false;
        self.meters.borrow_mut().keep_alives += 1;
        Ok(())
    }
}
