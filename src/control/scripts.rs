//! The scripts of a configuration: their texts are read and compiled here first, so that one that
//! is no Lua keeps a configuration from being used. Workers compile them again, each for itself.

use crate::base::limits::SCRIPT_BYTES_MAX;
use crate::config::origin::read_regular;
use crate::config::plan::{Plan, Script, ScriptSource};
use crate::script::{ScriptText, Vm};
use std::path::Path;
use std::sync::Arc;

/// The scripts of a plan.
///
/// # Errors
/// One cannot be read, or is no Lua. A line for a person names the provider, the script, the line.
pub fn read(plan: &Plan) -> Result<Arc<[ScriptText]>, String> {
    let texts = ScriptText::of(plan).map(|(place, provider, script)| {
        let text = text_of(place, provider, script);
        text.map_err(|error| format!("auth.pipeline[{place}]: provider {provider}: {error}"))
    });
    let texts = texts.collect::<Result<Arc<[_]>, String>>()?;
    for text in texts.iter() {
        let compiled = Vm::new(std::slice::from_ref(text));
        compiled.map_err(|error| format!("auth.pipeline[{}]: {error}", text.place))?;
    }
    Ok(texts)
}

fn text_of(place: usize, provider: &str, script: &Script) -> Result<ScriptText, String> {
    let (name, code) = match &script.source {
        ScriptSource::Script(code) => ("in the configuration".to_owned(), code.clone()),
        ScriptSource::Path(file) => (file.display().to_string(), code_of(file)?),
    };
    Ok(ScriptText {
        place,
        provider: provider.into(),
        name: name.into(),
        code: code.into(),
        timeout: script.timeout,
        max_memory: script.max_memory,
    })
}

/// The text of a script.
///
/// # Errors
/// It cannot be read, is too long, or no text.
pub fn code_of(file: &Path) -> Result<String, String> {
    let shown = file.display();
    let bytes = read_regular(file).map_err(|error| format!("script {shown}: {error}"))?;
    if bytes.len() as u64 > SCRIPT_BYTES_MAX {
        return Err(format!("script {shown}: longer than {SCRIPT_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| format!("script {shown}: is not UTF-8"))
}
