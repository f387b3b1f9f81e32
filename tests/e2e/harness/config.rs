//! Configurations for tests, written as users write them: YAML in the canonical schema.

use super::proxy::Proxy;

/// Stands for a folder that a proxy has for itself.
pub const SPOOL: &str = "@spool@";

/// A line of the server section of a proxy whose clients speak without TLS, also where those of all
/// other tests speak TLS: the test is about bytes that TLS would change.
pub const PLAIN: &str = "tls: {enabled: false}";

/// A configuration in the making. Whatever it does not name has the product's default.
#[derive(Debug, Clone, Default)]
pub struct Config {
    server: Vec<String>,
    backends: Vec<String>,
    sections: Vec<String>,
}

impl Config {
    /// One without backends.
    pub fn new() -> Config {
        Config::default()
    }

    /// One with a single backend of this URL and no further properties.
    pub fn backend_at(url: impl AsRef<str>) -> Config {
        Config::new().backend(url, "")
    }

    /// Adds a backend: its URL, and further properties in flow form (`weight: 3, name: a`).
    pub fn backend(mut self, url: impl AsRef<str>, more: &str) -> Config {
        let comma = if more.is_empty() { "" } else { ", " };
        self.backends.push(format!("{{url: \"{}\"{comma}{more}}}", url.as_ref()));
        self
    }

    /// Adds a line to the server section: `header_timeout: 300ms`.
    pub fn server(mut self, line: impl Into<String>) -> Config {
        self.server.push(line.into());
        self
    }

    /// Adds a section: `usage: {reporters: […]}`.
    pub fn section(mut self, text: impl Into<String>) -> Config {
        self.sections.push(text.into());
        self
    }

    /// Adds probes at a short interval. The timeout is long: on a busy machine one that is well
    /// must not be found sick.
    pub fn health_check(self) -> Config {
        self.section(
            "health_check: {interval: 200ms, timeout: 5s, path: /health, \
             unhealthy_threshold: 2, healthy_threshold: 1}",
        )
    }

    /// Adds a webhook reporter with further properties in flow form.
    pub fn webhook(self, url: &str, more: &str) -> Config {
        let comma = if more.is_empty() { "" } else { ", " };
        self.section(format!(
            "usage: {{reporters: [{{name: hook, type: webhook, \
             webhook: {{url: \"{url}\", concurrency: 1{comma}{more}}}}}]}}"
        ))
    }

    /// The YAML. One worker unless the test says otherwise: what is counted is then counted in
    /// one place.
    pub fn yaml(&self) -> String {
        let mut text = String::from("server:\n  listen: \"127.0.0.1:0\"\n");
        if !self.server.iter().any(|line| line.starts_with("workers:")) {
            text.push_str("  workers: 1\n");
        }
        // Proxies of tests that run beside each other would all be pinned to the same CPU.
        text.push_str("  cpu_affinity: \"off\"\n");
        self.server.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        if !self.sections.iter().any(|section| section.starts_with("log:")) {
            text.push_str("log: {level: debug, format: json, output: stdout}\n");
        }
        // What one proxy counts is no other's.
        let is = |name: &str| self.sections.iter().any(|section| section.starts_with(name));
        if ["rate_limit", "auth", "api_keys"].into_iter().any(is) && !is("counters") {
            // With records, they lie in the folder of the spool.
            let dir = if is("usage") { String::new() } else { format!("dir: {SPOOL}, ") };
            text.push_str(&format!("counters: {{{dir}entries: 4096}}\n"));
        }
        if !self.backends.is_empty() {
            text.push_str("backends:\n");
        }
        self.backends.iter().for_each(|line| text.push_str(&format!("  - {line}\n")));
        // The spool of one proxy is no other's.
        let own = |section: &String| match section.contains("spool") {
            true => section.clone(),
            false => {
                section.replacen("usage: {", &format!("usage: {{spool: {{dir: {SPOOL}}}, "), 1)
            }
        };
        self.sections.iter().for_each(|section| text.push_str(&format!("{}\n", own(section))));
        text
    }

    /// Starts the proxy with it.
    pub fn start(&self) -> Proxy {
        Proxy::start(&self.yaml())
    }
}
