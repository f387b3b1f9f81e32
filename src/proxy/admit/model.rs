//! Whether there is the model that a request names.

use crate::base::refusal::Refusal;
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

/// The answer for a model that is not there.
pub fn not_found(name: &str) -> Refusal {
    Refusal::new(404, "model_not_found", "")
        .with_message(format!("The model `{name}` does not exist here."))
}
