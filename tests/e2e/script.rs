//! Scripts that decide about keys.

use crate::harness::client::Response;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{Backend, Config, Proxy};
use crate::rig::{CHAT, CHATS};
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

/// The gateway with this pipeline, keys of the file, and whatever else.
fn scripted(pipeline: &str) -> (Proxy, Backend) {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}";
    let backend = Backend::answering(ok);
    let config = Config::backend_at(backend.url())
        .section("api_keys:\n  - {key: sk-good, user_id: u1}\n  - {key: sk-off, status: disabled}")
        .section(format!("auth:\n  pipeline:\n{pipeline}"));
    (config.start(), backend)
}

fn ask(proxy: &Proxy, key: &str, fields: &str) -> Response {
    let mut conn = proxy.connect();
    let fields = format!("Authorization: Bearer {key}\r\n{fields}");
    conn.post(CHATS, &fields, CHAT)
}

/// Catches: a script that is not asked, or that lets in whom the usual checks keep out.
#[test]
fn a_script_decides_about_a_key_that_is_good() {
    let (proxy, backend) = scripted(
        "    - type: file\n      name: mine\n      lua_script: |\n        \
         if data.status ~= \"active\" then return {allow = false, message = \"Key 已禁用\"} end\n        \
         local team = request.headers['X-Team']\n        \
         if team == 'slow' then while true do end end\n        \
         if team == 'broken' then return nil + 1 end\n        \
         if team == 'nothing' then return end\n        \
         if team == 'paid' then return {allow = false, status_code = 402, code = 'no_money', \
         message = 'Pay, ' .. key.user_id .. '.'} end\n        \
         return {allow = team == 'red'}\n",
    );
    assert_eq!(ask(&proxy, "sk-good", "X-Team: red\r\n").status(), 200);
    ask(&proxy, "sk-good", "X-Team: blue\r\n").assert_refused(403, "access_denied");
    ask(&proxy, "sk-off", "X-Team: red\r\n").assert_refused(403, "key_disabled");
    ask(&proxy, "sk-none", "X-Team: red\r\n").assert_refused(401, "invalid_api_key");
    let paid = ask(&proxy, "sk-good", "X-Team: paid\r\n");
    paid.assert_refused(402, "no_money");
    assert_eq!(paid.json()["error"]["message"], "Pay, u1.");
    for (team, reason) in [
        ("slow", "longer than its timeout"),
        ("broken", "attempt to perform arithmetic on a nil value"),
        ("nothing", "returned nil"),
    ] {
        let got = ask(&proxy, "sk-good", &format!("X-Team: {team}\r\n"));
        got.assert_refused(403, "access_denied");
        assert!(!got.text().contains("nil") && !got.text().contains("timeout"), "{}", got.text());
        let event = proxy.await_event(team, |event| event.to_string().contains(reason));
        let event = event.to_string();
        assert!(event.contains("mine") && !event.contains("sk-good"), "{event}");
    }
    assert_eq!(ask(&proxy, "sk-good", "X-Team: red\r\n").status(), 200, "others run after that");
    assert_eq!(backend.requests().len(), 2);
}

/// Catches: a provider of a script alone that lets everybody in, or nobody.
#[test]
fn a_script_can_be_a_provider() {
    let (proxy, _backend) = scripted(
        "    - type: lua\n      lua: {script: \"return data.api_key == 'sk-anything' and \
         api_key == data.api_key\"}\n",
    );
    assert_eq!(ask(&proxy, "sk-anything", "").status(), 200);
    ask(&proxy, "sk-good", "").assert_refused(403, "access_denied");
}

/// Catches: a script of before a reload, one that does not compile and takes the good one away.
#[test]
fn a_reload_brings_the_new_script() {
    let scratch = Scratch::new();
    let file = scratch.write("auth.lua", "return true");
    let (proxy, _backend) = scripted(&format!(
        "    - type: file\n      script: {{path: {}}}\n",
        file.to_string_lossy()
    ));
    assert_eq!(ask(&proxy, "sk-good", "").status(), 200);
    scratch.write("auth.lua", "return return");
    assert!(!proxy.reload());
    assert_eq!(ask(&proxy, "sk-good", "").status(), 200);
    scratch.write("auth.lua", "return false");
    assert!(proxy.reload());
    ask(&proxy, "sk-good", "").assert_refused(403, "access_denied");
}
