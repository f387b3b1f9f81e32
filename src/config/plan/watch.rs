//! Probes and metrics of the plan.

use super::print;
use serde::Serialize;
use std::net::SocketAddr;
use std::time::Duration;

/// Active probes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthCheck {
    /// Between two probes of one backend (jittered by ±10 %).
    #[serde(serialize_with = "print::duration")]
    pub interval: Duration,
    /// Of one probe.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Request path, unless the backend has its own. `None`: [`HealthCheck::PATH`], of which nobody
    /// said that the engines have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `GET` or `HEAD` or `POST`.
    pub method: String,
    /// Accepted statuses; empty = any 2xx.
    #[serde(serialize_with = "print::statuses")]
    pub expected_status: Vec<u16>,
    /// Failed probes in a row that take a backend out.
    pub unhealthy_threshold: u32,
    /// Good probes in a row that bring it back.
    pub healthy_threshold: u32,
}

impl HealthCheck {
    /// What vLLM, SGLang, TGI, TEI and llama.cpp answer with 200 when they can be asked. Ollama has
    /// no such path.
    pub const PATH: &'static str = "/health";
}

/// The metrics endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    /// Own listener; `None` = on the server's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Path, `/metrics` unless set.
    pub path: String,
    /// Upper bounds of the latency histograms, milliseconds, rising.
    #[serde(rename = "latency_buckets", serialize_with = "print::seconds")]
    pub latency_buckets_ms: Vec<u64>,
    /// Names of models that have a label of their own, beside those that the plan names otherwise.
    pub models: Vec<String>,
    /// Further labels of the request counters.
    pub custom_labels: Vec<String>,
}
