//! Scripts that want the worker for themselves.

use super::*;
use proptest::prelude::*;

/// A run may take so many times its timeout: what is under way when its time is over is finished,
/// and that is as long as its memory allows.
const FACTOR: u32 = 10;

/// Processor time of this thread: the machine may be busy.
pub(super) fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Loops that do nothing else: they are looked at all the time, in every build.
const PLAIN: &[&str] = &["while true do end", "repeat until false", "for i = 1, 1e15 do end"];
/// What is promised of them.
const PLAIN_MAX: Duration = Duration::from_millis(10);

/// Each is denied within its budget, and leaves a VM in which others run.
const HOSTILE: &[&str] = &[
    "local s = ('a'):rep(2e5):gsub('.*', ('%0'):rep(1e5)) return #s < 0",
    "local s = ('x'):rep(4e5) local t = {} for i = 1, 2000 do t[i] = s end \
     while true do log(table.unpack(t)) end",
    "while true do end",
    "repeat until false",
    "for i = 1, 1e15 do end",
    "local function f() return f() end return f()",
    "local function f() return 1 + f() end return f()",
    "while true do pcall(function() while true do end end) end",
    "while true do xpcall(function() while true do end end, function() while true do end end) end",
    "pcall(pcall, pcall, pcall, function() while true do end end) while true do end",
    "local t = {} while true do t[#t + 1] = {} end",
    "local s = 'x' while true do s = s .. s end",
    "local s = ('x'):rep(4e5) while true do local t = s .. 'y' end",
    "local s = ('x'):rep(4e5) while true do pcall(function() local t = s .. s .. s end) end",
    "return string.rep('a', 1e8)",
    "return string.rep('', 1e15)",
    "return string.rep('', 1e15, '')",
    "while true do pcall(string.rep, 'a', 1e6) end",
    "return ('a'):rep(1e5):find('.-b')",
    "return ('a'):rep(1e3):find('.-.-.-.-.-.-b')",
    "return ('a'):rep(1e5):match('(a*)*b')",
    "return ('a'):rep(30):match(('a?'):rep(30) .. ('a'):rep(30))",
    "return ('a'):rep(1e5):gsub('', 'b')",
    "return ('a'):rep(1e3):gsub('a', ('b'):rep(1e5))",
    "return ('a'):rep(1e5):gsub('.-b', 'x')",
    "for w in ('a'):rep(1e5):gmatch('.-b') do end",
    "return ('('):rep(1e5):find('%b()')",
    "return ('a'):rep(4e5):find(('a'):rep(2e5) .. 'b', 1, true)",
    "return ('a'):find(('('):rep(1e5))",
    "return ('a'):rep(1e5):find(('a*'):rep(150) .. 'b')",
    "return ('a'):rep(1e4):find('[' .. ('b'):rep(1e5) .. ']')",
    "local function f(s) return (s:gsub('.', f)) end return f('x')",
    "local function f() return pcall(f) end return not f()",
    "local function f() table.sort({2, 1}, function() f() end) end f()",
    "local function f() for w in ('x'):gmatch('x') do f() end end f()",
    "return table.concat({}, ('x'):rep(1e5), 1, 1e15)",
    "return table.move({}, 1, 1e15, 1)",
    "return table.move({}, 1, 1e15, 2)",
    "return table.unpack({}, 1, 1e15)",
    "return table.unpack(request.headers, 1, 1e6)",
    "local t = {} for i = 0, 62 do t[1 << i] = 1 end table.insert(t, 1, 2) table.insert(t, 1, 2)",
    "local t = {} for i = 0, 62 do t[1 << i] = 1 end table.remove(t, 1)",
    "local t = {} for i = 1, 8000 do t[i] = (i * 7919) % 8191 end while true do table.sort(t) end",
    "table.sort({3, 2, 1}, function() while true do end end)",
    "local t = {} for i = 1, 8000 do t[i] = i end while true do table.insert(t, 1, 0) end",
    "local s = ('x'):rep(5e5) while true do s:lower() s:upper() s:reverse() end",
    "local s = ('1'):rep(5e5) while true do local n = tonumber(s) end",
    "local s = ('1'):rep(5e5) while true do local n = s + 1 end",
    "local s = ('x'):rep(5e5) while true do local n = utf8.len(s) end",
    "local a, b = ('x'):rep(3e5) .. 'a', ('x'):rep(3e5) .. 'b' while true do local c = a < b end",
    "local s = ('x'):rep(2e5) while true do local t = {[s .. 'y'] = 1} end",
    "local t = {} for i = 1, 8000 do t[i .. ''] = 1 end \
     while true do local k = next(t) t[k] = nil t[k .. 'x'] = 1 end",
    "while true do log(('x'):rep(1e5)) end",
    "return string.format(('%99.99f'):rep(5000), table.unpack({}))",
    "while true do string.format('%s', ('x'):rep(3e5)) end",
    "while true do local function f(...) return select('#', ...) end \
     f(table.unpack({}, 1, 8000)) end",
    "return string.byte(('x'):rep(9e5), 1, -1)",
    "local t = {} for i = 1, 200 do t[i] = ('x'):rep(1e5) end return table.concat(t)",
    "error(setmetatable)",
    "local e = {} while true do pcall(error, e) end",
    "return ('x'):rep(1e4):gsub('x', function() while true do end end)",
    "return tostring(nil .. ('x'):rep(9e5))",
];

