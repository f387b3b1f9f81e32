//! A VM: the scripts of one view, compiled, on one thread.

use super::ask::{Decided, ScriptError, ScriptInput, ScriptText};
use super::budget::Budget;
use super::sandbox::{self, Surroundings, NAME};
use super::strings::OUT_OF_TIME;
use super::{convert, outcome};
use mlua::chunk::ChunkMode;
use mlua::{Error, Function, Lua, LuaOptions, StdLib, Value};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// What stands for the key in texts that a script made.
const HIDDEN: &str = "***";

/// Scripts that were compiled. One run is over before the next begins.
pub struct Vm {
    lua: Lua,
    budget: Rc<Budget>,
    around: Rc<Surroundings>,
    run: Function,
    scripts: Vec<(ScriptText, Function)>,
    /// Bytes of all that outlives a run.
    base: usize,
    limit: Cell<usize>,
}

impl Vm {
    /// Compiles scripts.
    ///
    /// # Errors
    /// One of them is no Lua.
    pub fn new(texts: &[ScriptText]) -> Result<Vm, ScriptError> {
        let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8;
        let ours = |error| told("", "", "", &error);
        let lua = Lua::new_with(libraries, LuaOptions::default()).map_err(ours)?;
        let (budget, around) = (Rc::new(Budget::new()), Rc::default());
        let run = sandbox::install(&lua, &budget, &around).map_err(ours)?;
        let mut scripts = Vec::new();
        for text in texts {
            // Each run brings globals of its own. What stands in the same line moves no other one.
            let code = format!("local _ENV = ...; {}", text.code);
            let chunk = lua.load(code).set_name(format!("={NAME}")).set_mode(ChunkMode::Text);
            let compiled = chunk.into_function();
            let compiled = compiled.map_err(|e| told(&text.provider, &text.name, "", &e))?;
            scripts.push((text.clone(), compiled));
        }
        lua.gc_collect().map_err(ours)?;
        let base = lua.used_memory();
        Ok(Vm { lua, budget, around, run, scripts, base, limit: Cell::new(0) })
    }

    /// The scripts of the provider at this place of the pipeline, in the order in which they run.
    pub fn of(&self, provider: usize) -> impl Iterator<Item = usize> + '_ {
        let all = self.scripts.iter().enumerate();
        all.filter(move |(_, (text, _))| text.place == provider).map(|(index, _)| index)
    }

    /// Runs a script: the one at this place of those that were compiled. What it said with `log`
    /// goes to `log`, a line each.
    ///
    /// # Errors
    /// The script failed, or gave what is no decision, or took longer or more than it may: whoever
    /// asked for it is denied.
    pub fn decide(
        &self,
        index: usize,
        input: &ScriptInput<'_>,
        log: &mut dyn FnMut(&str),
    ) -> Result<Decided, ScriptError> {
        let Some((text, script)) = self.scripts.get(index) else {
            return Err(ScriptError {
                provider: "".into(),
                script: "".into(),
                line: None,
                message: "there is no such script".to_owned(),
            });
        };
        let memory = usize::try_from(text.max_memory).unwrap_or(usize::MAX);
        let limit = self.base.saturating_add(memory);
        if self.limit.replace(limit) != limit {
            // Cannot fail: the VM has an allocator of mlua's.
            let _ = self.lua.set_memory_limit(limit);
        }
        self.budget.begin(text.timeout, memory);
        let returned = self.call(script, input);
        let is_over = self.budget.is_over();
        // What is done between two runs has all the time in the world.
        self.budget.begin(Duration::MAX, memory);
        let hide = |text: &str| shown_without(text, input.api_key);
        self.around.said.borrow_mut().drain(..).for_each(|line| log(&hide(&line)));
        let failed = |line, message: &str| ScriptError {
            provider: text.provider.clone(),
            script: text.name.clone(),
            line,
            message: hide(message),
        };
        match returned {
            _ if is_over => {
                let said = |error: Error| line_of(&error.to_string()).map(|(line, _)| line);
                let line = self.around.line.take().or_else(|| returned.err().and_then(said));
                Err(failed(line, OUT_OF_TIME))
            }
            Ok(value) => match outcome::of(value) {
                Ok(Decided::Deny { status, code, message }) => {
                    let message = message.map(|message| hide(&message));
                    Ok(Decided::Deny { status, code, message })
                }
                Ok(allowed) => Ok(allowed),
                Err(message) => Err(failed(None, &message)),
            },
            Err(error) => Err(told(&text.provider, &text.name, input.api_key, &error)),
        }
    }

    fn call(&self, script: &Function, input: &ScriptInput<'_>) -> mlua::Result<Value> {
        self.around.now_ms.set(input.now_ms);
        self.around.headers.borrow_mut().fill(input.headers);
        let lua = &self.lua;
        self.run.call((
            script,
            input.api_key,
            convert::to_lua(lua, input.data)?,
            convert::object(lua, input.metadata)?,
            input.method,
            input.path,
            input.client_ip,
        ))
    }
}

/// An error of Lua's, as a person reads it.
fn told(provider: &str, script: &str, api_key: &str, error: &Error) -> ScriptError {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let (line, message) = match line_of(&text) {
        // Where the message itself names the line, what is behind that is the message.
        Some((line, rest)) if first.ends_with(rest) => (Some(line), rest),
        Some((line, _)) => (Some(line), first),
        None => (None, first),
    };
    let message = message.strip_prefix("runtime error: ").unwrap_or(message);
    let message = match is_memory(error) {
        true => "the script needs more than its max_memory".to_owned(),
        false => shown_without(message, api_key),
    };
    ScriptError { provider: provider.into(), script: script.into(), line, message }
}

fn is_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::CallbackError { cause, .. } => is_memory(cause),
        _ => false,
    }
}

/// The first line of the script that a message of Lua's names, and what stands behind it.
fn line_of(text: &str) -> Option<(u32, &str)> {
    let marks = text.match_indices(NAME);
    marks.into_iter().find_map(|(at, _)| {
        let rest = text.get(at + NAME.len()..)?.strip_prefix(':')?;
        let (number, rest) = rest.split_once(':')?;
        let rest = rest.lines().next().unwrap_or_default();
        Some((number.parse().ok()?, rest.trim_start()))
    })
}

/// One line for people, without the key: what a script says must not tell it. Cut only then, or
/// a key that lies across the cut would leave its beginning.
fn shown_without(text: &str, api_key: &str) -> String {
    match api_key.is_empty() {
        true => outcome::shown(text),
        false => outcome::shown(&text.replace(api_key, HIDDEN)),
    }
}
