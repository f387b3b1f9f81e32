//! What the user wrote, as a tree. Every node knows the path under which it was written and its
//! number in the order of reading; the number is enough to ask the YAML parser, later and only
//! when something must be reported, for the node's line and column ([`locate`]).
//!
//! This keeps one parser and one meaning: positions come from the parser that gave the values,
//! at the price of parsing the file once more for each reported finding.

use super::path::Path;
use crate::base::limits::{CONFIG_FILE_BYTES_MAX, CONFIG_NODES_MAX};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

/// One value of the file.
#[derive(Debug, Clone)]
pub struct Node {
    /// Number in reading order; [`locate`] turns it into a line and column.
    pub id: u32,
    /// Where the user wrote it. Stays the same when an alias moves the node.
    pub path: Path,
    /// The value.
    pub kind: ValueKind,
}

impl Node {
    /// The keys of a mapping that have a value.
    pub fn keys(&self) -> Vec<String> {
        let ValueKind::Map(entries) = &self.kind else { return Vec::new() };
        let given = entries.iter().filter(|entry| !matches!(entry.value.kind, ValueKind::Null));
        given.map(|entry| entry.key.clone()).collect()
    }
}

/// A value. A scalar is the text that the user wrote: whether `1e5`, `0x1F`, `007` or `yes` is a
/// number or a name is for the key to say, and a name must not come back as `100000`.
#[derive(Debug, Clone)]
pub enum ValueKind {
    /// Nothing, or `null`, or `~`.
    Null,
    /// Text, not yet expanded.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file, keys distinct.
    Map(Vec<MapEntry>),
}

/// One `key: value` of a mapping.
#[derive(Debug, Clone)]
pub struct MapEntry {
    /// The key, as it is written.
    pub key: String,
    /// Number of the key itself in reading order.
    pub key_id: u32,
    /// Its value.
    pub value: Node,
}

/// Line and column in a file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    fn of(location: serde_yaml::Location) -> Self {
        Position { line: location.line().max(1), column: location.column().max(1) }
    }
}

/// Why a text is no tree.
#[derive(Debug)]
pub struct SyntaxError {
    /// Where, when the parser knows.
    pub position: Option<Position>,
    /// The key concerned, `""` when none is.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// What is said of a file that is too long.
pub fn too_long() -> String {
    format!("longer than {CONFIG_FILE_BYTES_MAX} bytes, the most a file may have")
}

/// Parses one YAML document. An empty text is `Null`.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    if text.len() > CONFIG_FILE_BYTES_MAX {
        return Err(SyntaxError { position: None, path: String::new(), message: too_long() });
    }
    let walk = Walk::default();
    let read = walk.read(text).and_then(|_| {
        // The parser says what a scalar looks like, or, asked for text, how it is written; so the
        // text is read twice.
        let written = Walk { as_written: walk.looks_typed.take(), ..Walk::default() };
        written.read(text)
    });
    read.map_err(|error| {
        let told = error.location().map(Position::of);
        // Where the parser gives no position (a second document, too many aliases), the last
        // node that was read is the nearest there is.
        let last = || locate(text, walk.next.get().saturating_sub(1));
        let position = told.or_else(last).or(Some(Position { line: 1, column: 1 }));
        if let Some((path, message)) = walk.failure.take() {
            return SyntaxError { position, path: path.to_string(), message };
        }
        let mut message = error.to_string();
        if let Some(Position { line, column }) = told {
            // The parser puts the position into its text; it is printed in front already.
            message = message.replace(&format!(" at line {line} column {column}"), "");
        }
        SyntaxError { position, path: String::new(), message }
    })
}

/// Line and column of node `id` of a text that [`parse`] accepted.
pub fn locate(text: &str, id: u32) -> Option<Position> {
    let walk = Walk { stop_at: Some(id), ..Walk::default() };
    walk.read(text).err()?.location().map(Position::of)
}

/// One reading of a text: counts nodes, and stops at one of them when it is asked to.
#[derive(Default)]
struct Walk {
    next: Cell<u32>,
    stop_at: Option<u32>,
    /// Scalars that looked like a number or a boolean.
    looks_typed: RefCell<HashSet<u32>>,
    /// Nodes of which the text is asked for.
    as_written: HashSet<u32>,
    failure: RefCell<Option<(Path, String)>>,
}

impl Walk {
    fn read(&self, text: &str) -> Result<Node, serde_yaml::Error> {
        let seed = NodeSeed { walk: self, path: Path::root() };
        seed.deserialize(serde_yaml::Deserializer::from_str(text))
    }

