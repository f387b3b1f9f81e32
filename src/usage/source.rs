//! Where a reporter's records come from: the one face of the spool that delivery knows.

use super::record::UsageRecord;
use crossbeam_channel::Receiver;

/// A record to deliver.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its place in the order of all records; grows, with gaps.
    pub seq: u64,
    /// The record.
    pub record: UsageRecord,
}

/// The records of one reporter, in order.
pub trait Source: Send {
    /// The next records, at most `max`; none when there are none now. Never waits for any.
    fn read(&mut self, max: usize) -> Vec<Delivery>;

    /// All records up to and with this one need not be delivered again.
    fn done(&mut self, through: u64);

    /// Rings when there may be more to read. One ring may stand for many records.
    fn bell(&self) -> &Receiver<()>;
}
