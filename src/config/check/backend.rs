//! `backends[]`: where the engines are, and how each is spoken to.

use super::headers;
use crate::base::limits::{CONCURRENT_MAX, SLOW_START_MAX, WEIGHT_MAX};
use crate::base::secret::Secret;
use crate::config::plan::{
    Backend, BackendTls, Endpoint, Engine, EngineMetrics, ModelPattern, OnClientAbort, Routing,
    StreamUsage,
};
use crate::config::section::Section;
use crate::config::value::{self, Url};
use std::time::Duration;

/// Timeouts of backends that have none of their own.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To an established connection.
    pub connect: Duration,
    /// To the head of the answer.
    pub first_byte: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        // A long prompt is read for minutes before its first token; a host in the same rack that
        // does not answer a connect in two seconds is down.
        Timeouts { connect: Duration::from_secs(2), first_byte: Duration::from_secs(300) }
    }
}

impl Timeouts {
    /// As `routing` says.
    pub fn of(routing: &Routing) -> Timeouts {
        Timeouts { connect: routing.connect_timeout, first_byte: routing.timeout }
    }
}

/// Reads the list under `key`. Names are made distinct, or refused when they were given.
pub fn backends(section: &mut Section, key: &str, timeouts: Timeouts) -> Vec<Backend> {
    let mut backends: Vec<Backend> = Vec::new();
    for mut s in section.sections(key) {
        let Some(mut backend) = backend(&mut s, timeouts) else { continue };
        if let Some(twin) = backends.iter().find(|b| b.url == backend.url) {
            s.warn("url", format!("is also the URL of the backend `{}`", twin.name));
        }
        let taken = |name: &str| backends.iter().any(|b| b.name == name);
        if taken(&backend.name) {
            if s.given("name") {
                s.error(
                    "name",
                    format!("{} is also the name of another backend", value::quoted(&backend.name)),
                );
            } else {
                let numbered = |n: usize| format!("{}#{n}", backend.name);
                let free = (2..).map(numbered).find(|name| !taken(name));
                backend.name = free.unwrap_or_default();
            }
        }
        backends.push(backend);
    }
    backends
}

fn backend(s: &mut Section, timeouts: Timeouts) -> Option<Backend> {
    s.unsupported(&[("paths", "`server.paths` says which paths are forwarded")]);
    let read = |text: &str| Url::backend(text).map(|url| (text.to_owned(), place(url)));
    let (text, place) = s.required_parsed("url", read).unzip();
    let tls = tls(s, place.as_ref());
    let (headers, host) = fields(s);
    // Everything is read even when the URL is wrong, so that all mistakes show at once.
    let place = place.unwrap_or_default();
    if let Some(cure) = without_version(&place.base_path, text.as_deref().unwrap_or_default()) {
        s.warn(
            "url",
            format!(
                "ends in /v1, which the paths of clients begin with: it is not written twice, \
                 and what engines have beside it (/ping, /generate, health) is asked for there; \
                 write {}",
                value::quoted(&cure)
            ),
        );
    }
    let usage = [
        ("auto", StreamUsage::Auto),
        ("always", StreamUsage::Always),
        ("never", StreamUsage::Never),
    ];
    let (engine, metrics) = (engine(s), metrics(s));
    if engine == Engine::Ollama && metrics == EngineMetrics::Auto {
        s.warn("metrics", "nothing is read: Ollama has no figures of its load");
    }
    let abort = [("close", OnClientAbort::Close), ("drain", OnClientAbort::Drain)];
    let backend = Backend {
        name: s.text("name").filter(|n| !n.is_empty()).unwrap_or(place.name),
        url: text.unwrap_or_default(),
        weight: weight(s),
        connect_timeout: s.duration("connect_timeout", timeouts.connect),
        first_byte_timeout: s.duration("first_byte_timeout", timeouts.first_byte),
        idle_timeout: s.duration("idle_timeout", Duration::from_secs(120)),
        // uvicorn and cpp-httplib close an idle connection after 5 s: never use one near that.
        keepalive_timeout: s.duration("keepalive_timeout", Duration::from_secs(3)),
        max_idle_conns: s.int("max_idle_conns", 0..=10_000u32, 100) as usize,
        headers,
        health_path: s.parsed("health_path", value::optional(value::url_path)).flatten(),
        engine,
        metrics,
        on_client_abort: s.choice("on_client_abort", &abort, OnClientAbort::Close),
        models: s.list("models", ModelPattern::parse).unwrap_or_default(),
        region: s.text("region").unwrap_or_default(),
        backup: s.boolean("backup", false),
        slow_start: slow_start(s),
        max_concurrent: s.int("max_concurrent", 0..=CONCURRENT_MAX, 0),
        stream_usage: s.choice("stream_usage", &usage, StreamUsage::Auto),
        host: s
            .parsed("host", value::header_value)
            .filter(|h| !h.is_empty())
            .or(host)
            .unwrap_or(place.host),
        base_path: place.base_path,
        endpoint: place.endpoint?,
        tls,
    };
    Some(backend)
}

