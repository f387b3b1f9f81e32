//! The Connection field: whether the connection lives on, and which fields end at this hop.

use super::fault::HttpFault;
use super::field::Known;
use super::head::{Field, Version};
use crate::base::limits::CONNECTION_OPTIONS_MAX;

/// What all Connection lines of a head say together (RFC 9110 §7.6.1).
#[derive(Debug, Default)]
pub(super) struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    nominations: usize,
}

impl ConnectionOptions {
    /// Takes one Connection line; there may be many.
    pub(super) fn read(&mut self, value: &[u8]) -> Result<(), HttpFault> {
        for option in options(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.iter().all(|b| is_token(*b)) {
                self.nominations += 1;
            } else {
                return Err(HttpFault::BadConnectionOption);
            }
        }
        // Each nomination is compared with each field: without a bound one head costs millions.
        if self.nominations > CONNECTION_OPTIONS_MAX {
            return Err(HttpFault::BadConnectionOption);
        }
        Ok(())
    }

    /// Whether the sender lets the connection live on (RFC 9112 §9.3).
    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Marks the fields that were nominated. Refuses a nomination that would change policy; the
    /// caller says whether it cares (a client's does, a backend's does not).
    pub(super) fn mark(
        &self,
        fields: &mut [Field],
        bytes: &[u8],
        protect: bool,
    ) -> Result<(), HttpFault> {
        if self.nominations == 0 {
            return Ok(());
        }
        for at in 0..fields.len() {
            let Some(line) = fields.get(at).filter(|f| f.known == Known::Connection) else {
                continue;
            };
            for option in options(line.value.of(bytes)) {
                if Known::of(option).is_protected() {
                    if protect {
                        return Err(HttpFault::ProtectedNominated);
                    }
                    continue;
                }
                for field in fields.iter_mut() {
                    field.stays |= field.name.of(bytes).eq_ignore_ascii_case(option);
                }
            }
        }
        Ok(())
    }
}

/// The elements of a list; empty ones are to be ignored (RFC 9110 §5.6.1).
fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|o| !o.is_empty())
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<ConnectionOptions, HttpFault> {
        let mut all = ConnectionOptions::default();
        for line in lines {
            all.read(line.as_bytes())?;
        }
        Ok(all)
    }

    #[test]
    fn close_wins_and_http10_needs_keep_alive() {
        assert!(read(&[]).unwrap().keep_alive(Version::Http11));
        assert!(!read(&[]).unwrap().keep_alive(Version::Http10));
        assert!(read(&["Keep-Alive"]).unwrap().keep_alive(Version::Http10));
        assert!(!read(&["keep-alive", "x, CLOSE"]).unwrap().keep_alive(Version::Http11));
    }

    #[test]
    fn options_are_tokens_and_few() {
        assert!(read(&["", " , upgrade ,,"]).is_ok());
        assert_eq!(read(&["a b"]).unwrap_err(), HttpFault::BadConnectionOption);
        assert_eq!(read(&["\"close\""]).unwrap_err(), HttpFault::BadConnectionOption);
        let many = "a,".repeat(CONNECTION_OPTIONS_MAX + 1);
        assert_eq!(read(&[&many]).unwrap_err(), HttpFault::BadConnectionOption);
    }
}
