//! The plan: what a configuration means, complete and valid. Immutable; everyone reads it.
//!
//! *Takes:* values that were checked. *Gives:* types that cannot be wrong. *Runs on:* every
//! thread. *May:* be shared. *Never:* changes, is asked whether it is valid.

mod acme;
mod backend;
mod boot;
mod discovery;
pub mod endpoints;
mod keys;
mod limit;
mod listeners;
mod log;
mod operate;
mod print;
mod routing;
mod server;
mod storage;
mod tracing;
mod usage;
mod watch;

pub use acme::*;
pub use backend::*;
pub use discovery::*;
pub use keys::*;
pub use limit::*;
pub use listeners::*;
pub use log::*;
pub use operate::*;
pub(in crate::config) use print::{compared, shown};
pub use routing::*;
pub use server::*;
pub use storage::*;
pub use tracing::*;
pub use usage::*;
pub use watch::*;

use crate::base::limits::METRICS_MODELS_MAX;

pub use crate::config::value::{
    duration_or_zero, instant, sql_options, End, IpRange, SqlAddress, SqlDriver, SqlPlace,
    SqlServer,
};

/// A validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Listener, workers, limits and timeouts of the client side.
    pub server: Server,
    /// Events and the access log.
    pub log: Log,
    /// The engines, in the order of the file. The index is a backend's identity at run time.
    pub backends: Vec<Backend>,
    /// How a request finds its engine.
    pub routing: Routing,
    /// Active probes; `None` when off.
    pub health_check: Option<HealthCheck>,
    /// Who may use the gateway; `None` = everyone.
    pub auth: Option<Auth>,
    /// The keys of the file, used by the `file` provider.
    pub api_keys: Vec<ApiKey>,
    /// Limits on rates; `None` when off.
    pub rate_limit: Option<RateLimit>,
    /// Where limits and quotas are counted.
    pub counters: CountersPlan,
    /// Usage reporters; empty when off.
    pub usage: UsagePlan,
    /// The metrics endpoint; `None` when off.
    pub metrics: Option<Metrics>,
    /// Where traces go; `None` when off.
    pub tracing: Option<OtlpTraces>,
    /// The administrators' listener; `None` when off.
    pub admin: Option<Admin>,
    /// Scripts run at points of a request.
    pub hooks: Vec<Hook>,
    /// Backends found at run time; `None` when off.
    pub discovery: Option<Discovery>,
    /// Sections that are active in the file and that this version cannot serve yet, each with
    /// the line to print. Starting with any refuses; checking lists them.
    pub unbuilt: Vec<String>,
}

impl Plan {
    /// Whether it matters which model a request names.
    pub fn names_models(&self) -> bool {
        let is_mapped = !self.routing.model_mapping.is_empty();
        is_mapped || self.backends.iter().any(|backend| !backend.models.is_empty())
    }

    /// Models that have a label of their own in the metrics, without repetition: whoever names
    /// them is not a client.
    pub fn labelled_models(&self) -> Vec<String> {
        let own = self.metrics.iter().flat_map(|metrics| metrics.models.iter().cloned());
        let mapped = self.routing.model_mapping.iter();
        let mapped = mapped.flat_map(|(asked, served)| [asked.clone(), served.clone()]);
        let served = self.backends.iter().flat_map(|backend| &backend.models);
        let served = served.map(ToString::to_string).filter(|model| !model.contains('*'));
        let mut models: Vec<String> = Vec::new();
        for model in own.chain(mapped).chain(served) {
            if models.len() < METRICS_MODELS_MAX && !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }
}
