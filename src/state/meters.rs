//! What one worker has counted. Plain numbers: the worker owns them, a scrape gets a copy, and
//! copies of all workers are summed up by [`Meters::absorb`].

use super::hash::QuickMap;
use super::member::MemberId;
use super::token_sizes::{TokenUse, UseSeries};
use hdrhistogram::Histogram;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longest time that a histogram tells apart: one hour, in microseconds.
const TIME_MAX_US: u64 = 3_600_000_000;
/// Two significant digits: within 1 %, 13 KB a histogram.
const TIME_DIGITS: u8 = 2;

/// Whose it is; `None` when a request never got to a backend.
pub type Whose = Option<MemberId>;

/// A series of forwarded or refused requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// Label of the path, from a fixed set.
    pub path: &'static str,
    /// The client asked for a stream.
    pub stream: bool,
    /// Which backend.
    pub backend: Whose,
}

/// Counters and times of one [`Series`].
#[derive(Clone, Default)]
pub struct Requests {
    /// Answers by status (499: the client left before one).
    pub by_status: Vec<(u16, u64)>,
    /// Request head complete to last byte.
    pub latency: Times,
}

/// In which phase a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// While its request was being read.
    Request,
    /// Before the first byte of an answer.
    Waiting,
    /// Inside the answer.
    Relay,
}

impl Phase {
    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Request => "request",
            Phase::Waiting => "waiting",
            Phase::Relay => "relay",
        }
    }
}

/// Whether a worker remembered what a provider said of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    /// That it knows the key.
    Hit,
    /// That it does not, or that the key may not be used.
    NegativeHit,
    /// Nothing.
    Miss,
}

impl CacheResult {
    /// The labels, in the order of the results.
    pub const LABELS: [&'static str; 3] = ["hit", "negative_hit", "miss"];
}

/// What may come of a packed answer: its usage, none in it, or a reason why nothing is known of it.
pub const UNPACKED: [&str; 7] = [
    "found",
    "missing",
    "packed_unknown",
    "packed_too_large",
    "packed_dropped",
    "packed_broken",
    "packed_late",
];

/// What ends the holding of a stream's beginning (`routing.hold_preamble`): its model spoke, the
/// time was over, it told of an error, it broke.
pub const HELD: [&str; 4] = ["spoke", "late", "error", "broke"];

/// Why a TLS handshake with a client failed.
pub const HANDSHAKE_FAULTS: [&str; 7] =
    ["closed", "timeout", "too_many", "not_tls", "alert", "certificate", "other"];

/// How the waiting of a request in a queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueEnd {
    /// There was room at a backend.
    Served,
    /// `routing.queue.timeout` was over.
    TimedOut,
    /// As many waited as may, and one who had sent less came.
    Displaced,
    /// Its client left.
    Left,
    /// It did not begin: as many waited as may.
    NoRoom,
    /// It did not begin: it was likely to take too long.
    Hopeless,
}

/// The labels of all [`QueueEnd`]s, in their order.
pub const QUEUE_ENDS: [&str; 6] =
    ["served", "timed_out", "displaced", "left", "no_room", "hopeless"];

/// Requests that waited in queues.
#[derive(Clone, Default)]
pub struct Queued {
    /// By how it ended: one of [`QUEUE_ENDS`].
    pub ends: [u64; QUEUE_ENDS.len()],
    /// How long those waited that did.
    pub waits: Times,
}

impl Queued {
    /// The waiting of one has ended, so long after it began; `None`: it did not begin.
    pub fn count(&mut self, end: QueueEnd, waited: Option<Duration>) {
        if let Some(count) = self.ends.get_mut(end as usize) {
            *count += 1;
        }
        waited.into_iter().for_each(|time| self.waits.record(time));
    }
}

/// Why there was another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RetryReason {
    /// A fault, or something else that has a name.
    Named(&'static str),
    /// The status of an answer.
    Status(u16),
}

impl RetryReason {
    /// The label in the metrics.
    pub fn label(self) -> String {
        match self {
            RetryReason::Named(name) => name.to_owned(),
            RetryReason::Status(status) => format!("status_{status}"),
        }
    }
}

