//! The backends, the workers, and the process itself.

use super::{labelled, one, Facts, Labels, Page};
use crate::config::plan::{Engine, EngineMetrics};
use crate::control::discovery::FinderNumbers;
use crate::state::member::{self, Member};
use crate::state::meters::HANDSHAKE_FAULTS;
use crate::state::reported::Shown;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What engines say of their own load, where that is read.
fn engine_loads(page: &mut Page<'_>, shown: &[&Arc<Member>]) -> fmt::Result {
    let read = |member: &&&Arc<Member>| member.plan.metrics != EngineMetrics::Off;
    let read: Vec<&Arc<Member>> = shown.iter().filter(read).copied().collect();
    if read.is_empty() {
        return Ok(());
    }
    let now = member::now();
    let told = |figure: &dyn Fn(Shown) -> Option<f64>| -> Vec<(Labels, f64)> {
        let label = |member: &Member| vec![("backend", member.name.to_string())];
        let told =
            |member: &&Arc<Member>| Some((label(member), figure(member.reported().shown(now)?)?));
        read.iter().filter_map(told).collect()
    };
    let help = "Requests that the engine says it works on, those of others among them.";
    let name = "llmproxy_backend_engine_running";
    page.share_gauge(name, help, told(&|shown| Some(shown.running.into())))?;
    let help = "Requests that the engine says wait in it, those of others among them.";
    let name = "llmproxy_backend_engine_waiting";
    page.share_gauge(name, help, told(&|shown| Some(shown.waiting.into())))?;
    let help = "Share of its KV cache that the engine says is in use.";
    let name = "llmproxy_backend_engine_cache_usage_ratio";
    page.share_gauge(name, help, told(&|shown| shown.cache))?;
    let counts = read.iter().flat_map(|member| {
        ["ok", "failed"].into_iter().zip(member.reported().counts()).map(|(result, n)| {
            (vec![("backend", member.name.to_string()), ("result", result.to_owned())], n)
        })
    });
    let help = "Readings of the engine's figures of its load.";
    page.counter("llmproxy_backend_engine_reads", help, counts.collect())
}

impl Facts {
    pub(super) fn backends(&self, page: &mut Page<'_>) -> fmt::Result {
        let shown = self.shown();
        let per_backend = |value: &dyn Fn(&Member) -> u64| -> Vec<(Labels, u64)> {
            let label = |member: &Member| vec![("backend", member.name.to_string())];
            shown.iter().map(|member| (label(member), value(member))).collect()
        };
        let up = |member: &Member| u64::from(member.is_healthy());
        page.gauge("llmproxy_backend_up", "1 when the backend is healthy.", per_backend(&up))?;
        let full = |member: &Member| u64::from(member.is_full() || member.is_spared());
        let help = "1 while the backend has as many requests as it may (max_concurrent), or has \
                    said that it is full.";
        page.gauge("llmproxy_backend_full", help, per_backend(&full))?;
        let picked = |member: &Member| self.meters.picked.get(&member.id()).copied().unwrap_or(0);
        let help = "Tries that the backend got.";
        page.counter("llmproxy_backend_picked", help, per_backend(&picked))?;
        let failures = |member: &Member| member.failures();
        let help = "Tries that the backend did not serve: no answer, half of one, an error in it, \
                    429 or 5xx.";
        page.counter("llmproxy_backend_failures", help, per_backend(&failures))?;
        let departures = |member: &Member| u64::from(member.departures());
        let help = "Times that probes or failed requests took the backend out, or kept it out.";
        page.counter("llmproxy_backend_ejections", help, per_backend(&departures))?;
        let unasked = |member: &Member| member.unasked();
        let help = "Idle connections closed because of bytes that nobody had asked for: for a \
                    minute, the backend's connections are used again only after a pause.";
        page.counter("llmproxy_backend_unasked_answers", help, per_backend(&unasked))?;
        // Requests of one that had this name before are still there.
        let of_name = |name: &Arc<str>| {
            let all = self.view.members().iter().chain(self.view.leaving());
            all.filter(|member| member.name == *name).map(|m| u64::from(m.inflight())).sum()
        };
        let inflight = |member: &Member| of_name(&member.name);
        let now = Instant::now();
        let refuses = |member: &Member| u64::from(member.usage_wishes().any_refuses(now));
        let help = "1 when the backend refused, for any model, to be asked for a stream's usage.";
        page.gauge("llmproxy_backend_refuses_stream_usage", help, per_backend(&refuses))?;
        let displaced = |member: &Member| member.usage_wishes().displaced();
        let help = "Models of which it was forgotten too soon, for lack of room, whether the \
                    backend tells the usage of a stream: it is found out again.";
        page.counter("llmproxy_stream_usage_models_forgotten", help, per_backend(&displaced))?;
        let help = "Requests at the backend that are not settled.";
        page.gauge("llmproxy_inflight", help, per_backend(&inflight))?;
        let help = "Always 1; the label is what engine the backend is, given or found out.";
        let info = |member: &&Arc<Member>| {
            let engine = match member.engine() {
                Engine::Auto => "unknown",
                known => known.name(),
            };
            let labels = vec![("backend", member.name.to_string()), ("engine", engine.into())];
            (labels, 1)
        };
        page.gauge("llmproxy_backend_info", help, shown.iter().map(info).collect())?;
        engine_loads(page, &shown)
    }

