//! Scripts that decide about keys.

use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use serde_json::{json, Value};

/// `llmproxy lua test` of this script, with this data: exit code, decision, standard error.
fn tried(code: &str, data: &str, more: &[&str]) -> (Option<i32>, Option<Value>, String) {
    let scratch = Scratch::new();
    let script = scratch.write("auth.lua", code).to_string_lossy().into_owned();
    let data = scratch.write("data.json", data).to_string_lossy().into_owned();
    let ran = llmproxy(&[&["lua", "test", &script, "--data", &data], more].concat());
    (ran.code, serde_json::from_str(&ran.stdout).ok(), ran.stderr)
}

/// Catches: a decision that is not told, or an exit code that a shell cannot go by.
#[test]
fn a_script_is_tried_by_hand() {
    let balance = "if tonumber(data.balance or 0) <= 0 then\n\
                   return {allow = false, message = \"余额不足，请充值\"}\nend\nreturn {allow = true}";
    let (code, decision, _) = tried(balance, r#"{"balance": "1"}"#, &[]);
    assert_eq!((code, decision), (Some(0), Some(json!({"allow": true, "metadata": {}}))));
    let (code, decision, _) = tried(balance, r#"{"balance": "0"}"#, &[]);
    let denied = json!({"allow": false, "code": "access_denied", "status": 403,
                        "message": "余额不足，请充值"});
    assert_eq!((code, decision), (Some(1), Some(denied)));
    let seen = "log(api_key, request.headers['x-team'], request.client_ip)\n\
                return {allow = true, metadata = {team = request.headers['X-TEAM']}}";
    let more = ["--key", "sk-secret", "--header", "X-Team: red", "--ip", "192.0.2.9"];
    let (code, decision, said) = tried(seen, "{}", &more);
    assert_eq!(decision, Some(json!({"allow": true, "metadata": {"team": "red"}})));
    assert_eq!(code, Some(0));
    assert!(said.contains("log: *** red 192.0.2.9\n") && said.contains("took "), "{said}");
    let (code, _, said) = tried("\nerror('x')", "{}", &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("line 2: x"), "{said}");
    let (code, _, said) = tried("while true do end", "{}", &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("longer than its timeout"), "{said}");
    for (script, data) in [("return return", "{}"), ("return true", "[]"), ("return true", "{")] {
        let (code, decision, said) = tried(script, data, &[]);
        assert_eq!((code, decision), (Some(2), None), "{script} {data}: {said}");
    }
}

/// Catches: a script that is no Lua, or is not there, and is found out by the first client.
#[test]
fn a_broken_script_keeps_a_configuration_from_starting() {
    let scratch = Scratch::new();
    let config = |script: &str| {
        let text = format!(
            "backends: [{{url: 'http://127.0.0.1:9'}}]\napi_keys: [{{key: sk-a}}]\n\
             auth:\n  pipeline:\n    - type: file\n      name: mine\n      script: {script}\n"
        );
        scratch.write("config.yaml", &text).to_string_lossy().into_owned()
    };
    for (script, reason) in [
        (
            "{script: \"x = 1\\ny = = 2\"}",
            "auth.pipeline[0]: provider mine: script in the \
          configuration: line 2: unexpected symbol near '='",
        ),
        ("{path: /nowhere/auth.lua}", "provider mine: script /nowhere/auth.lua: "),
    ] {
        let checked = llmproxy(&["check", &config(script)]);
        assert_eq!(checked.code, Some(1), "{checked:?}");
        assert!(checked.stderr.contains(reason), "{checked:?}");
    }
    let checked = llmproxy(&["check", &config("{script: 'return true'}")]);
    assert!(!checked.stderr.contains("script"), "{checked:?}");
}