/// All meters of a worker.
#[derive(Clone, Default)]
pub struct Meters {
    /// By path, stream and backend.
    pub requests: QuickMap<Series, Requests>,
    /// Time to the first token of streams, by model and backend.
    pub ttft: QuickMap<TokenSeries, Times>,
    /// Between two reads of a streamed answer that carried events, by backend.
    pub inter_token: QuickMap<Whose, Times>,
    /// Time to establish connections to backends.
    pub connect: Times,
    /// Our own refusals, by code.
    pub rejected: QuickMap<&'static str, u64>,
    /// Faults by backend and code, client's included.
    pub faults: QuickMap<(Whose, &'static str), u64>,
    /// Clients that left, by phase.
    pub client_aborts: QuickMap<Phase, u64>,
    /// Tries after the first, by what the one before came to.
    pub retries: QuickMap<RetryReason, u64>,
    /// Requests that ended at another backend than the first that was picked.
    pub fallbacks: u64,
    /// Requests that went past the first tier of backends that could serve them.
    pub spilled: u64,
    /// Look-ups of keys at providers that are asked, by whether the worker remembered the answer.
    pub key_cache: [u64; 3],
    /// Tries that each backend got.
    pub picked: QuickMap<MemberId, u64>,
    /// Streams whose beginning was held back, by what ended that: one of [`HELD`].
    pub held: [u64; HELD.len()],
    /// What came of what is known of requests: of the prefixes of their prompts, of their sessions.
    pub affinity: Affinity,
    /// Requests whose engine had lost the prefix for which they were sent there.
    pub prefixes_lost: u64,
    /// Requests that waited for room at a backend, or were refused to.
    pub queued: Queued,
    /// Upstream connections: fresh, reused.
    pub upstream: [u64; 2],
    /// Tokens by the engines' own counts: prompt, completion.
    pub tokens: QuickMap<TokenSeries, Tokens>,
    /// The same by request. It has the backends of `tokens`.
    pub token_use: QuickMap<UseSeries, TokenUse>,
    /// Those of backends that are gone: the sum over all of them does not fall.
    pub tokens_of_gone: Tokens,
    /// Counts that were refused, and counts that were kept although they are strange, by what is
    /// wrong with them.
    pub odd_counts: QuickMap<&'static str, u64>,
    /// Answers of metered paths that carried no usage.
    pub usage_missing: u64,
    /// Packed answers, by what came of unpacking them: one of [`UNPACKED`].
    pub unpacked: QuickMap<&'static str, u64>,
    /// Streams with an event that was too long to tell whether the client should get it.
    pub events_unjudged: u64,
    /// Comments that were put into silent streams.
    pub keep_alives: u64,
    /// Streams whose head went to the client before an engine's came.
    pub early_heads: u64,
    /// Connections closed for idling: clients', kept ones of backends.
    pub idle_closed: [u64; 2],
    /// Connections closed to make room: silent ones, idle ones, those with half a head, those of
    /// engines whose clients have left.
    pub crowded_closed: [u64; 4],
    /// Connections accepted, refused at the limit.
    pub connections: [u64; 2],
    /// TLS handshakes with clients that went well: with TLS 1.2, with 1.3.
    pub handshakes: [u64; 2],
    /// And those that failed, by why: one of [`HANDSHAKE_FAULTS`].
    pub handshakes_failed: [u64; HANDSHAKE_FAULTS.len()],
    /// Accepting paused because descriptors or memory ran out.
    pub accept_pauses: u64,
    /// Panics that were confined to one connection.
    pub panics: u64,
    /// Reads of large answers that did without for want of one: a large buffer, a pipe.
    pub large_denied: [u64; 2],
    /// Request bodies that had to wait for their turn: to be read, to be unpacked.
    pub bodies_waited: [u64; 2],
    /// Gauges at the time of the copy.
    pub gauges: Gauges,
}

/// What came of two ways to find the backend where a request is better off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Affinity {
    /// By what backends have read before.
    pub prefix: Ways,
    /// By the name of a session.
    pub session: Ways,
}

/// Where requests went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ways {
    /// There.
    pub hits: u64,
    /// Anywhere: nobody is better than another, or the request does not say.
    pub misses: u64,
    /// Elsewhere: that one could not take it, or has enough to do.
    pub spilled: u64,
}

impl Ways {
    fn add(&mut self, other: Ways) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.spilled += other.spilled;
    }
}

/// Whose tokens or times: a model that the plan names, or another, and a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenSeries {
    /// Index of the model in [`super::board::View::models`].
    pub model: Option<u32>,
    /// The backend that counted them.
    pub backend: Whose,
}

/// Tokens as engines counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of prompts.
    pub prompt: u64,
    /// Of completions.
    pub completion: u64,
    /// Of prompts, found in the engine's cache.
    pub cached: u64,
    /// Of completions, spent on reasoning.
    pub reasoning: u64,
}