/// The URL without the `/v1` at its end, if it has one.
fn without_version(base_path: &str, url: &str) -> Option<String> {
    base_path.ends_with("/v1").then(|| {
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        // That of a Unix socket has a colon before its base path.
        url.trim_end_matches(':').to_owned()
    })
}

/// What a URL says about a backend.
#[derive(Default)]
struct Place {
    name: String,
    host: String,
    base_path: String,
    endpoint: Option<Endpoint>,
    tls: bool,
}

fn place(url: Url) -> Place {
    match url {
        Url::Http { tls, host, port, authority, path, .. } => Place {
            name: match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            },
            host: authority,
            base_path: path,
            endpoint: Some(Endpoint::Tcp { host, port }),
            tls,
        },
        Url::Unix { socket, path } => Place {
            name: format!("unix:{socket}"),
            // RFC 9112 section 3.2 wants a Host even where no name exists.
            host: "localhost".into(),
            base_path: path,
            endpoint: Some(Endpoint::Unix(socket.into())),
            tls: false,
        },
    }
}

fn tls(s: &mut Section, place: Option<&Place>) -> Option<BackendTls> {
    let is_tls = place.is_some_and(|p| p.tls);
    let name = match place.and_then(|p| p.endpoint.as_ref()) {
        Some(Endpoint::Tcp { host, .. }) => host.clone(),
        _ => String::new(),
    };
    if s.has("tls") && place.is_some() && !is_tls {
        s.error("tls", "is given, but nothing is encrypted: the URL must begin with https://");
    }
    let mut tls = BackendTls { server_name: name, ca_file: None, insecure_skip_verify: false };
    if let Some(mut s) = s.section("tls") {
        if let Some(name) = s.text("server_name").filter(|n| !n.is_empty()) {
            tls.server_name = name;
        }
        tls.ca_file = s.protecting("ca_file").map(Into::into);
        tls.insecure_skip_verify = s.boolean("insecure_skip_verify", false);
        if tls.insecure_skip_verify {
            s.warn(
                "insecure_skip_verify",
                "INSECURE: any certificate is accepted, so whoever stands between reads every \
                 prompt and answer; name the authority in `ca_file` instead",
            );
        }
    }
    is_tls.then_some(tls)
}

/// `headers` and `api_key`; a `Host` among the headers is that of the requests.
pub fn fields(s: &mut Section) -> (Vec<(String, Secret)>, Option<String>) {
    let mut headers = headers(s);
    let at = headers.iter().position(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = at.map(|at| headers.remove(at).1.reveal().to_owned());
    let key = s.parsed("api_key", value::header_value).filter(|key| !key.is_empty());
    if let Some(key) = key {
        if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            s.error("api_key", "and `headers.Authorization` say the same thing twice: give one");
        }
        headers.push(("Authorization".into(), Secret::new(format!("Bearer {key}"))));
    }
    (headers, host)
}

/// What a backend is.
pub fn engine(s: &mut Section) -> Engine {
    let engines = Engine::ALL.map(|engine| (engine.name(), engine));
    s.choice("engine", &engines, Engine::Auto)
}

/// Whether its figures are read.
pub fn metrics(s: &mut Section) -> EngineMetrics {
    let read = |text: &str| match text {
        "off" => Ok(EngineMetrics::Off),
        "auto" => Ok(EngineMetrics::Auto),
        path => value::url_path(path)
            .map(EngineMetrics::Path)
            .map_err(|_| "must be auto, off, or a path such as /metrics".into()),
    };
    s.parsed("metrics", read).unwrap_or(EngineMetrics::Off)
}

/// For how long one that came starts slowly.
pub fn slow_start(s: &mut Section) -> Duration {
    s.doubt_bare_seconds("slow_start");
    let time = s.duration_or_zero("slow_start");
    if time > SLOW_START_MAX {
        let seconds = SLOW_START_MAX.as_secs();
        s.error("slow_start", format!("is longer than it may be: {seconds}s"));
    }
    time
}

/// The first versions took a weight of 0 or less for 1.
fn weight(s: &mut Section) -> u32 {
    let read = |text: &str| match text.parse::<i64>() {
        Ok(number) if number < 1 => Ok(0),
        _ => value::int(text, 1..=WEIGHT_MAX),
    };
    let weight = s.parsed("weight", read).unwrap_or(1);
    if weight == 0 {
        s.warn("weight", "below 1 counts as 1; leave the backend out to give it no traffic");
    }
    weight.max(1)
}
