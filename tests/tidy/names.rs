//! One word, one meaning: no two public types have the same name, in whichever rooms they are.

use super::source::Source;
use std::collections::BTreeMap;

/// Names that two rooms may share: what is configured, and what does it.
const SHARED: &[&str] = &["Reporter", "Webhook"];

/// Pairs inside one room: room and name. Each is of two parts of it that nobody uses together, and
/// is named in full (`ring::Entry`, `spool::Entry`) where both are spoken of. No pair is added.
const PAIRS: &[(&str, &str)] = &[
    ("config", "Endpoint"),
    ("proxy", "Reading"),
    ("state", "Phase"),
    ("usage", "Entry"),
    ("usage", "Found"),
    ("usage", "Header"),
    ("usage", "Window"),
];

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

    /// A fault for each name that several types have.
    pub fn faults(&self) -> Vec<String> {
        let is_known = |name: &str, found: &[(String, String)]| {
            let is_in = |room: &str| found.iter().all(|(other, _)| other == room);
            let is_pair = |(room, pair): &(&str, &str)| *pair == name && is_in(room);
            found.len() == 2 && PAIRS.iter().any(is_pair)
        };
        let in_many =
            self.0.iter().filter(|(name, found)| found.len() > 1 && !is_known(name, found));
        in_many
            .map(|(name, found)| {
                let places: Vec<&str> = found.iter().map(|(_, place)| place.as_str()).collect();
                format!("several types have the name `{name}`: {}", places.join(", "))
            })
            .collect()
    }
}
