//! Reads one mapping of the file key by key. What nobody asked for is unknown, so the set of
//! known keys is the code that reads them and cannot drift from it.

use super::expand::expand;
use super::raw::{Entry, Kind, Node, Path};
use super::report::{nearest, Class};
use super::value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What every reader of a load shares: the environment, and where findings go.
pub struct Desk<'a> {
    /// Value of an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Findings, with the number of the node concerned in place of its position.
    pub notes: RefCell<Vec<Note>>,
    /// Canonical path of every key that was asked for, `[]` for items and `*` for free names.
    pub known: RefCell<BTreeSet<String>>,
    /// Above 0 inside a section that is switched off, where an error is only a warning.
    off: Cell<u32>,
}

/// A finding before its position is known.
pub struct Note {
    /// How bad it is.
    pub class: Class,
    /// Number of the node; `None` for the whole file.
    pub id: Option<u32>,
    /// Dotted path as the user wrote it.
    pub path: String,
    /// What to say.
    pub message: String,
    /// A second node that the message is about; its position is put behind it.
    pub other: Option<u32>,
}

impl<'a> Desk<'a> {
    /// A desk without findings.
    pub fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Desk { env, notes: RefCell::default(), known: RefCell::default(), off: Cell::new(0) }
    }

    /// Notes a finding on a node.
    pub fn note(&self, class: Class, id: u32, path: &Path, message: impl Into<String>) {
        let mut message = message.into();
        let mut class = class;
        match class {
            // What a section that is off assumes or does is of no interest.
            Class::Warning if self.is_off() => return,
            Class::Error if self.is_off() => {
                class = Class::Warning;
                message.push_str(" (in a section that is switched off)");
            }
            _ => {}
        }
        let path = path.to_string();
        self.notes.borrow_mut().push(Note { class, id: Some(id), path, message, other: None });
    }

    fn is_off(&self) -> bool {
        self.off.get() > 0
    }

    /// Notes an error on a node.
    pub fn error(&self, node: &Node, message: impl Into<String>) {
        self.note(Class::Error, node.id, &node.path, message);
    }

    /// True when the load cannot succeed any more. A check of several values together asks this
    /// first: one of them may be missing because it was refused.
    pub fn has_errors(&self) -> bool {
        self.notes.borrow().iter().any(|note| note.class == Class::Error)
    }

    /// Notes a warning on a node.
    pub fn warn(&self, node: &Node, message: impl Into<String>) {
        self.note(Class::Warning, node.id, &node.path, message);
    }

    /// Notes a warning on the file as a whole.
    pub fn remark(&self, message: impl Into<String>) {
        let (path, message) = (String::new(), message.into());
        let note = Note { class: Class::Warning, id: None, path, message, other: None };
        self.notes.borrow_mut().push(note);
    }

    /// The text of a scalar, expanded. Text that is written as a number or a boolean stays what
    /// it looks like. `None` with a finding for a list or a mapping; `None` for null.
    fn scalar(&self, node: &Node) -> Option<String> {
        match &node.kind {
            Kind::Null => None,
            Kind::Bool(value) => Some(value.to_string()),
            Kind::Int(value) => Some(value.to_string()),
            Kind::Float(value) => Some(value.to_string()),
            Kind::Text(text) => expand(text, self.env).map_err(|e| self.error(node, e)).ok(),
            Kind::List(_) => self.refuse(node, "must be a single value, not a list"),
            Kind::Map(_) => self.refuse(node, "must be a single value, not a section"),
        }
    }

    fn refuse<T>(&self, node: &Node, message: &str) -> Option<T> {
        self.error(node, message);
        None
    }

    /// The scalar of a node, read by `parse`.
    pub fn parse<T>(
        &self,
        node: &Node,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.scalar(node)?;
        parse(&text).map_err(|message| self.error(node, unexpanded(node, &text, message))).ok()
    }

    /// The text of a node. `1.10` or `yes` without quotes would not come through as written.
    pub fn text(&self, node: &Node) -> Option<String> {
        match node.kind {
            Kind::Float(_) | Kind::Bool(_) => self.refuse(node, "must be text: put it in quotes"),
            _ => self.scalar(node),
        }
    }
}

/// A message on a value that came out of a variable shows the variable instead: the value may be a
/// secret. Such messages begin with the value in backquotes.
fn unexpanded(node: &Node, text: &str, message: String) -> String {
    let Kind::Text(written) = &node.kind else { return message };
    let rest = message.strip_prefix('`').and_then(|rest| rest.split_once('`'));
    match rest {
        Some((_, rest)) if written != text => format!("{}{rest}", value::quoted(written)),
        _ => message,
    }
}