    /// When the certificates end that clients are shown.
    fn certificates(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(tls) = &self.view.client_tls else { return Ok(()) };
        let given = self.view.given_certificates.all();
        let shown = tls.files.all().iter().chain(&given);
        let series = shown.map(|certificate| {
            let name = certificate.facts.names.first().cloned().unwrap_or_default();
            let labels = vec![("name", name), ("source", certificate.label.clone())];
            (labels, u64::try_from(certificate.facts.not_after).unwrap_or(0))
        });
        let help = "When a certificate that clients are shown ends, in seconds since 1970.";
        page.gauge("llmproxy_tls_certificate_expiry_seconds", help, series.collect())
    }

    fn handshakes(&self, page: &mut Page<'_>) -> fmt::Result {
        let m = &self.meters;
        let help = "TLS handshakes with clients that went well.";
        let versions = ["1.2", "1.3"].into_iter().zip(m.handshakes);
        let versions = labelled("version", versions.map(|(v, n)| (v.to_owned(), n)));
        page.counter("llmproxy_tls_handshakes", help, versions)?;
        let help = "TLS handshakes with clients that failed.";
        let whys = HANDSHAKE_FAULTS.into_iter().zip(m.handshakes_failed);
        let whys = labelled("reason", whys.map(|(why, n)| (why.to_owned(), n)));
        page.counter("llmproxy_tls_handshakes_failed", help, whys)
    }

