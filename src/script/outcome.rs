//! What a script returned becomes a decision. In doubt, no.

use super::ask::Decided;
use super::{codes, convert};
use crate::base::limits::SCRIPT_MESSAGE_BYTES_MAX;
use crate::base::line::is_unshown;
use mlua::{Table, Value};

/// The decision; or why what was returned is none.
pub(super) fn of(returned: Value) -> Result<Decided, String> {
    let table = match returned {
        Value::Boolean(true) => return Ok(Decided::Allow(Default::default())),
        Value::Boolean(false) => {
            return Ok(Decided::Deny { status: None, code: None, message: None });
        }
        Value::Table(table) => table,
        other => {
            return Err(format!(
                "returned {}: neither true, false, nor a table with `allow`",
                other.type_name()
            ));
        }
    };
    match get(&table, "allow") {
        Value::Boolean(true) => match get(&table, "metadata") {
            Value::Nil => Ok(Decided::Allow(Default::default())),
            Value::Table(given) => convert::metadata(&given).map(Decided::Allow),
            other => Err(format!("`metadata` is a {}, not a table", other.type_name())),
        },
        Value::Boolean(false) => Ok(Decided::Deny {
            status: match get(&table, "status_code") {
                Value::Integer(status @ 400..=599) => u16::try_from(status).ok(),
                Value::Nil => None,
                _ => return Err("`status_code` is no whole number from 400 to 599".to_owned()),
            },
            code: match get(&table, "code") {
                Value::String(code) => {
                    let code = code.to_string_lossy();
                    let is_code =
                        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                    if code.is_empty() || code.len() > 64 || !code.chars().all(is_code) {
                        return Err("`code` is not of a-z, 0-9 and _, 64 at most".to_owned());
                    }
                    codes::kept(&code)
                }
                Value::Nil => None,
                other => return Err(format!("`code` is a {}, not a text", other.type_name())),
            },
            message: match get(&table, "message") {
                Value::Nil => None,
                Value::String(message) => Some(message.to_string_lossy()),
                other => return Err(format!("`message` is a {}, not a text", other.type_name())),
            },
        }),
        other => Err(format!("`allow` is {}, neither true nor false", other.type_name())),
    }
}

fn get(table: &Table, name: &str) -> Value {
    table.raw_get(name).unwrap_or(Value::Nil)
}

/// One line that can be shown to anybody.
pub(super) fn shown(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if is_unshown(c) { ' ' } else { c }).collect();
    let end = line.floor_char_boundary(SCRIPT_MESSAGE_BYTES_MAX);
    line.truncate(end);
    line
}