/// One mapping being read. When it goes, the keys that were not asked for are reported.
pub struct Section<'a> {
    /// The desk of this load.
    pub desk: &'a Desk<'a>,
    node: &'a Node,
    entries: Vec<(&'a Entry, bool)>,
    asked: BTreeSet<String>,
    place: String,
}

impl<'a> Section<'a> {
    /// Opens the mapping `node`, whose canonical path is `place`. A null counts as an empty
    /// mapping: a section whose keys are all commented out is still present. `None` with a
    /// finding for anything else.
    pub fn open(desk: &'a Desk<'a>, node: &'a Node, place: &str) -> Option<Section<'a>> {
        let entries = match &node.kind {
            Kind::Map(entries) => entries.iter().map(|e| (e, false)).collect(),
            Kind::Null => Vec::new(),
            _ => return desk.refuse(node, "must be a section (`key: value` lines)"),
        };
        Some(Section { desk, node, entries, asked: BTreeSet::new(), place: place.to_owned() })
    }

    /// The mapping itself.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// The node of a key; the key counts as known from now on.
    pub fn get(&mut self, key: &str) -> Option<&'a Node> {
        self.asked.insert(key.to_owned());
        self.desk.known.borrow_mut().insert(self.place_of(key));
        let found = self.entries.iter_mut().find(|(e, _)| e.key == key)?;
        found.1 = true;
        Some(&found.0.value)
    }

