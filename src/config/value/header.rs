//! Names and values of HTTP fields that a configuration sets (RFC 9110 section 5).

use super::quoted;
use crate::base::limits::FIELD_NAME_BYTES_MAX;

/// Fields that frame a message or belong to one connection: setting one would break the other
/// side's parsing (RFC 9110 section 7.6.1, RFC 9112 section 6).
const RESERVED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Checks the name of a field that is to be set: a token (RFC 9110 section 5.6.2).
pub fn header_name(name: &str) -> Result<String, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > FIELD_NAME_BYTES_MAX || !name.bytes().all(token) {
        return Err(format!("{} is not the name of an HTTP field", quoted(name)));
    }
    if RESERVED.iter().any(|r| r.eq_ignore_ascii_case(name)) {
        return Err(format!("{name} frames the message and cannot be set"));
    }
    if name.eq_ignore_ascii_case("via") {
        return Err("Via shows a request that goes round in a circle, and cannot be set".into());
    }
    Ok(name.to_owned())
}

/// Checks the value of a field: visible characters, blanks and tabs inside, no line end. The
/// message does not repeat the value, which may be a secret.
pub fn header_value(value: &str) -> Result<String, String> {
    let value = value.trim_matches([' ', '\t']);
    if value.bytes().any(|b| b != b'\t' && (b < b' ' || b == 0x7f)) {
        return Err(
            "the value of an HTTP field must not hold a line end or another control character"
                .into(),
        );
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_cannot_smuggle_another_one() {
        for bad in
            ["", "a b", "a:b", "a\r\nb", "Ünicode", "Content-Length", "transfer-encoding", "VIA"]
        {
            assert!(header_name(bad).is_err(), "{bad:?}");
        }
        for bad in ["a\r\nb: c", "a\nb", "\0"] {
            assert!(header_value(bad).is_err(), "{bad:?}");
        }
        assert_eq!(header_name("X-Engine"), Ok("X-Engine".into()));
        assert_eq!(header_value(" Bearer x "), Ok("Bearer x".into()));
    }
}