#[test]
fn no_script_outlives_its_budget() {
    let mut most = Duration::ZERO;
    let good = text("return true");
    for code in HOSTILE {
        let vm = Vm::new(&[text(code), good.clone()]).unwrap();
        let data = json!({});
        // Again and again: what one run leaves must not cost the next.
        for _ in 0..3 {
            let begun = cpu();
            let decided = vm.decide(0, &input(&data, &Map::new()), &mut |_| {});
            let took = cpu() - begun;
            assert!(!matches!(decided, Ok(Decided::Allow(_))), "{code}");
            if took > most {
                println!("{took:?}: {code}");
                most = took;
            }
            let is_plain = PLAIN.contains(code);
            let bound = FACTOR * SLOW * Duration::from_millis(1);
            let bound = if is_plain { PLAIN_MAX } else { bound };
            assert!(took < bound, "{took:?}: {code}");
            let next = vm.decide(1, &input(&data, &Map::new()), &mut |_| {});
            assert_eq!(next, Ok(Decided::Allow(Map::new())), "after {code}");
        }
    }
}

/// Without optimisation our own part takes so many times as long.
const SLOW: u32 = if cfg!(debug_assertions) { 4 } else { 1 };

/// Pieces of scripts, of which some fit together.
fn piece() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "while true do ",
        "end ",
        "local x = ",
        "x ",
        "if x then ",
        "for i = 1, 1e9 do ",
        "pcall(",
        "function() ",
        ") ",
        "(",
        "('x'):rep(1e5) ",
        "string.find(",
        "'.-b'",
        ", ",
        "table.concat(",
        "{} ",
        "x .. x ",
        "return ",
        "true ",
        "nil ",
        "data ",
        "request.headers ",
        "goto a ",
        "::a:: ",
        "error(",
        "= ",
        "[1] ",
        "'%' ",
        "...",
        "#",
        "-",
        "1e15 ",
        "repeat ",
        "until x ",
        "table.sort(",
        "gsub(",
        "string.",
        "_ENV ",
        "\n",
        "\"",
        "[[",
        "]]",
        "--",
        "\u{0}",
        "é",
    ]);
    prop_oneof![8 => word.prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Catches: a text that panics, or runs on.
    #[test]
    fn any_text_ends(pieces in prop::collection::vec(piece(), 0..20)) {
        let code = pieces.concat();
        if let Ok(vm) = Vm::new(&[text(&code)]) {
            let data = json!({"a": 1});
            let begun = cpu();
            let _ = vm.decide(0, &input(&data, &Map::new()), &mut |_| {});
            let took = cpu() - begun;
            prop_assert!(took < FACTOR * SLOW * Duration::from_millis(1), "{took:?}: {code}");
        }
    }

    /// Catches: a pattern that panics.
    #[test]
    fn any_pattern_ends(text in "[ab(%]{0,12}", pattern in "[ab.%()\\[\\]^$*+?bf0-9-]{0,12}") {
        let work = std::cell::Cell::new(100_000);
        let meter = |n| {
            work.set(work.get() - n as i64);
            work.get() > 0
        };
        let mut matcher = pattern::Matcher::new(text.as_bytes(), pattern.as_bytes(), &meter);
        for at in 0..=text.len() {
            if let Ok(Some(end)) = matcher.at(at) {
                prop_assert!(at <= end && end <= text.len());
                for n in 0..matcher.count(true) {
                    let _ = matcher.capture(n, (at, end));
                }
            }
        }
    }
}
