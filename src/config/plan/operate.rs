//! Administration and hooks.

use super::{print, Script};
use crate::base::secret::Secret;
use crate::config::value::IpRange;
use serde::{Serialize, Serializer};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the store of keys is unless `admin.db_path` says otherwise.
pub const KEYS_DB_PATH: &str = "./data/keys.db";

/// The administrators' API, on a listener of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Admin {
    /// Where it is to be had.
    pub listen: AdminListen,
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

/// Where the admin API is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminListen {
    /// On a listener of its own.
    Own(SocketAddr),
    /// Below `/admin/` on the listeners of the clients.
    Main,
}

impl AdminListen {
    /// How `Main` is written.
    pub const MAIN: &'static str = "main";

    /// The address of its own listener.
    pub fn own(self) -> Option<SocketAddr> {
        match self {
            AdminListen::Own(address) => Some(address),
            AdminListen::Main => None,
        }
    }
}

impl Serialize for AdminListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            AdminListen::Own(address) => address.serialize(serializer),
            AdminListen::Main => serializer.serialize_str(AdminListen::MAIN),
        }
    }
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
