//! What a request body is in a record: a value of JSON that any receiver can read, or a text.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// JSON in a body that is nested deeper goes as a string: parsers of receivers have limits, of
/// which the lowest that we know is 100, and a body must not make its record unreadable.
const BODY_DEPTH_MAX: usize = 64;

/// A request body, as a record says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// It is JSON, as it was sent.
    Json(&'a str),
    /// It is text, and no JSON that every receiver can read.
    Text(&'a str),
    /// It is no text: in base64.
    Base64(String),
}

impl Body<'_> {
    /// What these bytes are.
    pub fn of(bytes: &[u8]) -> Body<'_> {
        match std::str::from_utf8(bytes) {
            Ok(text) if is_sound(text) => Body::Json(text),
            Ok(text) => Body::Text(text),
            Err(_) => Body::Base64(STANDARD.encode(bytes)),
        }
    }

    /// What tells a receiver how to read it; `None` for JSON.
    pub fn encoding(&self) -> Option<&'static str> {
        match self {
            Body::Json(_) => None,
            Body::Text(_) => Some("text"),
            Body::Base64(_) => Some("base64"),
        }
    }
}

/// True for one JSON value that any parser can read: not too deep, no number beyond a double, no
/// half of a surrogate pair. Reads it to its end, and keeps nothing of it.
fn is_sound(text: &str) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    Sound { depth: 0 }.deserialize(&mut json).and_then(|()| json.end()).is_ok()
}

struct Sound {
    depth: usize,
}

impl Sound {
    fn inside<E: Error>(&self) -> Result<usize, E> {
        match self.depth {
            BODY_DEPTH_MAX.. => Err(E::custom("nested too deep")),
            depth => Ok(depth + 1),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Sound {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.inside()?;
        while items.next_element_seed(Sound { depth })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let depth = self.inside()?;
        while members.next_key_seed(Sound { depth })?.is_some() {
            members.next_value_seed(Sound { depth })?;
        }
        Ok(())
    }
}
