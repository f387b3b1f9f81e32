//! Reads one mapping of the file key by key. What nobody asked for is unknown, so the set of
//! known keys is the code that reads them and cannot drift from it.

use super::desk::Desk;
use super::raw::{MapEntry, Node, ValueKind};
use super::report::{nearest, Class};
use super::value;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

const EMPTY: &str = "is empty, so that nothing is protected by it: give it, or take the key away";

/// A duration without a unit, in seconds, from which on it is doubted.
const BARE_SECONDS_DOUBTED: u64 = 600;

/// Keys that protect something. One that is misspelt must not be passed over.
const PROTECTING: [&str; 26] = [
    "admin",
    "allowed_ips",
    "allowed_models",
    "allowed_origins",
    "api_keys",
    "auth",
    "ca_file",
    "client_auth",
    "client_ca_file",
    "denied_ips",
    "expires_at",
    "global",
    "hmac_secret",
    "max_concurrent",
    "min_version",
    "per_key",
    "per_model",
    "pipeline",
    "quota_reset_period",
    "rate_limit",
    "requests_per_minute",
    "requests_per_second",
    "tls",
    "token",
    "tokens_per_minute",
    "total_quota",
];

/// Names under which others have a protecting section that stands elsewhere here.
const ELSEWHERE: [(&str, &str); 5] = [
    ("tls", "server.tls"),
    ("ssl", "server.tls"),
    ("authentication", "auth"),
    ("keys", "api_keys"),
    ("limits", "rate_limit"),
];

/// One mapping being read. When it goes, the keys that were not asked for are reported.
pub struct Section<'a> {
    /// The desk of this load.
    pub desk: &'a Desk<'a>,
    node: &'a Node,
    entries: Vec<(&'a MapEntry, bool)>,
    asked: BTreeSet<String>,
    place: String,
}

impl<'a> Section<'a> {
    /// Opens the mapping `node`, whose canonical path is `place`. A null counts as an empty
    /// mapping: a section whose keys are all commented out is still present. `None` with a
    /// finding for anything else.
    pub fn open(desk: &'a Desk<'a>, node: &'a Node, place: &str) -> Option<Section<'a>> {
        let entries = match &node.kind {
            ValueKind::Map(entries) => entries.iter().map(|e| (e, false)).collect(),
            ValueKind::Null => Vec::new(),
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
        let value = |kind: &ValueKind| !matches!(kind, ValueKind::Null);
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

    /// A text that protects something, such as the authority of a server or the key of a signature.
    /// A key that is there and comes out empty (`${SECRET:-}`) is an error: nothing would be
    /// checked or signed, without a word.
    pub fn protecting(&mut self, key: &str) -> Option<String> {
        if self.has(key) && !self.given(key) {
            self.get(key);
            self.error(key, EMPTY);
            return None;
        }
        self.parsed(key, |text| if text.is_empty() { Err(EMPTY.into()) } else { Ok(text.into()) })
    }

    /// A list that says who may pass. `allowed_ips:` without an item behind it would let everyone
    /// pass: that must be written as `[]`.
    pub fn list_of_allowed<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        if self.has(key) && !self.given(key) {
            self.error(key, "has no item: write `[]` if it is meant to limit nothing");
        }
        self.list(key, parse).unwrap_or_default()
    }

    /// Limits that others have and LLMProxy does not. To ignore one would open what was closed.
    pub fn refused(&mut self, keys: &[(&str, &str)]) {
        for (key, why) in keys {
            if let Some(found) = self.entries.iter_mut().find(|(e, _)| e.key == *key) {
                found.1 = true;
                let entry = found.0;
                let message = format!("is not supported, and nothing would be limited: {why}");
                self.desk.note(Class::Error, entry.key_id, &entry.value.path, message);
            }
        }
    }

    /// Text that is code: taken byte for byte, without expansion.
    pub fn code(&mut self, key: &str) -> Option<String> {
        match self.get(key)? {
            Node { kind: ValueKind::Text(text), .. } => Some(text.clone()),
            Node { kind: ValueKind::Null, .. } => None,
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
        self.doubt_bare_seconds(key);
        self.parsed(key, value::duration)
    }

    /// Warns of a large number without a unit: `connect_timeout: 2000` is most likely meant as
    /// milliseconds, and is half an hour.
    pub fn doubt_bare_seconds(&self, key: &str) {
        let Some(ValueKind::Text(text)) =
            self.entries.iter().find(|(e, _)| e.key == key).map(|(e, _)| &e.value.kind)
        else {
            return;
        };
        let Ok(seconds) = text.trim().parse::<u64>() else { return };
        if seconds >= BARE_SECONDS_DOUBTED {
            let meant = value::long_duration(seconds);
            let message = format!(
                "`{seconds}` has no unit and counts seconds ({meant}): write \
                 `{seconds}s`, or `{seconds}ms` if milliseconds are meant"
            );
            self.warn(key, message);
        }
    }

    /// A duration above zero.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.duration_opt(key).unwrap_or(default)
    }

    /// A duration that is off at zero, which is the default.
    pub fn duration_or_zero(&mut self, key: &str) -> Duration {
        self.doubt_bare_seconds(key);
        self.parsed(key, value::duration_or_zero).unwrap_or_default()
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
        let items = self.items(key)?;
        Some(items.iter().filter_map(|item| self.desk.parse(item, &parse)).collect())
    }

    /// The nodes of a list. A single value counts as a list of one.
    pub fn items(&mut self, key: &str) -> Option<&'a [Node]> {
        let node = self.get(key)?;
        Some(match &node.kind {
            ValueKind::List(items) => items.as_slice(),
            ValueKind::Null => &[],
            _ => std::slice::from_ref(node),
        })
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
            Some(Node { kind: ValueKind::List(items), .. }) => {
                items.iter().filter_map(|i| Section::open(self.desk, i, &place)).collect()
            }
            None | Some(Node { kind: ValueKind::Null, .. }) => Vec::new(),
            Some(node) => {
                self.desk.error(node, "must be a list (`- ` lines)");
                Vec::new()
            }
        }
    }

