//! The backends as both planes see them: what the configuration in use says of each, and how it is:
//! health and addresses (written by the control plane, read by workers), requests in flight and
//! what these say of it (written by workers). Readers never wait.

use super::engine_cache::{CacheOf, ExpectedPrefix, Fresh, Retentions};
use super::fullness::Fullness;
use super::latency::Latency;
use super::reported::Reported;
use super::repute::{Change, Evidence, Repute, Tenths};
use super::wish::KnownWishes;
use crate::base::limits::EJECTION_MAX;
use crate::base::uptime::uptime;
use crate::config::plan::{Backend, Endpoint, Engine};
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of a backend in this process. It is never given twice: what belongs to a backend that
/// was taken out of the configuration cannot be taken for another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(NonZeroU32);

impl MemberId {
    fn next() -> MemberId {
        static LAST: AtomicU32 = AtomicU32::new(0);
        // After four thousand million changes the last number would be given again and again.
        let next = |last: u32| Some(last.saturating_add(1));
        let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let number = last.unwrap_or_default().saturating_add(1);
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
    passes_probes: AtomicBool,
    /// A packed [`Repute`].
    repute: AtomicU64,
    /// When an answer of it last grew, in [`Tenths`]; 0 before that.
    alive: AtomicU32,
    departures: AtomicU32,
    losses: AtomicU32,
    /// All workers write it, and none that only reads the rest should wait for that.
    inflight: Padded,
    /// A packed [`Latency`].
    latency: AtomicU64,
    retentions: Retentions,
    /// A packed [`Fresh`].
    fresh: AtomicU64,
    /// Milliseconds that a request is here, in the mean; 0: not known.
    stay: AtomicU32,
    fullness: Fullness,
    /// When it came, or came back, in [`Tenths`]; 0: it was there from the start, or long enough.
    came: AtomicU32,
    unasked: AtomicU64,
    /// Requests that it did not serve.
    failures: AtomicU64,
    /// What probes, and requests, said of it when they last changed their mind.
    remarks: [ArcSwapOption<Remark>; 2],
    usage_wishes: KnownWishes,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// What it was found to be: its place in [`Engine::ALL`].
    engine: AtomicU8,
    reported: Reported,
    /// An administrator wants no new requests here.
    is_drained: AtomicBool,
    /// The weight that an administrator gave it; 0: that of the configuration.
    set_weight: AtomicU32,
}

/// Who says how a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// The control plane, which asks it now and then.
    Probes = 0,
    /// Those who were sent there.
    Requests = 1,
}

/// Why, and since when, a backend is as it is, for a person.
#[derive(Debug)]
pub struct Remark {
    /// When it changed.
    pub at: Tenths,
    /// What was found.
    pub why: String,
}

