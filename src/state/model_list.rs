//! The models that clients can ask for, as the control plane made the list of what the engines say
//! of theirs. Immutable; a worker answers with its bytes.

use super::ask::Ask;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Where a worker asks for the list. `None`: no engine gave one.
pub type AskModels = Ask<(), Option<Arc<ModelList>>>;

const START: &str = r#"{"object":"list","data":["#;
const END: &str = "]}";

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
        let mut page = String::from(START);
        let mut places = HashMap::new();
        for (id, json) in models {
            if !places.is_empty() {
                page.push(',');
            }
            let start = page.len();
            page.push_str(&json);
            places.insert(id, start..page.len());
        }
        page.push_str(END);
        ModelList { page, places }
    }

    /// The whole answer.
    pub fn page(&self) -> &str {
        &self.page
    }

    /// The same with those models alone that `is_shown` is true for.
    pub fn page_of(&self, is_shown: impl Fn(&str) -> bool) -> String {
        let mut shown: Vec<_> = self.places.iter().filter(|(id, _)| is_shown(id)).collect();
        shown.sort_by_key(|(_, place)| place.start);
        let texts = shown.into_iter().filter_map(|(_, place)| self.page.get(place.clone()));
        format!("{START}{}{END}", texts.collect::<Vec<_>>().join(","))
    }

    /// What is said of one model; `None`: it is not in the list.
    pub fn model(&self, id: &str) -> Option<&str> {
        self.page.get(self.places.get(id)?.clone())
    }
}
