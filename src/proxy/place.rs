//! A place at the connection limit for whoever asks for an engine.

use super::shared::Shared;
use crate::base::refusal::Refusal;
use crate::rt::patrol::{Post, Rank};

/// More clients than may be.
pub const NO_ROOM: Refusal =
    Refusal::closing(503, "overloaded", "The proxy has no room for a connection.");

/// Finds a place for whoever asks for an engine. A guest takes that of another client, the one
/// that has waited longest to ask; an error when all of this worker are being served.
pub fn find(w: &Shared, post: &Post) -> Result<(), Refusal> {
    let ended = |rank| w.patrol.end_longest_waiting(rank);
    if !post.is_guest()
        || w.connections.all_have_room()
        || ended(Rank::Stranger)
        || ended(Rank::Regular)
    {
        post.set_rank(Rank::Regular);
        return Ok(());
    }
    w.shelf.meters.borrow_mut().connections[1] += 1;
    Err(NO_ROOM.with_retry_after(1))
}
