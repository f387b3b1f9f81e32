//! Keys that a service decides about: it is sent the key, and says in JSON what it knows of it.
//! Only an answer of 2xx can let a key in.

use super::{FoundKey, KeySource, Opened};
use crate::base::clock::unix_ms;
use crate::base::limits::LOOKUP_ANSWER_BYTES_MAX;
use crate::base::line::is_unshown;
use crate::config::plan::AuthWebhook;
use crate::keys::fields::{self, Fields};
use crate::state::lookup::KeyQuestion;
use crate::store::http::{HttpService, Request};
use crate::store::{left, Trouble};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::Instant;

/// Questions that one service is asked at a time.
const THREADS: usize = 16;
/// Bytes of a refusal's reason that a client is told. The rest is cut.
const MESSAGE_BYTES_MAX: usize = 256;
/// Where scripts find the status of the answer.
const STATUS: &str = "_http_status";

struct WebhookSource {
    plan: AuthWebhook,
    service: Arc<HttpService>,
}

/// Connects to nothing yet.
pub fn open(plan: &AuthWebhook) -> Opened {
    let service = Arc::new(HttpService::new(&plan.url));
    let source = |_| -> Box<dyn KeySource> {
        Box::new(WebhookSource { plan: plan.clone(), service: Arc::clone(&service) })
    };
    Opened {
        place: service.place().to_owned(),
        patience: plan.timeout,
        ready: 1,
        sources: (0..THREADS).map(source).collect(),
    }
}

impl KeySource for WebhookSource {
    fn probe(&mut self, until: Instant) -> Result<(), Trouble> {
        self.service.probe(until)
    }

    fn find(&mut self, question: &KeyQuestion, until: Instant) -> Result<FoundKey, Trouble> {
        let key = question.key.reveal();
        let mut request = Request::builder().method(self.plan.method.as_str());
        let mut body = Vec::new();
        if self.plan.method == "GET" {
            // Not in the URL, which services and what is before them write into their logs.
            request = request.header("x-api-key", key);
        } else {
            let asked = json!({"api_key": key, "timestamp": unix_ms() / 1000});
            body = asked.to_string().into_bytes();
            let is_given = |(name, _): &(String, _)| name.eq_ignore_ascii_case("content-type");
            if !self.plan.headers.iter().any(is_given) {
                request = request.header("content-type", "application/json");
            }
        }
        for (name, value) in &self.plan.headers {
            request = request.header(name, value.reveal());
        }
        let (status, answer) =
            self.service.exchange(request, &body, left(until)?, LOOKUP_ANSWER_BYTES_MAX)?;
        judge(status, &answer)
    }
}

/// What an answer means. Of the answers that are no decision some come from a service that is down
/// or overloaded, or from what is before it.
fn judge(status: u16, answer: &[u8]) -> Result<FoundKey, Trouble> {
    match status {
        200..=299 => match serde_json::from_slice(answer) {
            Ok(fields) => Ok(decided(status, fields)),
            Err(_) => Err(Trouble::Data(format!("it answered {status}, and no JSON object"))),
        },
        401 | 404 => Ok(FoundKey::Unknown),
        403 => {
            let fields: Option<Fields> = serde_json::from_slice(answer).ok();
            Ok(FoundKey::Denied(fields.and_then(|fields| message(&fields))))
        }
        408 | 429 | 502..=504 => Err(Trouble::Later(format!("it answered {status}"))),
        _ => Err(Trouble::Data(format!("it answered {status}"))),
    }
}

/// `code` says 0 when all is well, `allow` and `success` say true, and `error` says that there is
/// none; whatever else they say is no.
fn decided(status: u16, mut fields: Fields) -> FoundKey {
    let is_zero = |value: &Value| value.as_f64() == Some(0.0) || value.as_str() == Some("0");
    let is_none = |error: &Value| {
        is_zero(error) || *error == Value::Bool(false) || error.as_str() == Some("")
    };
    let is_true = |value: &Value| *value == Value::Bool(true);
    let denies = said(&fields, "code").any(|code| !is_zero(code))
        || said(&fields, "allow").any(|allow| !is_true(allow))
        || said(&fields, "success").any(|success| !is_true(success))
        || said(&fields, "error").any(|error| !is_none(error));
    if denies {
        return FoundKey::Denied(message(&fields));
    }
    fields.insert(STATUS.to_owned(), status.into());
    FoundKey::Fields(fields)
}

