//! What a script is, what it is told, and what comes of a run.

use crate::config::plan::{Plan, ProviderKind, Script};
use serde_json::{Map, Value};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A script, whose text was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptText {
    /// The place of its provider in `auth.pipeline`.
    pub place: usize,
    /// The provider whose script it is.
    pub provider: Arc<str>,
    /// What the script is called in messages: its file, or the key of the configuration.
    pub name: Arc<str>,
    /// The code.
    pub code: Arc<str>,
    /// Processor time of one run.
    pub timeout: Duration,
    /// Bytes of one run.
    pub max_memory: u64,
}

impl ScriptText {
    /// The scripts that a plan names, in the order of its providers: the place of the provider in
    /// the pipeline, its name, and the script.
    pub fn of(plan: &Plan) -> impl Iterator<Item = (usize, &str, &Script)> {
        let providers = plan.auth.iter().flat_map(|auth| auth.pipeline.iter().enumerate());
        providers.flat_map(|(place, provider)| {
            let own = match &provider.kind {
                ProviderKind::Lua { lua } => Some(lua),
                _ => None,
            };
            let scripts = own.into_iter().chain(&provider.script);
            scripts.map(move |script| (place, provider.name.as_str(), script))
        })
    }
}

/// What a script is told.
pub struct ScriptInput<'a> {
    /// The key, as its client shows it.
    pub api_key: &'a str,
    /// What the provider knows of it.
    pub data: &'a Value,
    /// Of the request.
    pub method: &'a str,
    /// Of the request, without its query.
    pub path: &'a str,
    /// The client's address.
    pub client_ip: &'a str,
    /// The fields of the head, in order: of those with one name, the script sees the first.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// What providers before this one gave.
    pub metadata: &'a Map<String, Value>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// What a script decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    /// The key may be used; with what the script gave as `metadata`.
    Allow(Map<String, Value>),
    /// It may not.
    Deny {
        /// Status of the answer, where the script named one from 400 to 599.
        status: Option<u16>,
        /// `error.code` of the answer, where the script named one and there are not too many.
        code: Option<&'static str>,
        /// For the client: one line, at most [`crate::base::limits::SCRIPT_MESSAGE_BYTES_MAX`].
        message: Option<String>,
    },
}

/// What is wrong with a script, or with a run of it: for the log, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// The provider.
    pub provider: Arc<str>,
    /// The script.
    pub script: Arc<str>,
    /// The line, where it is known.
    pub line: Option<u32>,
    /// What happened.
    pub message: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "provider {}: script {}: ", self.provider, self.script)?;
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ScriptError {}
