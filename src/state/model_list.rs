//! The models that clients can ask for, as the control plane made the list of what the engines say
//! of theirs. Immutable; a worker answers with its bytes.

use super::ask::Ask;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Where a worker asks for the list. `None`: no engine gave one.
pub type AskModels = Ask<(), Option<Arc<ModelList>>>;

/// A list, as `GET /v1/models` answers it.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelList {
    page: String,
    /// Where in the page each model stands, by its id.
    places: HashMap<String, Range<usize>>,
}

impl ModelList {
    /// Of models in order: the id of each, and the JSON object that says it.
    pub fn new(models: impl IntoIterator<Item = (String, String)>) -> ModelList {
        let mut page = String::from(r#"{"object":"list","data":["#);
        let mut places = HashMap::new();
        for (id, json) in models {
            if !places.is_empty() {
                page.push(',');
            }
            let start = page.len();
            page.push_str(&json);
            places.insert(id, start..page.len());
        }
        page.push_str("]}");
        ModelList { page, places }
    }

    /// The whole answer.
    pub fn page(&self) -> &str {
        &self.page
    }

    /// What is said of one model; `None`: it is not in the list.
    pub fn model(&self, id: &str) -> Option<&str> {
        self.page.get(self.places.get(id)?.clone())
    }
}
