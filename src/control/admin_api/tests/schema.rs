//! As much of JSON Schema as the document uses, and answers held against it.

use crate::http::request::Method;
use serde_json::Value;

/// Asserts that an answer is one that the document has for its route.
pub fn check_answer(document: &Value, (method, path): (Method, &str), status: u16, text: &str) {
    let name = method.as_str().to_lowercase();
    let responses = &document["paths"][path][name]["responses"];
    assert!(responses.is_object(), "{method:?} {path} is not in the document");
    let told = match &responses[status.to_string()] {
        Value::Null => &responses["default"],
        told => told,
    };
    let told = resolved(document, told);
    let is_known = status >= 400 || responses[status.to_string()].is_object();
    assert!(is_known, "{method:?} {path}: {status} is not in the document");
    let schema = &told["content"]["application/json"]["schema"];
    if schema.is_null() {
        // Lines of JSON.
        return text.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
    }
    let answer = serde_json::from_str(text).unwrap();
    assert!(fits(document, schema, &answer), "{method:?} {path}: {status} {text}");
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Words of a schema that [`fits`] knows, or that say nothing of a value.
const WORDS: &[&str] = &[
    "$ref",
    "anyOf",
    "const",
    "enum",
    "type",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "maxItems",
    "items",
    "properties",
    "required",
    "additionalProperties",
    "description",
];

/// Whether a value is what a schema asks for.
pub fn fits(document: &Value, schema: &Value, value: &Value) -> bool {
    let schema = resolved(document, schema);
    let words = schema.as_object().unwrap();
    assert!(words.keys().all(|word| WORDS.contains(&word.as_str())), "{schema}");
    let list = |word: &str| words.get(word).and_then(Value::as_array);
    let number = |word: &str| words.get(word).and_then(Value::as_f64);
    let within = |amount: f64, least: &str, most: &str| {
        number(least).is_none_or(|least| amount >= least)
            && number(most).is_none_or(|most| amount <= most)
    };
    let any_of = list("anyOf").is_none_or(|all| all.iter().any(|one| fits(document, one, value)));
    let sized = match value {
        Value::String(text) => within(text.chars().count() as f64, "minLength", "maxLength"),
        Value::Number(number) => within(number.as_f64().unwrap(), "minimum", "maximum"),
        Value::Array(items) => {
            let item = words.get("items");
            within(items.len() as f64, "minItems", "maxItems")
                && items.iter().all(|it| item.is_none_or(|item| fits(document, item, it)))
        }
        _ => true,
    };
    let typed = match words.get("type") {
        None => true,
        Some(Value::String(name)) => is_of(name, value),
        Some(names) => names.as_array().unwrap().iter().any(|n| is_of(n.as_str().unwrap(), value)),
    };
    any_of
        && sized
        && typed
        && words.get("const").is_none_or(|wanted| wanted == value)
        && list("enum").is_none_or(|all| all.contains(value))
        && value.as_object().is_none_or(|object| {
            let properties = words.get("properties").and_then(Value::as_object);
            let required = list("required").into_iter().flatten();
            let is_open = words.get("additionalProperties") != Some(&Value::Bool(false));
            required.into_iter().all(|name| object.contains_key(name.as_str().unwrap()))
                && object.iter().all(|(name, value)| {
                    match properties.and_then(|properties| properties.get(name)) {
                        Some(schema) => fits(document, schema, value),
                        None => is_open,
                    }
                })
        })
}

fn is_of(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    }
}
