use super::*;
use serde_json::{json, Map, Value};
use std::time::Duration;

mod hostile;
mod texts;

fn text(code: &str) -> ScriptText {
    ScriptText {
        place: 0,
        provider: "keys".into(),
        name: "script".into(),
        code: code.into(),
        timeout: Duration::from_millis(1),
        max_memory: 1 << 20,
    }
}

fn input<'a>(data: &'a Value, metadata: &'a Map<String, Value>) -> ScriptInput<'a> {
    ScriptInput {
        api_key: "sk-planted-secret",
        data,
        method: "POST",
        path: "/v1/chat/completions",
        client_ip: "192.0.2.7",
        headers: &[
            (b"Host", b"gw"),
            (b"x-team", b"first"),
            (b"X-Team", b"second"),
            (b"content-type", b"application/json"),
        ],
        metadata,
        now_ms: 1_700_000_000_123,
    }
}

fn decide(code: &str) -> Result<Decided, ScriptError> {
    decide_about(code, &json!({}))
}

fn decide_about(code: &str, data: &Value) -> Result<Decided, ScriptError> {
    let vm = Vm::new(&[text(code)])?;
    vm.decide(0, &input(data, &Map::new()), &mut |_| {})
}

fn allows(code: &str) -> bool {
    match decide(code) {
        Ok(Decided::Allow(_)) => true,
        Ok(Decided::Deny { .. }) => false,
        Err(error) => panic!("{code}: {error}"),
    }
}

fn denied(message: &str) -> Decided {
    Decided::Deny { status: None, code: None, message: Some(message.into()) }
}

const BALANCE: &str = r#"
if tonumber(data.balance or 0) <= 0 then
  return {allow = false, message = "余额不足，请充值"}
end
return {allow = true}
"#;
const STATUS: &str = r#"
if data.status ~= "active" then
  return {allow = false, message = "Key 已禁用"}
end
return {allow = true}
"#;

/// The scripts that the first gateway of this name shows to its users.
#[test]
fn scripts_of_the_seeds_run_unchanged() {
    let allow = Decided::Allow(Map::new());
    for (data, decision) in [
        (json!({"balance": "12.5"}), allow.clone()),
        (json!({"balance": 3}), allow.clone()),
        (json!({"balance": "0"}), denied("余额不足，请充值")),
        (json!({}), denied("余额不足，请充值")),
    ] {
        assert_eq!(decide_about(BALANCE, &data), Ok(decision), "{data}");
    }
    assert_eq!(decide_about(STATUS, &json!({"status": "active"})), Ok(allow));
    assert_eq!(decide_about(STATUS, &json!({"status": "disabled"})), Ok(denied("Key 已禁用")));
    assert!(decide_about(BALANCE, &json!({"balance": "much"})).is_err(), "no number");
}

