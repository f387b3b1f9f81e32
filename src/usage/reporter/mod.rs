//! Destinations of records. Each makes one try when asked; repeating is `deliver`'s business.
//!
//! *Takes:* a record and a time limit. *Gives:* whether the destination has it. *Runs on:* the
//! thread of that reporter. *May:* block. *Never:* repeats a try, runs on a worker.

pub mod webhook;

use super::record::UsageRecord;
use crate::config::plan::{self, ReporterKind};
use std::io;
use std::time::Duration;
use webhook::Webhook;

/// A destination.
pub enum Reporter {
    /// One HTTP request per record.
    Webhook(Webhook),
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The receiver has the record.
    Delivered,
    /// It may have it later; why not now.
    Again(String),
    /// It will never take it; why.
    Refused(String),
}

impl Reporter {
    /// Makes the destination ready.
    ///
    /// # Errors
    /// The kind is not built yet. Such a plan is refused before it gets here.
    pub fn new(plan: &plan::Reporter) -> io::Result<Self> {
        match &plan.kind {
            ReporterKind::Webhook(webhook) => Ok(Reporter::Webhook(Webhook::new(webhook.clone()))),
            ReporterKind::Database(_) | ReporterKind::Builtin { .. } => {
                Err(io::Error::other(format!("reporter {}: its type is not built yet", plan.name)))
            }
        }
    }

    /// Where it is, for a log: without credentials, path and query.
    pub fn place(&self) -> String {
        match self {
            Reporter::Webhook(webhook) => webhook.place(),
        }
    }

    /// Tries after the first, and the time of each.
    pub fn tries(&self) -> (u32, Duration) {
        match self {
            Reporter::Webhook(webhook) => webhook.tries(),
        }
    }

    /// The record in the form that this destination wants.
    pub fn render(&self, record: &UsageRecord) -> Vec<u8> {
        match self {
            Reporter::Webhook(webhook) => webhook.render(record),
        }
    }

    /// One try of at most so long. Blocks.
    pub fn send(&self, record: &UsageRecord, body: &[u8], timeout: Duration) -> Tried {
        match self {
            Reporter::Webhook(webhook) => webhook.send(record, body, timeout),
        }
    }
}