/// What an answer has under a name, in whatever spelling the fields of a key may have. Null says
/// nothing.
fn said<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a Value> {
    let of_name = fields.iter().filter(move |(other, _)| fields::plain(other) == name);
    of_name.map(|(_, value)| value).filter(|value| !value.is_null())
}

/// The reason of a refusal, as one line.
fn message(fields: &Fields) -> Option<Arc<str>> {
    let errors = said(fields, "error");
    let inner = errors.filter_map(Value::as_object).flat_map(|error| said(error, "message"));
    let mut all = said(fields, "message").chain(inner).chain(said(fields, "error"));
    let said = all.find_map(Value::as_str)?;
    let mut line = String::new();
    for c in said.trim().chars().filter(|c| !is_unshown(*c)) {
        if line.len() + c.len_utf8() > MESSAGE_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    (!line.is_empty()).then(|| line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(message: &str) -> FoundKey {
        FoundKey::Denied(Some(message.into()))
    }

    /// Catches: a service that is broken, or that says no, and whose answer lets a key in.
    #[test]
    fn only_a_clear_yes_lets_a_key_in() {
        let yes = br#"{"code":0,"message":"ok","user_id":"u","balance":3}"#;
        let Ok(FoundKey::Fields(fields)) = judge(200, yes) else { panic!() };
        assert_eq!((&fields["user_id"], &fields[STATUS]), (&json!("u"), &json!(200)));
        assert!(matches!(judge(201, b"{}"), Ok(FoundKey::Fields(_))));
        assert!(matches!(judge(200, br#"{"allow":true,"code":"0"}"#), Ok(FoundKey::Fields(_))));
        for (answer, why) in [
            (r#"{"code":1,"message":"no\u0000 money"}"#, "no money"),
            (r#"{"code":200,"message":"fine"}"#, "fine"),
            (r#"{"code":"x","error":"why"}"#, "why"),
            (r#"{"code":0.5,"error":{"message":"deep"}}"#, "deep"),
            (r#"{"allow":false,"code":0,"message":"m"}"#, "m"),
            (r#"{"allow":"true","message":"m"}"#, "m"),
            (r#"{"Code":1,"Message":"no money","UserId":"u"}"#, "no money"),
            (r#"{"code":0,"CODE":1,"message":"m"}"#, "m"),
            (r#"{"Allow":false,"message":"m"}"#, "m"),
            (r#"{"error":"unknown key"}"#, "unknown key"),
            (r#"{"Error":{"Message":"deep"},"code":0}"#, "deep"),
            (r#"{"error":true,"message":"m"}"#, "m"),
            (r#"{"error":{},"message":"m"}"#, "m"),
            (r#"{"success":false,"message":"m"}"#, "m"),
            (r#"{"Success":"true","message":"m"}"#, "m"),
        ] {
            assert_eq!(judge(200, answer.as_bytes()), Ok(denied(why)), "{answer}");
        }
        for answer in [
            r#"{"Code":0,"success":true,"error":null}"#,
            r#"{"error":false,"code":0.0}"#,
            r#"{"error":0}"#,
            r#"{"error":"","allow":null}"#,
        ] {
            assert!(matches!(judge(200, answer.as_bytes()), Ok(FoundKey::Fields(_))), "{answer}");
        }
        for answer in ["", "<html>ok</html>", "[]", "true", "{\"code\":0", "{} x", "\"{}\""] {
            assert!(matches!(judge(200, answer.as_bytes()), Err(Trouble::Data(_))), "{answer}");
        }
        for status in [401, 404] {
            assert_eq!(judge(status, yes), Ok(FoundKey::Unknown), "{status}");
        }
        assert_eq!(judge(403, yes), Ok(denied("ok")));
        assert_eq!(judge(403, b"<html>"), Ok(FoundKey::Denied(None)));
        for status in [100, 301, 302, 307, 400, 405, 418, 500, 501, 999] {
            assert!(matches!(judge(status, yes), Err(Trouble::Data(_))), "{status}");
        }
        for status in [408, 429, 502, 503, 504] {
            assert!(matches!(judge(status, yes), Err(Trouble::Later(_))), "{status}");
        }
        let long = json!({"code": 7, "message": "é".repeat(1000)}).to_string();
        let Ok(FoundKey::Denied(Some(long))) = judge(200, long.as_bytes()) else { panic!() };
        assert_eq!(long.len(), MESSAGE_BYTES_MAX);
    }
}
