//! `server`: listener, threads, limits, timeouts, TLS, cross-origin rules.

use super::acme::acme;
use super::listeners;
use crate::base::limits::{
    BODY_BYTES_MAX, BUFFERED_BYTES_MAX, BUFFERED_BYTES_MIN, BUFFERED_SMALL_SHARE, CERTIFICATES_MAX,
    CONNECTIONS_MAX, HEAD_BYTES_MAX, WORKERS_AUTO_MAX, WORKERS_MAX,
};
use crate::config::plan::endpoints::{self, Endpoint, OWN_PATHS};
use crate::config::plan::{
    CertificateFiles, ClientAuth, Cors, HalfClose, Server, ServerTls, TlsFloor,
};
use crate::config::section::Section;
use crate::config::value::{self, IpRange};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const HALF_CLOSES: [(&str, HalfClose); 2] =
    [("leave", HalfClose::Leave), ("serve", HalfClose::Serve)];

/// Reads the section; every default is here.
pub fn server(root: &mut Section) -> Server {
    let Some(mut s) = root.section("server") else { return defaults() };
    read(&mut s)
}

fn read(s: &mut Section) -> Server {
    let base = defaults();
    let said = s.parsed("workers", |t| auto_or(t, 1..=WORKERS_MAX)).flatten();
    let workers = said.unwrap_or(base.workers);
    let cpus = cpu_affinity(s);
    let limit = |t: &str| auto_or(t, 1..=CONNECTIONS_MAX);
    s.doubt_bare_seconds("drain_timeout");
    let max_body_size = s
        .parsed("max_body_size", |t| value::size(t, 1..=BODY_BYTES_MAX))
        .unwrap_or(base.max_body_size);
    let base_listen = if s.given("listeners") { Vec::new() } else { base.listen };
    let listen = listen(s).unwrap_or(base_listen);
    let mut server = Server {
        tls: s.when_enabled("tls", |s| tls(s, &listen)),
        listen,
        listeners: Vec::new(),
        region: s.text("region").unwrap_or_default(),
        trusted_proxies: s.list("trusted_proxies", IpRange::parse).unwrap_or_default(),
        proxy_protocol: s.boolean("proxy_protocol", base.proxy_protocol),
        pid_file: s.text("pid_file").filter(|path| !path.is_empty()).map(Into::into),
        watch_config: s.boolean("watch_config", base.watch_config),
        workers,
        workers_auto: said.is_none(),
        cpu_affinity_auto: cpus.is_none(),
        cpu_affinity: cpus.unwrap_or_else(|| automatic_cpus(workers)),
        max_connections: s.parsed("max_connections", limit).flatten(),
        max_header_bytes: max_header_bytes(s),
        max_body_size,
        max_buffered_bytes: max_buffered_bytes(s, max_body_size),
        header_timeout: s.duration("header_timeout", base.header_timeout),
        body_timeout: s.duration("body_timeout", base.body_timeout),
        write_timeout: s.duration("write_timeout", base.write_timeout),
        idle_timeout: s.duration("idle_timeout", base.idle_timeout),
        half_close: s.choice("half_close", &HALF_CLOSES, base.half_close),
        shutdown_delay: s.duration_or_zero("shutdown_delay"),
        drain_timeout: s.parsed("drain_timeout", drain_timeout).unwrap_or(base.drain_timeout),
        forward_credentials: s.boolean("forward_credentials", base.forward_credentials),
        paths: paths(s),
        cors: s.when_enabled("cors", cors),
    };
    server.listeners = listeners::listeners(s, &server);
    if server.proxy_protocol && server.trusted_proxies.is_empty() && !s.desk.has_errors() {
        s.error("proxy_protocol", "is believed from trusted_proxies only: name them");
    }
    server
}

/// The values of reliability: a head is small and soon there; long prompts take long to begin.
fn defaults() -> Server {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_AUTO_MAX);
    Server {
        listen: vec![(Ipv6Addr::UNSPECIFIED, 8000).into()],
        listeners: Vec::new(),
        region: String::new(),
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        pid_file: None,
        watch_config: false,
        workers,
        workers_auto: true,
        cpu_affinity_auto: true,
        cpu_affinity: automatic_cpus(workers),
        max_connections: None,
        max_header_bytes: HEAD_BYTES_MAX,
        // Images travel inside chat bodies, as base64.
        max_body_size: 32 << 20,
        max_buffered_bytes: None,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(75),
        half_close: HalfClose::Leave,
        shutdown_delay: Duration::ZERO,
        // Kubernetes kills after 30 s unless it is told otherwise: what was cut still has to be
        // settled, and its records written.
        drain_timeout: Some(Duration::from_secs(25)),
        forward_credentials: false,
        paths: endpoints::default_paths(),
        cors: None,
        tls: None,
    }
}

