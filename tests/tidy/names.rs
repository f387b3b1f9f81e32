//! One word, one meaning: no two rooms have a public type of the same name.

use super::source::Source;
use std::collections::BTreeMap;

/// Names that two rooms may share: what is configured, and what does it.
const SHARED: &[&str] = &["Reporter", "Webhook"];

const FORMS: &[&str] = &["pub struct ", "pub enum ", "pub trait ", "pub type ", "pub union "];

/// The public types of the rooms, by name.
#[derive(Default)]
pub struct Names(BTreeMap<String, Vec<(String, String)>>);

impl Names {
    /// Takes in the types that a file of `src/` makes public. Those inside a block, associated
    /// types among them, are the matter of that block.
    pub fn read(&mut self, source: &Source) {
        let Some(room) = source.module().and_then(|module| module.first().copied()) else { return };
        for (line, text) in source.product.lines().enumerate() {
            let form = FORMS.iter().find_map(|form| text.strip_prefix(form));
            let is_wordy = |c: &char| c.is_alphanumeric() || *c == '_';
            let name: String = form.unwrap_or_default().chars().take_while(is_wordy).collect();
            if !name.is_empty() && !SHARED.contains(&name.as_str()) {
                let place = format!("{}:{}", source.path, line + 1);
                self.0.entry(name).or_default().push((room.to_owned(), place));
            }
        }
    }

    /// A fault for each name that is in more than one room.
    pub fn faults(&self) -> Vec<String> {
        let in_many = self.0.iter().filter(|(_, found)| {
            found.iter().any(|(room, _)| found.first().is_some_and(|(first, _)| room != first))
        });
        in_many
            .map(|(name, found)| {
                let places: Vec<&str> = found.iter().map(|(_, place)| place.as_str()).collect();
                format!("the name `{name}` is in several rooms: {}", places.join(", "))
            })
            .collect()
    }
}
