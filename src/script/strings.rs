//! What stands in for the functions of Lua's `string` that search and repeat. Each gives an error
//! text or nil, and then its results: `sandbox.lua` raises the former where the script called.

use super::budget::Budget;
use super::pattern::{is_plain, Capture, Matcher, PatternFault};
use memchr::memmem;
use mlua::{Error, IntoLua, Lua, LuaString, MultiValue, Result, Table, Value};
use std::cell::Cell;
use std::rc::Rc;

/// What a run is ended with.
pub(super) const OUT_OF_TIME: &str = "the script took longer than its timeout";
/// Calls of `gsub` within one another, each of which is some kilobytes of the worker's stack.
const NESTING_MAX: u32 = 16;
const TOO_LONG: &str = "not enough memory: the resulting string is too long";

/// Why a call has no result.
enum Failure {
    /// The script's matter.
    Told(String),
    /// The run must end, or Lua itself failed.
    Ended(Error),
}

impl From<PatternFault> for Failure {
    fn from(fault: PatternFault) -> Failure {
        match fault {
            PatternFault::Malformed(why) => Failure::Told(why.to_owned()),
            PatternFault::OutOfTime => Failure::Ended(Error::RuntimeError(OUT_OF_TIME.to_owned())),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ended(error)
    }
}

type Results = std::result::Result<Vec<Value>, Failure>;

/// The functions, by their names in `string`.
pub(super) fn library(lua: &Lua, budget: &Rc<Budget>) -> Result<Table> {
    let table = lua.create_table()?;
    let with = || Rc::clone(budget);
    type Search = (LuaString, LuaString, Option<i64>, Value);
    let own = with();
    let find = lua.create_function(move |lua, (text, pattern, from, plain): Search| {
        let is_literal = plain.as_boolean().unwrap_or(!plain.is_nil());
        given(lua, find(lua, &own, (&text, &pattern), from, is_literal))
    })?;
    table.raw_set("find", find)?;
    let own = with();
    let of = lua.create_function(move |lua, (text, pattern, from, _): Search| {
        given(lua, first_match(lua, &own, (&text, &pattern), from))
    })?;
    table.raw_set("match", of)?;
    let (own, nested) = (with(), Cell::new(0));
    type Exchange = (LuaString, LuaString, Value, Option<i64>);
    let gsub = lua.create_function(move |lua, (text, pattern, by, most): Exchange| {
        if nested.get() == NESTING_MAX {
            return given(
                lua,
                Err(Failure::Told("too many calls of gsub in one another".to_owned())),
            );
        }
        nested.set(nested.get() + 1);
        let results = gsub(lua, &own, (&text, &pattern), &by, most);
        nested.set(nested.get() - 1);
        given(lua, results)
    })?;
    table.raw_set("gsub", gsub)?;
    let own = with();
    let rep = lua.create_function(move |lua, (text, count, between)| {
        given(lua, rep(lua, &own, &text, count, between))
    })?;
    table.raw_set("rep", rep)?;
    Ok(table)
}

/// The step of `string.gmatch`: text, pattern, from where, and where the last match ended. Gives
/// where this one ends, and its captures.
pub(super) fn match_on(lua: &Lua, budget: &Rc<Budget>) -> Result<mlua::Function> {
    let own = Rc::clone(budget);
    type Step = (LuaString, LuaString, i64, Option<i64>);
    lua.create_function(move |lua, (text, pattern, from, last): Step| {
        given(lua, next_match(lua, &own, (&text, &pattern), from, last))
    })
}

fn given(lua: &Lua, results: Results) -> Result<MultiValue> {
    match results {
        Ok(mut values) => {
            values.insert(0, Value::Nil);
            Ok(values.into_iter().collect())
        }
        Err(Failure::Told(why)) => {
            Ok([Value::String(lua.create_string(why)?)].into_iter().collect())
        }
        Err(Failure::Ended(error)) => Err(error),
    }
}

/// Where a search begins, from 0; `None` behind the end.
fn begin(from: Option<i64>, len: usize) -> Option<usize> {
    let from = from.unwrap_or(1);
    let begin = match usize::try_from(from) {
        Ok(from) => from.saturating_sub(1),
        Err(_) => len.saturating_sub(usize::try_from(from.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    (begin <= len).then_some(begin)
}

/// The pattern without its anchor, and whether it had one.
fn anchored(pattern: &[u8]) -> (&[u8], bool) {
    pattern.strip_prefix(b"^").map_or((pattern, false), |rest| (rest, true))
}

fn find(
    lua: &Lua,
    budget: &Budget,
    (text, pattern): (&LuaString, &LuaString),
    from: Option<i64>,
    is_literal: bool,
) -> Results {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let Some(start) = begin(from, text.len()) else { return Ok(vec![Value::Nil]) };
    let place = |start: usize, end: usize| vec![integer(start + 1), integer(end)];
    if is_literal || is_plain(&pattern) {
        let _ = budget.spend(text.len() / 16);
        let found = memmem::find(text.get(start..).unwrap_or_default(), &pattern);
        return Ok(match found {
            Some(at) => place(start + at, start + at + pattern.len()),
            None => vec![Value::Nil],
        });
    }
    let meter = |work| budget.spend(work);
    let (pattern, is_anchored) = anchored(&pattern);
    let mut matcher = Matcher::new(&text, pattern, &meter);
    let Some((start, end)) = search(&mut matcher, start, text.len(), is_anchored)? else {
        return Ok(vec![Value::Nil]);
    };
    let mut found = place(start, end);
    found.extend(captures(lua, &matcher, &text, (start, end), false)?);
    Ok(found)
}

fn first_match(
    lua: &Lua,
    budget: &Budget,
    (text, pattern): (&LuaString, &LuaString),
    from: Option<i64>,
) -> Results {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let Some(start) = begin(from, text.len()) else { return Ok(vec![Value::Nil]) };
    let meter = |work| budget.spend(work);
    let (pattern, is_anchored) = anchored(&pattern);
    let mut matcher = Matcher::new(&text, pattern, &meter);
    match search(&mut matcher, start, text.len(), is_anchored)? {
        Some(found) => captures(lua, &matcher, &text, found, true),
        None => Ok(vec![Value::Nil]),
    }
}

type Place = Option<(usize, usize)>;

fn search(
    matcher: &mut Matcher,
    start: usize,
    len: usize,
    is_anchored: bool,
) -> std::result::Result<Place, PatternFault> {
    let last = if is_anchored { start } else { len };
    for at in start..=last {
        if let Some(end) = matcher.at(at)? {
            return Ok(Some((at, end)));
        }
    }
    Ok(None)
}

fn next_match(
    lua: &Lua,
    budget: &Budget,
    (text, pattern): (&LuaString, &LuaString),
    from: i64,
    last: Option<i64>,
) -> Results {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let meter = |work| budget.spend(work);
    let mut matcher = Matcher::new(&text, &pattern, &meter);
    let Some(start) = begin(Some(from), text.len()) else { return Ok(vec![Value::Nil]) };
    for at in start..=text.len() {
        let Some(end) = matcher.at(at)? else { continue };
        let next = integer(end + 1);
        if last.map(Value::Integer).as_ref() == Some(&next) {
            continue;
        }
        let mut found = vec![next];
        found.extend(captures(lua, &matcher, &text, (at, end), true)?);
        return Ok(found);
    }
    Ok(vec![Value::Nil])
}

fn captures(
    lua: &Lua,
    matcher: &Matcher,
    text: &[u8],
    found: (usize, usize),
    or_whole: bool,
) -> Results {
    (0..matcher.count(or_whole)).map(|n| value(lua, matcher.capture(n, found)?, text)).collect()
}

fn value(lua: &Lua, capture: Capture, text: &[u8]) -> std::result::Result<Value, Failure> {
    Ok(match capture {
        Capture::Text(from, to) => {
            lua.create_string(text.get(from..to).unwrap_or_default())?.into_lua(lua)?
        }
        Capture::Position(at) => integer(at),
    })
}

fn integer(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

fn gsub(
    lua: &Lua,
    budget: &Budget,
    (text, pattern): (&LuaString, &LuaString),
    by: &Value,
    most: Option<i64>,
) -> Results {
    let by = match by {
        Value::Integer(_) | Value::Number(_) => match lua.coerce_string(by.clone())? {
            Some(text) => Value::String(text),
            None => Value::Nil,
        },
        other => other.clone(),
    };
    if !matches!(by, Value::String(_) | Value::Table(_) | Value::Function(_)) {
        let message = "bad argument #3 to 'gsub' (string/function/table expected)";
        return Err(Failure::Told(message.to_owned()));
    }
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (pattern, is_anchored) = anchored(&pattern);
    let meter = |work| budget.spend(work);
    let mut matcher = Matcher::new(&text, pattern, &meter);
    let (mut out, mut at, mut last, mut count) = (Vec::new(), 0, None, 0);
    while most.is_none_or(|most| count < most) {
        let end = matcher.at(at)?;
        if let Some(end) = end.filter(|end| last != Some(*end)) {
            count += 1;
            put(lua, &matcher, (&text, (at, end)), &by, &mut Grown { budget, out: &mut out })?;
            (at, last) = (end, Some(end));
        } else if let Some(byte) = text.get(at) {
            out.push(*byte);
            at += 1;
        } else {
            break;
        }
        if out.len() > budget.bytes() {
            return Err(Failure::Told(TOO_LONG.to_owned()));
        }
        if is_anchored {
            break;
        }
    }
    out.extend_from_slice(text.get(at..).unwrap_or_default());
    Ok(vec![lua.create_string(&out)?.into_lua(lua)?, Value::Integer(count)])
}

/// Puts what stands for a match.
fn put(
    lua: &Lua,
    matcher: &Matcher,
    (text, found): (&[u8], (usize, usize)),
    by: &Value,
    out: &mut Grown<'_>,
) -> std::result::Result<(), Failure> {
    let first = || value(lua, matcher.capture(0, found)?, text);
    let instead = match by {
        Value::String(by) => return put_text(matcher, (text, found), &by.as_bytes(), out),
        Value::Table(by) => by.get(first()?)?,
        Value::Function(by) => {
            let values: MultiValue = captures(lua, matcher, text, found, true)?.into();
            by.call::<Value>(values)?
        }
        _ => Value::Nil,
    };
    match instead {
        Value::Nil | Value::Boolean(false) => {
            out.push(text.get(found.0..found.1).unwrap_or_default())?;
        }
        other => {
            let kind = other.type_name();
            let Some(other) = lua.coerce_string(other)? else {
                return Err(Failure::Told(format!("invalid replacement value (a {kind})")));
            };
            out.push(&other.as_bytes())?;
        }
    }
    Ok(())
}

/// A text that grows outside of Lua's memory: within the same bounds as if it were there.
struct Grown<'a> {
    budget: &'a Budget,
    out: &'a mut Vec<u8>,
}

impl Grown<'_> {
    fn push(&mut self, bytes: &[u8]) -> std::result::Result<(), Failure> {
        if self.out.len() + bytes.len() > self.budget.bytes() {
            return Err(Failure::Told(TOO_LONG.to_owned()));
        }
        if !self.budget.spend(1 + bytes.len() / BYTES_PER_WORK) {
            return Err(PatternFault::OutOfTime.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

/// Bytes that are copied in the time of one step of a pattern, or less.
const BYTES_PER_WORK: usize = 64;

/// A text that stands for a match: `%1` and its kin are captures of it.
fn put_text(
    matcher: &Matcher,
    (text, found): (&[u8], (usize, usize)),
    by: &[u8],
    out: &mut Grown<'_>,
) -> std::result::Result<(), Failure> {
    let mut rest = by;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.push(rest.get(..at).unwrap_or_default())?;
        let capture = match rest.get(at + 1) {
            Some(b'%') => None,
            Some(b'0') => Some(Capture::Text(found.0, found.1)),
            Some(digit @ b'1'..=b'9') => Some(matcher.capture(usize::from(digit - b'1'), found)?),
            _ => {
                let message = "invalid use of '%' in replacement string";
                return Err(Failure::Told(message.to_owned()));
            }
        };
        match capture {
            None => out.push(b"%")?,
            Some(Capture::Text(from, to)) => out.push(text.get(from..to).unwrap_or_default())?,
            Some(Capture::Position(at)) => out.push(at.to_string().as_bytes())?,
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    out.push(rest)
}

fn rep(
    lua: &Lua,
    budget: &Budget,
    text: &LuaString,
    count: i64,
    between: Option<LuaString>,
) -> Results {
    let (text, between) = (text.as_bytes(), between.map(|between| between.as_bytes()));
    let between: &[u8] = between.as_deref().unwrap_or_default();
    let count = usize::try_from(count).unwrap_or(0);
    let len = (text.len() + between.len()).checked_mul(count);
    let Some(len) = len.filter(|len| *len <= budget.bytes()) else {
        return Err(Failure::Told(TOO_LONG.to_owned()));
    };
    let _ = budget.spend(len / 16);
    let count = if len == 0 { 0 } else { count };
    let mut all = [&text[..], between].concat().repeat(count);
    all.truncate(len.saturating_sub(between.len()));
    Ok(vec![lua.create_string(&all)?.into_lua(lua)?])
}
