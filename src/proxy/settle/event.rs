//! The log lines of requests that did not end well. What failed stands there by the name that the
//! client, the record and the metrics give it, and whose request it was as in the access log.

use super::{Ending, Story};
use crate::base::fault::{Fault, Side};
use crate::keys::together;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use std::fmt;
use tracing::field::display;

/// What people may know a key by.
struct KeyLabel(u64);

impl fmt::Display for KeyLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Logs a request that is over. What is told of it is only looked up where its line is wanted.
pub(super) fn log(pass: &Pass, request: &Request, story: &Story) {
    let id = || request.unique_id.as_str();
    let user_id = || together::user_id(pass.who());
    let key_id = || pass.who().first().map(|key| display(KeyLabel(key.digest.label())));
    macro_rules! tell {
        ($level:ident, {$($fields:tt)*}, $message:literal) => {
            tracing::$level!(
                $($fields)*
                request_id = id(),
                user_id = user_id(),
                key_id = key_id(),
                $message
            )
        };
    }
    let may_log = |code| pass.w.shelf.may_log(code);
    match story.ending {
        Ending::Complete => {}
        Ending::Underway => tell!(error, {}, "it is not known how a request ended: report this"),
        // A deadline that passed is news, what a client got wrong is not.
        Ending::Refused(code) if story.status == 408 => {
            if may_log(code) {
                tell!(info, {code,}, "request timed out");
            }
        }
        Ending::Refused(code) => tell!(debug, {code,}, "request refused"),
        Ending::Fault(fault) => {
            let code = fault.code();
            let backend = story.backend.as_ref().map(|backend| &*backend.name);
            match fault.side() {
                _ if fault == Fault::QuotaExhausted => {
                    tell!(debug, {code, backend,}, "stream cut by its quota");
                }
                Side::Client if !fault.is_timeout() => {
                    tell!(debug, {code, backend,}, "request ended early");
                }
                _ if !may_log(code) => {}
                Side::Client => tell!(info, {code, backend,}, "request timed out"),
                _ => {
                    let detail = fault.detail();
                    tell!(warn, {code, detail, backend,}, "request failed");
                }
            }
        }
    }
}
