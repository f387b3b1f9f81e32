//! The key that a client presents, in one of the fields where clients send it: those of the OpenAI
//! and Anthropic SDKs, or others that the configuration names.

use crate::http::field::Known;
use crate::http::head::Field;

const AUTHORIZATION: &str = "authorization";
const BEARER: &[u8] = b"bearer";

/// One field came twice, with different values. It counts as no key: a proxy before us may have
/// looked at the one, and we would at the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ambiguous;

/// The names of the fields that may carry a key, in the order in which they are tried.
#[derive(Debug)]
pub struct KeyFields(Vec<Box<str>>);

impl KeyFields {
    /// Those of a configuration, in any case.
    pub fn new(names: &[String]) -> KeyFields {
        KeyFields(names.iter().map(|name| name.to_ascii_lowercase().into()).collect())
    }

    /// The names, in lower case.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    /// The key of a request; `bytes` is what its fields point into. `None`: it presents none.
    /// `Authorization` has one only behind the word `Bearer`; of other fields it is the value.
    ///
    /// # Errors
    /// A field that carries a key says two things.
    pub fn find<'a>(
        &self,
        fields: &[Field],
        bytes: &'a [u8],
    ) -> Result<Option<&'a [u8]>, Ambiguous> {
        for name in &self.0 {
            let is_bearer = **name == *AUTHORIZATION;
            let is_it = |field: &&Field| match is_bearer {
                true => field.known == Known::Authorization,
                false => field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes()),
            };
            let mut values = fields.iter().filter(is_it).map(|field| field.value.of(bytes));
            let Some(first) = values.next() else { continue };
            if values.any(|value| value != first) {
                return Err(Ambiguous);
            }
            let key = if is_bearer { bearer(first) } else { Some(first.trim_ascii()) };
            if let Some(key) = key.filter(|key| !key.is_empty()) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

/// What stands behind the word `Bearer`, in any case, and blanks.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.trim_ascii().split_at_checked(BEARER.len())?;
    let is_apart = token.first().is_none_or(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(BEARER) && is_apart).then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;
    use crate::http::request::RequestHead;

    fn find(names: &[&str], fields: &str) -> Result<Option<String>, Ambiguous> {
        let bytes = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
        let mut head = RequestHead::default();
        head.parse(&bytes, HEAD_BYTES_MAX).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = KeyFields::new(&names).find(&head.fields, &bytes)?;
        Ok(found.map(|key| String::from_utf8(key.to_vec()).unwrap()))
    }

    /// Catches: a spelling of a key that SDKs use and that is not read, another scheme that is.
    #[test]
    fn keys_are_found_as_clients_write_them() {
        let usual = ["Authorization", "X-API-Key"];
        for (fields, key) in [
            ("", None),
            ("Authorization: Bearer sk-1\r\n", Some("sk-1")),
            ("aUTHORIZATION: bEARER  sk-1 \r\n", Some("sk-1")),
            ("Authorization:\tBearer\tsk-1\t\r\n", Some("sk-1")),
            ("authorization: sk-1\r\n", None),
            ("Authorization: Basic c2stMQ==\r\n", None),
            ("Authorization: Bearersk-1\r\n", None),
            ("Authorization: Bearer\r\n", None),
            ("Authorization: Bearer \r\n", None),
            ("x-api-key: sk-2\r\n", Some("sk-2")),
            ("X-API-KEY:  sk-2  \r\n", Some("sk-2")),
            ("X-Api-Key: Bearer sk-2\r\n", Some("Bearer sk-2")),
            ("X-Api-Key: sk-2\r\nAuthorization: Bearer sk-1\r\n", Some("sk-1")),
            ("X-Api-Key: sk-2\r\nAuthorization: Basic x\r\n", Some("sk-2")),
            ("X-Api-Key: \r\n", None),
            ("api-key: sk-3\r\nX-Api-Key2: sk\r\nX-Goog-Api-Key: sk\r\n", None),
        ] {
            assert_eq!(find(&usual, fields), Ok(key.map(str::to_owned)), "{fields:?}");
        }
    }

    /// Catches: an order that is not the configured one, a name that only counts in one case.
    #[test]
    fn the_configuration_says_which_fields_in_which_order() {
        let names = ["API-Key", "x-goog-api-key", "Authorization"];
        for (fields, key) in [
            ("Authorization: Bearer a\r\napi-KEY: b\r\n", Some("b")),
            ("Authorization: Bearer a\r\nX-Goog-Api-Key: c\r\n", Some("c")),
            ("X-Api-Key: d\r\n", None),
        ] {
            assert_eq!(find(&names, fields), Ok(key.map(str::to_owned)), "{fields:?}");
        }
    }

    /// Catches: one of two keys that is used while a proxy before us has checked the other.
    #[test]
    fn a_field_that_says_two_things_has_no_key() {
        let usual = ["Authorization", "X-API-Key"];
        for fields in [
            "Authorization: Bearer a\r\nauthorization: Bearer b\r\n",
            "Authorization: Basic a\r\nAuthorization: Bearer b\r\nX-Api-Key: c\r\n",
            "X-Api-Key: a\r\nX-API-KEY: b\r\n",
        ] {
            assert_eq!(find(&usual, fields), Err(Ambiguous), "{fields:?}");
        }
        let twice = "Authorization: Bearer a\r\nAuthorization: Bearer a\r\n";
        assert_eq!(find(&usual, twice), Ok(Some("a".into())));
    }
}
