//! What only a restart can change: a reload keeps it as it is and says so by name. Everything else
//! is in use once the reload is done: for the next request, or, where a setting is one of a whole
//! connection (`write_timeout`, `half_close`), for the next connection.

use super::{Admin, Log, Metrics, OtlpTraces, Plan, Server, ServerTls, Spool, UsagePlan};

impl Plan {
    /// Makes this plan one that can follow `running` in the same process: what only a restart can
    /// change becomes what it is there. Gives the keys, as the file calls them, that would have
    /// changed.
    ///
    /// Every field is named here without `..`: a new one does not compile until somebody has
    /// decided on which side it is.
    pub fn keep_boot_of(&mut self, running: &Plan) -> Vec<&'static str> {
        let Plan {
            server,
            log,
            usage,
            metrics,
            tracing,
            backends: _,
            routing: _,
            health_check: _,
            auth: _,
            api_keys: _,
            rate_limit: _,
            counters,
            admin,
            hooks: _,
            discovery: _,
            unbuilt: _,
        } = self;
        let mut kept = Kept::default();
        kept.of_server(server, &running.server);
        kept.of_log(log, &running.log);
        kept.of_usage(usage, &running.usage);
        kept.of_metrics(metrics, &running.metrics);
        kept.of_tracing(tracing, &running.tracing);
        kept.keep("counters", counters, &running.counters);
        kept.of_admin(admin, &running.admin);
        kept.0
    }
}

/// Keys that would have changed.
#[derive(Default)]
struct Kept(Vec<&'static str>);

impl Kept {
    fn keep<T: Clone + PartialEq>(&mut self, key: &'static str, new: &mut T, running: &T) {
        if new != running {
            new.clone_from(running);
            self.0.push(key);
        }
    }

    /// Listeners, and threads.
    fn of_server(&mut self, new: &mut Server, running: &Server) {
        let Server {
            listen,
            listeners,
            workers,
            workers_auto,
            cpu_affinity,
            cpu_affinity_auto,
            pid_file,
            max_connections: _,
            max_buffered_bytes: _,
            watch_config: _,
            region: _,
            trusted_proxies: _,
            proxy_protocol: _,
            max_header_bytes: _,
            max_body_size: _,
            header_timeout: _,
            body_timeout: _,
            write_timeout: _,
            idle_timeout: _,
            half_close: _,
            shutdown_delay: _,
            drain_timeout: _,
            forward_credentials: _,
            paths: _,
            cors: _,
            tls,
        } = new;
        self.of_tls(tls, &running.tls);
        self.keep("server.listen", listen, &running.listen);
        self.keep("server.listeners", listeners, &running.listeners);
        self.keep("server.pid_file", pid_file, &running.pid_file);
        self.keep("server.workers", workers, &running.workers);
        // Who chose their number is told at the start only.
        *workers_auto = running.workers_auto;
        if *cpu_affinity_auto && running.cpu_affinity_auto {
            // Where they differ, so do the workers, and that is told.
            cpu_affinity.clone_from(&running.cpu_affinity);
        }
        self.keep("server.cpu_affinity", cpu_affinity, &running.cpu_affinity);
        *cpu_affinity_auto = running.cpu_affinity_auto;
    }

    /// Who fetches certificates is started at the start, with its listener and its folder.
    fn of_tls(&mut self, new: &mut Option<ServerTls>, running: &Option<ServerTls>) {
        let Some(own) = new else { return };
        match running {
            Some(running) => self.keep("server.tls.acme", &mut own.acme, &running.acme),
            None if own.acme.is_some() => {
                self.0.push("server.tls.acme");
                *new = None;
            }
            None => {}
        }
    }

    /// Outputs are opened at the start, and the room for stories is taken then.
    fn of_log(&mut self, new: &mut Log, running: &Log) {
        let Log { output, access, flight_recorder, level: _, format: _, request: _ } = new;
        self.keep("log.output", output, &running.output);
        self.keep("log.flight_recorder", flight_recorder, &running.flight_recorder);
        self.keep("logging.access", access, &running.access);
    }

    /// Reporters have a thread each and a place in the spool.
    fn of_usage(&mut self, new: &mut UsagePlan, running: &UsagePlan) {
        let UsagePlan {
            reporters,
            api_key,
            spool,
            request_body_max: _,
            inject_stream_usage: _,
            estimate_on_abort: _,
        } = new;
        self.keep("usage.reporters", reporters, &running.reporters);
        self.keep("usage.api_key", api_key, &running.api_key);
        let Spool {
            enabled: _,
            dir: _,
            max_bytes: _,
            fsync: _,
            on_failure: _,
            ring_size: _,
            ring_dir: _,
        } = spool;
        self.keep("usage.spool", spool, &running.spool);
    }

    /// Its listener and its store are opened at the start. What opens it, and what it may change,
    /// is in use at once; so is that it is off.
    fn of_admin(&mut self, new: &mut Option<Admin>, running: &Option<Admin>) {
        let (Some(new), Some(running)) = (new.as_mut(), running) else {
            if new.is_some() {
                self.0.push("admin");
                *new = None;
            }
            return;
        };
        let Admin { listen, db_path, token: _, read_only: _, allowed_ips: _ } = new;
        self.keep("admin.listen", listen, &running.listen);
        self.keep("admin.db_path", db_path, &running.db_path);
    }

    /// The exporter is started at the start. How many requests are traced is in use at once; so is
    /// that none are.
    fn of_tracing(&mut self, new: &mut Option<OtlpTraces>, running: &Option<OtlpTraces>) {
        let (Some(asked), Some(running)) = (new.as_mut(), running) else {
            if new.is_some() {
                self.0.push("tracing.otlp");
                *new = None;
            }
            return;
        };
        let mut kept = OtlpTraces { sample_ratio: asked.sample_ratio, ..running.clone() };
        if kept != *asked {
            self.0.push("tracing.otlp");
            std::mem::swap(asked, &mut kept);
        }
    }

    /// A page with a listener of its own stays there, and one without is not put anywhere else: on
    /// the address of the clients everybody could read it.
    fn of_metrics(&mut self, new: &mut Option<Metrics>, running: &Option<Metrics>) {
        let listen = |metrics: &Option<Metrics>| metrics.as_ref().and_then(|m| m.listen);
        if listen(new) == listen(running) {
            return;
        }
        self.0.push("metrics.listen");
        let (Some(page), Some(running)) = (new.as_mut(), running) else {
            return new.clone_from(running);
        };
        let Metrics { listen, path: _, models: _, latency_buckets_ms: _, custom_labels: _ } = page;
        *listen = running.listen;
    }
}
