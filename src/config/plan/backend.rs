//! The engines of the plan.

use super::print;
use crate::base::secret::Secret;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backend {
    /// Label in metrics, logs and rules: given, or host:port of the URL.
    pub name: String,
    /// The URL as written, without credentials.
    pub url: String,
    /// Where to connect.
    #[serde(skip)]
    pub endpoint: Endpoint,
    /// TLS towards the engine; `None` for `http://` and `unix:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
    /// Put before the client's path; empty or `/base` without a final slash. Where it ends in
    /// `/v1`, the `/v1` that a path begins with is left out.
    #[serde(skip)]
    pub base_path: String,
    /// Value of the `Host` field sent to the engine.
    pub host: String,
    /// Share of the traffic; at least 1.
    pub weight: u32,
    /// To an established connection (TLS included).
    #[serde(serialize_with = "print::duration")]
    pub connect_timeout: Duration,
    /// From the request sent to the head of the answer. 504 `first_byte_timeout`.
    #[serde(serialize_with = "print::duration")]
    pub first_byte_timeout: Duration,
    /// Between two reads of the body of an answer.
    #[serde(serialize_with = "print::duration")]
    pub idle_timeout: Duration,
    /// A pooled connection is not used after so long without traffic (below the engine's own).
    #[serde(serialize_with = "print::duration")]
    pub keepalive_timeout: Duration,
    /// Idle connections kept per worker.
    pub max_idle_conns: usize,
    /// Fields set on every forwarded request, over the client's. `api_key` becomes one of them.
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
    /// Path of active probes when not that of `health_check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
    /// What it is, which says how it is probed.
    pub engine: Engine,
    /// Whether its own figures of its load are read.
    pub metrics: EngineMetrics,
    /// What the engine's connection does when the client leaves.
    pub on_client_abort: OnClientAbort,
    /// Models it serves; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub models: Vec<ModelPattern>,
    /// Where it stands.
    pub region: String,
    /// Used only when no other backend can take a request.
    pub backup: bool,
    /// Requests that all workers together may have there at a time; 0 = any number. Beyond:
    /// another backend, and 429 `backends_full` when all are full.
    pub max_concurrent: u32,
    /// For so long after it came back, or was added by a reload, its weight grows from a tenth to
    /// all of it; 0 = it has all of it at once.
    #[serde(serialize_with = "print::duration")]
    pub slow_start: Duration,
    /// Whether usage may be asked for on streams whose client did not ask.
    pub stream_usage: StreamUsage,
}

impl Backend {
    /// The base path without a version at its end: what is before the path of a probe, since
    /// engines have their health beside `/v1`, and before the paths that clients know.
    pub fn root_path(&self) -> &str {
        self.base_path.strip_suffix("/v1").unwrap_or(&self.base_path)
    }
}

/// An address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, and a port.
    Tcp {
        /// DNS name or IP literal (without brackets).
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// TLS towards an engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendTls {
    /// Name that the certificate must be valid for.
    pub server_name: String,
    /// PEM file of trusted roots; `None` = the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// True to accept any certificate (loudly warned).
    pub insecure_skip_verify: bool,
}

/// What a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// That is to be found out.
    Auto,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// llama.cpp's server.
    LlamaCpp,
    /// Ollama.
    Ollama,
}

impl Engine {
    /// All of them; the first is none.
    pub const ALL: [Engine; 6] =
        [Engine::Auto, Engine::Vllm, Engine::Sglang, Engine::Tgi, Engine::LlamaCpp, Engine::Ollama];

    /// As the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Auto => "auto",
            Engine::Vllm => "vllm",
            Engine::Sglang => "sglang",
            Engine::Tgi => "tgi",
            Engine::LlamaCpp => "llamacpp",
            Engine::Ollama => "ollama",
        }
    }

    /// The same; `None` while it is not known.
    pub fn known_name(self) -> Option<&'static str> {
        (self != Engine::Auto).then(|| self.name())
    }
}

/// Whether an engine's figures of its own load are read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineMetrics {
    /// No.
    Off,
    /// At the path where engines have them, from those that have any.
    Auto,
    /// At this path.
    Path(String),
}

impl Serialize for Engine {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl EngineMetrics {
    /// Where engines have them.
    pub const PATH: &str = "/metrics";
}

impl Serialize for EngineMetrics {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(match self {
            EngineMetrics::Off => "off",
            EngineMetrics::Auto => "auto",
            EngineMetrics::Path(path) => path,
        })
    }
}

/// Some engines crash when a connection is cut: they are drained instead (llama-swap#980).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnClientAbort {
    /// Close the engine's connection, which cancels the generation.
    Close,
    /// Read the answer to its end and throw it away.
    Drain,
}

/// Whether the gateway adds `stream_options.include_usage` for an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamUsage {
    /// When a record, a quota or a limit needs it.
    Auto,
    /// Always.
    Always,
    /// Never: the engine does not understand it.
    Never,
}

/// A model name, or its beginning and a final `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelPattern(String);

impl ModelPattern {
    /// Reads a pattern: not empty, a `*` only at its end.
    pub fn parse(text: &str) -> Result<Self, String> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || stem.contains('*') {
            return Err("must be the name of a model, or its beginning and a final `*`".into());
        }
        Ok(ModelPattern(text.to_owned()))
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// What the names begin with that it covers; `None`: it is one name.
    pub fn stem(&self) -> Option<&str> {
        self.0.strip_suffix('*')
    }

    /// True when the pattern covers this model. Case matters, as it does to the engines.
    pub fn matches(&self, model: &str) -> bool {
        match self.stem() {
            Some(stem) => model.starts_with(stem),
            None => model == self.0,
        }
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
impl Backend {
    /// One for tests, that nobody connects to.
    pub fn sample(name: &str) -> Backend {
        let second = Duration::from_secs(1);
        Backend {
            name: name.to_owned(),
            url: format!("http://{name}:8000"),
            endpoint: Endpoint::Tcp { host: name.to_owned(), port: 8000 },
            tls: None,
            base_path: String::new(),
            host: format!("{name}:8000"),
            weight: 1,
            connect_timeout: second,
            first_byte_timeout: second,
            idle_timeout: second,
            keepalive_timeout: second,
            max_idle_conns: 3,
            headers: Vec::new(),
            health_path: None,
            engine: Engine::Auto,
            metrics: EngineMetrics::Off,
            on_client_abort: OnClientAbort::Close,
            models: Vec::new(),
            region: String::new(),
            backup: false,
            max_concurrent: 0,
            slow_start: Duration::ZERO,
            stream_usage: StreamUsage::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        let p = |text| ModelPattern::parse(text).unwrap();
        assert!(p("llama-3-70b*").matches("llama-3-70b-instruct"));
        assert!(p("llama-3-70b*").matches("llama-3-70b"));
        assert!(!p("llama-3-70b").matches("llama-3-70b-instruct"));
        assert!(!p("llama*").matches("Llama"));
        assert!(p("*").matches("anything"));
        for bad in ["", "**", "*-chat", "a*b"] {
            assert!(ModelPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
