//! Why a body is refused, and the answer to its client.

use crate::base::limits::{
    JSON_DEPTH_MAX, JSON_DIGITS_MAX, MODEL_NAME_BYTES_MAX, WATCHED_VALUE_BYTES_MAX,
};
use crate::base::refusal::Refusal;
use crate::llm::json;

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanFault {
    /// Not JSON, and where it stops being JSON.
    Malformed {
        /// Byte offset in the body.
        offset: usize,
    },
    /// Bytes behind the JSON: Go and llama.cpp may not look there, others refuse.
    Trailing {
        /// Byte offset of the first.
        offset: usize,
    },
    /// A watched key stands twice.
    Duplicate(&'static str),
    /// A watched key is written with escapes, or `model` with one that means no character.
    Escaped,
    /// A key that Go takes for a watched one (it does not look at the case of letters), and others
    /// do not.
    Spelling(&'static str),
    /// Nested deeper than [`JSON_DEPTH_MAX`].
    TooDeep,
    /// Invalid UTF-8. Python also reads UTF-16 and UTF-32, Go replaces what is invalid.
    NotUtf8,
    /// `model` is longer than [`MODEL_NAME_BYTES_MAX`].
    ModelTooLong,
    /// The value of a watched key is longer than [`WATCHED_VALUE_BYTES_MAX`].
    ValueTooLong(&'static str),
    /// A number with more than [`JSON_DIGITS_MAX`] digits.
    LongNumber,
    /// A key that policy depends on has a value of the wrong type.
    WrongType(&'static str),
}

impl From<json::JsonFault> for ScanFault {
    fn from(fault: json::JsonFault) -> Self {
        match fault {
            json::JsonFault::Malformed { offset } => ScanFault::Malformed { offset },
            json::JsonFault::TooDeep => ScanFault::TooDeep,
            json::JsonFault::LongNumber => ScanFault::LongNumber,
        }
    }
}

impl ScanFault {
    /// The answer to the client: always a 400, after which the connection goes on (the body was
    /// read to its end).
    pub fn refusal(self) -> Refusal {
        let (code, message) = match self {
            ScanFault::Malformed { offset } => {
                ("invalid_json", format!("the body is not valid JSON (at byte {offset})"))
            }
            ScanFault::Trailing { offset } => {
                ("invalid_json", format!("something stands behind the JSON (at byte {offset})"))
            }
            ScanFault::NotUtf8 => ("invalid_json", "the body is not UTF-8".to_owned()),
            ScanFault::TooDeep => {
                ("invalid_json", format!("the body is nested deeper than {JSON_DEPTH_MAX} levels"))
            }
            ScanFault::Duplicate(key) => {
                ("duplicate_key", format!("the key `{key}` stands twice in the body"))
            }
            ScanFault::Escaped => (
                "escaped_key",
                "a key that is read here is written with escapes, or `model` with half a surrogate \
                 pair"
                    .to_owned(),
            ),
            ScanFault::Spelling(key) => {
                ("ambiguous_key", format!("a key of the body is `{key}` in another spelling"))
            }
            ScanFault::ModelTooLong => {
                ("invalid_model", format!("`model` is longer than {MODEL_NAME_BYTES_MAX} bytes"))
            }
            ScanFault::ValueTooLong(key) => (
                "invalid_type",
                format!("the value of `{key}` is longer than {WATCHED_VALUE_BYTES_MAX} bytes"),
            ),
            ScanFault::LongNumber => {
                ("invalid_json", format!("a number has more than {JSON_DIGITS_MAX} digits"))
            }
            ScanFault::WrongType(key) => {
                ("invalid_type", format!("the value of `{key}` has the wrong type"))
            }
        };
        Refusal::new(400, code, "").with_message(message)
    }
}
