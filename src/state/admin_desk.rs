//! What goes between those who read requests to the admin API and those who answer them. On the
//! main port the former are workers: they ask whether somebody may ask, then for the answer, and
//! never wait for either with their thread.

use super::ask::Ask;
use crossbeam_channel::{bounded, Receiver, Sender};
use futures_channel::oneshot;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// A request whose sender may ask. It may hold a key: it has no `Debug`.
pub struct AdminRequest {
    /// Its method.
    pub method: &'static str,
    /// The path as it was sent, without the query.
    pub path: String,
    /// The query, without its `?`.
    pub query: String,
    /// All of its body.
    pub body: Vec<u8>,
    /// False where `admin.read_only` holds.
    pub may_change: bool,
}

/// An answer. It may hold a key: it has no `Debug`.
#[derive(Clone)]
pub struct AdminAnswer {
    /// Status code.
    pub status: u16,
    /// Content-Type.
    pub content_type: &'static str,
    /// Further fields.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Arc<[u8]>,
}

/// A request, and where its answer goes.
pub type AdminQuestion = (AdminRequest, oneshot::Sender<AdminAnswer>);

/// Where so many requests are put for the threads that answer them, and where these take them.
pub fn questions(waiting_max: usize) -> (Sender<AdminQuestion>, Receiver<AdminQuestion>) {
    bounded(waiting_max)
}

/// Somebody of whom it is not known yet whether it may ask. It has no `Debug`: a token is in it.
pub struct Stranger {
    /// Its address.
    pub peer: IpAddr,
    /// All that it shows for a token.
    pub shown: Vec<Vec<u8>>,
}

/// Whether somebody may ask: true when it may change something too. Else the answer to it.
pub type Verdict = Result<bool, AdminAnswer>;

/// The way from a worker to those who answer.
#[derive(Clone)]
pub struct AdminDesk {
    /// Who says whether somebody may ask.
    pub gate: Ask<Stranger, Verdict>,
    /// Who answers.
    pub questions: Sender<AdminQuestion>,
    /// What became of those who asked.
    pub numbers: Arc<AdminNumbers>,
}

/// What became of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminResult {
    /// It might ask: somebody answered, whatever the answer was.
    Answered,
    /// It showed no token.
    MissingToken,
    /// It showed a wrong one.
    InvalidToken,
    /// Its address showed too many wrong ones.
    Throttled,
    /// Its address is not in `admin.allowed_ips`.
    IpNotAllowed,
    /// Too many waited for an answer.
    Overloaded,
    /// It was put out for somebody else before it showed that it may ask, or with its answer.
    PutOut,
    /// All places were held by others who may ask.
    TurnedAway,
}

/// How many there were of each.
#[derive(Default)]
pub struct AdminNumbers([AtomicU64; 8]);

impl AdminNumbers {
    const NAMES: [&'static str; 8] = [
        "answered",
        "missing_token",
        "invalid_token",
        "throttled",
        "ip_not_allowed",
        "overloaded",
        "put_out",
        "turned_away",
    ];

    /// One more.
    pub fn note(&self, result: AdminResult) {
        if let Some(count) = self.0.get(result as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of them, with their names.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Self::NAMES.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