    /// Takes the next number; fails where the walk was told to stop, so that the parser attaches
    /// the position of exactly this node to the error.
    fn step<E: de::Error>(&self, path: &Path) -> Result<u32, E> {
        let id = self.next.get();
        if self.stop_at == Some(id) {
            return Err(E::custom("here"));
        }
        if id >= CONFIG_NODES_MAX {
            // Aliases can make a small file large (the "billion laughs").
            return Err(self.fail(path, format!("more than {CONFIG_NODES_MAX} values in one file")));
        }
        self.next.set(id + 1);
        Ok(id)
    }

    /// The same for a scalar that looks like a number or a boolean.
    fn step_typed<E: de::Error>(&self, path: &Path) -> Result<u32, E> {
        let id = self.step(path)?;
        self.looks_typed.borrow_mut().insert(id);
        Ok(id)
    }

    /// True when the next node is one of which the text is asked for.
    fn wants_text(&self) -> bool {
        self.as_written.contains(&self.next.get())
    }

    fn fail<E: de::Error>(&self, path: &Path, message: String) -> E {
        *self.failure.borrow_mut() = Some((path.clone(), message));
        E::custom("refused")
    }
}

/// Reads one value.
struct NodeSeed<'a> {
    walk: &'a Walk,
    path: Path,
}

