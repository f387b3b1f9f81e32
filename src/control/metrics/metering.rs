//! Tokens, and what becomes of usage records.

use super::{labelled, model_label, named, one, Facts, Labels, Page};
use crate::base::clock::unix_ms;
use crate::config::plan::ReporterKind;
use crate::llm::tokens::Oddities;
use crate::llm::usage::number::Odd;
use crate::state::meters::UNPACKED;
use crate::usage::counters::{ReporterCounters, UsageCounters};
use crate::usage::spool::state::{ReporterState, SpoolState};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

impl Facts {
    pub(super) fn usage(&self, page: &mut Page<'_>) -> fmt::Result {
        let m = &self.meters;
        self.tokens(page)?;
        let help = "Metered answers that carried no usage.";
        page.counter("llmproxy_usage_missing", help, one(m.usage_missing))?;
        let help = "Counts of engines that were refused, or kept although they are strange.";
        let reasons = Odd::ALL.map(Odd::as_str).into_iter();
        let reasons = reasons.chain(Oddities::ALL.map(|(_, name)| name));
        let odd = reasons.map(|name| (name.to_owned(), m.odd_counts.get(name).map_or(0, |n| *n)));
        page.counter("llmproxy_usage_odd", help, labelled("reason", odd))?;
        let help = "Packed answers, by what came of unpacking them for their usage.";
        let results = UNPACKED.map(|name| (name, m.unpacked.get(name).map_or(0, |n| *n)));
        page.counter("llmproxy_usage_unpacked", help, named("result", &results))?;
        let help = "Streams with an event too long to tell whether it is the usage event.";
        page.counter("llmproxy_events_unjudged", help, one(m.events_unjudged))?;
        let help = "Comments that clients got while their streams were silent.";
        page.counter("llmproxy_sse_keepalives", help, one(m.keep_alives))?;
        let help = "Streams whose head went to the client before an engine's came.";
        page.counter("llmproxy_sse_early_heads", help, one(m.early_heads))?;
        self.reporters(page)?;
        self.journal(page)?;
        let help = "Log events dropped because the queue was full.";
        page.counter("llmproxy_log_dropped", help, one(self.log_dropped))?;
        let help = "Access log lines dropped because the queue was full.";
        page.counter("llmproxy_access_log_dropped", help, one(self.access_dropped))?;
        let help = "Spans of requests that are traced: exported, dropped because too many waited, \
                    refused by their receiver, given up because that was away for too long.";
        page.counter("llmproxy_trace_spans", help, named("result", &self.spans.all()))?;
        let help = "Scrapes of this page that were refused because too many waited for it.";
        page.counter("llmproxy_metrics_pages_refused", help, one(self.pages_turned_away))
    }

