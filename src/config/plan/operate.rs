//! Administration and hooks.

use super::{print, Script};
use crate::base::secret::Secret;
use crate::config::value::IpRange;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the store of keys is unless `admin.db_path` says otherwise.
pub const KEYS_DB_PATH: &str = "./data/keys.db";

/// The administrators' API, on a listener of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Admin {
    /// Its listener.
    pub listen: SocketAddr,
    /// What a request must show; never empty.
    #[serde(serialize_with = "print::secret")]
    pub token: Secret,
    /// File of the store of keys.
    pub db_path: PathBuf,
    /// True to refuse every change.
    pub read_only: bool,
    /// Clients that may ask; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub allowed_ips: Vec<IpRange>,
}

/// A script run at a point of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook {
    /// When it runs.
    pub point: HookPoint,
    /// What runs.
    pub script: Script,
}

/// Points of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HookPoint {
    /// After the body was read.
    OnRequest,
    /// After admission.
    OnAuth,
    /// After a backend was chosen.
    OnRoute,
    /// When the answer begins.
    OnResponse,
    /// When the request failed.
    OnError,
    /// When all is over.
    OnComplete,
}
