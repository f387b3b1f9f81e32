//! What became of requests: counts, times, refusals, faults.

use super::{labelled, model_label, one, Facts, Labels, Page, MILLISECOND, SECOND};
use crate::state::meters::CacheResult;
use crate::state::meters::{Affinity, HELD, QUEUE_ENDS};
use std::collections::BTreeMap;
use std::fmt;

impl Facts {
    pub(super) fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut counts = Vec::new();
        let mut latencies = Vec::new();
        let sorted: BTreeMap<_, _> = self.meters.requests.iter().collect();
        for (series, requests) in sorted {
            let labels = vec![
                ("path", series.path.to_owned()),
                ("stream", series.stream.to_string()),
                ("backend", self.backend(series.backend)),
            ];
            for (status, count) in &requests.by_status {
                let mut labels = labels.clone();
                labels.push(("status", status.to_string()));
                counts.push((labels, *count));
            }
            if requests.latency.count() > 0 {
                latencies.push((labels, &requests.latency));
            }
        }
        page.counter("llmproxy_requests", "Requests that were settled.", counts)?;
        let help = "From a request head to the last byte of its answer, milliseconds.";
        page.histogram("llmproxy_latency_ms", help, (&self.plan_bounds(), MILLISECOND), latencies)
    }

    fn plan_bounds(&self) -> Vec<f64> {
        let bounds = self.view.plan.metrics.as_ref().map(|m| m.latency_buckets_ms.as_slice());
        bounds.unwrap_or_default().iter().map(|ms| *ms as f64).collect()
    }

    pub(super) fn times(&self, page: &mut Page<'_>) -> fmt::Result {
        let models = self.view.labelled_models();
        let sorted: BTreeMap<_, _> = self.meters.ttft.iter().collect();
        let ttft = sorted.into_iter().map(|(series, times)| {
            let labels = vec![
                ("backend", self.backend(series.backend)),
                ("model", model_label(models, series.model)),
            ];
            (labels, times)
        });
        let help = "From a request head to the first token of a stream, milliseconds.";
        let bounds = (self.plan_bounds(), MILLISECOND);
        page.histogram("llmproxy_ttft_ms", help, (&bounds.0, bounds.1), ttft.collect())?;
        // Names that are ours follow Prometheus: seconds.
        const GAPS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0];
        let help = "Between two reads of a streamed answer.";
        let sorted: BTreeMap<_, _> = self.meters.inter_token.iter().collect();
        let gaps = sorted
            .into_iter()
            .map(|(backend, times)| (vec![("backend", self.backend(*backend))], times));
        page.histogram("llmproxy_inter_token_seconds", help, (&GAPS, SECOND), gaps.collect())?;
        const CONNECTS: [f64; 9] = [0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0];
        let help = "Time to establish connections to backends.";
        let connects = vec![(Labels::new(), &self.meters.connect)];
        page.histogram("llmproxy_upstream_connect_seconds", help, (&CONNECTS, SECOND), connects)
    }

    fn affinity(&self, page: &mut Page<'_>) -> fmt::Result {
        let Affinity { prefix, session } = self.meters.affinity;
        let counts =
            [("prefix", prefix), ("session", session)].into_iter().flat_map(|(kind, n)| {
                let results = [("hit", n.hits), ("miss", n.misses), ("spilled", n.spilled)];
                results.map(|(result, n)| {
                    (vec![("kind", kind.to_owned()), ("result", result.to_owned())], n)
                })
            });
        let help = "Requests by whether they went to the backend that has read the beginning of \
                    their prompt, or that their session is for.";
        page.counter("llmproxy_affinity", help, counts.collect())?;
        let help = "Requests whose engine had lost the prefix for which they were sent there.";
        page.counter("llmproxy_affinity_lost", help, one(self.meters.prefixes_lost))?;
        let evicted = self.view.prefixes.as_ref().map_or(0, |table| table.evicted());
        let help = "Prefixes that made room for others in the table before their time.";
        page.counter("llmproxy_affinity_evicted", help, one(evicted))
    }

    fn queue(&self, page: &mut Page<'_>) -> fmt::Result {
        let waiting = self.view.queues().map_or(0, |queues| queues.waiting());
        let help = "Requests that wait for room at a backend (routing.queue).";
        page.gauge("llmproxy_queue_waiting", help, one(u64::from(waiting)))?;
        let queued = &self.meters.queued;
        let help = "Requests that waited for room at a backend, or were not let wait, by what \
                    ended that.";
        let ends = labelled("result", QUEUE_ENDS.into_iter().map(str::to_owned).zip(queued.ends));
        page.counter("llmproxy_queue", help, ends)?;
        const WAITS: [f64; 10] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];
        let waits = vec![(Labels::new(), &queued.waits)];
        let help = "How long requests waited for room at a backend.";
        page.histogram("llmproxy_queue_wait_seconds", help, (&WAITS, SECOND), waits)
    }

    pub(super) fn endings(&self, page: &mut Page<'_>) -> fmt::Result {
        let m = &self.meters;
        let rejected = labelled("reason", m.rejected.iter().map(|(k, n)| ((*k).to_owned(), *n)));
        page.counter("llmproxy_rejected", "Requests refused by the proxy itself.", rejected)?;
        let aborts =
            labelled("phase", m.client_aborts.iter().map(|(k, n)| (k.label().to_owned(), *n)));
        page.counter("llmproxy_client_abort", "Clients that left early.", aborts)?;
        let sorted: BTreeMap<_, _> = m.faults.iter().collect();
        let faults = sorted.into_iter().map(|((backend, code), n)| {
            (vec![("backend", self.backend(*backend)), ("kind", (*code).to_owned())], *n)
        });
        page.counter("llmproxy_faults", "Tries and answers that broke.", faults.collect())?;
        let retries = labelled("reason", m.retries.iter().map(|(k, n)| (k.label(), *n)));
        page.counter("llmproxy_retries", "Tries after the first.", retries)?;
        let help = "Answers from another backend than the one picked first.";
        page.counter("llmproxy_fallback", help, one(m.fallbacks))?;
        let help = "Tries at a backend of another region, or a standby, because none of those \
                    that come before it could take the request.";
        page.counter("llmproxy_spilled", help, one(m.spilled))?;
        let help = "Look-ups of keys at providers that are asked, by whether a worker remembered \
                    what they said.";
        let kinds = CacheResult::LABELS.into_iter().map(str::to_owned).zip(m.key_cache);
        page.counter("llmproxy_auth_cache", help, labelled("result", kinds))?;
        let help = "Streams whose beginning was held back (hold_preamble), by what ended that.";
        let held = labelled("result", HELD.into_iter().map(str::to_owned).zip(m.held));
        page.counter("llmproxy_preambles_held", help, held)?;
        self.queue(page)?;
        self.affinity(page)?;
        let help = "Requests sent on fresh and on kept connections to backends.";
        let kinds = ["false", "true"].into_iter().zip(m.upstream);
        let kinds = labelled("reused", kinds.map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_upstream_connections", help, kinds)
    }
}