impl Tokens {
    /// Adds others.
    pub fn add(&mut self, more: Tokens) {
        self.prompt += more.prompt;
        self.completion += more.completion;
        self.cached += more.cached;
        self.reasoning += more.reasoning;
    }
}

/// Values that go up and down.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Client connections that are open.
    pub connections_open: u64,
    /// Answers that are not done with though their clients are.
    pub drains: u64,
    /// Requests between head and last byte.
    pub requests_active: u64,
    /// Pooled buffers on loan.
    pub buffers_in_use: u64,
    /// Pooled buffers kept.
    pub buffers_idle: u64,
    /// Idle connections to backends.
    pub upstream_idle: u64,
}

impl Meters {
    /// The numbers of a backend that is gone become those of another one, or nobody's: then they
    /// are forgotten, but for the sum of tokens.
    pub fn hand_over(&mut self, from: MemberId, to: Whose) {
        let is_old = |whose: Whose| whose == Some(from);
        let taken: Vec<_> = self.requests.extract_if(|series, _| is_old(series.backend)).collect();
        let ttft: Vec<_> = self.ttft.extract_if(|series, _| is_old(series.backend)).collect();
        let gaps: Vec<_> = self.inter_token.extract_if(|backend, _| is_old(*backend)).collect();
        let faults: Vec<_> = self.faults.extract_if(|(backend, _), _| is_old(*backend)).collect();
        let tokens: Vec<_> = self.tokens.extract_if(|series, _| is_old(series.backend)).collect();
        let sizes: Vec<_> =
            self.token_use.extract_if(|series, _| is_old(series.tokens.backend)).collect();
        let picked = self.picked.remove(&from).unwrap_or_default();
        let Some(heir) = to else {
            return tokens.iter().for_each(|(_, tokens)| self.tokens_of_gone.add(*tokens));
        };
        *self.picked.entry(heir).or_default() += picked;
        for (series, requests) in taken {
            let ours = self.requests.entry(Series { backend: to, ..series }).or_default();
            requests.by_status.iter().for_each(|(status, n)| ours.count(*status, *n));
            ours.latency.absorb(&requests.latency);
        }
        for (series, times) in ttft {
            let series = TokenSeries { backend: to, ..series };
            self.ttft.entry(series).or_default().absorb(&times);
        }
        for (_, times) in gaps {
            self.inter_token.entry(to).or_default().absorb(&times);
        }
        for ((_, code), n) in faults {
            *self.faults.entry((to, code)).or_default() += n;
        }
        for (series, tokens) in tokens {
            self.tokens.entry(TokenSeries { backend: to, ..series }).or_default().add(tokens);
        }
        for (series, sizes) in sizes {
            let tokens = TokenSeries { backend: to, ..series.tokens };
            let series = UseSeries { tokens, ..series };
            self.token_use.entry(series).or_default().absorb(&sizes);
        }
    }

    /// Every backend that something was counted of.
    pub fn members(&self) -> BTreeSet<MemberId> {
        let requests = self.requests.keys().map(|series| series.backend);
        let times = self.ttft.keys().map(|series| series.backend);
        let tokens = self.tokens.keys().map(|series| series.backend);
        let faults = self.faults.keys().map(|(backend, _)| *backend);
        let gaps = self.inter_token.keys().copied();
        let picked = self.picked.keys().copied();
        let counted = requests.chain(times).chain(tokens).chain(faults).chain(gaps).flatten();
        counted.chain(picked).collect()
    }

