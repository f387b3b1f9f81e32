//! Our functions of `string` against Lua's own.

use super::*;
use mlua::{Lua, MultiValue};
use proptest::prelude::*;

/// What an expression gives in plain Lua, and in the sandbox.
fn both(code: &str) -> (Option<String>, Option<String>) {
    let shown = format!(
        "local function show(...) local t = table.pack(...) for i = 1, t.n do \
         t[i] = type(t[i]) .. ':' .. tostring(t[i]) end return table.concat(t, '|') end \
         local out = show({code})"
    );
    let plain = Lua::new().load(format!("{shown} return out")).eval::<String>().ok();
    let mut said = None;
    let vm = Vm::new(&[text(&format!("{shown} log(out) return true"))]).unwrap();
    let data = json!({});
    let _ = vm.decide(0, &input(&data, &Map::new()), &mut |line| said = Some(line.to_owned()));
    (plain, said)
}

#[test]
fn texts_are_searched_as_lua_does() {
    for code in [
        "('hello world'):find('o w')",
        "('hello'):find('l+')",
        "('hello'):find('xyz')",
        "('hello'):find('l', 4)",
        "('hello'):find('l', -1)",
        "('hello'):find('', 6)",
        "('hello'):find('', 7)",
        "('hello'):find('h', -100)",
        "('a.b'):find('.', 1, true)",
        "('a.b'):find('.', 2, true)",
        "('key=val'):match('(%w+)=(%w+)')",
        "('x'):match('()')",
        "('  trim '):match('^%s*(.-)%s*$')",
        "('2024-01-02'):match('(%d+)-(%d+)-(%d+)')",
        "('THE (quick) fox'):find('%((%a+)%)')",
        "('f(a(b)c)d'):match('%b()')",
        "('THE (quick) fox'):gsub('%f[%a]%a+', 'X')",
        "('abc'):gsub('%w', '%0%0')",
        "('abc'):gsub('', '-')",
        "('hello world'):gsub('o', '0', 1)",
        "('abc'):gsub('b', {b = 'B'})",
        "('abc'):gsub('.', function(c) if c == 'b' then return 'X' end end)",
        "('abc'):gsub('b', '%%')",
        "('abc'):gsub('(a)(b)', '%2%1')",
        "('x'):gsub('x', 5)",
        "('abab'):match('(ab)%1')",
        "('x^y'):find('^', 2, true)",
        "('x^y'):find('x^y')",
        "('a$b'):find('a$b')",
        "('ab'):find('b$')",
        "('[]]'):find('[]]')",
        "('a-z'):match('[a%-z]+')",
        "('b'):match('[^a]')",
        "('-'):match('[a-]')",
        "('x'):rep(3)",
        "('x'):rep(3, ',')",
        "('x'):rep(0)",
        "('x'):rep(-1)",
        "(''):rep(5)",
        "(''):rep(3, 'y')",
        "('ab'):rep(1, 'y')",
        "('a,b,c'):gsub(',', '%%')",
        "pcall(string.rep, 'x')",
        "(5):rep(2)",
        "string.find(123, 2)",
        "('x'):find('x', 1.0)",
        "('abc'):find('b', nil, true)",
        "('ab\\0cd'):find('\\0')",
        "#('a\\0b'):match('%z')",
        "('é'):match(utf8.charpattern)",
    ] {
        let (plain, ours) = both(code);
        let fails = plain.as_deref().is_some_and(|plain| plain.starts_with("boolean:false"));
        match fails {
            true => assert!(ours.unwrap().starts_with("boolean:false"), "{code}"),
            false => assert_eq!(ours, plain, "{code}"),
        }
    }
}

#[test]
fn gmatch_goes_through_a_text() {
    for (text, pattern) in [
        ("a b cc", "%a+"),
        ("abc", ""),
        ("k=v, x=y", "(%w+)=(%w+)"),
        ("aXb", "()X()"),
        ("", "x*"),
        ("baaac", "a-"),
    ] {
        let code = format!(
            "(function() local all = '' for a, b in ('{text}'):gmatch('{pattern}') do \
             all = all .. '<' .. tostring(a) .. tostring(b) .. '>' end return all end)()"
        );
        let (plain, ours) = both(&code);
        assert_eq!(ours, plain, "{text} {pattern}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The model is Lua itself.
    #[test]
    fn any_pattern_matches_as_in_lua(
        text in "[ab(c)1 -]{0,8}",
        pattern in prop::collection::vec(prop::sample::select(vec![
            "a", "b", ".", "%a", "%d", "%s", "%W", "[ab]", "[^a]", "[a-c]", "*", "+", "-", "?", "(",
            ")", "()", "^", "$", "%b()", "%f[%w]", "%1", "%", "[", "]", "c", "%%",
        ]), 0..7),
    ) {
        let pattern = pattern.concat();
        // Lua does not read those as patterns.
        prop_assume!(!pattern::is_plain(pattern.as_bytes()));
        let lua = Lua::new();
        let string: mlua::Table = lua.globals().get("string").unwrap();
        let find: mlua::Function = string.get("find").unwrap();
        let plain = find.call::<MultiValue>((text.as_str(), pattern.as_str()));
        let rest = pattern.strip_prefix('^');
        let meter = |_| true;
        let pattern = rest.unwrap_or(&pattern);
        let mut matcher = pattern::Matcher::new(text.as_bytes(), pattern.as_bytes(), &meter);
        let last = if rest.is_some() { 0 } else { text.len() };
        let mut ours = Ok(None);
        for at in 0..=last {
            ours = matcher.at(at).map(|end| end.map(|end| (at, end)));
            if !matches!(ours, Ok(None)) {
                break;
            }
        }
        let ours = ours.and_then(|found| match found {
            None => Ok(vec!["nil".to_owned()]),
            Some((at, end)) => {
                let captures = (0..matcher.count(false)).map(|n| {
                    Ok(match matcher.capture(n, (at, end))? {
                        pattern::Capture::Text(from, to) => text.get(from..to).unwrap().to_owned(),
                        pattern::Capture::Position(at) => at.to_string(),
                    })
                });
                let place = [(at + 1).to_string(), end.to_string()].into_iter().map(Ok);
                place.chain(captures).collect::<Result<Vec<_>, pattern::PatternFault>>()
            }
        });
        match plain {
            Ok(plain) => {
                let plain: Vec<_> = plain.iter().map(|v| v.to_string().unwrap()).collect();
                prop_assert_eq!(ours, Ok(plain));
            }
            Err(_) => prop_assert!(ours.is_err()),
        }
    }
}
