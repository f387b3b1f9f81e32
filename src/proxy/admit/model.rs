//! Whether there is the model that a request names.

use crate::base::limits::MODEL_NAME_BYTES_MAX;
use crate::base::refusal::Refusal;
use crate::config::plan::endpoints::{BELOW_MODELS, BELOW_RESPONSES};
use crate::http::request::Method;
use crate::keys::check::may_ask;
use crate::keys::facts::KeyFacts;
use crate::state::board::View;

/// Refuses a model that no backend serves, whether or not these are well: 404, as engines answer
/// it. `asked` is the name that the client knows, `served` the one that engines do.
pub fn check(view: &View, asked: &str, served: &str) -> Result<(), Refusal> {
    let group = view.models.choose(served).group;
    // Where there is no backend at all, it is not for want of this model.
    if view.members().is_empty() || !view.models.members_of(group).is_empty() {
        return Ok(());
    }
    Err(not_found(asked))
}

/// Whether a request has to name a model, as far as its head tells: all that could make an engine
/// work. One that names none gets whatever model its engine has.
pub fn asks_one(method: Method, path: &str) -> bool {
    let is_cancel = path.starts_with(BELOW_RESPONSES) && path.ends_with("/cancel");
    let reads = matches!(method, Method::Get | Method::Head | Method::Options | Method::Delete);
    !reads && !is_cancel
}

/// Refuses a model that a key may not ask, by either of its names.
pub fn allow(key: &KeyFacts, asked: &str, served: &str) -> Result<(), Refusal> {
    if may_ask(key, asked, served) {
        return Ok(());
    }
    let refusal = Refusal::new(
        403,
        "model_not_allowed",
        "The API key may use certain models only, and the request names none.",
    );
    Err(match asked.len() {
        0 => refusal,
        1..=MODEL_NAME_BYTES_MAX => {
            refusal.with_message(format!("The API key may not use the model `{asked}`."))
        }
        _ => refusal.with_message("The API key may not use this model.".to_owned()),
    })
}

/// The answer for a model that is not there.
pub fn not_found(name: &str) -> Refusal {
    let refusal = Refusal::new(404, "model_not_found", "The model does not exist here.");
    match name.len() <= MODEL_NAME_BYTES_MAX {
        true => refusal.with_message(format!("The model `{name}` does not exist here.")),
        false => refusal,
    }
}

/// The model that a normal path below the list of models names: slashes are part of it, written as
/// they are or encoded. `None`: the path is that of the list.
pub fn named_by(path: &[u8]) -> Option<String> {
    let written = path.strip_prefix(BELOW_MODELS.as_bytes())?;
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (mut name, mut rest) = (Vec::with_capacity(written.len()), written);
    while let [byte, behind @ ..] = rest {
        let escaped = match behind {
            [high, low, ..] if *byte == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        name.push(escaped.map_or(*byte, |(high, low)| (high * 16 + low) as u8));
        rest = if escaped.is_some() { behind.get(2..).unwrap_or_default() } else { behind };
    }
    Some(String::from_utf8_lossy(&name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_model_with_all_that_a_name_may_have() {
        for (path, name) in [
            ("/v1/models", None),
            ("/models", None),
            ("/v1/models/a", Some("a")),
            ("/v1/models/org/a:7b@v1.5", Some("org/a:7b@v1.5")),
            ("/v1/models/org%2Fa%20b%c3%A9%25", Some("org/a b\u{e9}%")),
            ("/v1/models/a%2", Some("a%2")),
            ("/v1/models/%zz%", Some("%zz%")),
            ("/v1/models/%FF", Some("\u{fffd}")),
        ] {
            assert_eq!(named_by(path.as_bytes()).as_deref(), name, "{path}");
        }
    }
}
