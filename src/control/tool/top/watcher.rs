//! Finds the gateways that run, and reads what they say.

use super::super::socket::{has_socket, is_nobody, named, places, Asked};
use super::page::MetricsPage;
use super::sight::TopSight;
use crate::base::limits::{METRICS_PAGE_BYTES_MAX, ROSTER_BYTES_MAX};
use crate::base::line::for_terminal;
use crate::config::cli::{TopAsk, UNUSABLE};
use crate::config::load_file;
use crate::config::origin::{of_this_process, Refused};
use crate::config::plan::Plan;
use crate::control::roster::{Roster, ROSTER_VERSION};
use crate::http::request::Method;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where gateways are looked for.
enum Place {
    Socket(PathBuf),
    /// Of all that run with it; and its file.
    Plan(Box<Plan>, PathBuf),
}

/// Who looks.
pub struct Watcher {
    place: Place,
}

/// What was found at a time.
#[derive(Default)]
pub struct TopFound {
    /// What each gateway says; the one that has run for longest first.
    pub sights: Vec<TopSight>,
    /// A line for each that runs and says nothing, or, where none runs, for that.
    pub silent: Vec<String>,
}

impl Watcher {
    /// Looks where it was told to.
    ///
    /// # Errors
    /// There is no such place.
    pub fn new(ask: &TopAsk) -> Result<Watcher, Refused> {
        if let Some(socket) = &ask.socket {
            return Ok(Watcher { place: Place::Socket(socket.clone()) });
        }
        let loaded = load_file(&ask.config, &of_this_process).map_err(|report| {
            let lines: String =
                report.lines(false).iter().map(|line| format!("{line}\n")).collect();
            // It may need variables that the gateway has, and this shell does not.
            let hint = "llmproxy top: without the file, name the admin socket: --socket PATH\n";
            Refused { lines: lines + hint, code: UNUSABLE }
        })?;
        let file = ask.config.display();
        if !has_socket(&loaded.plan) {
            let lines = format!(
                "llmproxy top: a gateway that runs with {file} has no admin socket: it is made \
                 beside `server.pid_file`, or, where usage is reported, in the spool; name one of \
                 them\n"
            );
            return Err(Refused { lines, code: UNUSABLE });
        }
        Ok(Watcher { place: Place::Plan(Box::new(loaded.plan), ask.config.clone()) })
    }

    /// Asks all that run. Blocks.
    pub fn look(&self) -> TopFound {
        let sockets = match &self.place {
            Place::Socket(socket) => Ok(vec![socket.clone()]),
            Place::Plan(plan, _) => places(plan),
        };
        let mut found = TopFound::default();
        match sockets {
            Ok(sockets) => sockets.iter().for_each(|socket| self.ask(socket, &mut found)),
            Err(error) => found.silent.push(error.to_string()),
        }
        if found.sights.is_empty() && found.silent.is_empty() {
            found.silent.push(match &self.place {
                Place::Socket(socket) => format!("no gateway runs at {}", socket.display()),
                Place::Plan(_, file) => format!("no gateway runs with {}", file.display()),
            });
        }
        found.sights.sort_by(|a, b| b.roster.uptime_s.total_cmp(&a.roster.uptime_s));
        found
    }

    fn ask(&self, socket: &Path, found: &mut TopFound) {
        match sight(socket) {
            Ok(sight) => found.sights.push(sight),
            // There is none, or its process is gone and had no time to take it away.
            Err(error) if is_nobody(&error) => {}
            Err(error) => found.silent.push(named(socket, &error)),
        }
    }
}

fn sight(socket: &Path) -> io::Result<TopSight> {
    let roster = serde_json::from_str::<Roster>(&fetch(socket, "/backends", ROSTER_BYTES_MAX)?);
    let roster = roster.map_err(|error| io::Error::other(format!("what it says: {error}")))?;
    if roster.version != ROSTER_VERSION {
        let message = format!(
            "what it says has the form {}, and this program knows {ROSTER_VERSION}",
            roster.version
        );
        return Err(io::Error::other(message));
    }
    let page = MetricsPage::read(&fetch(socket, "/metrics", METRICS_PAGE_BYTES_MAX)?);
    Ok(TopSight { at: Instant::now(), roster, page })
}

fn fetch(socket: &Path, target: &str, bytes_max: usize) -> io::Result<String> {
    match (Asked { method: Method::Get, target, body: b"" }).at(socket, bytes_max)? {
        (200, body) => Ok(body),
        (status, body) => {
            Err(io::Error::other(format!("status {status}: {}", for_terminal(body.trim_end()))))
        }
    }
}
