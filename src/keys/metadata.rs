//! What a provider says of a key beyond what we understand: an object of JSON, for scripts as it
//! is, and for records as a text that is made once for each look-up.

use crate::base::limits::{KEY_METADATA_DEPTH_MAX, KEY_METADATA_RECORDED_BYTES_MAX};
use serde_json::{Map, Value};

/// Stands where a provider repeats the key itself, which no record may show.
const HIDDEN: &str = "***";

/// Further facts of a key. Most keys have none, and pay for none.
#[derive(Clone, Default, PartialEq)]
pub struct KeyMetadata(Option<Box<Held>>);

#[derive(Clone, PartialEq)]
struct Held {
    object: Map<String, Value>,
    /// As records have it; empty: they do not.
    recorded: Box<str>,
}

impl From<Map<String, Value>> for KeyMetadata {
    fn from(object: Map<String, Value>) -> KeyMetadata {
        if object.is_empty() {
            return KeyMetadata(None);
        }
        KeyMetadata(Some(Box::new(Held { object, recorded: Box::default() })))
    }
}

impl KeyMetadata {
    /// All of it.
    pub fn object(&self) -> Map<String, Value> {
        self.0.as_ref().map(|held| held.object.clone()).unwrap_or_default()
    }

    /// Its members.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter().flat_map(|held| &held.object)
    }

    /// The same with these members, in the place of what it has under their names.
    #[must_use]
    pub fn with(&self, more: Map<String, Value>) -> KeyMetadata {
        let mut object = self.object();
        object.extend(more);
        KeyMetadata::from(object)
    }

    /// Makes the text that records have, in which the key itself is not. False: it is too large for
    /// them, and they say that.
    pub fn tell_records(&mut self, api_key: &str) -> bool {
        let Some(held) = &mut self.0 else { return true };
        let text = plain(&held.object, api_key, KEY_METADATA_DEPTH_MAX)
            .map(|object| Value::Object(object).to_string())
            .filter(|text| text.len() <= KEY_METADATA_RECORDED_BYTES_MAX);
        held.recorded = text.unwrap_or_default().into();
        !held.recorded.is_empty()
    }

    /// As records have it, an object of JSON. Empty: there is some, and it is too large.
    pub fn recorded(&self) -> Option<&str> {
        self.0.as_ref().map(|held| &*held.recorded)
    }
}

/// The object without the key; `None`: it is nested deeper than that.
fn plain(object: &Map<String, Value>, key: &str, depth: usize) -> Option<Map<String, Value>> {
    let depth = depth.checked_sub(1)?;
    let member = |(name, value): (&String, &Value)| {
        Some((hidden(name, key), plain_value(value, key, depth)?))
    };
    object.iter().map(member).collect()
}

fn plain_value(value: &Value, key: &str, depth: usize) -> Option<Value> {
    Some(match value {
        Value::String(text) => Value::String(hidden(text, key)),
        Value::Object(object) => Value::Object(plain(object, key, depth)?),
        Value::Array(list) => {
            let depth = depth.checked_sub(1)?;
            let values = list.iter().map(|value| plain_value(value, key, depth));
            Value::Array(values.collect::<Option<_>>()?)
        }
        other => other.clone(),
    })
}

fn hidden(text: &str, key: &str) -> String {
    match key.is_empty() {
        true => text.to_owned(),
        false => text.replace(key, HIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(value: Value) -> KeyMetadata {
        let Value::Object(object) = value else { panic!("{value}") };
        KeyMetadata::from(object)
    }

    /// Catches: a record that shows the key, in whatever place a provider repeats it, or that says
    /// something else than the provider.
    #[test]
    fn records_have_all_of_it_but_the_key() {
        let mut some = metadata(json!({
            "team": "red", "n": 1.5, "sk-\"1": [{"k": "a sk-\"1 b"}, null, true], "of": {"a": "sk-"}
        }));
        assert!(some.tell_records("sk-\"1"));
        let said: Value = serde_json::from_str(some.recorded().unwrap()).unwrap();
        let want = json!({
            "team": "red", "n": 1.5, "***": [{"k": "a *** b"}, null, true], "of": {"a": "sk-"}
        });
        assert_eq!(said, want);
        assert!(some.object().contains_key("sk-\"1"), "scripts know the key anyway");
    }

    /// Catches: a record that grows with what a provider says, one that says half of it, and one
    /// that does not tell that something is missing.
    #[test]
    fn what_is_too_large_or_too_deep_is_left_out_as_a_whole() {
        let deep = |depth: usize| (1..depth).fold(json!({}), |inner, _| json!({"a": inner}));
        let wide = |bytes: usize| json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())});
        for (value, fits) in [
            (wide(KEY_METADATA_RECORDED_BYTES_MAX), true),
            (wide(KEY_METADATA_RECORDED_BYTES_MAX + 1), false),
            (json!({"a": deep(KEY_METADATA_DEPTH_MAX - 1)}), true),
            (json!({"a": deep(KEY_METADATA_DEPTH_MAX)}), false),
            (json!({"a": [[deep(KEY_METADATA_DEPTH_MAX - 2)]]}), false),
        ] {
            let mut some = metadata(value);
            assert_eq!(some.tell_records("sk"), fits);
            assert_eq!(some.recorded().map(str::is_empty), Some(!fits));
        }
        let mut none = metadata(json!({}));
        assert!(none.tell_records("sk"));
        assert_eq!((none.recorded(), none.iter().count()), (None, 0));
    }

    /// Catches: an addition that does not replace, or that takes a text from before for its own.
    #[test]
    fn what_is_added_replaces() {
        let mut some = metadata(json!({"a": 1, "b": 2}));
        some.tell_records("sk");
        let mut both = some.with(metadata(json!({"b": 3, "c": 4})).object());
        assert_eq!(both.recorded(), Some(""), "its text is not made yet");
        assert!(both.tell_records("sk"));
        assert_eq!(both.recorded(), Some(r#"{"a":1,"b":3,"c":4}"#));
    }
}
