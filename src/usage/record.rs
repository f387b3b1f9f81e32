//! stub
use crate::base::id::RequestId;
use crate::llm::usage::Usage;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome { Complete, ClientLeft, BackendError, TimedOut, Refused }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageSource { Backend, Missing, Aborted }
#[derive(Debug, Clone)]
pub struct UsageRecord {
    pub request_id: RequestId,
    pub client_request_id: Option<RequestId>,
    pub timestamp_ms: u64,
    pub user_id: Option<Box<str>>,
    pub api_key: Option<Box<str>>,
    pub model: Box<str>,
    pub method: Box<str>,
    pub path: Box<str>,
    pub backend: Option<u32>,
    pub status_code: u16,
    pub is_stream: bool,
    pub usage: Option<Usage>,
    pub usage_source: UsageSource,
    pub latency_ms: u64,
    pub ttft_ms: Option<u64>,
    pub retry_count: u32,
    pub fallback_used: bool,
    pub outcome: Outcome,
    pub error: Option<&'static str>,
    pub upstream_id: Option<Box<str>>,
    pub request_body: Option<Vec<u8>>,
    pub bytes: u64,
    pub events: u64,
}
