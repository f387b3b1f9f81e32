//! What became of orders, and when the next ones come: for the metrics page.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The end of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderEnd {
    /// A certificate.
    Issued,
    /// The authority said no, or what it gave is no use.
    Refused,
    /// It wants fewer orders.
    RateLimited,
    /// It was not reached.
    Unreached,
    /// Something of ours: the disk, as a rule.
    Internal,
}

impl OrderEnd {
    /// All of them, in this order.
    pub const ALL: [OrderEnd; 5] = [
        OrderEnd::Issued,
        OrderEnd::Refused,
        OrderEnd::RateLimited,
        OrderEnd::Unreached,
        OrderEnd::Internal,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            OrderEnd::Issued => "issued",
            OrderEnd::Refused => "refused",
            OrderEnd::RateLimited => "rate_limited",
            OrderEnd::Unreached => "unreached",
            OrderEnd::Internal => "internal",
        }
    }
}

/// See above.
#[derive(Debug, Default)]
pub struct AcmeNumbers {
    ends: [AtomicU64; OrderEnd::ALL.len()],
    /// Of each name, when it is asked for next, in milliseconds since 1970.
    next_ms: Mutex<BTreeMap<String, u64>>,
    /// Of each name, how many orders in a row have failed.
    failed: Mutex<BTreeMap<String, u64>>,
}

impl AcmeNumbers {
    /// An order ended.
    pub fn note(&self, end: OrderEnd) {
        if let Some(count) = self.ends.get(end as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A name is asked for next at this moment.
    pub fn set_next(&self, name: &str, at_ms: u64) {
        let mut next = self.next_ms.lock().unwrap_or_else(PoisonError::into_inner);
        next.insert(name.to_owned(), at_ms);
    }

    /// So many orders in a row have failed for a name.
    pub fn set_failed(&self, name: &str, count: u32) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(name.to_owned(), u64::from(count));
    }

    /// How many orders in a row have failed for each name.
    pub fn failed(&self) -> Vec<(String, u64)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().map(|(name, count)| (name.clone(), *count)).collect()
    }

    /// How many orders ended in which way.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.ends.iter().map(|count| count.load(Ordering::Relaxed));
        OrderEnd::ALL.iter().map(|end| end.name()).zip(counts)
    }

    /// When each name is asked for next, in seconds since 1970.
    pub fn next_s(&self) -> Vec<(String, u64)> {
        let next = self.next_ms.lock().unwrap_or_else(PoisonError::into_inner);
        next.iter().map(|(name, ms)| (name.clone(), ms / 1000)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an end that is counted under another one's name.
    #[test]
    fn each_end_is_counted_under_its_name() {
        let numbers = AcmeNumbers::default();
        for (times, end) in OrderEnd::ALL.into_iter().enumerate() {
            (0..=times).for_each(|_| numbers.note(end));
        }
        let counted: Vec<_> = numbers.ends().collect();
        let wanted =
            [("issued", 1), ("refused", 2), ("rate_limited", 3), ("unreached", 4), ("internal", 5)];
        assert_eq!(counted, wanted);
    }
}
