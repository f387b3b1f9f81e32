//! The one writer of records as JSON on one line: files, NDJSON, exports, dead letters and the
//! access log tell one record from the next by its line's end, so nothing that a client wrote may
//! bring one along.

use crate::base::line;
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// JSON in a body that is nested deeper goes as a string: parsers of receivers have limits, of
/// which the lowest that we know is 100, and a body must not make its record unreadable.
const BODY_DEPTH_MAX: usize = 64;

/// Line ends that stood where none can: each would be a fault of this program.
static MENDED: AtomicU64 = AtomicU64::new(0);

/// How often a line end was found inside a record since the start, and taken out.
pub fn mended() -> u64 {
    MENDED.load(Relaxed)
}

/// A value as JSON without a line end, in any reader's sense of the word.
pub fn json_of(value: &impl Serialize) -> Vec<u8> {
    // Nothing in a record can fail to serialise: strings, numbers and checked raw JSON.
    one_line(serde_json::to_vec(value).unwrap_or_default())
}

/// The same as a line, with its end.
pub fn line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = json_of(value);
    line.push(b'\n');
    line
}

/// A line end outside of a string is none that the serialisers write: it is counted.
fn one_line(json: Vec<u8>) -> Vec<u8> {
    let (line, taken_out) = line::one_line(json);
    MENDED.fetch_add(taken_out, Relaxed);
    line
}

/// A request body as a value of JSON.
pub enum Body<'a> {
    /// It is JSON: the same without white space between its tokens. Numbers keep their digits.
    Json(Box<RawValue>),
    /// It is text, and no JSON that every receiver can read.
    Text(&'a str),
    /// It is no text: in base64.
    Base64(String),
}

impl Body<'_> {
    /// What tells a receiver how to read it; `None` for JSON.
    pub fn encoding(&self) -> Option<&'static str> {
        match self {
            Body::Json(_) => None,
            Body::Text(_) => Some("text"),
            Body::Base64(_) => Some("base64"),
        }
    }
}

impl Serialize for Body<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Body::Json(json) => json.serialize(serializer),
            Body::Text(text) => serializer.serialize_str(text),
            Body::Base64(text) => serializer.serialize_str(text),
        }
    }
}

/// The value for a body.
pub fn body_of(bytes: &[u8]) -> Body<'_> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Body::Base64(STANDARD.encode(bytes));
    };
    let json = is_sound(text).then(|| RawValue::from_string(compact(text)).ok()).flatten();
    json.map_or(Body::Text(text), Body::Json)
}