    /// Adds another worker's numbers.
    pub fn absorb(&mut self, other: &Meters) {
        for (series, theirs) in &other.requests {
            let ours = self.requests.entry(*series).or_default();
            theirs.by_status.iter().for_each(|(status, n)| ours.count(*status, *n));
            ours.latency.absorb(&theirs.latency);
        }
        for (series, times) in &other.ttft {
            self.ttft.entry(*series).or_default().absorb(times);
        }
        for (backend, times) in &other.inter_token {
            self.inter_token.entry(*backend).or_default().absorb(times);
        }
        self.connect.absorb(&other.connect);
        sum(&mut self.rejected, &other.rejected);
        sum(&mut self.faults, &other.faults);
        sum(&mut self.client_aborts, &other.client_aborts);
        sum(&mut self.retries, &other.retries);
        self.fallbacks += other.fallbacks;
        self.spilled += other.spilled;
        for (ours, theirs) in self.key_cache.iter_mut().zip(other.key_cache) {
            *ours += theirs;
        }
        sum(&mut self.picked, &other.picked);
        for (ours, theirs) in self.held.iter_mut().zip(other.held) {
            *ours += theirs;
        }
        for (ours, theirs) in self.queued.ends.iter_mut().zip(other.queued.ends) {
            *ours += theirs;
        }
        self.queued.waits.absorb(&other.queued.waits);
        self.affinity.prefix.add(other.affinity.prefix);
        self.affinity.session.add(other.affinity.session);
        self.prefixes_lost += other.prefixes_lost;
        for i in 0..2 {
            self.upstream[i] += other.upstream[i];
            self.connections[i] += other.connections[i];
            self.idle_closed[i] += other.idle_closed[i];
            self.large_denied[i] += other.large_denied[i];
            self.bodies_waited[i] += other.bodies_waited[i];
        }
        for (ours, theirs) in self.crowded_closed.iter_mut().zip(other.crowded_closed) {
            *ours += theirs;
        }
        self.tokens_of_gone.add(other.tokens_of_gone);
        for (series, theirs) in &other.tokens {
            self.tokens.entry(*series).or_default().add(*theirs);
        }
        for (series, theirs) in &other.token_use {
            self.token_use.entry(*series).or_default().absorb(theirs);
        }
        sum(&mut self.odd_counts, &other.odd_counts);
        self.usage_missing += other.usage_missing;
        sum(&mut self.unpacked, &other.unpacked);
        self.events_unjudged += other.events_unjudged;
        self.keep_alives += other.keep_alives;
        self.early_heads += other.early_heads;
        let sum = |(ours, theirs): (&mut u64, &u64)| *ours += theirs;
        self.handshakes.iter_mut().zip(&other.handshakes).for_each(sum);
        self.handshakes_failed.iter_mut().zip(&other.handshakes_failed).for_each(sum);
        self.accept_pauses += other.accept_pauses;
        self.panics += other.panics;
        let (ours, theirs) = (&mut self.gauges, &other.gauges);
        ours.connections_open += theirs.connections_open;
        ours.drains += theirs.drains;
        ours.requests_active += theirs.requests_active;
        ours.buffers_in_use += theirs.buffers_in_use;
        ours.buffers_idle += theirs.buffers_idle;
        ours.upstream_idle += theirs.upstream_idle;
    }
}

fn sum<K: Copy + Eq + std::hash::Hash>(ours: &mut QuickMap<K, u64>, theirs: &QuickMap<K, u64>) {
    for (key, n) in theirs {
        *ours.entry(*key).or_default() += n;
    }
}

impl Requests {
    /// Counts `n` answers of a status.
    pub fn count(&mut self, status: u16, n: u64) {
        match self.by_status.iter_mut().find(|(s, _)| *s == status) {
            Some((_, count)) => *count += n,
            None => self.by_status.push((status, n)),
        }
    }
}

/// A histogram of durations, made when the first one is recorded.
#[derive(Clone, Default)]
pub struct Times(Option<Box<Inner>>);

#[derive(Clone)]
struct Inner {
    histogram: Histogram<u32>,
    sum_us: u64,
}

impl Times {
    /// Records one duration (at most an hour counts).
    pub fn record(&mut self, time: Duration) {
        // Not `as_micros`: its 128 bits are not needed.
        let us = time.as_secs().saturating_mul(1_000_000);
        let us = us.saturating_add(time.subsec_micros().into()).clamp(1, TIME_MAX_US);
        if self.0.is_none() {
            // The bounds are constants that the crate accepts; were they not, nothing is recorded.
            let made = Histogram::new_with_bounds(1, TIME_MAX_US, TIME_DIGITS);
            self.0 = made.ok().map(|histogram| Box::new(Inner { histogram, sum_us: 0 }));
        }
        if let Some(inner) = self.0.as_mut() {
            inner.histogram.saturating_record(us);
            inner.sum_us += us;
        }
    }

    /// Adds another histogram's counts.
    pub fn absorb(&mut self, other: &Times) {
        match (self.0.as_mut(), other.0.as_ref()) {
            (Some(ours), Some(theirs)) => {
                // Both have the same bounds, so nothing can be out of range.
                let _ = ours.histogram.add(&theirs.histogram);
                ours.sum_us += theirs.sum_us;
            }
            (None, Some(theirs)) => self.0 = Some(theirs.clone()),
            _ => {}
        }
    }

