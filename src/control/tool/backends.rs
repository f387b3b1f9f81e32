//! `llmproxy backends`: asks the gateways that run with a configuration, by their admin sockets,
//! how their backends are.

use super::gateways::GatewayQuestion;
use crate::base::limits::ROSTER_BYTES_MAX;
use crate::config::cli::{BackendsAsk, Printout, FINE, WOULD_NOT_START};
use crate::config::origin::Refused;
use crate::control::roster::{Roster, ROSTER_VERSION};
use serde::de::IgnoredAny;

mod table;

const QUESTION: GatewayQuestion<'_> =
    GatewayQuestion { command: "backends", target: "/backends", bytes_max: ROSTER_BYTES_MAX };

/// Does it, and says what was found: what answers is shown also where another one does not.
pub fn run(ask: &BackendsAsk) -> Printout {
    let (answers, silent) = match QUESTION.put(&ask.config, ask.socket.as_deref()) {
        Ok(heard) => heard,
        Err(Refused { lines, code }) => {
            return Printout { stdout: String::new(), stderr: lines, code };
        }
    };
    let (stdout, unread) = match shown(ask, &answers) {
        Ok(stdout) => (stdout, String::new()),
        Err(Refused { lines, .. }) => (String::new(), lines),
    };
    let stderr = silent + &unread;
    let code = if stderr.is_empty() { FINE } else { WOULD_NOT_START };
    Printout { stdout, stderr, code }
}

fn shown(ask: &BackendsAsk, answers: &[String]) -> Result<String, Refused> {
    if ask.json {
        // Who put a socket there is not known for sure: a terminal gets no control characters.
        let is_json = answers.iter().all(|json| serde_json::from_str::<IgnoredAny>(json).is_ok());
        let bad = || QUESTION.failed("the answer is no JSON");
        return if is_json { Ok(answers.concat()) } else { Err(bad()) };
    }
    let tables = answers.iter().map(|json| Ok(table::table(&read(json)?)));
    Ok(tables.collect::<Result<Vec<_>, Refused>>()?.join("\n"))
}

fn read(json: &str) -> Result<Roster, Refused> {
    let roster = serde_json::from_str::<Roster>(json).map_err(|error| error.to_string());
    let known = roster.and_then(|roster| match roster.version {
        ROSTER_VERSION => Ok(roster),
        newer => Err(format!("it has the form {newer}, and this program knows {ROSTER_VERSION}")),
    });
    known.map_err(|error| {
        QUESTION.failed(&format!("the answer cannot be read (try --json): {error}"))
    })
}
