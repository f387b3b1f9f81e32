//! The backends as both planes see them: what the configuration in use says of each, and how it is:
//! health and addresses (written by the control plane, read by workers), requests in flight
//! (written by workers). Readers never wait.

use super::repute::{Change, Evidence, Repute, Tenths};
use super::wish::KnownWishes;
use crate::config::plan::{Backend, Endpoint};
use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// The number of a backend in this process. It is never given twice: what belongs to a backend that
/// was taken out of the configuration cannot be taken for another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(NonZeroU32);

impl MemberId {
    fn next() -> MemberId {
        static LAST: AtomicU32 = AtomicU32::new(0);
        // Four thousand million changes later the last number would be given again and again.
        let number = LAST.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        MemberId(NonZeroU32::new(number).unwrap_or(NonZeroU32::MAX))
    }

    /// The number itself.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// How TLS is spoken with a backend.
#[derive(Clone)]
pub struct MemberTls {
    /// Roots, versions, how certificates are verified.
    pub config: Arc<rustls::ClientConfig>,
    /// The name that its certificate must be for.
    pub name: ServerName<'static>,
}

/// A backend in one view: what the configuration says of it there, and the [`Vitals`] that it keeps
/// from view to view.
pub struct Member {
    /// What the configuration says.
    pub plan: Backend,
    /// Its name, as records show it.
    pub name: Arc<str>,
    /// Its URL, as records show it.
    pub url: Arc<str>,
    /// TLS settings, if it speaks TLS.
    pub tls: Option<MemberTls>,
    vitals: Arc<Vitals>,
}

/// How a backend is. It outlives a change of the configuration that leaves its name and the way to
/// it as they are.
pub struct Vitals {
    id: MemberId,
    born: Instant,
    passes_probes: AtomicBool,
    /// A packed [`Repute`].
    repute: AtomicU64,
    /// When an answer of it last grew, in [`Tenths`]; 0 before that.
    alive: AtomicU32,
    departures: AtomicU32,
    inflight: AtomicU32,
    unasked: AtomicU64,
    usage_wishes: KnownWishes,
    addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Member {
    /// A backend that was not there before: healthy until a probe says otherwise. Its address is
    /// known if its URL has one instead of a name.
    pub fn new(plan: Backend, tls: Option<MemberTls>) -> Member {
        let addresses = match &plan.endpoint {
            Endpoint::Tcp { host, port } => {
                let literal = host.parse::<IpAddr>().ok();
                literal.map(|ip| SocketAddr::new(ip, *port)).into_iter().collect()
            }
            Endpoint::Unix(_) => Vec::new(),
        };
        Member::with(plan, tls, Arc::new(Vitals::new(addresses)))
    }

    /// The same backend under other settings.
    pub fn renewed(&self, plan: Backend, tls: Option<MemberTls>) -> Member {
        Member::with(plan, tls, Arc::clone(&self.vitals))
    }

    fn with(plan: Backend, tls: Option<MemberTls>, vitals: Arc<Vitals>) -> Member {
        let (name, url) = (plan.name.as_str().into(), plan.url.as_str().into());
        Member { plan, name, url, tls, vitals }
    }

    /// True when somebody has this backend beside the caller, who has it once: in this form, or in
    /// that of another view, or with a request in flight.
    pub fn is_used_beside(this: &Arc<Member>) -> bool {
        let is_held = Arc::strong_count(this) > 1 || Arc::strong_count(&this.vitals) > 1;
        is_held || this.inflight() > 0
    }

    /// True when `plan` is for this backend: by its name, at the same place, with the same TLS.
    pub fn is_for(&self, plan: &Backend) -> bool {
        let ours = &self.plan;
        ours.name == plan.name && ours.endpoint == plan.endpoint && ours.tls == plan.tls
    }
}

impl Deref for Member {
    type Target = Vitals;

    fn deref(&self) -> &Vitals {
        &self.vitals
    }
}

impl Vitals {
    fn new(addresses: Vec<SocketAddr>) -> Vitals {
        let born = Instant::now();
        Vitals {
            id: MemberId::next(),
            born,
            passes_probes: AtomicBool::new(true),
            repute: AtomicU64::new(Repute::default().pack()),
            alive: AtomicU32::new(0),
            departures: AtomicU32::new(0),
            inflight: AtomicU32::new(0),
            unasked: AtomicU64::new(0),
            usage_wishes: KnownWishes::new(born),
            addresses: ArcSwap::from_pointee(addresses),
        }
    }

