//! The only way to say no to a client before the first byte of an answer: a status, a stable
//! code, a message for a person, and what becomes of the connection. One place
//! (`proxy/answer.rs`) turns it into bytes.

use std::borrow::Cow;

/// A request that is answered by us instead of by a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: u16,
    /// Stable, machine-readable code (`error.code` of the body, `reason` label of the metric).
    pub code: &'static str,
    /// What went wrong, for a person. Never contains a secret. Of the request's bytes, it names the
    /// model that is not there, and nothing else.
    pub message: Cow<'static, str>,
    /// True when the connection cannot be used after this answer (framing is in doubt).
    pub close: bool,
    /// Seconds for a `Retry-After` field.
    pub retry_after: Option<u32>,
    /// A further field of the answer, name and value: `Allow` of a 405.
    pub field: Option<&'static (&'static str, &'static str)>,
}

impl Refusal {
    /// A refusal after which the connection may go on.
    pub const fn new(status: u16, code: &'static str, message: &'static str) -> Self {
        Refusal {
            status,
            code,
            message: Cow::Borrowed(message),
            close: false,
            retry_after: None,
            field: None,
        }
    }

    /// A refusal after which the connection closes, because its framing is in doubt.
    pub const fn closing(status: u16, code: &'static str, message: &'static str) -> Self {
        let mut refusal = Refusal::new(status, code, message);
        refusal.close = true;
        refusal
    }

    /// The same refusal with a message made at run time.
    pub fn with_message(mut self, message: String) -> Self {
        self.message = Cow::Owned(message);
        self
    }

    /// The same refusal with a further field.
    pub const fn with_field(mut self, field: &'static (&'static str, &'static str)) -> Self {
        self.field = Some(field);
        self
    }

    /// The same refusal with a `Retry-After` of so many seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// `error.param`: the key of the body that is at fault, where one is. Told by the code: futures
    /// that carry a refusal stay small.
    pub fn param(&self) -> Option<&'static str> {
        let of_model = ["model_not_found", "model_not_allowed", "invalid_model"];
        of_model.contains(&self.code).then_some("model")
    }

    /// `error.type` of the OpenAI error object that belongs to the status.
    pub fn kind(&self) -> &'static str {
        match self.status {
            // OpenAI's own word; its clients do not try again.
            429 if self.code == "insufficient_quota" => "insufficient_quota",
            401 => "authentication_error",
            403 => "permission_error",
            // What is not found is then no path of ours, but what the request asks for.
            404 if self.param().is_some() => "invalid_request_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        }
    }
}
