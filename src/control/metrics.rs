//! The metrics page: what all workers counted, in Prometheus' text format. Names and labels of the
//! first five are those that existing dashboards use; milliseconds are theirs too.

use crate::base::clock::unix_ms;
use crate::config::plan::Plan;
use crate::state::fleet::Fleet;
use crate::state::meters::{BackendIndex, Meters, Times, Tokens};
use crate::state::wish::UsageWish;
use crate::usage::counters::{ReporterCounters, UsageCounters};
use crate::usage::outbox::Gauge;
use crate::usage::spool::state::{ReporterState, SpoolState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;

/// What the page is made of.
pub struct Facts {
    /// Sum of all workers.
    pub meters: Meters,
    /// Workers that did not answer in time.
    pub silent_workers: usize,
    /// Driver of each worker.
    pub drivers: Vec<&'static str>,
    /// The backends.
    pub fleet: Arc<Fleet>,
    /// Names of the backends, bounds of the histograms.
    pub plan: Arc<Plan>,
    /// Metering, when it is on.
    pub usage: Option<Gauge>,
    /// Events that the log dropped.
    pub log_dropped: u64,
    /// Access log lines that were dropped.
    pub access_dropped: u64,
}

/// Renders the page.
pub fn render(facts: Facts) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(facts));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    classic(&text)
}

/// The library writes OpenMetrics, in which the family of a counter is named without `_total`.
/// The classic text format, which every scraper reads, names it with.
fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        match (line.strip_prefix("# HELP "), line.strip_prefix("# TYPE ")) {
            (Some(text), _) => help = text,
            (_, Some(text)) => {
                let (name, kind) = text.split_once(' ').unwrap_or((text, ""));
                let suffix = if kind == "counter" { "_total" } else { "" };
                let text = help.strip_prefix(name).unwrap_or_default();
                out.push_str(&format!("# HELP {name}{suffix}{text}\n"));
                out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            _ if line == "# EOF" => {}
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// Units of histograms, in milliseconds.
const MILLISECOND: f64 = 1.0;
const SECOND: f64 = 1000.0;

type Labels = Vec<(&'static str, String)>;

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Facts")
    }
}

impl Collector for Facts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder };
        self.requests(&mut page)?;
        self.times(&mut page)?;
        self.endings(&mut page)?;
        self.usage(&mut page)?;
        self.fleet(&mut page)?;
        self.process(&mut page)
    }
}

impl Facts {
    fn backend(&self, index: BackendIndex) -> String {
        let backend = index.and_then(|i| self.plan.backends.get(i as usize));
        backend.map_or_else(|| "none".to_owned(), |b| b.name.clone())
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
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
        let bounds = self.plan.metrics.as_ref().map(|m| m.latency_buckets_ms.as_slice());
        bounds.unwrap_or_default().iter().map(|ms| *ms as f64).collect()
    }

