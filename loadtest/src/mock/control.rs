//! What tests may ask of the engine itself: everything under /mock/.

use std::sync::atomic::Ordering::Relaxed;

use super::server::Shared;

/// Answers a control request: status and JSON body.
pub fn answer(shared: &Shared, method: &str, target: &str) -> (u16, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let done = || (200, "{\"ok\":true}\n".to_string());
    match (method, path) {
        ("GET", "/mock/log") => (200, shared.log.to_json_lines()),
        ("GET", "/mock/stats") => (200, shared.log.stats_json() + "\n"),
        ("POST", "/mock/reset") => {
            shared.reset();
            done()
        }
        ("POST", "/mock/health") => {
            match query.strip_prefix("status=").and_then(|s| s.parse().ok()) {
                Some(status) => {
                    shared.health.store(status, Relaxed);
                    done()
                }
                None => refuse("give ?status=NUMBER"),
            }
        }
        ("POST", "/mock/knobs") => {
            let changed = shared.change_knobs(|knobs| {
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
                    knobs.set(name, value)?;
                }
                Ok(())
            });
            match changed {
                Ok(()) => done(),
                Err(why) => refuse(&why),
            }
        }
        _ => (404, "{\"error\":\"no such control\"}\n".to_string()),
    }
}

fn refuse(why: &str) -> (u16, String) {
    (400, serde_json::json!({ "error": why }).to_string() + "\n")
}
