//! The admin API: keys, backends and the configuration of a gateway that runs, over HTTP.
//!
//! *Takes:* a request whose sender may ask, with all of its body. *Gives:* an answer. *Runs on:*
//! threads of the control plane; its door, where requests are read, on the ring of the control
//! plane. *May:* block, on the store and on whom it asks. *Never:* runs on a worker, gives a key
//! away but to whoever makes it, writes a key or a token to the log.
//!
//! `llmproxy keys` is a client of the same routes: over the admin socket of a gateway that runs,
//! or, when none does, in its own process.

mod counted;
mod fault;
mod fleet;
mod input;
mod keys;
mod old;
mod requests;
mod router;
#[cfg(test)]
mod tests;

pub use fault::ApiFault;

use super::admin_door::{AdminAnswer, AdminQuestion, AdminRequest, Gateway, JSON};
use super::key_store::KeyStore;
use super::survive;
use crate::base::clock::unix_ms;
use crate::base::limits::ADMIN_WAITING_MAX;
use crate::config::plan::{Plan, ProviderKind};
use crate::state::admin_desk;
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;

/// Content-Type of an export: a JSON object in each line.
pub const JSON_LINES: &str = "application/x-ndjson";

/// Threads that answer: while one waits for a reload, the other one goes on.
const THREADS: usize = 2;

type Answer = Result<AdminAnswer, ApiFault>;

/// What answers.
pub struct AdminApi {
    store: Arc<KeyStore>,
    /// `None`: no gateway runs in this process.
    gateway: Option<Gateway>,
}

/// Opens the store of a plan that has one, and starts the threads that answer what is put into the
/// queue that this gives.
///
/// # Errors
/// The store cannot be used, or there is no thread; a line for a person.
pub fn start(plan: &Plan, gateway: Gateway) -> Result<Option<Sender<AdminQuestion>>, String> {
    let Some(admin) = &plan.admin else { return Ok(None) };
    let store =
        KeyStore::open(&admin.db_path).map_err(|error| format!("admin.db_path: {error}"))?;
    let (questions, waiting) = admin_desk::questions(ADMIN_WAITING_MAX);
    let api = Arc::new(AdminApi { store: Arc::new(store), gateway: Some(gateway) });
    for number in 0..THREADS {
        let (api, waiting) = (Arc::clone(&api), waiting.clone());
        let thread = std::thread::Builder::new().name(format!("admin-{number}"));
        let started = thread.spawn(move || api.serve(&waiting));
        started.map_err(|error| format!("a thread cannot be started: {error}"))?;
    }
    Ok(Some(questions))
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
        AdminApi { store, gateway: None }
    }

    fn serve(&self, waiting: &Receiver<AdminQuestion>) {
        for (request, reply) in waiting {
            // Whoever has left misses nothing.
            survive("admin", || drop(reply.send(self.answer(&request))));
        }
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
    fn changed(&self) {
        let Some(gateway) = &self.gateway else { return };
        let view = gateway.board.view();
        let providers = view.plan.auth.iter().flat_map(|auth| &auth.pipeline);
        for (provider, service) in providers.zip(&view.services) {
            if provider.kind == ProviderKind::Builtin {
                service.iter().for_each(|service| service.note_change());
            }
        }
    }
}