    fn times(&self, page: &mut Page<'_>) -> fmt::Result {
        let sorted: BTreeMap<_, _> = self.meters.ttft.iter().collect();
        let by_backend = |(index, times): (&BackendIndex, &'_ &Times)| {
            (vec![("backend", self.backend(*index))], (*times).clone())
        };
        let ttft: Vec<_> = sorted.iter().map(|(i, t)| by_backend((i, t))).collect();
        let ttft = ttft.iter().map(|(labels, times)| (labels.clone(), times)).collect();
        let help = "From a request head to the first body byte of a streamed answer, milliseconds.";
        page.histogram("llmproxy_ttft_ms", help, (&self.plan_bounds(), MILLISECOND), ttft)?;
        // Names that are ours follow Prometheus: seconds.
        const GAPS: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0];
        let help = "Between two reads of a streamed answer.";
        let gaps = vec![(Labels::new(), &self.meters.inter_token)];
        page.histogram("llmproxy_inter_token_seconds", help, (&GAPS, SECOND), gaps)?;
        const CONNECTS: [f64; 9] = [0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0];
        let help = "Time to establish connections to backends.";
        let connects = vec![(Labels::new(), &self.meters.connect)];
        page.histogram("llmproxy_upstream_connect_seconds", help, (&CONNECTS, SECOND), connects)
    }

    fn endings(&self, page: &mut Page<'_>) -> fmt::Result {
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
        page.counter("llmproxy_retries", "Tries after the first.", one(m.retries))?;
        let help = "Answers from another backend than the one picked first.";
        page.counter("llmproxy_fallback", help, one(m.fallbacks))?;
        let help = "Requests sent on fresh and on kept connections to backends.";
        let kinds = ["false", "true"].into_iter().zip(m.upstream);
        let kinds = labelled("reused", kinds.map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_upstream_connections", help, kinds)
    }

    fn usage(&self, page: &mut Page<'_>) -> fmt::Result {
        let m = &self.meters;
        self.tokens(page)?;
        let help = "Metered answers that carried no usage.";
        let unpacked = |i: usize| {
            let counters = self.usage.as_ref().map(|usage| usage.counters());
            counters.and_then(|c| c.unpacked.get(i)).map_or(0, |n| n.load(Relaxed))
        };
        page.counter("llmproxy_usage_missing", help, one(m.usage_missing + unpacked(1)))?;
        let help = "Packed answers that were unpacked for their usage.";
        let results = [("found", unpacked(0)), ("missing", unpacked(1))];
        page.counter("llmproxy_usage_unpacked", help, named("result", &results))?;
        let help = "Streams with an event too long to tell whether it is the usage event.";
        page.counter("llmproxy_events_unjudged", help, one(m.events_unjudged))?;
        self.reporters(page)?;
        self.journal(page)?;
        let help = "Log events dropped because the queue was full.";
        page.counter("llmproxy_log_dropped", help, one(self.log_dropped))?;
        let help = "Access log lines dropped because the queue was full.";
        page.counter("llmproxy_access_log_dropped", help, one(self.access_dropped))
    }

    fn tokens(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut all = Tokens::default();
        self.meters.tokens.values().for_each(|tokens| all.add(*tokens));
        if let Some(usage) = &self.usage {
            let [prompt, completion] = &usage.counters().unpacked_tokens;
            all.prompt += prompt.load(Relaxed);
            all.completion += completion.load(Relaxed);
        }
        let kinds = [("prompt", all.prompt), ("completion", all.completion)];
        let kinds = labelled("type", kinds.into_iter().map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_usage_tokens", "Tokens as the engines counted them.", kinds)?;
        let models = self.plan.labelled_models();
        let sorted: BTreeMap<_, _> = self.meters.tokens.iter().collect();
        let series = sorted.into_iter().flat_map(|(series, tokens)| {
            let model = series.model.and_then(|model| models.get(model as usize));
            let model = model.map_or("other", String::as_str).to_owned();
            let backend = self.backend(series.backend);
            let kinds = [
                ("prompt", tokens.prompt),
                ("completion", tokens.completion),
                ("cached", tokens.cached),
                ("reasoning", tokens.reasoning),
            ];
            kinds.map(|(kind, n)| {
                let labels = [("type", kind.into()), ("model", model.clone())];
                (labels.into_iter().chain([("backend", backend.clone())]).collect(), n)
            })
        });
        let help = "Tokens as the engines counted them; models that no configuration names: other.";
        page.counter("llmproxy_tokens", help, series.collect())
    }

    /// Delivery of usage records. The seeds' two counters are summed over all reporters.
    fn reporters(&self, page: &mut Page<'_>) -> fmt::Result {
        let reporters = self.usage.as_ref().map_or(&[][..], |u| &u.counters().reporters);
        let each = |pick: fn(&ReporterCounters) -> &AtomicU64| -> Vec<(Labels, u64)> {
            let value = |r: &ReporterCounters| pick(r).load(Relaxed);
            reporters.iter().map(|r| (vec![("reporter", r.name.clone())], value(r))).collect()
        };
        let all = |pick| one(each(pick).iter().map(|(_, n)| n).sum());
        let help = "Usage records that a reporter took.";
        page.counter("llmproxy_webhook_success", help, all(|r| &r.delivered))?;
        let help = "Usage records that were given up: they are dead letters.";
        page.counter("llmproxy_webhook_failure", help, all(|r| &r.buried))?;
        let help = "Usage records that a reporter took.";
        page.counter("llmproxy_reporter_delivered", help, each(|r| &r.delivered))?;
        let help = "Usage records that a reporter refused for good: they are dead letters.";
        page.counter("llmproxy_reporter_dead_letters", help, each(|r| &r.buried))?;
        let help = "Tries to deliver, of a record or of a batch.";
        page.counter("llmproxy_reporter_tries", help, each(|r| &r.batches))?;
        let help = "Tries to deliver that failed.";
        page.counter("llmproxy_reporter_failures", help, each(|r| &r.failed))?;
        let help = "Usage records that went again, in tries after their first.";
        page.counter("llmproxy_reporter_retries", help, each(|r| &r.retried))?;
        let help = "0 while the reporter's receiver is away, or refuses whatever it gets.";
        let up = reporters.iter().map(|r| (&r.name, u64::from(!r.down.load(Relaxed))));
        let up = labelled("reporter", up.map(|(name, n)| (name.clone(), n)));
        page.gauge("llmproxy_reporter_up", help, up)?;
        let help = "Refused records that cannot become dead letters: the reporter stands still.";
        page.gauge("llmproxy_reporter_dead_letters_waiting", help, each(|r| &r.unburied))?;
        let states = self.usage.as_ref().map_or(&[][..], |u| &u.spool().reporters);
        let each = |value: &dyn Fn(&ReporterState) -> u64| -> Vec<(Labels, u64)> {
            states.iter().map(|r| (vec![("reporter", r.name.clone())], value(r))).collect()
        };
        let help = "Usage records that wait for a reporter.";
        page.gauge("llmproxy_reporter_queue", help, each(&|r| r.backlog.load(Relaxed)))?;
        let now = unix_ms();
        let lag = each(&|r| match r.oldest_ms.load(Relaxed) {
            0 => 0,
            oldest => now.saturating_sub(oldest) / 1000,
        });
        let help = "Age of the oldest request whose record waits for a reporter.";
        page.gauge("llmproxy_reporter_lag_seconds", help, lag)
    }

    /// The journal, and what was lost on the way to it.
    fn journal(&self, page: &mut Page<'_>) -> fmt::Result {
        let counter = |pick: fn(&UsageCounters) -> &AtomicU64| {
            one(self.usage.as_ref().map_or(0, |u| pick(u.counters()).load(Relaxed)))
        };
        let help = "Entries lost because the way to the journal was full.";
        page.counter("llmproxy_usage_dropped", help, counter(|u| &u.outbox_dropped))?;
        let help = "Requests that went on before the journal had what they waited for.";
        page.counter("llmproxy_usage_late", help, counter(|u| &u.late))?;
        let help = "Request bodies left out of records because too many were waiting.";
        page.counter("llmproxy_usage_bodies_dropped", help, counter(|u| &u.bodies_dropped))?;
        let help = "Line ends found inside a record and taken out: each is a fault of the gateway.";
        let mended = one(crate::usage::record::line::mended());
        page.counter("llmproxy_usage_lines_mended", help, mended)?;
        let help = "Entries that wait for the journal.";
        let waiting = one(self.usage.as_ref().map_or(0, |u| u.waiting()));
        page.gauge("llmproxy_usage_queue", help, waiting)?;
        let state =
            |pick: &dyn Fn(&SpoolState) -> u64| self.usage.as_ref().map_or(0, |u| pick(u.spool()));
        let failing = state(&|s| u64::from(s.fails(Instant::now())));
        let help = "1 while the spool takes no records and they go into memory.";
        page.gauge("llmproxy_journal_failing", help, one(failing))?;
        let places = [
            ("disk", state(&|s| s.disk_bytes.load(Relaxed))),
            ("memory", state(&|s| s.memory_bytes.load(Relaxed))),
        ];
        page.gauge("llmproxy_journal_bytes", "Bytes of the journal.", named("place", &places))?;
        let entries = one(state(&|s| s.entries.load(Relaxed)));
        page.counter("llmproxy_journal_entries", "Entries written to the journal.", entries)?;
        let commits = one(state(&|s| s.commits.load(Relaxed)));
        page.counter("llmproxy_journal_commits", "Writes of the journal.", commits)?;
        let kinds = [
            ("write", state(&|s| s.write_errors.load(Relaxed))),
            ("sync", state(&|s| s.sync_errors.load(Relaxed))),
            ("read", state(&|s| s.read_errors.load(Relaxed))),
        ];
        page.counter("llmproxy_journal_errors", "Errors of the disk.", named("kind", &kinds))?;
        let kinds = [
            ("record", state(&|s| s.dropped.load(Relaxed))),
            ("note", state(&|s| s.dropped_opens.load(Relaxed))),
        ];
        let help = "Entries lost because disk and memory were full; a note is no record.";
        page.counter("llmproxy_journal_dropped", help, named("kind", &kinds))?;
        let damaged = one(state(&|s| s.damaged_bytes.load(Relaxed)));
        let help = "Bytes of the journal that could not be read.";
        page.counter("llmproxy_journal_damaged_bytes", help, damaged)?;
        let aborted = one(state(&|s| s.aborted.load(Relaxed)));
        let help = "Requests that a killed process had left without an end, found at the start.";
        page.counter("llmproxy_journal_aborted", help, aborted)
    }

    fn fleet(&self, page: &mut Page<'_>) -> fmt::Result {
        let per_backend = |value: &dyn Fn(usize) -> u64| -> Vec<(Labels, u64)> {
            let names = self.plan.backends.iter().enumerate();
            names.map(|(i, b)| (vec![("backend", b.name.clone())], value(i))).collect()
        };
        let up = |i: usize| u64::from(self.fleet.get(i).is_some_and(|m| m.is_healthy()));
        page.gauge("llmproxy_backend_up", "1 when the backend is healthy.", per_backend(&up))?;
        let departures = |i: usize| self.fleet.get(i).map_or(0, |m| u64::from(m.departures()));
        let help = "Times that probes or failed requests took the backend out, or kept it out.";
        page.counter("llmproxy_backend_ejections", help, per_backend(&departures))?;
        let inflight = |i: usize| self.fleet.get(i).map_or(0, |m| u64::from(m.inflight()));
        let now = Instant::now();
        let refuses = |i: usize| {
            let wish = self.fleet.get(i).map(|member| member.usage_wish().at(now));
            u64::from(wish == Some(UsageWish::Refused))
        };
        let help = "1 when the backend refused to be asked for the usage of a stream.";
        page.gauge("llmproxy_backend_refuses_stream_usage", help, per_backend(&refuses))?;
        let help = "Requests at the backend that are not settled.";
        page.gauge("llmproxy_inflight", help, per_backend(&inflight))
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let (m, g) = (&self.meters, &self.meters.gauges);
        page.counter("llmproxy_connections", "Connections accepted.", one(m.connections[0]))?;
        let help = "Connections closed because nothing came over them for too long.";
        let sides = ["client", "backend"].into_iter().zip(m.idle_closed);
        let sides = labelled("side", sides.map(|(side, n)| (side.to_owned(), n)));
        page.counter("llmproxy_idle_closed", help, sides)?;
        let help = "Connections refused at the limit.";
        page.counter("llmproxy_connections_refused", help, one(m.connections[1]))?;
        let help = "Times that accepting paused for lack of descriptors or memory.";
        page.counter("llmproxy_accept_pauses", help, one(m.accept_pauses))?;
        let help =
            "Reads of large answers without a large buffer, or a pipe, because all were lent.";
        let kinds = ["buffer", "pipe"].into_iter().zip(m.large_denied);
        let kinds = labelled("kind", kinds.map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_large_reads_denied", help, kinds)?;
        page.counter("llmproxy_panics", "Panics confined to a connection.", one(m.panics))?;
        let open = one(g.connections_open);
        page.gauge("llmproxy_connections_open", "Client connections now.", open)?;
        let active = one(g.requests_active);
        page.gauge("llmproxy_requests_active", "Requests between head and last byte.", active)?;
        let states = [("in_use", g.buffers_in_use), ("idle", g.buffers_idle)];
        let states = labelled("state", states.into_iter().map(|(k, n)| (k.to_owned(), n)));
        page.gauge("llmproxy_buffers", "Pooled buffers, of 16 KiB and of 256 KiB.", states)?;
        let idle = one(g.upstream_idle);
        page.gauge("llmproxy_upstream_idle", "Kept connections to backends.", idle)?;
        let mut drivers: BTreeMap<&str, u64> = BTreeMap::new();
        for driver in &self.drivers {
            *drivers.entry(driver).or_default() += 1;
        }
        let drivers = labelled("driver", drivers.into_iter().map(|(k, n)| (k.to_owned(), n)));
        page.gauge("llmproxy_workers", "Workers, by the driver they run on.", drivers)?;
        let silent = one(self.silent_workers as u64);
        page.gauge("llmproxy_workers_silent", "Workers missing from this page.", silent)
    }
}

fn one(value: u64) -> Vec<(Labels, u64)> {
    vec![(Labels::new(), value)]
}

fn labelled(name: &'static str, values: impl Iterator<Item = (String, u64)>) -> Vec<(Labels, u64)> {
    let mut series: Vec<_> = values.map(|(value, n)| (vec![(name, value)], n)).collect();
    series.sort();
    series
}

fn named(name: &'static str, values: &[(&str, u64)]) -> Vec<(Labels, u64)> {
    values.iter().map(|(value, n)| (vec![(name, (*value).to_owned())], *n)).collect()
}

struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, series: Vec<(Labels, u64)>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            match labels.as_slice() {
                [] => metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?,
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, series: Vec<(Labels, u64)>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            match labels.as_slice() {
                [] => metric.encode_gauge(&value)?,
                _ => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        (bounds, unit_ms): (&[f64], f64),
        series: Vec<(Labels, &Times)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, times) in series {
            let mut below = 0;
            let mut buckets = Vec::with_capacity(bounds.len() + 1);
            for bound in bounds.iter().copied() {
                let upto = times.count_up_to_ms(bound * unit_ms).max(below);
                buckets.push((bound, upto - below));
                below = upto;
            }
            buckets.push((f64::INFINITY, times.count() - below));
            let (sum, count) = (times.sum_ms() / unit_ms, times.count());
            match labels.as_slice() {
                [] => metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?,
                _ => metric
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?,
            }
        }
        Ok(())
    }
}
