//! What every reader of a load shares: the environment, and where findings go.

use super::expand::expand;
use super::path::Path;
use super::raw::{Node, ValueKind};
use super::report::Class;
use super::value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

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

    /// True inside a section that is switched off.
    pub fn is_off(&self) -> bool {
        self.off.get() > 0
    }

    /// Runs `read`; errors count as warnings meanwhile when `off`.
    pub fn within<T>(&self, off: bool, read: impl FnOnce() -> T) -> T {
        self.off.set(self.off.get() + u32::from(off));
        let value = read();
        self.off.set(self.off.get() - u32::from(off));
        value
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

    /// The text of a scalar, expanded. `None` with a finding for a list or a mapping; `None` for
    /// null.
    pub fn text(&self, node: &Node) -> Option<String> {
        match &node.kind {
            ValueKind::Null => None,
            ValueKind::Text(text) => expand(text, self.env).map_err(|e| self.error(node, e)).ok(),
            ValueKind::List(_) => self.refuse(node, "must be a single value, not a list"),
            ValueKind::Map(_) => self.refuse(node, "must be a single value, not a section"),
        }
    }

    /// Notes an error on a node that gives no value.
    pub fn refuse<T>(&self, node: &Node, message: &str) -> Option<T> {
        self.error(node, message);
        None
    }

    /// The scalar of a node, read by `parse`.
    pub fn parse<T>(
        &self,
        node: &Node,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(node)?;
        parse(&text).map_err(|message| self.error(node, unexpanded(node, &text, message))).ok()
    }
}

/// A message on a value that came out of a variable shows the variable instead: the value may be a
/// secret. Such messages begin with the value in backquotes.
fn unexpanded(node: &Node, text: &str, message: String) -> String {
    let ValueKind::Text(written) = &node.kind else { return message };
    let rest = message.strip_prefix('`').and_then(|rest| rest.split_once('`'));
    match rest {
        Some((_, rest)) if written != text => format!("{}{rest}", value::quoted(written)),
        _ => message,
    }
}
