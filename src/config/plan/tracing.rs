//! Traces of the plan.

use super::print;
use crate::base::secret::Secret;
use serde::Serialize;
use std::time::Duration;

/// Where the spans of requests go, by OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OtlpTraces {
    /// http or https URL, its path included. May carry a secret in its query: never logged whole.
    #[serde(serialize_with = "print::url")]
    pub endpoint: Secret,
    /// Extra fields (values may be secrets).
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
    /// The share of traces that are recorded, of those that begin here: 0 to 1. Of others the
    /// client has decided.
    pub sample_ratio: f64,
    /// Of one try, connect to last byte.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// `service.name`.
    pub service_name: String,
    /// How what is sent is packed.
    pub compression: OtlpCompression,
}

/// How spans are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtlpCompression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
}
