//! Every rule of HTTP/1.1 that a peer can break in a head, each with its one answer.
//!
//! A client that breaks one is refused and its connection closed, because after a doubtful head
//! nobody can say where the next request begins (RFC 9112 §11.2). A backend that breaks one is
//! answered for with 502.

use crate::base::refusal::Refusal;

/// One broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpFault {
    /// LF without CR before it; a receiver may accept it (RFC 9112 §2.2), we do not.
    BareLineFeed,
    /// A control character other than TAB, or a CR that does not end a line (RFC 9110 §5.5).
    ControlCharacter,
    /// More than one empty line before the head (RFC 9112 §2.2).
    EmptyLines,
    /// The head is longer than its limit.
    HeadTooLarge,
    /// More field lines than the limit.
    TooManyFields,
    /// A field name longer than its limit.
    NameTooLong,
    /// A field line longer than its limit.
    FieldTooLong,
    /// Empty or non-token name, space before the colon or the name, obs-fold (RFC 9112 §5).
    BadFieldLine,
    /// A name that a lenient reader could take for a framing field.
    FramingLookAlike,
    /// The request line is not `method SP target SP version` (RFC 9112 §3).
    BadRequestLine,
    /// The status line is not `version SP status SP [reason]` (RFC 9112 §4).
    BadStatusLine,
    /// HTTP, but not 1.0 or 1.1.
    VersionNotSupported,
    /// CONNECT, TRACE, or `*` with a method other than OPTIONS.
    MethodNotAllowed,
    /// A method that is not forwarded: no engine has it (RFC 9110 §9.1).
    MethodNotImplemented,
    /// The target is longer than its limit.
    TargetTooLong,
    /// The target has a fragment, 8-bit bytes, another scheme, or no known form.
    BadTarget,
    /// HTTP/1.1 without Host (RFC 9112 §3.2).
    MissingHost,
    /// More than one Host.
    DuplicateHost,
    /// Host, or the authority of the target, is not `host [":" port]`.
    BadHost,
    /// Content-Length is not 1 to 18 digits (RFC 9110 §8.6).
    BadLength,
    /// More than one Content-Length, even when equal.
    DuplicateLength,
    /// Both framings at once (RFC 9112 §6.1).
    LengthAndCoding,
    /// Transfer-Encoding is not one field with the one value `chunked`.
    BadCoding,
    /// A transfer coding that exists but is not offered.
    CodingNotImplemented,
    /// Transfer-Encoding on HTTP/1.0 (RFC 9112 §6.1).
    CodingOnHttp10,
    /// A Connection option that is not a token, or too many of them.
    BadConnectionOption,
    /// Connection nominates a field whose loss would change policy (RFC 9110 §7.6.1).
    ProtectedNominated,
    /// Expect with anything but `100-continue` (RFC 9110 §10.1.1).
    UnknownExpectation,
    /// A 101 that nobody asked for.
    UnexpectedSwitch,
}

/// RFC 9110 section 15.5.6: a 405 names the methods that there are.
const FORWARDED_METHODS: (&str, &str) = ("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

impl HttpFault {
    /// The answer to a client. Always closes the connection.
    pub fn refusal(self) -> Refusal {
        let (status, code, message) = self.row();
        let refusal = Refusal::closing(status, code, message);
        match self {
            HttpFault::MethodNotAllowed => refusal.with_field(&FORWARDED_METHODS),
            _ => refusal,
        }
    }

    /// The stable, machine-readable name.
    pub fn code(self) -> &'static str {
        self.row().1
    }

    /// Status, code and message: the one table.
    const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            HttpFault::BareLineFeed => (400, "bare_line_feed", "lines must end in CRLF"),
            HttpFault::ControlCharacter => {
                (400, "control_character", "the head has a control character")
            }
            HttpFault::EmptyLines => (400, "empty_lines", "empty lines before the head"),
            HttpFault::HeadTooLarge => (431, "head_too_large", "the head is too large"),
            HttpFault::TooManyFields => (431, "too_many_fields", "the head has too many fields"),
            HttpFault::NameTooLong => (431, "field_name_too_long", "a field name is too long"),
            HttpFault::FieldTooLong => (431, "field_too_long", "a field line is too long"),
            HttpFault::BadFieldLine => (400, "bad_field_line", "a field line is malformed"),
            HttpFault::FramingLookAlike => {
                (400, "framing_look_alike", "a field name imitates a framing field")
            }
            HttpFault::BadRequestLine => (400, "bad_request_line", "the request line is malformed"),
            HttpFault::BadStatusLine => (400, "bad_status_line", "the status line is malformed"),
            HttpFault::VersionNotSupported => {
                (505, "http_version_not_supported", "only HTTP/1.0 and HTTP/1.1 are spoken here")
            }
            HttpFault::MethodNotAllowed => {
                (405, "method_not_allowed", "this is not a forward proxy")
            }
            HttpFault::MethodNotImplemented => {
                (501, "method_not_implemented", "the method is not known")
            }
            HttpFault::TargetTooLong => (414, "target_too_long", "the request target is too long"),
            HttpFault::BadTarget => (400, "bad_target", "the request target is malformed"),
            HttpFault::MissingHost => (400, "missing_host", "the Host field is missing"),
            HttpFault::DuplicateHost => (400, "duplicate_host", "more than one Host field"),
            HttpFault::BadHost => (400, "bad_host", "the host is malformed"),
            HttpFault::BadLength => (400, "bad_content_length", "Content-Length is malformed"),
            HttpFault::DuplicateLength => {
                (400, "duplicate_content_length", "more than one Content-Length field")
            }
            HttpFault::LengthAndCoding => (
                400,
                "content_length_and_transfer_encoding",
                "Content-Length and Transfer-Encoding exclude each other",
            ),
            HttpFault::BadCoding => {
                (400, "bad_transfer_encoding", "Transfer-Encoding is malformed")
            }
            HttpFault::CodingNotImplemented => {
                (501, "transfer_coding_not_implemented", "only chunked is implemented")
            }
            HttpFault::CodingOnHttp10 => {
                (400, "transfer_encoding_on_http10", "HTTP/1.0 has no Transfer-Encoding")
            }
            HttpFault::BadConnectionOption => {
                (400, "bad_connection_option", "the Connection field is malformed")
            }
            HttpFault::ProtectedNominated => {
                (400, "protected_field_nominated", "Connection nominates a protected field")
            }
            HttpFault::UnknownExpectation => {
                (417, "expectation_failed", "only Expect: 100-continue is understood")
            }
            HttpFault::UnexpectedSwitch => {
                (400, "unexpected_switching_protocols", "an upgrade was not asked for")
            }
        }
    }
}
