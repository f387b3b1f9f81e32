//! Where a lane's records come from: the seam between what keeps records and what delivers them.

use super::record::UsageRecord;
use crossbeam_channel::Receiver;
use std::io;

/// A record and its place in the order of its source.
pub struct Delivery {
    /// Rises from record to record; may skip numbers.
    pub seq: u64,
    /// What happened.
    pub record: UsageRecord,
}

/// The records that wait for one reporter. Belongs to one lane.
pub trait Source: Send {
    /// Up to `max` records behind those read before, in order; empty when there is nothing more
    /// now. Never blocks.
    fn read(&mut self, max: usize) -> Vec<Delivery>;

    /// All up to and including `through` are done with: a restart goes on behind it.
    fn done(&mut self, through: u64);

    /// Rings (`bounded(1)`) when there may be more to read.
    fn bell(&self) -> &Receiver<()>;

    /// Parks a record that the destination refuses for good, with the reason.
    ///
    /// # Errors
    /// There is no room for it, or the disk does not take it: it is still the lane's to keep.
    fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()>;
}