    fn place_of(&self, key: &str) -> String {
        if self.place.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.place)
        }
    }

    /// True when the key stands in the file and has a value.
    pub fn given(&self, key: &str) -> bool {
        let value = |kind: &Kind| !matches!(kind, Kind::Null);
        self.entries.iter().any(|(e, _)| e.key == key && value(&e.value.kind))
    }

    /// True when the key stands in the file.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(e, _)| e.key == key)
    }

    /// An error on a key, or on the section when the key is absent.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        let node = self.entries.iter().find(|(e, _)| e.key == key).map(|(e, _)| &e.value);
        match node {
            Some(node) => self.desk.error(node, message),
            None => self.desk.note(Class::Error, self.node.id, &self.node.path.key(key), message),
        }
    }

    /// A warning on a key that stands in the file, or on the section.
    pub fn warn(&self, key: &str, message: impl Into<String>) {
        let node = self.entries.iter().find(|(e, _)| e.key == key).map(|(e, _)| &e.value);
        self.desk.warn(node.unwrap_or(self.node), message);
    }

    /// Keys that earlier versions or other gateways have and LLMProxy does not serve: loud, inert.
    pub fn unsupported(&mut self, keys: &[(&str, &str)]) {
        for (key, why) in keys {
            if let Some(found) = self.entries.iter_mut().find(|(e, _)| e.key == *key) {
                found.1 = true;
                let entry = found.0;
                let message = format!("not supported and ignored: {why}");
                self.desk.note(Class::UnsupportedKey, entry.key_id, &entry.value.path, message);
            }
        }
    }

    /// A scalar read by `parse`, which answers a bad value with what would be right.
    pub fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.get(key)?;
        self.desk.parse(node, parse)
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let node = self.get(key)?;
        self.desk.text(node)
    }

    /// A scalar that must be there and must not be empty, read by `parse`.
    pub fn required_parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.given(key) {
            self.get(key);
            if !self.desk.is_off() {
                self.error(key, "is required");
            }
            return None;
        }
        self.parsed(key, |text| match text {
            "" => Err("is required".into()),
            _ => parse(text),
        })
    }

    /// A text that must be there and must not be empty; `""` with an error otherwise.
    pub fn required(&mut self, key: &str) -> String {
        self.required_parsed(key, |text| Ok(text.to_owned())).unwrap_or_default()
    }

    /// Text that is code: taken byte for byte, without expansion.
    pub fn code(&mut self, key: &str) -> Option<String> {
        match self.get(key)? {
            Node { kind: Kind::Text(text), .. } => Some(text.clone()),
            Node { kind: Kind::Null, .. } => None,
            node => self.desk.refuse(node, "must be the text of a script"),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &str, default: bool) -> bool {
        self.parsed(key, value::boolean).unwrap_or(default)
    }

    /// A whole number within a range.
    pub fn int<T>(&mut self, key: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<i128> + Into<i128> + Copy,
    {
        self.int_opt(key, range).unwrap_or(default)
    }

    /// A whole number within a range, when given.
    pub fn int_opt<T>(&mut self, key: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + Into<i128> + Copy,
    {
        self.parsed(key, |text| value::int(text, range))
    }

    /// A duration above zero, when given.
    pub fn duration_opt(&mut self, key: &str) -> Option<Duration> {
        self.parsed(key, value::duration)
    }

    /// A duration above zero.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.duration_opt(key).unwrap_or(default)
    }

    /// One of the named values.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], default: T) -> T {
        self.parsed(key, |text| value::choice(text, choices)).unwrap_or(default)
    }

    /// What kind of thing this section is: one of the named values, or the first when no key says
    /// so. A value that is none of them leaves the rest of the section unread.
    pub fn kind<'c>(&mut self, key: &str, kinds: &[&'c str], required: bool) -> Option<&'c str> {
        if !self.given(key) && !required {
            self.get(key);
            return kinds.first().copied();
        }
        if !self.given(key) {
            self.error(key, format!("is required: {}", kinds.join(", ")));
        }
        let choices: Vec<(&str, &'c str)> = kinds.iter().map(|kind| (*kind, *kind)).collect();
        let kind = self.parsed(key, |text| value::choice(text, &choices));
        if kind.is_none() {
            self.entries.iter_mut().for_each(|(_, taken)| *taken = true);
        }
        kind
    }

    /// The items of a list, each read by `parse`. A single value counts as a list of one.
    pub fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let node = self.get(key)?;
        let one = std::slice::from_ref(node);
        let items = match &node.kind {
            Kind::List(items) => items.as_slice(),
            Kind::Null => &[],
            _ => one,
        };
        Some(items.iter().filter_map(|item| self.desk.parse(item, &parse)).collect())
    }

    /// The mapping under a key, when present.
    pub fn section(&mut self, key: &str) -> Option<Section<'a>> {
        let node = self.get(key)?;
        Section::open(self.desk, node, &self.place_of(key))
    }

    /// The mappings in the list under a key.
    pub fn sections(&mut self, key: &str) -> Vec<Section<'a>> {
        let place = format!("{}[]", self.place_of(key));
        match self.get(key) {
            Some(Node { kind: Kind::List(items), .. }) => {
                items.iter().filter_map(|i| Section::open(self.desk, i, &place)).collect()
            }
            None | Some(Node { kind: Kind::Null, .. }) => Vec::new(),
            Some(node) => {
                self.desk.error(node, "must be a list (`- ` lines)");
                Vec::new()
            }
        }
    }

    /// A mapping whose keys are free names: every name with its node.
    pub fn named(&mut self, key: &str) -> Vec<(String, &'a Node)> {
        match self.get(key) {
            Some(Node { kind: Kind::Map(entries), .. }) => {
                entries.iter().map(|e| (e.key.clone(), &e.value)).collect()
            }
            None | Some(Node { kind: Kind::Null, .. }) => Vec::new(),
            Some(node) => {
                self.desk.error(node, "must be a section (`name: value` lines)");
                Vec::new()
            }
        }
    }

    /// Reads a section that is on when it is present, unless it says `enabled: false`. A section
    /// that is off is still read, so that its mistakes show, but they stop nothing.
    pub fn when_present<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Option<T> {
        self.section(key)?.switched(true, read)
    }

    /// Reads a section that is on only when it says `enabled: true`.
    pub fn when_enabled<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Option<T> {
        self.section(key)?.switched(false, read)
    }

    /// Reads this section by `read`; `None` when its `enabled`, or else `default`, is false.
    pub fn switched<T>(
        mut self,
        default: bool,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Option<T> {
        let on = self.boolean("enabled", default);
        let off = &self.desk.off;
        off.set(off.get() + u32::from(!on));
        let value = read(&mut self);
        off.set(off.get() - u32::from(!on));
        on.then_some(value)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (entry, taken) in &self.entries {
            if *taken {
                continue;
            }
            let mut message = String::from("unknown key, ignored");
            if let Some(key) = nearest(&entry.key, self.asked.iter().map(String::as_str)) {
                message.push_str(&format!("; did you mean `{key}`?"));
            }
            self.desk.note(Class::UnknownKey, entry.key_id, &entry.value.path, message);
        }
    }
}
