//! What a client gets while its stream is silent: a comment, which it skips, and by which whoever
//! stands between us and it knows that the stream is alive.

use super::Relay;
use crate::base::fault::Fault;
use crate::http::write::{chunk_header, CHUNK_HEADER_BYTES_MAX};
use std::io::IoSlice;

/// A comment and the empty line behind it: some readers wait for that before they look at anything.
const COMMENT: &[u8] = b": keep-alive\n\n";

impl Relay<'_> {
    /// Sends a comment, unless the client has half an event.
    pub(super) async fn send_comment(&mut self) -> Result<(), Fault> {
        if !self.tap.at_event_boundary() {
            return Ok(());
        }
        let mut size = [0u8; CHUNK_HEADER_BYTES_MAX];
        let header = chunk_header(&mut size, COMMENT.len());
        let mut parts = [IoSlice::new(header), IoSlice::new(COMMENT), IoSlice::new(b"\r\n")];
        let parts = if self.is_chunked() { &mut parts[..] } else { &mut parts[1..2] };
        // What is given up in its middle must not be followed by anything of ours.
        self.state.torn = true;
        self.client.send(parts).await?;
        self.state.torn = false;
        self.meters.borrow_mut().keep_alives += 1;
        Ok(())
    }
}
