//! JSON becomes Lua, and what a script gives becomes JSON.

use crate::base::limits::{
    SCRIPT_METADATA_BYTES_MAX, SCRIPT_METADATA_DEPTH_MAX, SCRIPT_METADATA_ENTRIES_MAX,
};
use mlua::{IntoLua, Lua, Result, Table, Value as LuaValue};
use serde_json::{Map, Number, Value};

/// A value for a script. Whole numbers stay whole, `null` is nil.
pub(super) fn to_lua(lua: &Lua, value: &Value) -> Result<LuaValue> {
    Ok(match value {
        Value::Null => LuaValue::Nil,
        Value::Bool(value) => LuaValue::Boolean(*value),
        Value::Number(value) => match value.as_i64() {
            Some(whole) => LuaValue::Integer(whole),
            None => LuaValue::Number(value.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => lua.create_string(text)?.into_lua(lua)?,
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (index, item) in (1..).zip(items) {
                table.raw_seti(index, to_lua(lua, item)?)?;
            }
            LuaValue::Table(table)
        }
        Value::Object(members) => LuaValue::Table(object(lua, members)?),
    })
}

/// The same for an object.
pub(super) fn object(lua: &Lua, members: &Map<String, Value>) -> Result<Table> {
    let table = lua.create_table_with_capacity(0, members.len())?;
    for (name, value) in members {
        table.raw_set(name.as_str(), to_lua(lua, value)?)?;
    }
    Ok(table)
}

/// What is left of the bounds of what a script gives.
struct Room {
    entries: usize,
    bytes: usize,
}

/// An object that a script gave. An error says what is wrong with it.
pub(super) fn metadata(table: &Table) -> std::result::Result<Map<String, Value>, String> {
    let mut room = Room { entries: SCRIPT_METADATA_ENTRIES_MAX, bytes: SCRIPT_METADATA_BYTES_MAX };
    let mut members = Map::new();
    read(table, SCRIPT_METADATA_DEPTH_MAX, &mut room, &mut members)?;
    Ok(members)
}

fn read(
    table: &Table,
    depth: usize,
    room: &mut Room,
    members: &mut Map<String, Value>,
) -> std::result::Result<(), String> {
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let (name, value) = pair.map_err(|_| "metadata cannot be read".to_owned())?;
        let name = match name {
            LuaValue::String(name) => name.to_string_lossy(),
            LuaValue::Integer(name) => name.to_string(),
            other => return Err(format!("metadata: a {} is no name", other.type_name())),
        };
        take(room, name.len())?;
        let value = json(value, depth, room)?;
        members.insert(name, value);
    }
    Ok(())
}

fn json(value: LuaValue, depth: usize, room: &mut Room) -> std::result::Result<Value, String> {
    Ok(match value {
        LuaValue::Nil => Value::Null,
        LuaValue::Boolean(value) => Value::Bool(value),
        LuaValue::Integer(value) => Value::Number(value.into()),
        LuaValue::Number(value) => match Number::from_f64(value) {
            Some(number) => Value::Number(number),
            None => return Err("metadata: not a number, or an infinite one".to_owned()),
        },
        LuaValue::String(text) => {
            let text = text.to_string_lossy();
            take(room, text.len())?;
            Value::String(text)
        }
        LuaValue::Table(_) if depth == 0 => {
            return Err(format!("metadata is deeper than {SCRIPT_METADATA_DEPTH_MAX}"));
        }
        LuaValue::Table(table) if table.raw_len() > 0 => {
            let mut items = Vec::new();
            for item in table.sequence_values::<LuaValue>() {
                take(room, 0)?;
                let item = item.map_err(|_| "metadata cannot be read".to_owned())?;
                items.push(json(item, depth - 1, room)?);
            }
            Value::Array(items)
        }
        LuaValue::Table(table) => {
            let mut members = Map::new();
            read(&table, depth - 1, room, &mut members)?;
            Value::Object(members)
        }
        other => return Err(format!("metadata: a {} has no place in it", other.type_name())),
    })
}

fn take(room: &mut Room, bytes: usize) -> std::result::Result<(), String> {
    let left = (room.entries.checked_sub(1), room.bytes.checked_sub(bytes));
    let (Some(entries), Some(bytes)) = left else {
        return Err(format!(
            "metadata has more than {SCRIPT_METADATA_ENTRIES_MAX} entries, or more than \
             {SCRIPT_METADATA_BYTES_MAX} bytes"
        ));
    };
    (room.entries, room.bytes) = (entries, bytes);
    Ok(())
}
