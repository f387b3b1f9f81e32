//! The backends as both planes see them: health and addresses (written by the control plane, read
//! by workers), requests in flight (written by workers). Readers never wait.

use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};
use std::sync::Arc;

/// The run-time state of all backends, indexed as `Plan::backends`.
pub struct Fleet {
    members: Box<[Member]>,
}

/// The run-time state of one backend.
pub struct Member {
    healthy: AtomicBool,
    inflight: AtomicU32,
    usage_wish: AtomicU8,
    addresses: ArcSwap<Vec<SocketAddr>>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// What an engine did when it was asked for the usage of a stream by us, and not by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageWish {
    /// It was never asked, or has not answered in a way that tells.
    Unknown,
    /// It took the wish.
    Taken,
    /// It refused a request for it, and took the same without.
    Refused,
}

impl Fleet {
    /// All backends healthy until a probe says otherwise, no address known yet. `tls` holds, for
    /// each backend in the order of the plan, its client configuration if it speaks TLS.
    pub fn new(tls: Vec<Option<Arc<rustls::ClientConfig>>>) -> Fleet {
        let member = |tls| Member {
            healthy: AtomicBool::new(true),
            inflight: AtomicU32::new(0),
            usage_wish: AtomicU8::new(UsageWish::Unknown as u8),
            addresses: ArcSwap::from_pointee(Vec::new()),
            tls,
        };
        Fleet { members: tls.into_iter().map(member).collect() }
    }

    /// One backend; `None` for an index that the plan does not have.
    pub fn get(&self, backend: usize) -> Option<&Member> {
        self.members.get(backend)
    }

    /// All backends.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// True when at least one backend is healthy.
    pub fn any_healthy(&self) -> bool {
        self.iter().any(Member::is_healthy)
    }
}

impl Member {
    /// What the last probes say.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Set by the health prober alone.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Requests that a worker sent here and has not settled.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Counts a request in; the guard counts it out when dropped.
    pub fn enter(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request out. Called by the guard that called [`Member::enter`].
    pub fn leave(&self) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
    }

    /// What is known of its answer to the wish for usage. Lives as long as the process.
    pub fn usage_wish(&self) -> UsageWish {
        let known = self.usage_wish.load(Ordering::Relaxed);
        let all = [UsageWish::Taken, UsageWish::Refused];
        all.into_iter().find(|wish| *wish as u8 == known).unwrap_or(UsageWish::Unknown)
    }

    /// Learns it. The first lesson stays; true when this was it.
    pub fn learn_usage_wish(&self, wish: UsageWish) -> bool {
        let unknown = UsageWish::Unknown as u8;
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        // Read first: the line is shared, and nearly always there is nothing to be learnt.
        self.usage_wish() == UsageWish::Unknown
            && self.usage_wish.compare_exchange(unknown, wish as u8, set, read).is_ok()
    }

    /// The addresses last resolved; empty when the name never resolved, and for Unix sockets.
    pub fn addresses(&self) -> arc_swap::Guard<Arc<Vec<SocketAddr>>> {
        self.addresses.load()
    }

    /// Set by the resolver alone. It keeps the last good set on errors.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        self.addresses.store(Arc::new(addresses));
    }

    /// TLS settings towards this backend.
    pub fn tls(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.tls.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an engine that is asked no more because one of two requests came late.
    #[test]
    fn the_first_lesson_about_usage_stays() {
        let fleet = Fleet::new(vec![None]);
        let member = fleet.get(0).unwrap();
        assert_eq!(member.usage_wish(), UsageWish::Unknown);
        assert!(member.learn_usage_wish(UsageWish::Taken));
        assert!(!member.learn_usage_wish(UsageWish::Refused));
        assert_eq!(member.usage_wish(), UsageWish::Taken);
    }
}
