//! `admin`, `hooks`, and scripts wherever they stand.

use crate::base::limits::{SCRIPT_MEMORY_MAX, SCRIPT_TIME_MAX};
use crate::base::secret::Secret;
use crate::config::plan::{
    Admin, AdminListen, Hook, HookPoint, Script, ScriptSource, KEYS_DB_PATH,
};
use crate::config::raw::ValueKind;
use crate::config::section::Section;
use crate::config::value::{self, IpRange};
use std::net::SocketAddr;
use std::time::Duration;

/// Reads `admin`. Without a token there is no admin API, whatever else the section says.
pub fn admin(s: &mut Section, taken: &[SocketAddr]) -> Admin {
    let token = s.required("token");
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        s.error("token", "must be of visible ASCII characters: it travels in an HTTP field");
    }
    let path = s.text("db_path").filter(|p| !p.is_empty());
    let allowed_ips = s.list_of_allowed("allowed_ips", IpRange::parse);
    let listen = admin_listen(s, taken);
    let is_far = |address: &SocketAddr| !address.ip().is_loopback();
    let (is_open, way) = match listen.own() {
        Some(address) => (is_far(&address), ", or listen on 127.0.0.1"),
        None => (taken.iter().any(is_far), ""),
    };
    if is_open && allowed_ips.is_empty() {
        s.warn("listen", format!("is open to the network: set allowed_ips{way}"));
    }
    Admin {
        listen,
        token: Secret::new(token),
        db_path: path.unwrap_or_else(|| KEYS_DB_PATH.into()).into(),
        read_only: s.boolean("read_only", false),
        allowed_ips,
    }
}

fn admin_listen(s: &mut Section, taken: &[SocketAddr]) -> AdminListen {
    let is_main = |text: &str| text.trim() == AdminListen::MAIN;
    if s.get("listen").and_then(|node| s.desk.text(node)).is_some_and(|text| is_main(&text)) {
        return AdminListen::Main;
    }
    AdminListen::Own(super::own_listen(s, taken).unwrap_or(([127, 0, 0, 1], 8001).into()))
}

/// Time and memory of a script that has no bounds of its own.
const SCRIPT_TIMEOUT: Duration = Duration::from_millis(1);
const SCRIPT_MEMORY: u64 = 1 << 20;

/// A script under `key`: its text, or a section with `script` or `path`. Never expanded. One that
/// is there and empty is an error: it would let everyone pass.
pub fn script(section: &mut Section, key: &str) -> Option<Script> {
    let node = section.get(key)?;
    if matches!(node.kind, ValueKind::Map(_)) {
        return section.when_present(key, own_script).flatten();
    }
    let code = section.code(key).unwrap_or_default();
    if code.trim().is_empty() {
        return section
            .desk
            .refuse(node, "has neither `script` nor `path`: it would check nothing");
    }
    let source = ScriptSource::Script(code);
    Some(Script { source, timeout: SCRIPT_TIMEOUT, max_memory: SCRIPT_MEMORY })
}

/// A script that must be there.
fn own_script(s: &mut Section) -> Option<Script> {
    let script = script_section(s);
    if script.is_none() && !s.desk.has_errors() {
        s.error("script", "is required (or `path`)");
    }
    script
}

fn script_section(s: &mut Section) -> Option<Script> {
    let code = s.code("script").filter(|code| !code.trim().is_empty());
    let path = s.text("path").filter(|path| !path.is_empty());
    let mut timeout = s.duration("timeout", SCRIPT_TIMEOUT);
    if timeout > SCRIPT_TIME_MAX {
        s.warn("timeout", "10ms are the most and are used: a worker stands still meanwhile");
        timeout = SCRIPT_TIME_MAX;
    }
    let max_memory = s.parsed("max_memory", |t| value::size(t, 64 << 10..=1 << 30));
    let mut max_memory = max_memory.unwrap_or(SCRIPT_MEMORY);
    if max_memory > SCRIPT_MEMORY_MAX {
        s.warn("max_memory", "4MiB are the most and are used: more takes too long to fill");
        max_memory = SCRIPT_MEMORY_MAX;
    }
    let source = match (code, path) {
        (Some(_), Some(_)) => {
            s.error("path", "and `script` are both given: give one");
            return None;
        }
        (Some(code), None) => ScriptSource::Script(code),
        (None, Some(path)) => ScriptSource::Path(path.into()),
        (None, None) => return None,
    };
    Some(Script { source, timeout, max_memory })
}

/// Reads `hooks`: each must say whether it is on.
pub fn hooks(root: &mut Section) -> Vec<Hook> {
    let Some(mut s) = root.section("hooks") else { return Vec::new() };
    let why = "a hook is a Lua script; services are asked by auth.pipeline[].webhook";
    s.unsupported(&[("auth_decision", why), ("routing_decision", why), ("webhook", why)]);
    let points = [
        ("on_request", HookPoint::OnRequest),
        ("on_auth", HookPoint::OnAuth),
        ("on_route", HookPoint::OnRoute),
        ("on_response", HookPoint::OnResponse),
        ("on_error", HookPoint::OnError),
        ("on_complete", HookPoint::OnComplete),
    ];
    let mut hooks = Vec::new();
    for (name, point) in points {
        let script = s.when_enabled(name, own_script);
        hooks.extend(script.flatten().map(|script| Hook { point, script }));
    }
    hooks
}