    fn tokens(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut all = self.meters.tokens_of_gone;
        self.meters.tokens.values().for_each(|tokens| all.add(*tokens));
        let kinds = [("prompt", all.prompt), ("completion", all.completion)];
        let kinds = labelled("type", kinds.into_iter().map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_usage_tokens", "Tokens as the engines counted them.", kinds)?;
        let models = self.view.labelled_models();
        let sorted: BTreeMap<_, _> = self.meters.tokens.iter().collect();
        let series = sorted.into_iter().flat_map(|(series, tokens)| {
            let model = model_label(models, series.model);
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

    /// Delivery of usage records. The seeds' two counters are those of webhooks.
    fn reporters(&self, page: &mut Page<'_>) -> fmt::Result {
        let reporters = self.usage.as_ref().map_or(&[][..], |u| &u.counters().reporters);
        let each = |pick: fn(&ReporterCounters) -> &AtomicU64| -> Vec<(Labels, u64)> {
            let value = |r: &ReporterCounters| pick(r).load(Relaxed);
            reporters.iter().map(|r| (vec![("reporter", r.name.clone())], value(r))).collect()
        };
        let webhooks = |pick: fn(&ReporterCounters) -> &AtomicU64| {
            let is_webhook = |r: &&ReporterCounters| self.is_webhook(&r.name);
            one(reporters.iter().filter(is_webhook).map(|r| pick(r).load(Relaxed)).sum())
        };
        let help = "Usage records that webhooks took.";
        page.counter("llmproxy_webhook_success", help, webhooks(|r| &r.delivered))?;
        let help = "Usage records that webhooks refused for good: they are dead letters.";
        page.counter("llmproxy_webhook_failure", help, webhooks(|r| &r.buried))?;
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
        let spool = self.usage.as_ref().map(|u| u.spool());
        let each = |value: &dyn Fn(&SpoolState, usize) -> u64| -> Vec<(Labels, u64)> {
            let of = |spool: &SpoolState| {
                let names = spool.reporters.iter().enumerate();
                let one = |(at, r): (usize, &ReporterState)| {
                    (vec![("reporter", r.name.clone())], value(spool, at))
                };
                names.map(one).collect()
            };
            spool.map_or_else(Vec::new, |spool| of(spool))
        };
        let help = "Usage records that wait for a reporter.";
        page.gauge("llmproxy_reporter_queue", help, each(&SpoolState::backlog))?;
        let now = unix_ms();
        let lag = each(&|spool, at| match spool.oldest_ms(at) {
            0 => 0,
            oldest => now.saturating_sub(oldest) / 1000,
        });
        let help = "Age of the oldest request whose record waits for a reporter.";
        page.gauge("llmproxy_reporter_lag_seconds", help, lag)
    }

    fn is_webhook(&self, name: &str) -> bool {
        let of_name = self.view.plan.usage.reporters.iter().find(|reporter| reporter.name == name);
        of_name.is_some_and(|reporter| matches!(reporter.kind, ReporterKind::Webhook(_)))
    }

    /// The journal, and what was lost on the way to it.
    fn journal(&self, page: &mut Page<'_>) -> fmt::Result {
        let counter = |pick: fn(&UsageCounters) -> &AtomicU64| {
            one(self.usage.as_ref().map_or(0, |u| pick(u.counters()).load(Relaxed)))
        };
        let lost = |pick: fn(&UsageCounters) -> &AtomicU64| {
            self.usage.as_ref().map_or(0, |u| pick(u.counters()).load(Relaxed))
        };
        let kinds =
            [("record", lost(|u| &u.records_dropped)), ("note", lost(|u| &u.notes_dropped))];
        let help = "Entries lost because a worker's ring was full; a note is no record.";
        page.counter("llmproxy_usage_dropped", help, named("kind", &kinds))?;
        let help = "Request bodies left out of records because a worker's ring had no room.";
        page.counter("llmproxy_usage_bodies_dropped", help, counter(|u| &u.bodies_dropped))?;
        let help = "Line ends found inside a record and taken out: each is a fault of the gateway.";
        let mended = one(crate::usage::record::line::mended());
        page.counter("llmproxy_usage_lines_mended", help, mended)?;
        let help = "Bytes in the workers' rings that the journal has not taken over.";
        let waiting = one(self.usage.as_ref().map_or(0, |u| u.waiting()));
        page.gauge("llmproxy_usage_ring_bytes", help, waiting)?;
        let help = "1 while a worker's ring has no file, or lost it: a kill loses what is in it.";
        let is_volatile = self.usage.as_ref().is_some_and(|u| u.is_volatile());
        page.gauge("llmproxy_usage_rings_volatile", help, one(u64::from(is_volatile)))?;
        let state =
            |pick: &dyn Fn(&SpoolState) -> u64| self.usage.as_ref().map_or(0, |u| pick(u.spool()));
        let failing = state(&|s| u64::from(s.fails(Instant::now())));
        let help = "1 while the spool takes no records and they go into memory.";
        page.gauge("llmproxy_journal_failing", help, one(failing))?;
        let total = |pick: fn(&SpoolState) -> &AtomicU64| state(&|s| s.total(pick));
        let folders = one(state(&SpoolState::folders_adopted));
        let help = "Folders of processes that are gone, whose records this one delivers.";
        page.gauge("llmproxy_journal_folders_adopted", help, folders)?;
        let lost = one(total(|s| &s.folders_lost));
        let help = "Times that the folder of the journal was deleted, moved or emptied.";
        page.counter("llmproxy_journal_folders_lost", help, lost)?;
        let places = [("disk", total(|s| &s.disk_bytes)), ("memory", total(|s| &s.memory_bytes))];
        page.gauge("llmproxy_journal_bytes", "Bytes of the journal.", named("place", &places))?;
        let entries = one(total(|s| &s.entries));
        page.counter("llmproxy_journal_entries", "Entries written to the journal.", entries)?;
        let commits = one(total(|s| &s.commits));
        page.counter("llmproxy_journal_commits", "Writes of the journal.", commits)?;
        let kinds = [
            ("write", total(|s| &s.write_errors)),
            ("sync", total(|s| &s.sync_errors)),
            ("read", total(|s| &s.read_errors)),
        ];
        page.counter("llmproxy_journal_errors", "Errors of the disk.", named("kind", &kinds))?;
        let kinds = [("record", total(|s| &s.dropped)), ("note", total(|s| &s.dropped_opens))];
        let help = "Entries lost because disk and memory were full; a note is no record.";
        page.counter("llmproxy_journal_dropped", help, named("kind", &kinds))?;
        let damaged = one(total(|s| &s.damaged_bytes));
        let help = "Bytes of the journal that could not be read, or are gone.";
        page.counter("llmproxy_journal_damaged_bytes", help, damaged)?;
        let places = one(total(|s| &s.damaged_places));
        let help = "Places of the journal that could not be read, and parts that are gone.";
        page.counter("llmproxy_journal_damaged_places", help, places)?;
        let aborted = one(total(|s| &s.aborted));
        let help = "Requests that a killed process had left without an end, found at the start.";
        page.counter("llmproxy_journal_aborted", help, aborted)
    }
}
