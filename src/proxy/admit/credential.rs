//! The credential that a client presents, as the OpenAI and Anthropic SDKs send it.

use crate::http::field::Known;
use crate::http::head::Field;

const BEARER: &[u8] = b"bearer ";

/// The key of a request: that of `Authorization: Bearer`, or else `X-API-Key`. `bytes` is what the
/// fields point into. `None` also when it is no text.
pub fn presented<'a>(fields: &[Field], bytes: &'a [u8]) -> Option<&'a str> {
    let bearer = fields.iter().find(|field| field.known == Known::Authorization);
    let token = bearer.and_then(|field| {
        let (scheme, token) = field.value.of(bytes).split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
    });
    let raw = || {
        let own = |field: &&Field| field.name.of(bytes).eq_ignore_ascii_case(b"x-api-key");
        Some(fields.iter().find(own)?.value.of(bytes).trim_ascii())
    };
    let key = std::str::from_utf8(token.or_else(raw)?).ok()?;
    (!key.is_empty()).then_some(key)
}