    pub(super) fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let (m, g) = (&self.meters, &self.meters.gauges);
        page.counter("llmproxy_connections", "Connections accepted.", one(m.connections[0]))?;
        let help = "Connections closed because nothing came over them for too long.";
        let sides = ["client", "backend"].into_iter().zip(m.idle_closed);
        let sides = labelled("side", sides.map(|(side, n)| (side.to_owned(), n)));
        page.counter("llmproxy_idle_closed", help, sides)?;
        let help = "Connections closed to make room, by what they were: clients' that were \
             silent, idle, or sent half a head; engines' whose clients had left.";
        let kinds = ["silent", "idle", "head", "drain"].into_iter().zip(m.crowded_closed);
        let kinds = labelled("kind", kinds.map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_crowded_closed", help, kinds)?;
        let help = "Connections refused at the limit.";
        page.counter("llmproxy_connections_refused", help, one(m.connections[1]))?;
        self.handshakes(page)?;
        self.certificates(page)?;
        let help = "Times that accepting paused for lack of descriptors or memory.";
        page.counter("llmproxy_accept_pauses", help, one(m.accept_pauses))?;
        let help =
            "Reads of large answers without a large buffer, or a pipe, because all were lent.";
        let kinds = ["buffer", "pipe"].into_iter().zip(m.large_denied);
        let kinds = labelled("kind", kinds.map(|(kind, n)| (kind.to_owned(), n)));
        page.counter("llmproxy_large_reads_denied", help, kinds)?;
        let help = "Request bodies that waited for their turn, because as many as may be were \
             read in slices, or unpacked.";
        let steps = ["read", "unpack"].into_iter().zip(m.bodies_waited);
        let steps = labelled("step", steps.map(|(step, n)| (step.to_owned(), n)));
        page.counter("llmproxy_bodies_waited", help, steps)?;
        page.counter("llmproxy_panics", "Panics confined to a connection.", one(m.panics))?;
        let open = one(g.connections_open);
        page.gauge("llmproxy_connections_open", "Client connections now.", open)?;
        let help =
            "Answers that are read on though their clients have left, or unpacked for their \
             records.";
        page.gauge("llmproxy_drains", help, one(g.drains))?;
        let active = one(g.requests_active);
        page.gauge("llmproxy_requests_active", "Requests between head and last byte.", active)?;
        let states = [("in_use", g.buffers_in_use), ("idle", g.buffers_idle)];
        let states = labelled("state", states.into_iter().map(|(k, n)| (k.to_owned(), n)));
        page.gauge("llmproxy_buffers", "Pooled buffers, of 16, 64 and 256 KiB.", states)?;
        let help = "Bytes that the workers hold in buffers: bodies, heads, answers on their way.";
        page.gauge("llmproxy_buffered_bytes", help, one(self.budget.held()))?;
        let help = "Bytes that they may hold (server.max_buffered_bytes).";
        page.gauge("llmproxy_buffered_bytes_max", help, one(self.budget.max()))?;
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

    /// How full the table is in which limits and quotas are counted.
    pub(super) fn counters(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(fill) = self.view.counters.as_ref().map(|counters| counters.fill()) else {
            return Ok(());
        };
        const PARTS: [&str; 2] = ["known", "strangers"];
        let parts = |n: [u64; 2]| labelled("part", PARTS.map(str::to_owned).into_iter().zip(n));
        let help = "Keys, users, models and addresses that limits and quotas are counted for.";
        page.gauge("llmproxy_counters_used", help, parts(fill.used))?;
        let help = "Keys, users, models and addresses that there is room for.";
        page.gauge("llmproxy_counters_entries", help, parts(fill.of))?;
        let help =
            "Places that were given to another one, since nothing was counted there any more.";
        page.counter("llmproxy_counters_replaced", help, one(fill.replaced))?;
        let help = "Requests that found no place to be counted in: they are counted together.";
        page.counter("llmproxy_counters_full", help, one(fill.full))
    }

    /// Which configuration is in use, and what reloads came to.
    pub(super) fn configuration(&self, page: &mut Page<'_>) -> fmt::Result {
        let [succeeded, failed] = self.reloads.counts();
        let help = "Reloads of the configuration that succeeded.";
        page.counter("llmproxy_config_reload_success", help, one(succeeded))?;
        let help = "Reloads of the configuration that failed: what was in use is.";
        page.counter("llmproxy_config_reload_failure", help, one(failed))?;
        let help = "Hot restarts that came to nothing: this process serves on.";
        page.counter("llmproxy_upgrade_failure", help, one(self.upgrade_failures))?;
        let help = "1 unless the last reload failed.";
        let is_last_good = one(self.reloads.is_last_good().into());
        page.gauge("llmproxy_config_last_reload_successful", help, is_last_good)?;
        let help = "When the configuration in use was read, in seconds since 1970.";
        let name = "llmproxy_config_last_reload_success_timestamp_seconds";
        page.seconds_gauge(name, help, self.reloads.last_success_s())?;
        let help = "Always 1; the label is the SHA-256 of the file in use.";
        let labels = vec![("sha256", self.reloads.sha256())];
        page.gauge("llmproxy_config_info", help, vec![(labels, 1)])
    }

    /// How the sources of discovery are doing.
    pub(super) fn discovery(&self, page: &mut Page<'_>) -> fmt::Result {
        if self.finders.is_empty() {
            return Ok(());
        }
        let per_source = |value: &dyn Fn(&FinderNumbers) -> u64| {
            let finders = self.finders.iter();
            labelled("source", finders.map(|finder| (finder.name.clone(), value(finder))))
        };
        let help = "Good answers of a source of discovery.";
        let name = "llmproxy_discovery_success";
        page.counter(name, help, per_source(&|finder| finder.counts()[0]))?;
        let help =
            "Looks at a source of discovery that brought no good answer: the last one holds.";
        let name = "llmproxy_discovery_failure";
        page.counter(name, help, per_source(&|finder| finder.counts()[1]))?;
        let help = "When the last good answer came, in seconds since 1970; 0 before the first.";
        let name = "llmproxy_discovery_last_success_timestamp_seconds";
        page.gauge(name, help, per_source(&|finder| finder.last_success_s()))?;
        let help = "Backends that the last good answer named.";
        let name = "llmproxy_discovery_backends";
        page.gauge(name, help, per_source(&|finder| finder.backends() as u64))
    }

    /// What this program is, and what it takes of the machine, by the names that the clients of
    /// Prometheus agree on.
    pub(super) fn program(&self, page: &mut Page<'_>) -> fmt::Result {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("arch", std::env::consts::ARCH.to_owned()),
            ("profile", profile.to_owned()),
        ];
        page.gauge(
            "llmproxy_build_info",
            "Always 1; the labels say what runs.",
            vec![(labels, 1)],
        )?;
        let usage = Process::read();
        let help = "Processor time, of user and system, in seconds.";
        page.seconds_counter("process_cpu_seconds", help, usage.cpu_seconds)?;
        let help = "Start of the process, in seconds since 1970.";
        page.seconds_gauge("process_start_time_seconds", help, usage.start_seconds)?;
        let help = "Resident memory.";
        page.gauge("process_resident_memory_bytes", help, one(usage.resident_bytes))?;
        let help = "Virtual memory.";
        page.gauge("process_virtual_memory_bytes", help, one(usage.virtual_bytes))?;
        page.gauge("process_open_fds", "Open file descriptors.", one(usage.open_fds))?;
        page.gauge("process_max_fds", "Most open file descriptors.", one(usage.max_fds))?;
        page.gauge("process_threads", "Threads.", one(usage.threads))
    }
}

/// What the kernel says of this process. What it does not say is 0.
#[derive(Debug, Default)]
struct Process {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: u64,
    threads: u64,
}

/// Ticks of the kernel's clocks in a second, as it shows them on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

impl Process {
    fn read() -> Process {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (stat, status, boot) =
            (text("/proc/self/stat"), text("/proc/self/status"), text("/proc/stat"));
        // Behind the program's name, which may hold anything, from the third field on: proc(5).
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |number: usize| {
            let field = fields.get(number.saturating_sub(3)).and_then(|f| f.parse::<f64>().ok());
            field.unwrap_or_default() / TICKS_PER_SECOND
        };
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Process {
            cpu_seconds: ticks(14) + ticks(15),
            start_seconds: number_of(&boot, "btime ") as f64 + ticks(22),
            resident_bytes: number_of(&status, "VmRSS:") * 1024,
            virtual_bytes: number_of(&status, "VmSize:") * 1024,
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            max_fds: limit.current.unwrap_or_default(),
            threads: number_of(&status, "Threads:"),
        }
    }
}

/// The number behind a name in a file of lines.
fn number_of(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_default()
}
