//! `llmproxy lua test`: one run of a script, with what a person says of the key and its request.

use crate::base::clock::unix_ms;
use crate::config::cli::{LuaTest, Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crate::config::origin::read_regular;
use crate::control::scripts;
use crate::script::{Decided, ScriptInput, ScriptText, Vm};
use serde_json::{json, Map, Value};
use std::path::Path;
use std::time::Instant;

/// As much as a script has by default.
const MEMORY: u64 = 1 << 20;

/// Runs it. The decision goes to standard output, what the script logged, and how long it took, to
/// standard error.
pub fn run(test: &LuaTest) -> Printout {
    match prepare(test) {
        Ok((vm, data)) => decide(test, &vm, &data),
        Err(message) => {
            let stderr = format!("llmproxy lua: {message}\n");
            Printout { stdout: String::new(), stderr, code: UNUSABLE }
        }
    }
}

fn prepare(test: &LuaTest) -> Result<(Vm, Value), String> {
    let text = ScriptText {
        place: 0,
        provider: "test".into(),
        name: test.script.display().to_string().into(),
        code: scripts::code_of(&test.script)?.into(),
        timeout: test.timeout,
        max_memory: MEMORY,
    };
    let data = match &test.data {
        Some(file) => data_of(file)?,
        None => json!({}),
    };
    Ok((Vm::new(&[text]).map_err(|error| error.to_string())?, data))
}

fn data_of(file: &Path) -> Result<Value, String> {
    let shown = file.display();
    let bytes = read_regular(file).map_err(|error| format!("{shown}: {error}"))?;
    let data: Value = serde_json::from_slice(&bytes).map_err(|e| format!("{shown}: {e}"))?;
    match data.is_object() {
        true => Ok(data),
        false => Err(format!("{shown}: is no JSON object")),
    }
}

fn decide(test: &LuaTest, vm: &Vm, data: &Value) -> Printout {
    let headers: Vec<(&[u8], &[u8])> =
        test.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let ip = test.ip.to_string();
    let input = ScriptInput {
        api_key: &test.key,
        data,
        method: &test.method,
        path: &test.path,
        client_ip: &ip,
        headers: &headers,
        metadata: &Map::new(),
        now_ms: unix_ms(),
    };
    let mut stderr = String::new();
    let begun = Instant::now();
    let decided = vm.decide(0, &input, &mut |line| stderr.push_str(&format!("log: {line}\n")));
    stderr.push_str(&format!("took {:?}\n", begun.elapsed()));
    let (answer, code) = match decided {
        Ok(Decided::Allow(metadata)) => (json!({"allow": true, "metadata": metadata}), FINE),
        Ok(Decided::Deny { status, code, message }) => {
            (denied(status, code, message), WOULD_NOT_START)
        }
        Err(error) => {
            stderr.push_str(&format!("error: {error}\n"));
            (denied(None, None, None), WOULD_NOT_START)
        }
    };
    Printout { stdout: format!("{answer}\n"), stderr, code }
}

fn denied(status: Option<u16>, code: Option<&str>, message: Option<String>) -> Value {
    json!({
        "allow": false,
        "status": status.unwrap_or(403),
        "code": code.unwrap_or("access_denied"),
        "message": message,
    })
}
