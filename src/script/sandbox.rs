//! What scripts find in a VM: the functions of ours, and `sandbox.lua`, which puts them together
//! with those of Lua's own that are harmless.

use super::budget::Budget;
use super::strings::{self, OUT_OF_TIME};
use crate::base::limits::{SCRIPT_LOG_LINES_MAX, SCRIPT_TOLD_BYTES};
use mlua::chunk::ChunkMode;
use mlua::{Error, Function, HookTriggers, Lua, MultiValue, Result, Table, Value, VmState};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Instructions between two looks at the clock. Each may work on a text as long as the memory of a
/// run allows: with more of them, a run would go too far beyond its time.
const INSTRUCTIONS_PER_LOOK: u32 = 16;
/// What Lua calls a script in its messages. The line behind it is what is wanted of them.
pub(super) const NAME: &str = "script";
/// Calls within one another among which the script's own line is looked for.
const LEVELS_MAX: usize = 16;

/// What a run knows beside its arguments, and what it said.
#[derive(Default)]
pub(super) struct Surroundings {
    pub(super) now_ms: Cell<u64>,
    pub(super) headers: RefCell<Headers>,
    pub(super) said: RefCell<Vec<String>>,
    /// Where it was when its time was over.
    pub(super) line: Cell<Option<u32>>,
}

/// A copy of the fields of a request's head; its room is used again by the next run.
#[derive(Default)]
pub(super) struct Headers {
    bytes: Vec<u8>,
    fields: Vec<(Range<usize>, Range<usize>)>,
}

impl Headers {
    pub(super) fn fill(&mut self, fields: &[(&[u8], &[u8])]) {
        self.bytes.clear();
        self.fields.clear();
        for (name, value) in fields {
            let mut put = |text: &[u8]| {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(text);
                start..self.bytes.len()
            };
            let field = (put(name), put(value));
            self.fields.push(field);
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let of = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
        self.fields.iter().map(move |(name, value)| (of(name), of(value)))
    }

    /// The first field of this name, in whatever case.
    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.pairs().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Fills a new VM, and gives the function that runs a script in it.
pub(super) fn install(
    lua: &Lua,
    budget: &Rc<Budget>,
    around: &Rc<Surroundings>,
) -> Result<Function> {
    let own = lua.create_table()?;
    own.raw_set("string", strings::library(lua, budget)?)?;
    own.raw_set("match_on", strings::match_on(lua, budget)?)?;
    let (clock, place) = (Rc::clone(budget), Rc::clone(around));
    let looked = lua.create_function(move |lua, ()| in_time(lua, &clock, &place))?;
    own.raw_set("in_time", looked)?;
    surroundings(lua, &own, around)?;
    let (clock, place) = (Rc::clone(budget), Rc::clone(around));
    let looks = HookTriggers::new().every_nth_instruction(INSTRUCTIONS_PER_LOOK);
    lua.set_global_hook(looks, move |lua, _| {
        in_time(lua, &clock, &place).map(|()| VmState::Continue)
    })?;
    let chunk = lua.load(include_str!("sandbox.lua")).set_name("=sandbox");
    chunk.set_mode(ChunkMode::Text).call((lua.globals(), own))
}

fn in_time(lua: &Lua, budget: &Budget, around: &Surroundings) -> Result<()> {
    if budget.has_time() {
        return Ok(());
    }
    if around.line.get().is_none() {
        let line = |level| {
            lua.inspect_stack(level, |place| {
                let is_script = place.source().short_src.is_some_and(|name| name == NAME);
                place.current_line().filter(|_| is_script)
            })
        };
        let line = (0..LEVELS_MAX).find_map(|level| line(level).flatten());
        around.line.set(line.and_then(|line| u32::try_from(line).ok()));
    }
    Err(Error::RuntimeError(OUT_OF_TIME.to_owned()))
}

fn surroundings(lua: &Lua, own: &Table, around: &Rc<Surroundings>) -> Result<()> {
    let of = || Rc::clone(around);
    let clock = of();
    own.raw_set("now", lua.create_function(move |_, ()| Ok(clock.now_ms.get() / 1000))?)?;
    let clock = of();
    own.raw_set("now_ms", lua.create_function(move |_, ()| Ok(clock.now_ms.get()))?)?;
    let log = of();
    let log = lua.create_function(move |lua, values: MultiValue| {
        let mut said = log.said.borrow_mut();
        if said.len() < SCRIPT_LOG_LINES_MAX {
            said.push(told(lua, values)?);
        }
        Ok(())
    })?;
    own.raw_set("log", log)?;
    let head = of();
    let header = lua.create_function(move |lua, (_, name): (Value, Value)| {
        let Value::String(name) = name else { return Ok(None) };
        let headers = head.headers.borrow();
        headers.get(&name.as_bytes()).map(|value| lua.create_string(value)).transpose()
    })?;
    own.raw_set("header", header)?;
    let head = of();
    let all_headers = lua.create_function(move |lua, ()| {
        let (all, headers) = (lua.create_table()?, head.headers.borrow());
        for (name, value) in headers.pairs() {
            let name = lua.create_string(canonical(name))?;
            if all.raw_get::<Value>(&name)?.is_nil() {
                all.raw_set(name, lua.create_string(value)?)?;
            }
        }
        Ok(all)
    })?;
    own.raw_set("all_headers", all_headers)
}

/// As Lua's `print` would put it, as far as anybody will see it: this is no memory of Lua's, which
/// would be bounded.
fn told(lua: &Lua, values: MultiValue) -> Result<String> {
    let mut line = String::new();
    for (index, value) in values.into_iter().enumerate() {
        if line.len() > SCRIPT_TOLD_BYTES {
            break;
        }
        line.push_str(if index > 0 { " " } else { "" });
        let kind = value.type_name();
        match value {
            Value::Boolean(value) => line.push_str(if value { "true" } else { "false" }),
            value => match lua.coerce_string(value)? {
                Some(text) => {
                    let text = text.as_bytes();
                    let text = text.get(..SCRIPT_TOLD_BYTES).unwrap_or(&text);
                    line.push_str(&String::from_utf8_lossy(text));
                }
                None => line.push_str(kind),
            },
        }
    }
    Ok(line)
}

/// `Content-Type`, as scripts for the first gateway of this name find it.
fn canonical(name: &[u8]) -> Vec<u8> {
    let mut starts = true;
    let mut letter = |byte: &u8| {
        let made = if starts { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        starts = *byte == b'-';
        made
    };
    name.iter().map(&mut letter).collect()
}
