//! Names of fields that the proxy treats specially (contract: the http author completes it).

/// A field name that the proxy treats specially.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Known { /// any other
 #[default] Other, /// see the name
 Authorization, /// see the name
 ContentType, /// see the name
 ContentEncoding, /// see the name
 XRequestId, /// see the name
 XForwardedFor, /// see the name
 UserAgent }