    /// A mapping whose keys are free names: every name with its node.
    pub fn named(&mut self, key: &str) -> Vec<(String, &'a Node)> {
        match self.get(key) {
            Some(Node { kind: ValueKind::Map(entries), .. }) => {
                entries.iter().map(|e| (e.key.clone(), &e.value)).collect()
            }
            None | Some(Node { kind: ValueKind::Null, .. }) => Vec::new(),
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

    /// Reads a section that must say whether it is on. Whoever wrote `tls: {cert_file: …}` and
    /// forgot `enabled: true` believes in a protection that nobody gives: an error, not off.
    pub fn when_enabled<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Option<T> {
        let section = self.section(key)?;
        let says = section.given("enabled");
        if !says && !self.desk.is_off() {
            self.error(key, "must say `enabled: true` or `enabled: false`");
        }
        // Read as if it was on, so that all of its mistakes show at once.
        section.switched(!says, read)
    }

    /// Reads this section by `read`; `None` when its `enabled`, or else `default`, is false.
    pub fn switched<T>(
        mut self,
        default: bool,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Option<T> {
        let on = self.boolean("enabled", default);
        let value = self.desk.within(!on, || read(&mut self));
        on.then_some(value)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (entry, taken) in &self.entries {
            if *taken {
                continue;
            }
            let asked = self.asked.iter().map(String::as_str);
            let moved = ELSEWHERE.iter().find(|(name, _)| *name == entry.key);
            let meant = match moved.filter(|_| self.place.is_empty()) {
                Some((_, place)) => Some(*place),
                None => nearest(&entry.key, asked),
            };
            let protects = meant
                .is_some_and(|key| PROTECTING.contains(&key.rsplit('.').next().unwrap_or(key)));
            let (class, mut message) = match protects {
                true => (Class::Error, "unknown key: what it protects would be open".to_owned()),
                false => (Class::UnknownKey, "unknown key, ignored".to_owned()),
            };
            if let Some(key) = meant {
                message.push_str(&format!("; did you mean `{key}`?"));
            }
            self.desk.note(class, entry.key_id, &entry.value.path, message);
        }
    }
}