impl NodeSeed<'_> {
    fn node<E: de::Error>(self, kind: ValueKind) -> Result<Node, E> {
        let id = self.walk.step(&self.path)?;
        Ok(Node { id, path: self.path, kind })
    }

    fn typed<E: de::Error>(self) -> Result<Node, E> {
        let id = self.walk.step_typed(&self.path)?;
        Ok(Node { id, path: self.path, kind: ValueKind::Null })
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        match self.walk.wants_text() {
            true => deserializer.deserialize_str(self),
            false => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain YAML value without a tag")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        self.node(ValueKind::Null)
    }
    // What a document without any value is.
    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        self.node(ValueKind::Null)
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
        self.typed()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
        self.typed()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Node, E> {
        self.typed()
    }
    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Node, E> {
        self.typed()
    }
    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Node, E> {
        self.typed()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
        self.typed()
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.node(ValueKind::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let id = self.walk.step(&self.path)?;
        let mut items = Vec::new();
        loop {
            let seed = NodeSeed { walk: self.walk, path: self.path.index(items.len()) };
            match seq.next_element_seed(seed)? {
                Some(item) => items.push(item),
                None => return Ok(Node { id, path: self.path, kind: ValueKind::List(items) }),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let id = self.walk.step(&self.path)?;
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        loop {
            let seed = KeySeed { walk: self.walk, parent: &self.path, seen: &mut seen };
            let Some((key, key_id)) = map.next_key_seed(seed)? else { break };
            let seed = NodeSeed { walk: self.walk, path: self.path.key(&key) };
            let value = map.next_value_seed(seed)?;
            entries.push(MapEntry { key, key_id, value });
        }
        merge(&mut entries);
        Ok(Node { id, path: self.path, kind: ValueKind::Map(entries) })
    }
}

/// Reads one key; the same key twice in one mapping is refused at the second.
struct KeySeed<'a> {
    walk: &'a Walk,
    parent: &'a Path,
    seen: &'a mut HashSet<String>,
}

impl KeySeed<'_> {
    fn typed<E: de::Error>(self) -> Result<(String, u32), E> {
        Ok((String::new(), self.walk.step_typed(self.parent)?))
    }

    fn key<E: de::Error>(self, key: String) -> Result<(String, u32), E> {
        let path = self.parent.key(&key);
        let id = self.walk.step(&path)?;
        if !self.seen.insert(key.clone()) {
            return Err(self.walk.fail(&path, "given twice in one section".into()));
        }
        Ok((key, id))
    }
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = (String, u32);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.walk.wants_text() {
            true => deserializer.deserialize_str(self),
            false => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = (String, u32);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key of plain text")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        self.key(key.to_owned())
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        self.typed()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        self.typed()
    }
    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Self::Value, E> {
        self.typed()
    }
    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Self::Value, E> {
        self.typed()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        self.typed()
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        self.typed()
    }
}

/// YAML 1.1 merge keys, which the Go loader of earlier versions understood: `<<: *defaults` adds
/// the entries that the mapping does not have itself.
fn merge(entries: &mut Vec<MapEntry>) {
    let is_merge = |e: &MapEntry| {
        e.key == "<<"
            && match &e.value.kind {
                ValueKind::Map(_) => true,
                ValueKind::List(items) => items.iter().all(|i| matches!(i.kind, ValueKind::Map(_))),
                _ => false,
            }
    };
    let Some(at) = entries.iter().position(is_merge) else { return };
    let sources = match entries.remove(at).value.kind {
        ValueKind::List(items) => items,
        kind => vec![Node { id: 0, path: Path::root(), kind }],
    };
    for source in sources {
        let ValueKind::Map(added) = source.kind else { continue };
        for entry in added {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child<'a>(node: &'a Node, key: &str) -> &'a MapEntry {
        let ValueKind::Map(entries) = &node.kind else { panic!("not a map: {node:?}") };
        entries.iter().find(|e| e.key == key).unwrap()
    }

    #[test]
    fn positions_are_those_of_the_key_and_the_value() {
        let text = "a: 1\nbb:\n  - x: {deep: 7}\n  - y:   'z'\n";
        let tree = parse(text).unwrap();
        let bb = child(&tree, "bb");
        assert_eq!(locate(text, bb.key_id), Some(Position { line: 2, column: 1 }));
        let ValueKind::List(items) = &bb.value.kind else { panic!() };
        let y = child(&items[1], "y");
        assert_eq!(y.value.path.to_string(), "bb[1].y");
        assert_eq!(locate(text, y.key_id), Some(Position { line: 4, column: 5 }));
        assert_eq!(locate(text, y.value.id), Some(Position { line: 4, column: 10 }));
        let deep = child(&child(&items[0], "x").value, "deep");
        assert_eq!(locate(text, deep.value.id), Some(Position { line: 3, column: 15 }));
    }

    #[test]
    fn a_duplicate_key_is_refused_where_it_stands() {
        let error = parse("server:\n  listen: a\n  listen: b\n").unwrap_err();
        assert_eq!(error.position, Some(Position { line: 3, column: 3 }));
        assert_eq!(
            (error.path.as_str(), error.message.as_str()),
            ("server.listen", "given twice in one section")
        );
    }

    #[test]
    fn a_syntax_error_has_a_position_and_says_it_once() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert_eq!(error.position, Some(Position { line: 3, column: 2 }));
        let want = "did not find expected ',' or ']', while parsing a flow sequence";
        assert!(error.message.starts_with(want), "{error:?}");
    }

    #[test]
    fn anchors_merge_keys_and_empty_files_are_understood() {
        let text = "base: &b {w: 1, t: 2}\none: {<<: *b, w: 3}\ntwo: *b\n";
        let tree = parse(text).unwrap();
        let one = &child(&tree, "one").value;
        let text_of = |entry: &MapEntry| match &entry.value.kind {
            ValueKind::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((text_of(child(one, "w")), text_of(child(one, "t"))), ("3".into(), "2".into()));
        assert_eq!(text_of(child(&child(&tree, "two").value, "t")), "2");
        assert!(matches!(parse("").unwrap().kind, ValueKind::Null));
        assert!(matches!(parse("# only a comment\n").unwrap().kind, ValueKind::Null));
    }

    /// Catches: a key of a client or a model that comes back as another number than was written.
    #[test]
    fn scalars_keep_the_text_that_was_written() {
        for written in [
            "1e5",
            "0x1F",
            "0o17",
            "007",
            "yes",
            "True",
            "1.10",
            ".5",
            "+1",
            "1_000",
            "-.inf",
            "18446744073709551616",
            "170141183460469231731687303715884105728",
            "2026-01-01",
        ] {
            let text = format!("a: {written}\n? {written}\n: [{written}, &x {written}, *x]\n");
            let tree = parse(&text).unwrap();
            let ValueKind::Text(value) = &child(&tree, "a").value.kind else { panic!("{tree:?}") };
            assert_eq!(value, written);
            let ValueKind::List(items) = &child(&tree, written).value.kind else {
                panic!("{tree:?}")
            };
            assert!(items.iter().all(|i| matches!(&i.kind, ValueKind::Text(t) if t == written)));
        }
        for null in ["", "~", "null"] {
            assert!(matches!(
                child(&parse(&format!("a: {null}")).unwrap(), "a").value.kind,
                ValueKind::Null
            ));
        }
    }

    #[test]
    fn a_small_file_cannot_grow_without_bound() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..8 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        parse(&text).unwrap_err();
        parse(&"[".repeat(100_000)).unwrap_err();
        parse(&"a: b\n".repeat(1_000_000)).unwrap_err();
        let error = parse(&format!("[{}]", "0,".repeat(200_000))).unwrap_err();
        assert!(error.message.contains("100000 values") && error.position.is_some(), "{error:?}");
    }

    #[test]
    fn tags_and_second_documents_are_refused_not_guessed() {
        parse("a: !env HOME\n").unwrap_err();
        parse("a: 1\n---\nb: 2\n").unwrap_err();
    }
}
