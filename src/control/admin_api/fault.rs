//! What goes wrong, in the shape of an OpenAI error.

use crate::base::refusal::Refusal;
use crate::control::admin_door::AdminAnswer;
use crate::control::key_store::form::FieldFault;
use crate::control::key_store::StoreFault;
use serde_json::json;

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiFault {
    /// Status code.
    pub status: u16,
    /// Stable, machine-readable code.
    pub code: &'static str,
    /// For a person. Holds no key and no token.
    pub message: String,
    /// The member, or the parameter of the query, that is at fault.
    pub param: Option<String>,
    /// A further field of the answer.
    pub field: Option<(&'static str, String)>,
}

impl ApiFault {
    /// One that is not about a member of the body.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> ApiFault {
        ApiFault { status, code, message: message.into(), param: None, field: None }
    }

    /// A body, or a query, that cannot be taken.
    pub fn invalid(param: &str, message: impl Into<String>) -> ApiFault {
        let param = Some(param).filter(|param| !param.is_empty()).map(str::to_owned);
        ApiFault { param, ..ApiFault::new(400, "invalid_request", message) }
    }

    /// `error.type`.
    pub fn kind(&self) -> &'static str {
        Refusal::new(self.status, self.code, "").kind()
    }

    /// As bytes.
    pub fn answer(&self) -> AdminAnswer {
        let (kind, code, param) = (self.kind(), self.code, &self.param);
        let error = json!({
            "error": {"message": self.message, "type": kind, "code": code, "param": param}
        });
        let mut answer = AdminAnswer::json(self.status, &error);
        answer.fields.extend(self.field.clone());
        answer
    }
}

impl From<StoreFault> for ApiFault {
    fn from(fault: StoreFault) -> ApiFault {
        let message = fault.to_string();
        match fault {
            StoreFault::Conflict(_) => ApiFault::new(409, "key_exists", message),
            StoreFault::NotFound => ApiFault::new(404, "key_not_found", message),
            StoreFault::Refused(_) => ApiFault::new(409, "not_possible", message),
            StoreFault::Unavailable(_) => {
                // Where the file is and what ails it is for the log, not for the network.
                tracing::error!(error = %message, "the store of keys failed");
                let told = "the store of keys cannot be used: the log says why";
                ApiFault::new(503, "store_unavailable", told)
            }
        }
    }
}

impl From<FieldFault> for ApiFault {
    fn from(fault: FieldFault) -> ApiFault {
        let message = match fault.param.as_str() {
            "" => fault.message.clone(),
            param => {
                let param = crate::control::key_store::form::shown(param);
                format!("`{param}` {}", fault.message)
            }
        };
        ApiFault::invalid(&fault.param, message)
    }
}