/// One address, or a list of them. `[::]` and `0.0.0.0` of one port go together: as one, they are
/// every address.
fn listen(s: &mut Section) -> Option<Vec<SocketAddr>> {
    let addresses = s.list("listen", |text| match text.starts_with("unix:") {
        true => Err(format!("{} belongs into server.listeners", value::quoted(text))),
        false => value::listen(text),
    })?;
    if addresses.is_empty() && !s.desk.has_errors() {
        s.error("listen", "must name at least one address, such as :8000");
    }
    let both = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == Ipv6Addr::UNSPECIFIED && b.ip() == Ipv4Addr::UNSPECIFIED
    };
    for (i, one) in addresses.iter().enumerate() {
        let clash = |other: &&SocketAddr| {
            value::overlap(**other, *one) && !both(other, one) && !both(one, other)
        };
        if let Some(other) = addresses.iter().take(i).find(clash) {
            s.error("listen", format!("{one} is within {other}, or the other way round"));
        }
    }
    Some(addresses)
}

/// `auto`, or a number within a range.
fn auto_or(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let (low, high) = (*range.start() as u64, *range.end() as u64);
    let number = value::int(text, low..=high).map_err(|message| format!("{message}, or auto"))?;
    Ok(Some(number as usize))
}

/// The CPUs themselves, none where it is `off`; `None` = `auto`.
fn cpu_affinity(s: &mut Section) -> Option<Vec<usize>> {
    let texts = s.list("cpu_affinity", |t| Ok(t.to_owned()))?;
    match texts.as_slice() {
        [one] if one == "off" => return Some(Vec::new()),
        [one] if one == "auto" => return None,
        _ => {}
    }
    let cpu = |t: &String| value::int(t, 0..=4095u32).map(|n| n as usize);
    match texts.iter().map(cpu).collect::<Result<Vec<usize>, String>>() {
        Err(message) => {
            s.error("cpu_affinity", format!("{message}, or auto, or off"));
            None
        }
        Ok(cpus) => {
            let here = available_cpus();
            if let Some(missing) = cpus.iter().find(|c| !here.contains(c)) {
                let range = cpu_list(&here);
                let message =
                    format!("CPU {missing} is not one that this process may use: {range}");
                s.error("cpu_affinity", message);
            }
            Some(cpus)
        }
    }
}

/// Worker i on the i-th CPU this process may use; none when there are more workers than CPUs, and
/// none under a CPU quota: it does not say which CPUs, and all of its kind would crowd the first.
fn automatic_cpus(workers: usize) -> Vec<usize> {
    let mut cpus = available_cpus();
    let quota = std::thread::available_parallelism().map_or(cpus.len(), |n| n.get());
    if workers > cpus.len() || quota < cpus.len() {
        return Vec::new();
    }
    cpus.truncate(workers);
    cpus
}

/// CPUs as the kernel lists them: `0-3,8`.
fn cpu_list(cpus: &[usize]) -> String {
    let mut text = String::new();
    let starts = cpus.iter().enumerate().filter(|(i, c)| *i == 0 || cpus[i - 1] + 1 != **c);
    for (at, first) in starts {
        let more = cpus[at..].windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count();
        text.push_str(if at > 0 { "," } else { "" });
        text.push_str(&first.to_string());
        text.push_str(&if more > 0 { format!("-{}", first + more) } else { String::new() });
    }
    text
}

fn available_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// The old default of 1 MiB is more than any head may have here: it is cut, not refused.
fn max_header_bytes(s: &mut Section) -> usize {
    let most = HEAD_BYTES_MAX as u64;
    let given = s.parsed("max_header_bytes", |t| value::size(t, 1024..=u64::from(u32::MAX)));
    match given {
        None => HEAD_BYTES_MAX,
        Some(bytes) if bytes > most => {
            s.warn("max_header_bytes", format!("{most} bytes are the most and are used"));
            HEAD_BYTES_MAX
        }
        Some(bytes) => bytes as usize,
    }
}

/// A body of the largest size must fit, together with its head, and beside what is kept for small
/// ones.
fn max_buffered_bytes(s: &mut Section, max_body_size: u64) -> Option<usize> {
    let range = BUFFERED_BYTES_MIN..=BUFFERED_BYTES_MAX;
    let size = |text: &str| match text {
        "auto" => Ok(None),
        _ => value::size(text, range.clone()).map(Some).map_err(|e| format!("{e}, or auto")),
    };
    let bytes = s.parsed("max_buffered_bytes", size).flatten()?;
    let needed = max_body_size + HEAD_BYTES_MAX as u64;
    if bytes - bytes / BUFFERED_SMALL_SHARE < needed {
        let least = needed + needed.div_ceil(BUFFERED_SMALL_SHARE - 1);
        let message = format!(
            "must be at least {least}: max_body_size and a head of 64 KiB, which get seven eighths"
        );
        s.error("max_buffered_bytes", message);
    }
    usize::try_from(bytes).ok()
}

fn drain_timeout(text: &str) -> Result<Option<Duration>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    value::duration(text).map(Some).map_err(|message| format!("{message}, or unlimited"))
}

