//! Fields that tell an engine whose a request is (`auth.forward_identity`).

use crate::config::plan::ForwardIdentity;
use crate::keys::facts::KeyFacts;
use crate::keys::together;
use std::io::Write;
use std::sync::Arc;

/// The fields of a configuration. Clients cannot set them: theirs of these names stay here.
pub struct IdentityFields {
    user_id: String,
    key_name: String,
    key_id: String,
}

impl IdentityFields {
    /// Those of a configuration.
    pub fn new(plan: &ForwardIdentity) -> IdentityFields {
        let ForwardIdentity { user_id, key_name, key_id } = plan.clone();
        IdentityFields { user_id, key_name, key_id }
    }

    /// Their names, but for those that are not sent.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = [&self.user_id, &self.key_name, &self.key_id];
        all.into_iter().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Appends the lines of a request of whose key providers know this. What is not known is not
    /// sent.
    pub fn write(&self, keys: &[Arc<KeyFacts>], out: &mut Vec<u8>) {
        let Some(first) = keys.first() else { return };
        let known =
            [(&self.user_id, together::user_id(keys)), (&self.key_name, together::name(keys))];
        for (name, value) in known {
            if let Some(value) = value.filter(|_| !name.is_empty()) {
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b": ");
                push_value(value, out);
                out.extend_from_slice(b"\r\n");
            }
        }
        if !self.key_id.is_empty() {
            // Writing into a `Vec` cannot fail.
            let _ = write!(out, "{}: {:016x}\r\n", self.key_id, first.digest.label());
        }
    }
}

/// Appends a text as the value of a field: what servers read in different ways, or not at all, goes
/// percent-encoded in UTF-8, and so does the percent sign.
fn push_value(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => {
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::digest::KeyDigest;

    /// Catches: a name from a database that begins a line of its own in a head.
    #[test]
    fn values_stay_in_their_lines() {
        let fields = IdentityFields {
            user_id: "X-User".into(),
            key_name: String::new(),
            key_id: "X-Key".into(),
        };
        let mut facts = KeyFacts::new(KeyDigest::of(b"abc"));
        facts.user_id = "ann b\u{fc}%\r\nX-Admin: 1".into();
        facts.name = "not sent".into();
        let mut out = Vec::new();
        fields.write(&[], &mut out);
        assert!(out.is_empty());
        fields.write(&[Arc::new(facts)], &mut out);
        let want = "X-User: ann%20b%C3%BC%25%0D%0AX-Admin:%201\r\nX-Key: ba7816bf8f01cfea\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
        assert_eq!(fields.names().collect::<Vec<_>>(), ["X-User", "X-Key"]);
    }
}
