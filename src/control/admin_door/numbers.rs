//! What became of those who asked the admin API, for the metrics page.

use std::sync::atomic::{AtomicU64, Ordering};

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
