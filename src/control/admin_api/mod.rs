//! The admin API: keys, backends and the configuration of a gateway that runs, over HTTP.
//!
//! *Takes:* a request whose sender may ask, with all of its body. *Gives:* an answer. *Runs on:*
//! threads of the control plane; its door, where requests are read, on the ring of the control
//! plane. *May:* block, on the store and on whom it asks. *Never:* runs on a worker, gives a key
//! away but to whoever makes it, writes a key or a token to the log.
//!
//! `llmproxy keys` is a client of the same routes: over the admin socket of a gateway that runs,
//! or, when none does, in its own process.

mod fault;
mod input;
mod keys;
mod old;
mod router;
#[cfg(test)]
mod tests;

pub use fault::ApiFault;

use super::key_store::KeyStore;
use crate::base::clock::unix_ms;
use crate::http::request::Method;
use serde_json::Value;
use std::sync::Arc;

/// A request. It may hold a key: it has no `Debug`.
pub struct AdminRequest {
    /// Its method.
    pub method: Method,
    /// The path as it was sent, without the query.
    pub path: String,
    /// The query, without its `?`.
    pub query: String,
    /// All of its body.
    pub body: Vec<u8>,
    /// False where `admin.read_only` holds.
    pub may_change: bool,
}

/// An answer. It may hold a key: it has no `Debug`.
#[derive(Clone)]
pub struct AdminAnswer {
    /// Status code.
    pub status: u16,
    /// Content-Type.
    pub content_type: &'static str,
    /// Further fields.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Arc<[u8]>,
}

/// Content-Type of nearly all answers.
pub const JSON: &str = "application/json";
/// Content-Type of an export: a JSON object in each line.
pub const JSON_LINES: &str = "application/x-ndjson";

impl AdminAnswer {
    /// Of a JSON value.
    pub fn json(status: u16, value: &Value) -> AdminAnswer {
        let body = format!("{value}\n").into_bytes().into();
        AdminAnswer { status, content_type: JSON, fields: Vec::new(), body }
    }
}

type Answer = Result<AdminAnswer, ApiFault>;

/// What answers.
pub struct AdminApi {
    store: Arc<KeyStore>,
}

/// What a handler gets of a request.
struct Call<'a> {
    /// What stands in the path for each `{name}` of the route.
    parts: Vec<String>,
    query: Vec<(String, String)>,
    body: &'a [u8],
    now_ms: i64,
}

impl AdminApi {
    /// Of a store alone: what there is of a gateway is not to be had.
    pub fn of_store(store: Arc<KeyStore>) -> AdminApi {
        AdminApi { store }
    }

    /// Answers. Blocks.
    pub fn answer(&self, request: &AdminRequest) -> AdminAnswer {
        let answer = router::route(request).and_then(|(route, parts)| {
            if route.changes && !request.may_change {
                return Err(ApiFault::new(403, "read_only", "admin.read_only: nothing is changed"));
            }
            let query = input::query(&request.query)?;
            let now_ms = i64::try_from(unix_ms()).unwrap_or(i64::MAX);
            (route.handle)(self, &Call { parts, query, body: &request.body, now_ms })
        });
        answer.unwrap_or_else(|fault| match old::is_its_path(&request.path) {
            true => old::failed(&fault),
            false => fault.answer(),
        })
    }

    /// Keys were changed: whoever keeps what it was told of them must ask anew.
    fn changed(&self) {}
}