/// In lines of the cache of its own: two, since they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU32);

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

    /// Counts a request in, unless as many are here as may be. Whoever has counted one in counts it
    /// out when it is over. Exact, however many workers do this at the same time.
    pub fn enter(&self) -> bool {
        let (max, inflight) = (self.plan.max_concurrent, &self.vitals.inflight.0);
        if max == 0 {
            inflight.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let one_more = |now: u32| (now < max).then(|| now.saturating_add(1));
        inflight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// True when as many requests are here as may be.
    pub fn is_full(&self) -> bool {
        let max = self.plan.max_concurrent;
        max > 0 && self.inflight() >= max
    }

    /// Whether a request may try an ejected backend. True for one at a time, when its pause is
    /// over, and for all when it is not ejected. That one may take as long as any other.
    pub fn admit(&self) -> bool {
        let Backend { connect_timeout, first_byte_timeout, .. } = self.plan;
        let patience = connect_timeout.saturating_add(first_byte_timeout).max(EJECTION_MAX);
        let mut may = false;
        self.vitals.change(|repute, now, jitter| {
            let (next, admitted, change) = repute.admit(now, jitter, patience);
            may = admitted;
            (next, change)
        });
        may
    }

    /// True when nothing speaks against a request here now.
    pub fn can_take(&self) -> bool {
        self.is_healthy() && !self.is_full() && !self.is_spared() && !self.is_drained()
    }

    /// Its weight, when it has all of it.
    pub fn weight(&self) -> u32 {
        match self.vitals.set_weight.load(Ordering::Relaxed) {
            0 => self.plan.weight,
            set => set,
        }
    }

    /// Gives it another weight than that of the configuration, until it is given that back.
    pub fn set_weight(&self, weight: Option<u32>) {
        self.vitals.set_weight.store(weight.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Its weight now, in hundredths: that of the configuration, or less for as long as
    /// `slow_start` says after it came.
    pub fn weight_at(&self, now: impl FnOnce() -> Tenths) -> u64 {
        let weight = u64::from(self.weight());
        let came = self.came().0;
        if came == 0 || self.plan.slow_start.is_zero() {
            return weight * 100;
        }
        let percent = started(now().0.saturating_sub(came), Tenths::of(self.plan.slow_start).0);
        (weight * percent).max(1)
    }

    /// What it is: what the configuration says, or else what was found out; [`Engine::Auto`] while
    /// that is not known.
    pub fn engine(&self) -> Engine {
        let found = || Engine::ALL.get(usize::from(self.vitals.engine.load(Ordering::Relaxed)));
        match self.plan.engine {
            Engine::Auto => found().copied().unwrap_or(Engine::Auto),
            given => given,
        }
    }

    /// Requests that are there: ours, and beside them those of others that the engine tells of.
    pub fn load_at(&self, now: impl FnOnce() -> Tenths) -> u32 {
        let ours = self.inflight();
        ours.saturating_add(self.reported.others_beside(ours, now))
    }

    /// True when `plan` is for this backend: by its name, at the same place, with the same TLS.
    pub fn is_for(&self, plan: &Backend) -> bool {
        let ours = &self.plan;
        ours.name == plan.name && ours.endpoint == plan.endpoint && ours.tls == plan.tls
    }
}

/// The time by which backends are judged.
pub fn now() -> Tenths {
    Tenths::of(uptime())
}

/// The percentage of its weight that a backend has which came so long ago and starts for `slow`,
/// both in tenths of a second: it grows evenly from 10 to 100.
fn started(age: u32, slow: u32) -> u64 {
    let grown = u64::from(age) * 90 / u64::from(slow.max(1));
    (10 + grown).min(100)
}

impl Deref for Member {
    type Target = Vitals;

    fn deref(&self) -> &Vitals {
        &self.vitals
    }
}

impl Vitals {
    fn new(addresses: Vec<SocketAddr>) -> Vitals {
        Vitals {
            id: MemberId::next(),
            passes_probes: AtomicBool::new(true),
            repute: AtomicU64::new(Repute::default().pack()),
            alive: AtomicU32::new(0),
            departures: AtomicU32::new(0),
            losses: AtomicU32::new(0),
            inflight: Padded::default(),
            latency: AtomicU64::new(Latency::default().pack()),
            retentions: Retentions::default(),
            fresh: AtomicU64::new(Fresh::default().pack()),
            stay: AtomicU32::new(0),
            fullness: Fullness::default(),
            came: AtomicU32::new(0),
            unasked: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            remarks: Default::default(),
            usage_wishes: KnownWishes::new(Instant::now()),
            addresses: ArcSwap::from_pointee(addresses),
            engine: AtomicU8::new(0),
            reported: Reported::default(),
            is_drained: AtomicBool::new(false),
            set_weight: AtomicU32::new(0),
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
            match passes {
                true => {
                    self.note_coming();
                    // Whatever requests found before: it may be another process by now.
                    if self.repute().is_out() {
                        self.change(|repute, now, _| (repute.due(now), None));
                    }
                }
                false => {
                    self.departures.fetch_add(1, Ordering::Relaxed);
                    self.losses.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Times that probes or requests took it out, or kept it out.
    pub fn departures(&self) -> u32 {
        self.departures.load(Ordering::Relaxed)
    }

    /// Times that it was found as good as dead: requests that wait there for a first byte are
    /// called off when this grows. One that is ejected for what it answers is not: it may be at
    /// work for them.
    pub fn losses(&self) -> u32 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Takes in what a request found out. `Some` when that changed something.
    pub fn hear(&self, evidence: Evidence) -> Option<Change> {
        // Nearly always: a good answer of a backend of which nothing bad is known. No clock is read
        // and no shared memory is written for it.
        let is_good = matches!(evidence, Evidence::Good | Evidence::GoodInside(_));
        if is_good && self.repute().is_spotless() {
            return None;
        }
        let alive = Some(Tenths(self.alive.load(Ordering::Relaxed))).filter(|at| at.0 > 0);
        let change = self.change(|repute, now, jitter| repute.hear(evidence, now, alive, jitter));
        let is_out = matches!(change, Some(Change::Ejected(_) | Change::StaysOut(_)));
        if is_out && evidence.is_of_death() {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
        change
    }

    /// Takes in a good answer to a request for which it was picked so long ago.
    pub fn hear_good(&self, age: impl FnOnce() -> Duration) -> Option<Change> {
        if self.repute().is_spotless() {
            return None;
        }
        self.hear(Evidence::GoodSince(Tenths::of(uptime().saturating_sub(age()))))
    }

    /// An administrator wants no new requests here, however it is. Those that it has end.
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Sends no new requests here, or sends some again.
    pub fn set_drained(&self, drained: bool) {
        if self.is_drained.swap(drained, Ordering::Relaxed) && !drained {
            self.note_coming();
        }
    }

    /// A request ended before it could tell anything of the backend.
    pub fn untried(&self) {
        if self.repute().is_out() {
            self.change(|repute, now, _| (repute.untried(now), None));
        }
    }

    /// A stream of it is seen to go on.
    pub fn note_alive(&self) {
        self.alive.store(now().0.max(1), Ordering::Relaxed);
    }

    /// Why a witness has changed its mind. Rare: it allocates.
    pub fn remark(&self, witness: Witness, why: String) {
        let [probes, requests] = &self.remarks;
        let ours = if witness == Witness::Probes { probes } else { requests };
        ours.store(Some(Arc::new(Remark { at: now(), why })));
    }

    /// What was last said so; `None`: it is as it was from the start.
    pub fn last_remark(&self, witness: Witness) -> Option<Arc<Remark>> {
        let [probes, requests] = &self.remarks;
        let ours = if witness == Witness::Probes { probes } else { requests };
        ours.load_full()
    }

    /// How it stands with those who were sent there.
    pub fn repute(&self) -> Repute {
        Repute::unpack(self.repute.load(Ordering::Relaxed))
    }

    fn change(
        &self,
        mut step: impl FnMut(Repute, Tenths, u32) -> (Repute, Option<Change>),
    ) -> Option<Change> {
        let elapsed = uptime();
        let (now, jitter) = (Tenths::of(elapsed), elapsed.subsec_nanos());
        let mut word = self.repute.load(Ordering::Relaxed);
        let change = loop {
            let (next, change) = step(Repute::unpack(word), now, jitter);
            if next.pack() == word {
                // An ejected backend is asked for with each pick: that must not cost a write.
                break change;
            }
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
            Some(Change::Back) => {
                self.usage_wishes.forget();
                self.note_coming();
            }
            None => {}
        }
        change
    }

    /// Requests of all workers that are here: from the moment in which this backend was picked to
    /// the last byte of the answer.
    pub fn inflight(&self) -> u32 {
        self.inflight.0.load(Ordering::Relaxed)
    }

    /// Counts a request out. Called by the guard that called [`Member::enter`].
    pub fn leave(&self) {
        self.inflight.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// What is known of how long its streams wait for their first token.
    pub fn latency(&self) -> Latency {
        Latency::unpack(self.latency.load(Ordering::Relaxed))
    }

    fn learn(&self, step: impl Fn(Latency) -> Latency) {
        let next = |word| Some(step(Latency::unpack(word)).pack());
        // It cannot fail: there always is a next one.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// A stream got its first token so long after this backend was picked for it.
    pub fn hear_first_token(&self, after: Duration) {
        let now = now();
        self.learn(|latency| latency.hear(after, now));
    }

    /// A request was served, or not: an engine that fails at once must not seem to be quick.
    pub fn hear_served(&self, is_served: bool) {
        match is_served {
            true if self.latency().is_spotless() => {}
            true => self.learn(Latency::hear_success),
            false => {
                let now = now();
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.learn(|latency| latency.hear_failure(now));
            }
        }
    }

    /// Requests that it did not serve: no answer, half of one, an error in it, 429 or 5xx.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether its engine is likely to have a prefix in one of its caches that was last used so
    /// long ago.
    pub fn keeps(&self, cache: CacheOf, age: Duration, now: Tenths) -> bool {
        self.retentions.of(cache).keeps(age, now)
    }

    /// Its engine is to read so many bytes that it does not have.
    pub fn note_fresh(&self, bytes: u32, now: Tenths) {
        let next = |word| Some(Fresh::unpack(word).add(bytes, now).pack());
        let _ = self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// So many of them, that were noted so long ago, it does not read after all.
    pub fn take_back_fresh(&self, bytes: u32, age: Duration, now: Tenths) {
        let next = |word| Some(Fresh::unpack(word).take_back(bytes, age, now).pack());
        let _ = self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// The bytes that it had to read lately.
    pub fn fresh(&self, now: Tenths) -> u32 {
        Fresh::unpack(self.fresh.load(Ordering::Relaxed)).bytes_at(now)
    }

    /// The engine's own count of a prompt's tokens, and of those that it found in its cache. True
    /// when it had lost what it was picked for.
    pub fn hear_cached(
        &self,
        (expected, cache): (ExpectedPrefix, impl FnOnce() -> CacheOf),
        (cached, prompt): (u64, u64),
        now: impl FnOnce() -> Tenths,
    ) -> bool {
        let Some(is_lost) = expected.is_lost(cached, prompt) else { return false };
        // Only a loss has a time.
        let now = if is_lost { now() } else { Tenths::default() };
        self.retentions.hear(cache(), expected, is_lost, now);
        is_lost
    }

    /// A request was here for so long. Two workers that say so at once may lose one of them.
    pub fn note_stay(&self, time: Duration) {
        let time = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let known = self.stay.load(Ordering::Relaxed);
        let mean = if known == 0 { time } else { known - known / 8 + time / 8 };
        self.stay.store(mean, Ordering::Relaxed);
    }

    /// How long a request is here, in the mean; nothing while that is not known.
    pub fn stay(&self) -> Duration {
        Duration::from_millis(self.stay.load(Ordering::Relaxed).into())
    }

    /// What it said of being full.
    pub fn fullness(&self) -> &Fullness {
        &self.fullness
    }

    /// True while it is left alone because it said that it is full.
    pub fn is_spared(&self) -> bool {
        self.fullness.is_spared()
    }

    /// It is new beside others, or back: with `slow_start` it gets its share little by little.
    pub fn note_coming(&self) {
        self.came.store(now().0.max(1), Ordering::Relaxed);
    }

    /// When it came, or came back; 0: it was there from the start.
    pub fn came(&self) -> Tenths {
        Tenths(self.came.load(Ordering::Relaxed))
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

    /// It was found to be this engine; [`Engine::Auto`]: that holds no more. Set by the health
    /// prober alone.
    pub fn set_engine(&self, engine: Engine) {
        let place = Engine::ALL.iter().position(|known| *known == engine).unwrap_or_default();
        self.engine.store(place as u8, Ordering::Relaxed);
    }

    /// What it says of its own load.
    pub fn reported(&self) -> &Reported {
        &self.reported
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

#[cfg(test)]
mod tests;