    /// Its number.
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// Neither do probes speak against it, nor do the requests that were sent there.
    pub fn is_healthy(&self) -> bool {
        self.passes_probes() && !self.repute().is_out()
    }

    /// What the last probes say.
    pub fn passes_probes(&self) -> bool {
        self.passes_probes.load(Ordering::Relaxed)
    }

    /// Set by the health prober alone. What comes back may be another engine than what went.
    pub fn set_passes_probes(&self, passes: bool) {
        if self.passes_probes.swap(passes, Ordering::Relaxed) != passes {
            self.usage_wishes.forget();
            if !passes {
                self.departures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Times that probes or requests took it out, or kept it out. Requests that wait there for a
    /// first byte are called off when this grows.
    pub fn departures(&self) -> u32 {
        self.departures.load(Ordering::Relaxed)
    }

    /// Takes in what a request found out. `Some` when that changed something.
    pub fn hear(&self, evidence: Evidence) -> Option<Change> {
        // Nearly always: a good answer of a backend of which nothing bad is known. No clock is read
        // and no shared memory is written for it.
        if evidence == Evidence::Good && self.repute().is_spotless() {
            return None;
        }
        let alive = Some(Tenths(self.alive.load(Ordering::Relaxed))).filter(|at| at.0 > 0);
        self.change(|repute, now, jitter| repute.hear(evidence, now, alive, jitter))
    }

    /// Whether a request may try an ejected backend. True for one at a time, when its pause is
    /// over, and for all when it is not ejected.
    pub fn admit(&self) -> bool {
        let mut may = false;
        self.change(|repute, now, jitter| {
            let (next, admitted, change) = repute.admit(now, jitter);
            may = admitted;
            (next, change)
        });
        may
    }

    /// A request ended before it could tell anything of the backend.
    pub fn untried(&self) {
        if self.repute().is_out() {
            self.change(|repute, now, _| (repute.untried(now), None));
        }
    }

    /// A stream of it is seen to go on.
    pub fn note_alive(&self) {
        self.alive.store(self.now().0.max(1), Ordering::Relaxed);
    }

    fn now(&self) -> Tenths {
        Tenths::of(self.born.elapsed())
    }

    fn repute(&self) -> Repute {
        Repute::unpack(self.repute.load(Ordering::Relaxed))
    }

    fn change(
        &self,
        mut step: impl FnMut(Repute, Tenths, u32) -> (Repute, Option<Change>),
    ) -> Option<Change> {
        let elapsed = self.born.elapsed();
        let (now, jitter) = (Tenths::of(elapsed), elapsed.subsec_nanos());
        let mut word = self.repute.load(Ordering::Relaxed);
        let change = loop {
            let (next, change) = step(Repute::unpack(word), now, jitter);
            let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.repute.compare_exchange_weak(word, next.pack(), set, read) {
                Ok(_) => break change,
                Err(newer) => word = newer,
            }
        };
        match change {
            Some(Change::Ejected(_) | Change::StaysOut(_)) => {
                self.departures.fetch_add(1, Ordering::Relaxed);
            }
            Some(Change::Back) => self.usage_wishes.forget(),
            None => {}
        }
        change
    }

    /// Requests that a worker sent here and has not settled.
    pub fn inflight(&self) -> u32 {
        self.inflight.load(Ordering::Relaxed)
    }

    /// Counts a request in; the guard counts it out when dropped.
    pub fn enter(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request out. Called by the guard that called [`Vitals::enter`].
    pub fn leave(&self) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
    }

    /// An idle connection was found with bytes that nobody had asked for.
    pub fn note_unasked(&self) {
        self.unasked.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that happened.
    pub fn unasked(&self) -> u64 {
        self.unasked.load(Ordering::Relaxed)
    }

    /// What is known, for each model, of its answer to the wish for the usage of a stream.
    pub fn usage_wishes(&self) -> &KnownWishes {
        &self.usage_wishes
    }

    /// The addresses last resolved; empty when the name never resolved, and for Unix sockets.
    pub fn addresses(&self) -> arc_swap::Guard<Arc<Vec<SocketAddr>>> {
        self.addresses.load()
    }

    /// Set by the resolver alone. It keeps the last good set on errors.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        self.addresses.store(Arc::new(addresses));
    }
}
