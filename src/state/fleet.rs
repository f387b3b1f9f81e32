//! The backends as both planes see them: health and addresses (written by the control plane, read
//! by workers), requests in flight (written by workers). Readers never wait.

use super::wish::KnownWish;
use arc_swap::ArcSwap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// The run-time state of all backends, indexed as `Plan::backends`.
pub struct Fleet {
    members: Box<[Member]>,
}

/// The run-time state of one backend.
pub struct Member {
    healthy: AtomicBool,
    inflight: AtomicU32,
    usage_wish: KnownWish,
    addresses: ArcSwap<Vec<SocketAddr>>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Fleet {
    /// All backends healthy until a probe says otherwise, no address known yet. `tls` holds, for
    /// each backend in the order of the plan, its client configuration if it speaks TLS.
    pub fn new(tls: Vec<Option<Arc<rustls::ClientConfig>>>) -> Fleet {
        let born = Instant::now();
        let member = |tls| Member {
            healthy: AtomicBool::new(true),
            inflight: AtomicU32::new(0),
            usage_wish: KnownWish::new(born),
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

    /// Set by the health prober alone. What comes back may be another engine than what went.
    pub fn set_healthy(&self, healthy: bool) {
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            self.usage_wish.forget();
        }
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

    /// What is known of its answer to the wish for the usage of a stream.
    pub fn usage_wish(&self) -> &KnownWish {
        &self.usage_wish
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
