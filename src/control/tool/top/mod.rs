//! `llmproxy top`: watches the gateways that run with a configuration, by their admin sockets.
//!
//! *Takes:* what the pages of a gateway say, again and again. *Gives:* a view on the terminal, or a
//! text. *Runs on:* the main thread of a process that serves nobody, and one thread that asks.
//! *May:* block, draw on the terminal. *Never:* asks more often than it was told to, obeys what
//! stands in a name, leaves a terminal other than it was.

mod page;
mod sight;
mod watcher;
mod words;

#[cfg(feature = "top")]
mod draw;
#[cfg(feature = "top")]
mod follower;
#[cfg(feature = "top")]
mod live;
#[cfg(not(feature = "top"))]
#[path = "no_live.rs"]
mod live;

use crate::config::cli::{Printout, TopAsk, TopForm, FINE, WOULD_NOT_START};
use crate::config::origin::Refused;
use sight::TopSnapshot;
use std::time::Duration;
use watcher::{TopFound, Watcher};

/// Does it, and says what was found.
pub fn run(ask: &TopAsk) -> Printout {
    let watcher = match Watcher::new(ask) {
        Ok(watcher) => watcher,
        Err(Refused { lines, code }) => return said(lines, code),
    };
    match ask.form {
        TopForm::Live => live::run(watcher, ask.interval),
        TopForm::Once => once(&watcher, ask.interval, ("\n", words::text)),
        TopForm::OnceJson => once(&watcher, ask.interval, ("", json)),
    }
}

fn json(snapshot: &TopSnapshot) -> String {
    // Writing what has text for keys to memory cannot fail.
    serde_json::to_string(snapshot).map(|json| json + "\n").unwrap_or_default()
}

fn said(stderr: String, code: u8) -> Printout {
    Printout { stdout: String::new(), stderr, code }
}

/// Two looks, and what happened between them.
fn once(
    watcher: &Watcher,
    interval: Duration,
    (between, shown): (&str, fn(&TopSnapshot) -> String),
) -> Printout {
    let before = watcher.look();
    if before.sights.is_empty() {
        return said(lines(&before.silent), WOULD_NOT_START);
    }
    let _ = crossbeam_channel::after(interval).recv();
    let TopFound { sights, silent } = watcher.look();
    let parts = sights.iter().map(|now| {
        let pid = now.roster.pid;
        let before = before.sights.iter().find(|before| before.roster.pid == pid);
        shown(&TopSnapshot::of(now, before))
    });
    let stdout = parts.collect::<Vec<_>>().join(between);
    let code = if silent.is_empty() { FINE } else { WOULD_NOT_START };
    Printout { stdout, stderr: lines(&silent), code }
}

fn lines(silent: &[String]) -> String {
    silent.iter().map(|line| format!("llmproxy top: {line}\n")).collect()
}
