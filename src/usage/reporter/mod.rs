//! Destinations of records. Each makes one try when asked; repeating is `deliver`'s business.
//!
//! *Takes:* records and a time limit. *Gives:* whether the destination has them. *Runs on:* the
//! threads of that reporter. *May:* block. *Never:* repeats a try, runs on a worker.

pub mod webhook;
pub mod redis;
pub mod file;
#[cfg(feature = "sql")]
pub mod sql;
#[cfg(feature = "sql")]
pub mod builtin;
#[cfg(feature = "sql")]
mod table;
#[cfg(not(feature = "sql"))]
#[path = "no_table.rs"]
mod table;
mod probe;

pub use probe::{probe, readable};

use super::record::borrowed::RecordRef;
use crate::config::plan::{self, ReporterKind};
use std::io;
use std::time::Duration;
use webhook::Webhook;

/// A destination, as one thread has it.
pub trait Reporter: Send {
    /// One try of at most so long, for all of these records or none: [`Tried::Delivered`] says that
    /// the destination has every one. Blocks. Called with one record at least, and with no more
    /// than [`Shape::batch`].
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried;

    /// Nothing was sent for a while: gives back the memory that a burst took.
    fn rest(&mut self) {}

    /// Where it is, for a log: without credentials, path and query.
    fn place(&self) -> String;
}

/// How a destination wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Records of one call at most.
    pub batch: usize,
    /// So long records gather while there are many; the first after a pause goes at once.
    pub gather: Duration,
    /// Threads that call it, each with a connection of its own.
    pub concurrency: usize,
    /// Tries after the first, of what it refuses.
    pub retries: u32,
    /// Time of one try.
    pub timeout: Duration,
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The receiver has the records.
    Delivered,
    /// It may have them later, whatever they are: it cannot be reached, or is overloaded; why.
    Again(String),
    /// The same, and it asked to be left alone for so long.
    Later(String, Duration),
    /// It answered, and did not take these records; why. Trying again may help.
    Failed(String),
    /// It says that it will never take these records; why.
    Refused(String),
}

/// Makes a destination ready for one thread; connects to nothing yet.
///
/// # Errors
/// Something that the plan says of it cannot be done here; the text names it.
pub fn open(plan: &plan::Reporter) -> io::Result<Box<dyn Reporter>> {
    match &plan.kind {
        ReporterKind::Webhook(webhook) => Ok(Box::new(Webhook::new(webhook.clone()))),
        ReporterKind::Redis(redis) => {
            readable(plan).map_err(io::Error::other)?;
            Ok(Box::new(redis::Stream::new(redis.clone())))
        }
        ReporterKind::File(file) => Ok(Box::new(file::LinesFile::new(file.clone()))),
        ReporterKind::Database(_) | ReporterKind::Builtin(_) => table::open(plan),
    }
}

/// How a destination wants to be called.
pub fn shape(plan: &plan::Reporter) -> Shape {
    match &plan.kind {
        ReporterKind::Webhook(webhook) => webhook::shape(webhook),
        ReporterKind::Redis(redis) => redis::shape(redis),
        ReporterKind::File(_) => file::shape(),
        ReporterKind::Database(_) | ReporterKind::Builtin(_) => table::shape(),
    }
}

#[cfg(test)]
mod tests;
