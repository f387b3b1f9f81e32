//! The metrics page: what all workers counted, in Prometheus' text format. Names and labels of the
//! first five are those that existing dashboards use; milliseconds are theirs too.

use super::acme::AcmeNumbers;
use super::admin_door::AdminNumbers;
use super::discovery::FinderNumbers;
use super::reload::Reloads;
use crate::rt::budget::Budget;
use crate::state::board::View;
use crate::state::member::Member;
use crate::state::meters::{Meters, Times, Whose};
use crate::state::token_sizes::{TokenSizes, TOKEN_BOUNDS};
use crate::usage::outbox::Gauge;
use crate::usage::spans::SpanCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

mod acme;
mod genai;
mod keys;
mod loans;
mod metering;
mod system;
mod traffic;

/// What the page is made of.
pub struct Facts {
    /// Sum of all workers.
    pub meters: Meters,
    /// Workers that did not answer in time.
    pub silent_workers: usize,
    /// What the buffers of all workers hold, and may.
    pub budget: Arc<Budget>,
    /// Driver of each worker.
    pub drivers: Vec<&'static str>,
    /// Names of the backends, bounds of the histograms.
    pub view: Arc<View>,
    /// What reloads came to.
    pub reloads: Arc<Reloads>,
    /// Hot restarts that came to nothing.
    pub upgrade_failures: u64,
    /// The finders of discovery.
    pub finders: Vec<Arc<FinderNumbers>>,
    /// Metering, when it is on.
    pub usage: Option<Gauge>,
    /// Events that the log dropped.
    pub log_dropped: u64,
    /// Access log lines that were dropped.
    pub access_dropped: u64,
    /// What became of spans.
    pub spans: Arc<SpanCounters>,
    /// Scrapes that there was no room for.
    pub pages_turned_away: u64,
    /// What became of those who asked the admin API.
    pub admin: Arc<AdminNumbers>,
    /// Orders of certificates, where certificates are fetched.
    pub acme: Option<Arc<AcmeNumbers>>,
}

/// Renders the page.
pub fn render(mut facts: Facts) -> String {
    facts.name_all();
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
        self.genai(&mut page)?;
        self.endings(&mut page)?;
        self.usage(&mut page)?;
        self.backends(&mut page)?;
        self.process(&mut page)?;
        self.counters(&mut page)?;
        self.shared_limits(&mut page)?;
        self.configuration(&mut page)?;
        self.discovery(&mut page)?;
        self.key_lookups(&mut page)?;
        self.admin_requests(&mut page)?;
        self.acme_orders(&mut page)?;
        self.program(&mut page)
    }
}

impl Facts {
    /// Backends that the page shows: those in use, and those that were taken out and still have
    /// requests in flight. One of them for each name: the number of a backend is new when its
    /// address is, and two series with the same labels would make the page invalid.
    pub(super) fn shown(&self) -> Vec<&Arc<Member>> {
        let mut shown: Vec<&Arc<Member>> = self.view.members().iter().collect();
        for gone in self.view.leaving() {
            if gone.inflight() > 0 && shown.iter().all(|member| member.name != gone.name) {
                shown.push(gone);
            }
        }
        shown
    }

    /// Counts the numbers of each backend under the one that is shown by its name, and leaves out
    /// those of which no worker knows any more whose they are.
    pub(super) fn name_all(&mut self) {
        let shown: Vec<_> = self.shown().into_iter().map(|m| (m.id(), m.name.clone())).collect();
        let known = self.view.members().iter().chain(self.view.leaving());
        let names: HashMap<_, _> = known.map(|m| (m.id(), m.name.clone())).collect();
        for id in self.meters.members() {
            let name = names.get(&id);
            let heir = shown.iter().find(|(_, shown)| Some(shown) == name).map(|(id, _)| *id);
            if heir != Some(id) {
                self.meters.hand_over(id, heir);
            }
        }
    }

    fn backend(&self, whose: Whose) -> String {
        let mut known = self.view.members().iter().chain(self.view.leaving());
        let backend = whose.and_then(|id| known.find(|member| member.id() == id));
        backend.map_or_else(|| "none".to_owned(), |member| member.name.to_string())
    }
}

/// The label of a model of [`View::models`].
fn model_label(models: &[String], model: Option<u32>) -> String {
    let model = model.and_then(|model| models.get(model as usize));
    model.map_or("other", String::as_str).to_owned()
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

    fn seconds_counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn seconds_gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
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

    /// A gauge of figures that need not be whole.
    fn share_gauge(&mut self, name: &str, help: &str, series: Vec<(Labels, f64)>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A histogram of tokens.
    fn size_histogram(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, &TokenSizes)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let bounds = || TOKEN_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::INFINITY]);
        for (labels, sizes) in series {
            let count = sizes.counts.iter().sum();
            if count > 0 {
                let buckets: Vec<_> = bounds().zip(sizes.counts).collect();
                metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    sizes.sum as f64,
                    count,
                    &buckets,
                    None,
                )?;
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