/// Catches: a global of the interface that is missing, or has another form.
#[test]
fn a_script_sees_its_request() {
    let data = json!({
        "name": "n", "quota": 9007199254740993i64, "ratio": 0.5, "on": true, "none": null,
        "list": [1, "two", [3]], "nested": {"deep": {"er": 4}},
    });
    let code = r#"
        local checks = {
            api_key == "sk-planted-secret",
            data == key and data.name == "n",
            data.quota == 9007199254740993 and math.type(data.quota) == "integer",
            data.ratio == 0.5 and data.on == true and data.none == nil,
            #data.list == 3 and data.list[2] == "two" and data.list[3][1] == 3,
            data.nested.deep.er == 4,
            request.method == "POST" and request.path == "/v1/chat/completions",
            request.ip == "192.0.2.7" and request.client_ip == request.ip,
            request.headers["x-team"] == "first" and request.headers["X-TEAM"] == "first",
            request.headers.host == "gw" and request.headers["absent"] == nil,
            request.headers[1] == nil,
            metadata.team == "red",
            now() == 1700000000 and now_ms() == 1700000000123,
        }
        for place, check in ipairs(checks) do
            if not check then error("check " .. place) end
        end
        local names = {}
        for name, value in pairs(request.headers) do names[#names + 1] = name .. "=" .. value end
        table.sort(names)
        log(table.concat(names, ","), 1, true, {})
        return {allow = true, metadata = {user_id = "u", n = 7, list = {1, 2}, of = {a = "b"}}}
    "#;
    let vm = Vm::new(&[text(code)]).unwrap();
    let metadata = json!({"team": "red"});
    let mut said = Vec::new();
    let decided = vm
        .decide(0, &input(&data, metadata.as_object().unwrap()), &mut |l| said.push(l.to_owned()));
    let given = json!({"user_id": "u", "n": 7, "list": [1, 2], "of": {"a": "b"}});
    assert_eq!(decided, Ok(Decided::Allow(given.as_object().unwrap().clone())));
    assert_eq!(said, ["Content-Type=application/json,Host=gw,X-Team=first 1 true table"]);
}

/// Catches: an answer that is none and lets the client in.
#[test]
fn in_doubt_nobody_passes() {
    for code in ["return true", "return {allow = true}", "return {allow = true, message = 'x'}"] {
        assert!(allows(code), "{code}");
    }
    for code in ["return false", "return {allow = false}"] {
        assert!(!allows(code), "{code}");
    }
    for code in [
        "",
        "return",
        "return nil",
        "return 1",
        "return 'true'",
        "return {}",
        "return {allow = 1}",
        "return {allow = 'true'}",
        "return {true}",
        "return {allow = true, metadata = 3}",
        "return {allow = true, metadata = {f = function() end}}",
        "local t = {} t.t = t return {allow = true, metadata = t}",
        "local t = {} for i = 1, 65 do t[i] = i end return {allow = true, metadata = t}",
        "return {allow = true, metadata = {t = ('x'):rep(5000)}}",
        "return {allow = true, metadata = {n = 0/0}}",
        "return {allow = false, status_code = 200}",
        "return {allow = false, status_code = 4.5}",
        "return {allow = false, code = 'No Code'}",
        "return {allow = false, message = {}}",
        "error('x')",
        "error({})",
        "error()",
        "x.y = 1",
        "return request.headers.host.x.y",
    ] {
        assert!(decide(code).is_err(), "{code}");
    }
}

#[test]
fn a_refusal_is_as_the_script_says() {
    let code = "return {allow = false, status_code = 402, code = 'no_money', \
                message = 'pay\\r\\nX-Evil: 1\\0 \\u{2028}' .. ('é'):rep(400)}";
    let Ok(Decided::Deny { status, code, message }) = decide(code) else { panic!() };
    assert_eq!((status, code), (Some(402), Some("no_money")));
    let message = message.unwrap();
    assert!(message.starts_with("pay  X-Evil: 1   é") && message.len() <= 512, "{message}");
    let broken = decide("return {allow = false, message = 'a\\xffb'}");
    assert_eq!(broken, Ok(denied("a\u{fffd}b")));
}

/// Catches: an error that does not say where it is, or that tells the key.
#[test]
fn an_error_names_its_place_and_no_key() {
    for (code, line, message) in [
        ("\n\nlocal x = nil + 1", Some(3), "attempt to perform arithmetic on a nil value"),
        ("\nerror('no ' .. api_key .. '!')", Some(2), "no ***!"),
        ("\n\n\nstring.find('a', '[')", Some(4), "malformed pattern (missing ']')"),
        ("\nstring.rep()", Some(2), "string"),
        ("\n('x'):gsub('x', {})\nstring.x = 1", Some(3), "libraries cannot be changed"),
        ("return\n\n", None, "returned nil: neither true, false, nor a table with `allow`"),
        ("\n\nx = = 1", Some(3), "unexpected symbol near '='"),
        ("\nwhile true do end", Some(2), "longer than its timeout"),
        ("\nlocal s = 'x' while true do s = s .. s end", None, "max_memory"),
    ] {
        let error = decide(code).unwrap_err();
        assert!(error.message.contains(message), "{code}: {error}");
        assert!(line.is_none() || error.line == line, "{code}: {error}");
        assert!(!error.to_string().contains("planted"), "{error}");
        assert_eq!((&*error.provider, &*error.script), ("keys", "script"));
    }
    let vm = Vm::new(&[text("log(api_key, 'x') return {allow = false, message = api_key}")]);
    let mut said = Vec::new();
    let data = json!({});
    let decided =
        vm.unwrap().decide(0, &input(&data, &Map::new()), &mut |l| said.push(l.to_owned()));
    assert_eq!((said, decided), (vec!["*** x".to_owned()], Ok(denied("***"))));
}

/// Catches: what one client's run leaves for the next.
#[test]
fn a_run_leaves_nothing_behind() {
    for code in [
        "x = (x or 0) + 1 return x == 1",
        "local ok = pcall(function() string.leak = 1 end) return not ok and string.leak == nil",
        "table.insert = nil return false",
        "pcall(table.insert, string, 'leak') return string[1] == nil",
        "pcall(table.move, {1}, 1, 1, 1, string) return string[1] == nil",
        "function tostring() return 'evil' end return tostring(1) == 'evil'",
        "local was = data.seen data.seen = true return was == nil",
        "local was = metadata.seen metadata.seen = true return was == nil",
        "request.headers.host = 'evil' return true",
        "_ENV = {} return true",
    ] {
        let vm =
            Vm::new(&[text(code), text("return tostring(1) == '1' and request ~= nil")]).unwrap();
        let data = json!({});
        let run = |index| vm.decide(index, &input(&data, &Map::new()), &mut |_| {});
        let first = run(0);
        assert_eq!(run(0), first, "{code}");
        assert_eq!(run(1), Ok(Decided::Allow(Map::new())), "{code}");
    }
}

/// Catches: a way out of the sandbox.
#[test]
fn nothing_leads_out() {
    for name in [
        "io",
        "os",
        "require",
        "package",
        "debug",
        "load",
        "loadstring",
        "loadfile",
        "dofile",
        "collectgarbage",
        "coroutine",
        "rawget",
        "rawset",
        "rawequal",
        "rawlen",
        "setmetatable",
        "getmetatable",
        "print",
        "warn",
        "string.dump",
        "string.pack",
        "string.unpack",
        "math.randomseed",
        "_G",
        "('').dump",
        "_ENV.io",
        "arg",
    ] {
        assert!(allows(&format!("return {name} == nil")), "{name}");
    }
    let bytecode = "\u{1b}Lua\u{54}\0";
    assert!(Vm::new(&[text(bytecode)]).is_err());
    assert!(allows("return select('#', ...) == 1"));
}

/// What a run costs: printed, and no more than a generous bound that only a fault exceeds. It is
/// processor time of this thread, and the least of several: the machine may be busy.
#[test]
fn a_run_costs_little() {
    let vm = Vm::new(&[text(BALANCE)]).unwrap();
    let (data, metadata) = (json!({"balance": "3", "name": "n", "user_id": "u"}), Map::new());
    let runs = 4_000;
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = hostile::cpu();
        for _ in 0..runs {
            assert!(vm.decide(0, &input(&data, &metadata), &mut |_| {}).is_ok());
        }
        times.push((hostile::cpu() - begun) / runs);
    }
    let least = times.iter().min().copied().unwrap();
    println!("a run: {least:?} of {times:?}");
    assert!(least < Duration::from_micros(250), "{times:?}");
}

/// Catches: a number that is read for longer than a run may take, a number that is not read any
/// more.
#[test]
fn long_texts_are_no_numbers() {
    for code in [
        "return tonumber(('1'):rep(513)) == nil and tonumber(('0'):rep(512)) == 0",
        "return tonumber('0x10') == 16 and tonumber('10', 2) == 2 and tonumber('1e1') == 10.0",
        "return tonumber('x') == nil and tonumber(nil) == nil and tonumber(7) == 7",
        "return utf8.len('\u{e4}b') == 2 and utf8.char(228) == '\u{e4}'",
        "return utf8.codepoint('\u{e4}') == 228",
    ] {
        assert!(allows(code), "{code}");
    }
}
