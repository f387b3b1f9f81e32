//! In place of the scripts in a build without the feature `lua`.

use super::ask::{Decided, ScriptError, ScriptInput, ScriptText};

/// No VM.
#[derive(Debug)]
pub struct NoVm(());

impl NoVm {
    /// Of no script; any other is an error.
    pub fn new(scripts: &[ScriptText]) -> Result<NoVm, ScriptError> {
        match scripts.first() {
            None => Ok(NoVm(())),
            Some(script) => Err(error(&script.provider, &script.name)),
        }
    }

    /// None.
    pub fn of(&self, _provider: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::empty()
    }

    /// Says that it cannot.
    ///
    /// # Errors
    /// Always.
    pub fn decide(
        &self,
        _index: usize,
        _input: &ScriptInput<'_>,
        _log: &mut dyn FnMut(&str),
    ) -> Result<Decided, ScriptError> {
        Err(error("", ""))
    }
}

fn error(provider: &str, script: &str) -> ScriptError {
    ScriptError {
        provider: provider.into(),
        script: script.into(),
        line: None,
        message: "this program was built without Lua".to_owned(),
    }
}