/// Valid JSON without the white space between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let mut compact = json.to_owned();
    compact.retain(|letter| {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !matches!(letter, ' ' | '\t' | '\n' | '\r')
    });
    compact
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::RecordFormat;
    use crate::usage::record::tests::record;
    use crate::usage::record::UsageRecord;
    use proptest::prelude::*;
    use serde_json::{json, Value};

    /// The line of a record with this body; asserts that it is one line by anybody's count, and
    /// that all of the record but its body is what it is without.
    fn line_with(body: &[u8]) -> Value {
        let with = UsageRecord { request_body: Some(body.to_vec()), ..record() };
        let without = UsageRecord { request_id: with.request_id, ..record() };
        let line = String::from_utf8(with.to_line(RecordFormat::Full)).unwrap();
        // What Python's `splitlines` splits at.
        let is_end = |c: char| "\u{85}\u{2028}\u{2029}".contains(c) || c < ' ';
        assert_eq!(line.find(is_end), Some(line.len() - 1), "{line}");
        let mut json: Value = serde_json::from_str(&line).unwrap();
        let members = json.as_object_mut().unwrap();
        let body = members.remove("request_body").unwrap();
        let encoding = members.remove("request_body_encoding");
        let expected: Value = serde_json::from_slice(&without.to_json(RecordFormat::Full)).unwrap();
        assert_eq!(json, expected);
        json!([body, encoding])
    }

    /// Catches: a client that writes a line of its own into a bill, or makes its own unreadable.
    #[test]
    fn a_body_cannot_begin_a_line() {
        let forged = "{\"model\":\"m\",\"x\":\r\n{\"request_id\":\"forged\"}\n}";
        let said = json!({"model": "m", "x": {"request_id": "forged"}});
        assert_eq!(line_with(forged.as_bytes()), json!([said, null]));
        let inside = "\"a\u{2028}{}\u{2029}[]\u{85}b \\\" c\"";
        let said = "a\u{2028}{}\u{2029}[]\u{85}b \" c";
        assert_eq!(line_with(inside.as_bytes()), json!([said, null]));
        let twice = "{}\n{\"request_id\":\"forged\"}\n";
        assert_eq!(line_with(twice.as_bytes()), json!([twice, "text"]));
    }

    /// Catches: JSON that one parser takes and another does not, which would cost the record.
    #[test]
    fn what_a_receiver_may_not_read_goes_as_text() {
        let deep = "[".repeat(65) + &"]".repeat(65);
        let halves = [r#""\ud800""#, r#"{"\udc00":1}"#];
        for text in ["1e999", halves[0], halves[1], &deep, "", "{\"cut\":\"sh", "\u{feff}{}"] {
            assert_eq!(line_with(text.as_bytes()), json!([text, "text"]));
        }
        assert_eq!(line_with(b"--boundary\n\xff"), json!(["LS1ib3VuZGFyeQr/", "base64"]));
        let flat = "[".repeat(64) + &"]".repeat(64);
        assert_eq!(line_with(flat.as_bytes())[1], Value::Null);
    }

    /// Catches: a number that changes its digits on the way to a bill.
    #[test]
    fn a_body_loses_nothing_but_white_space() {
        let body = r#" {"t" : 0.70,  "seed":123456789012345678901234567890, "a":"\u00e9 \\" } "#;
        let Body::Json(json) = body_of(body.as_bytes()) else { panic!("it is JSON") };
        let compact = r#"{"t":0.70,"seed":123456789012345678901234567890,"a":"\u00e9 \\"}"#;
        assert_eq!(json.get(), compact);
    }

    /// Catches: a line end that a serialiser let through and that nobody takes out or counts.
    #[test]
    fn a_line_end_that_cannot_be_there_is_taken_out() {
        let before = mended();
        assert_eq!(one_line(b"{\n\"a\":\r1}".to_vec()), b"{ \"a\": 1}");
        assert!(mended() >= before + 2);
    }

    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("-1.50e3".to_owned()),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            Just("\"\\ud83d\\n\"".to_owned()),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let blank = prop_oneof![Just(""), Just(" \n"), Just("\r\n\t")];
            let items = proptest::collection::vec(inner, 0..5);
            (items, blank, any::<bool>()).prop_map(|(items, blank, is_list)| match is_list {
                true => format!("[{blank}{}{blank}]", items.join(&format!("{blank},{blank}"))),
                false => {
                    let members: Vec<String> =
                        items.iter().map(|item| format!("\"k\"{blank}:{item}{blank}")).collect();
                    format!("{{{blank}{}}}", members.join(","))
                }
            })
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_line(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            line_with(&body);
        }

        #[test]
        fn any_text_is_one_line(body in "[\\[\\]{}\",:\\\\u0-9a-f\n\r \u{85}\u{2028}]{0,60}") {
            line_with(body.as_bytes());
        }

        /// Catches: a body that is another value than the one that was sent.
        #[test]
        fn any_json_keeps_its_meaning(body in json_text()) {
            let said = line_with(body.as_bytes());
            match serde_json::from_str::<Value>(&body) {
                Ok(value) => prop_assert_eq!(said, json!([value, null])),
                Err(_) => prop_assert_eq!(said, json!([body, "text"])),
            }
        }

        /// Catches: a line end in any other field that a client or an engine can fill.
        #[test]
        fn any_texts_are_one_line(text in any::<String>()) {
            let text = format!("{text}\n\r\u{2028}");
            let record = UsageRecord {
                user_id: Some(text.clone()),
                api_key: Some(text.clone()),
                model: Some(text.clone()),
                method: text.clone().into(),
                path: text.clone(),
                backend: Some(text.as_str().into()),
                backend_url: Some(text.as_str().into()),
                usage_missing_reason: Some(text.clone().into()),
                error: Some(text.clone().into()),
                upstream_id: Some(text.clone()),
                ..record()
            };
            for format in [RecordFormat::Full, RecordFormat::Flat, RecordFormat::Nested] {
                let line = String::from_utf8(record.to_line(format)).unwrap();
                prop_assert_eq!(line.find(['\n', '\r', '\u{2028}']), Some(line.len() - 1));
                let json: Value = serde_json::from_str(&line).unwrap();
                prop_assert_eq!(&json["model"], &json!(text));
            }
        }
    }
}