    /// Number of durations recorded.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.histogram.len())
    }

    /// Sum of all durations in milliseconds.
    pub fn sum_ms(&self) -> f64 {
        self.0.as_ref().map_or(0.0, |inner| inner.sum_us as f64 / 1000.0)
    }

    /// What half of the durations do not exceed, in milliseconds (within the histogram's 1 %).
    pub fn median_ms(&self) -> Option<f64> {
        let inner = self.0.as_ref().filter(|inner| !inner.histogram.is_empty())?;
        Some(inner.histogram.value_at_quantile(0.5) as f64 / 1000.0)
    }

    /// Durations of at most so many milliseconds (within the histogram's 1 %).
    pub fn count_up_to_ms(&self, bound_ms: f64) -> u64 {
        let bound_us = (bound_ms * 1000.0) as u64;
        self.0.as_ref().map_or(0, |inner| inner.histogram.count_between(0, bound_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Backend;
    use crate::state::member::Member;

    fn id() -> MemberId {
        Member::new(Backend::sample("engine"), None).id()
    }

    /// Catches: a counter that goes backwards because its backend was given another address, and
    /// one that is kept for ever though its backend is gone.
    #[test]
    fn what_was_counted_of_a_backend_goes_to_its_heir_or_goes() {
        let (old, new) = (id(), id());
        let counted = |whose: MemberId| {
            let mut meters = Meters::default();
            let series = Series { path: "/v1/models", stream: false, backend: Some(whose) };
            meters.requests.entry(series).or_default().count(200, 2);
            meters.faults.insert((Some(whose), "backend_closed"), 3);
            let series = TokenSeries { model: None, backend: Some(whose) };
            meters.tokens.insert(series, Tokens { prompt: 5, ..Tokens::default() });
            let series_of_use = UseSeries { path: "/v1/models", tokens: series };
            meters.token_use.entry(series_of_use).or_default().record(5, 1);
            meters.ttft.entry(series).or_default().record(Duration::from_millis(7));
            let gaps = meters.inter_token.entry(Some(whose)).or_default();
            gaps.record(Duration::from_millis(1));
            meters.picked.insert(whose, 4);
            meters
        };
        let mut meters = counted(old);
        meters.absorb(&counted(new));
        meters.hand_over(old, Some(new));
        assert_eq!(meters.members().into_iter().collect::<Vec<_>>(), [new]);
        let requests: Vec<_> = meters.requests.values().collect();
        assert_eq!(requests[0].by_status, [(200, 4)]);
        assert_eq!(meters.faults[&(Some(new), "backend_closed")], 6);
        let series = TokenSeries { model: None, backend: Some(new) };
        assert_eq!((meters.tokens[&series].prompt, meters.ttft[&series].count()), (10, 2));
        let series_of_use = UseSeries { path: "/v1/models", tokens: series };
        assert_eq!(meters.token_use[&series_of_use].input.sum, 10);
        assert_eq!(meters.inter_token[&Some(new)].count(), 2);
        assert_eq!(meters.picked[&new], 8);
        meters.hand_over(new, None);
        assert!(meters.members().is_empty() && meters.token_use.is_empty());
        let mut sum = Meters::default();
        sum.absorb(&meters);
        assert_eq!(sum.tokens_of_gone.prompt, 10, "a sum over all does not fall");
    }

    #[test]
    fn two_workers_sum_up() {
        let id = id();
        let series = Series { path: "/v1/chat/completions", stream: true, backend: Some(id) };
        let mut a = Meters::default();
        a.requests.entry(series).or_default().count(200, 2);
        a.requests.entry(series).or_default().latency.record(Duration::from_millis(40));
        a.rejected.insert("body_too_large", 1);
        let mut b = a.clone();
        b.requests.entry(series).or_default().count(502, 1);
        let whose = TokenSeries { model: None, backend: Some(id) };
        let tokens = Tokens { prompt: 3, completion: 4, cached: 1, reasoning: 0 };
        a.tokens.insert(whose, tokens);
        b.tokens.insert(whose, tokens);
        a.absorb(&b);
        let sum = &a.requests[&series];
        assert_eq!(sum.by_status, vec![(200, 4), (502, 1)]);
        assert_eq!((sum.latency.count(), sum.latency.count_up_to_ms(50.0)), (2, 2));
        assert_eq!(sum.latency.count_up_to_ms(10.0), 0);
        assert!((sum.latency.sum_ms() - 80.0).abs() < 0.1);
        assert_eq!(a.rejected["body_too_large"], 2);
        let doubled = Tokens { prompt: 6, completion: 8, cached: 2, reasoning: 0 };
        assert_eq!(a.tokens[&whose], doubled);
    }
}