fn paths(s: &mut Section) -> Vec<String> {
    let path = |text: &str| {
        let stem = text.strip_suffix('*').unwrap_or(text);
        if stem.contains('*') {
            return Err(format!("{}: a `*` may only be the last character", value::quoted(text)));
        }
        value::request_path(stem)?;
        // The slash behind a known path is dropped from requests, too.
        let known = text.strip_suffix('/').and_then(|bare| Endpoint::of(bare.as_bytes()));
        Ok(known.map_or(text, |endpoint| endpoint.path).to_owned())
    };
    let Some(paths) = s.list("paths", path) else { return defaults().paths };
    if paths.is_empty() && !s.desk.has_errors() {
        s.error("paths", "must name at least one path, such as /v1/chat/completions");
    }
    warn_of_management(s, &paths);
    for own in paths.iter().filter(|path| OWN_PATHS.contains(&path.as_str())) {
        s.warn("paths", format!("`{own}` is answered by llmproxy itself and goes to no backend"));
    }
    paths
}

/// A path that is named is meant; a prefix may cover more than its writer thought of.
fn warn_of_management(s: &mut Section, paths: &[String]) {
    // By itself, the page of an engine's metrics only tells.
    for entry in paths.iter().filter(|entry| *entry != "/metrics") {
        let opened: Vec<&str> = endpoints::opened_by(entry).take(3).collect();
        if opened.is_empty() {
            continue;
        }
        let message = match entry.ends_with('*') {
            true => format!(
                "`{entry}` also opens paths by which engines are managed ({}, ...) to every \
                 client: name the paths that clients need",
                opened.join(", ")
            ),
            false => format!("`{entry}` lets every client manage engines"),
        };
        s.warn("paths", message);
    }
}

/// An origin as browsers write it; one that is not would never be met.
fn origin(text: &str) -> Result<String, String> {
    let host = text.split_once("://").map(|(_, host)| host);
    let is_whole = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']));
    match is_whole || text == "*" || text == "null" {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{} must be `*`, or an origin without a path, such as https://chat.example.com",
            value::quoted(text)
        )),
    }
}

fn cors(s: &mut Section) -> Cors {
    let cors = Cors {
        allowed_origins: s.list("allowed_origins", origin).unwrap_or_default(),
        allowed_methods: super::texts(
            s,
            "allowed_methods",
            &["GET", "POST", "PUT", "DELETE", "OPTIONS"],
        ),
        allowed_headers: super::texts(
            s,
            "allowed_headers",
            &["Authorization", "Content-Type", "X-API-Key"],
        ),
        expose_headers: super::texts(s, "expose_headers", &[]),
        allow_credentials: s.boolean("allow_credentials", false),
        max_age: s.parsed("max_age", value::duration_or_zero).filter(|age| !age.is_zero()),
    };
    if cors.allowed_origins.is_empty() && !s.desk.has_errors() {
        s.warn("allowed_origins", "is empty: no page of another origin may ask");
    }
    if cors.allow_credentials && cors.allowed_origins.iter().any(|o| o == "*") {
        s.error("allow_credentials", "cannot go together with the origin `*`: name the origins");
    }
    cors
}

fn tls(s: &mut Section, taken: &[SocketAddr]) -> ServerTls {
    let auth = [
        ("none", ClientAuth::None),
        ("request", ClientAuth::Request),
        ("require", ClientAuth::Require),
    ];
    let floors = [("1.2", TlsFloor::Tls12), ("1.3", TlsFloor::Tls13)];
    let certificates: Vec<_> =
        s.sections("certificates").iter_mut().map(certificate_files).collect();
    if certificates.len() > CERTIFICATES_MAX {
        s.error("certificates", format!("must be {CERTIFICATES_MAX} at most"));
    }
    let tls = ServerTls {
        pair: pair(s, certificates.is_empty() && !s.has("acme")),
        certificates,
        min_version: s.choice("min_version", &floors, TlsFloor::Tls12),
        client_ca_file: s.protecting("client_ca_file").map(Into::into),
        client_auth: s.choice("client_auth", &auth, ClientAuth::None),
        acme: None,
    };
    let is_closed = tls.client_auth == ClientAuth::Require;
    let tls = ServerTls { acme: s.when_present("acme", |s| acme(s, (taken, is_closed))), ..tls };
    if tls.client_ca_file.is_some() && !s.given("client_auth") {
        s.error("client_auth", "is required beside client_ca_file: none, request or require");
    }
    let has_certificates = tls.acme.is_some() || tls.all_certificates().next().is_some();
    if !has_certificates && !s.desk.has_errors() {
        s.error("cert_file", "is required: nothing else gives a certificate");
    }
    if tls.client_auth != ClientAuth::None && tls.client_ca_file.is_none() {
        s.error("client_ca_file", "is required when client_auth asks for certificates");
    }
    tls
}

/// The certificate that stands in the section itself, which it may do without where others are.
fn pair(s: &mut Section, is_required: bool) -> Option<CertificateFiles> {
    if is_required || s.given("cert_file") || s.given("key_file") {
        return Some(certificate_files(s));
    }
    // Both are known, and empty.
    let _ = (s.get("cert_file"), s.get("key_file"));
    None
}

fn certificate_files(s: &mut Section) -> CertificateFiles {
    CertificateFiles {
        cert_file: s.required("cert_file").into(),
        key_file: s.required("key_file").into(),
    }
}
