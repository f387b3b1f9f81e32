//! Reads queries and bodies, strictly.

use super::{ApiFault, Call};
use crate::control::key_store::form::shown;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Parameters of one query.
const PARAMETERS_MAX: usize = 16;

/// What `%xx` stands for; with `plus`, a `+` is a blank, as forms have it.
///
/// # Errors
/// It stands for nothing, or for no text.
pub fn decoded(text: &str, plus: bool) -> Result<String, ApiFault> {
    let bad = || ApiFault::new(400, "invalid_request", "the path or the query is malformed");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
                u8::try_from(high * 16 + low).map_err(|_| bad())?
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// The parameters of a query, each once.
pub fn query(text: &str) -> Result<Vec<(String, String)>, ApiFault> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (name, value) = (decoded(name, true)?, decoded(value, true)?);
        if found.iter().any(|(known, _)| *known == name) {
            return Err(ApiFault::invalid(&name, format!("`{}` is given twice", shown(&name))));
        }
        if found.len() == PARAMETERS_MAX {
            return Err(ApiFault::invalid("", "the query has too many parameters"));
        }
        found.push((name, value));
    }
    Ok(found)
}

impl Call<'_> {
    /// What stands in the path for the route's `{name}`.
    pub fn part(&self) -> &str {
        self.parts.first().map_or("", String::as_str)
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A parameter that is a number up to `max`.
    pub fn number(&self, name: &str, max: usize) -> Result<Option<usize>, ApiFault> {
        let Some(text) = self.parameter(name) else { return Ok(None) };
        let number = text.parse::<usize>().ok().filter(|number| *number <= max);
        let message = || format!("`{name}` must be a whole number of {max} or less");
        number.map(Some).ok_or_else(|| ApiFault::invalid(name, message()))
    }

    /// No parameters but these may be given.
    pub fn knows(&self, names: &[&str]) -> Result<(), ApiFault> {
        match self.query.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("`{}` is no parameter of this", shown(name));
                Err(ApiFault::invalid(name, message))
            }
        }
    }

    /// The object that the body is.
    pub fn object(&self) -> Result<Map<String, Value>, ApiFault> {
        object(self.body).map_err(|message| ApiFault::invalid("", message))
    }

    /// The same, or an empty one where there is no body.
    pub fn object_or_none(&self) -> Result<Map<String, Value>, ApiFault> {
        match self.body.trim_ascii().is_empty() {
            true => Ok(Map::new()),
            false => self.object(),
        }
    }
}

/// A JSON object that has no member twice: which of them would count?
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = OnceEach.deserialize(&mut reader).and_then(|object| {
        reader.end()?;
        Ok(object)
    });
    // What serde says of a value may quote it, and it may be a key.
    read.map_err(|error| {
        let text = error.to_string();
        match text.strip_prefix(TWICE) {
            Some(name) => {
                format!("`{}` is given twice", name.split(" at line").next().unwrap_or(""))
            }
            None => format!(
                "the body is no JSON object (line {}, column {})",
                error.line(),
                error.column()
            ),
        }
    })
}

const TWICE: &str = "given twice: ";

struct OnceEach;

impl<'de> DeserializeSeed<'de> for OnceEach {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OnceEach {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, value)) = entries.next_entry::<String, Value>()? {
            if object.contains_key(&name) {
                let name = shown(&name);
                return Err(serde::de::Error::custom(format!("{TWICE}{name}")));
            }
            object.insert(name, value);
        }
        Ok(object)
    }
}
