//! What stands under a name.

use super::{trouble, RedisServer};
use crate::base::limits::LOOKUP_ANSWER_BYTES_MAX;
use crate::store::Trouble;
use ::redis::{cmd, RedisResult, Value};
use std::time::Instant;

/// What a server has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisValue {
    /// Nothing.
    Nothing,
    /// A hash: its fields and their values. Bytes that are no UTF-8 are replaced.
    Hash(Vec<(String, String)>),
    /// A text.
    Text(String),
    /// A list, a set, or another thing.
    Other,
}

/// What a script has given back.
#[derive(Debug)]
pub struct ScriptAnswer(pub(super) Value);

impl ScriptAnswer {
    /// A list of whole numbers; `None`: it is something else.
    pub fn numbers(&self) -> Option<Vec<i64>> {
        let Value::Array(items) = &self.0 else { return None };
        let number = |item: &Value| match item {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        items.iter().map(number).collect()
    }
}

impl RedisServer {
    /// Reads a hash or a text in one round trip; in two where it was the other one the last time.
    ///
    /// # Errors
    /// The server cannot be reached, does not answer in time, or is not well; or the value is
    /// larger than anything that is meant to be read so.
    pub fn value_of(&mut self, name: &str, until: Instant) -> Result<RedisValue, Trouble> {
        let hash_first = !self.last_was_text;
        for is_hash in [hash_first, !hash_first] {
            let command = if is_hash { "HGETALL" } else { "GET" };
            let asked = self.ask(&cmd(command).arg(name).get_packed_command(), until);
            if is_wrong_type(&asked) {
                continue;
            }
            let value = value(asked.map_err(|error| trouble(&error))?)?;
            if value != RedisValue::Nothing {
                self.last_was_text = !is_hash;
            }
            return Ok(value);
        }
        Ok(RedisValue::Other)
    }
}

/// Something else stands under the name.
pub(super) fn is_wrong_type(asked: &RedisResult<Value>) -> bool {
    asked.as_ref().err().is_some_and(|error| error.code() == Some("WRONGTYPE"))
}

fn value(said: Value) -> Result<RedisValue, Trouble> {
    let text = |value: Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::SimpleString(text) => text,
        _ => String::new(),
    };
    let pairs: Vec<(Value, Value)> = match said {
        Value::Nil => return Ok(RedisValue::Nothing),
        value @ (Value::BulkString(_) | Value::SimpleString(_)) => {
            let text = text(value);
            fits(text.len())?;
            return Ok(RedisValue::Text(text));
        }
        Value::Map(pairs) => pairs,
        Value::Array(items) => {
            let mut items = items.into_iter();
            std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
        }
        _ => return Ok(RedisValue::Other),
    };
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| (text(name), text(value))).collect();
    fits(pairs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
    Ok(if pairs.is_empty() { RedisValue::Nothing } else { RedisValue::Hash(pairs) })
}

fn fits(bytes: usize) -> Result<(), Trouble> {
    match bytes <= LOOKUP_ANSWER_BYTES_MAX {
        true => Ok(()),
        false => Err(Trouble::Data(format!("it has {bytes} bytes under one name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a text or a hole in a list that counts as a number.
    #[test]
    fn numbers_are_numbers() {
        let of = |items: Vec<Value>| ScriptAnswer(Value::Array(items)).numbers();
        assert_eq!(of(vec![Value::Int(3), Value::Int(-1)]), Some(vec![3, -1]));
        assert_eq!(of(vec![Value::Int(3), Value::Nil]), None);
        assert_eq!(ScriptAnswer(Value::Int(3)).numbers(), None);
    }
}
