//! Kept connections of one worker. The most recently used goes first; one that idled too long, or
//! on which anything has arrived, is closed instead of used.

use crate::rt::tls::Link;
use crate::state::fleet::Fleet;
use std::cell::RefCell;
use std::sync::Arc;

/// One borrowed connection to a backend. Dropping it closes the connection, which cancels the
/// generation at the engine; only [`Pool::give_back`] keeps it.
pub struct Lease {
    link: Link,
    inflight: InFlight,
}

/// Counts a request in flight at a backend for as long as it lives.
struct InFlight {
    fleet: Arc<Fleet>,
    backend: u32,
}

impl InFlight {
    fn enter(fleet: &Arc<Fleet>, backend: u32) -> InFlight {
        if let Some(member) = fleet.get(backend as usize) {
            member.enter();
        }
        InFlight { fleet: Arc::clone(fleet), backend }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(member) = self.fleet.get(self.backend as usize) {
            member.leave();
        }
    }
}

impl Lease {
    /// A lease of a connection that was just made.
    pub fn fresh(link: Link, fleet: &Arc<Fleet>, backend: u32) -> Lease {
        Lease { link, inflight: InFlight::enter(fleet, backend) }
    }

    /// The connection.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }
}

struct Idle {
    link: Link,
    since: u32,
}

/// The idle connections of one worker, by backend.
pub struct Pool {
    fleet: Arc<Fleet>,
    limits: Vec<PoolLimits>,
    idle: RefCell<Vec<Vec<Idle>>>,
}

/// What bounds the idle connections of one backend.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Ticks (of `rt::patrol`) after which an idle connection is not used again.
    pub idle_ticks: u32,
    /// Idle connections kept.
    pub count: usize,
}

impl Pool {
    /// An empty pool for the backends of a fleet.
    pub fn new(fleet: Arc<Fleet>, limits: Vec<PoolLimits>) -> Pool {
        let idle = RefCell::new(limits.iter().map(|_| Vec::new()).collect());
        Pool { fleet, limits, idle }
    }

    /// A kept connection that is alive, if there is one. `now` in ticks.
    pub fn take(&self, backend: u32, now: u32) -> Option<Lease> {
        let limits = self.limits.get(backend as usize)?;
        let mut idle = self.idle.borrow_mut();
        let links = idle.get_mut(backend as usize)?;
        while let Some(mut kept) = links.pop() {
            if now.saturating_sub(kept.since) > limits.idle_ticks {
                // All that are left are older still.
                links.clear();
                return None;
            }
            // Readable means closed, or bytes nobody asked for: either way it is not ours to use.
            if kept.link.is_quiet() {
                let inflight = InFlight::enter(&self.fleet, backend);
                return Some(Lease { link: kept.link, inflight });
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its exact end.
    pub fn give_back(&self, lease: Lease, now: u32) {
        let backend = lease.inflight.backend as usize;
        let Some(limits) = self.limits.get(backend) else { return };
        if let Some(links) = self.idle.borrow_mut().get_mut(backend) {
            if links.len() < limits.count {
                links.push(Idle { link: lease.link, since: now });
            }
        }
    }

    /// Closes what idled too long; gives how many.
    pub fn sweep(&self, now: u32) -> u64 {
        let mut closed = 0;
        for (links, limits) in self.idle.borrow_mut().iter_mut().zip(&self.limits) {
            // Oldest first: connections are pushed at the end and taken from it.
            let old = |kept: &Idle| now.saturating_sub(kept.since) > limits.idle_ticks;
            let expired = links.iter().take_while(|kept| old(kept)).count();
            closed += links.drain(..expired).count() as u64;
            if links.is_empty() && links.capacity() > 16 {
                links.shrink_to_fit();
            }
        }
        closed
    }

    /// Closes all of them: the worker drains.
    pub fn clear(&self) {
        self.idle.borrow_mut().iter_mut().for_each(Vec::clear);
    }

    /// Number of idle connections.
    pub fn len(&self) -> usize {
        self.idle.borrow().iter().map(Vec::len).sum()
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
