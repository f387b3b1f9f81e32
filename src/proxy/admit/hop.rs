//! Requests that come back to us: some backend leads, perhaps through other proxies, to this very
//! process. Each round would cost two more connections, until there are none.

use crate::base::refusal::Refusal;
use crate::http::field::Known;
use crate::http::request::RequestHead;

/// Refuses a request whose `Via` has `name`, which we put there. Lists and comments need not be
/// understood for that: nobody else has a reason to write those digits.
pub fn check(head: &RequestHead, bytes: &[u8], name: &str) -> Result<(), Refusal> {
    let mut via = head.fields.iter().filter(|field| field.known == Known::Via);
    let is_ours = via.any(|f| memchr::memmem::find(f.value.of(bytes), name.as_bytes()).is_some());
    if is_ours {
        return Err(LOOP);
    }
    Ok(())
}

const LOOP: Refusal = Refusal::new(
    508,
    "loop_detected",
    "The request has passed this proxy before: a backend leads back to it.",
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;

    #[test]
    fn only_our_own_name_is_a_loop() {
        let of = |fields: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let mut head = RequestHead::default();
            head.parse(text.as_bytes(), HEAD_BYTES_MAX).unwrap();
            check(&head, text.as_bytes(), "llmproxy-0123").map_err(|refusal| refusal.status)
        };
        assert_eq!(of(""), Ok(()));
        assert_eq!(of("Via: 1.1 llmproxy-4567, 1.0 fred (nginx)\r\n"), Ok(()));
        assert_eq!(of("X: 1.1 llmproxy-0123\r\n"), Ok(()));
        assert_eq!(of("VIA: 1.1 llmproxy-0123\r\n"), Err(508));
        assert_eq!(of("via: 1.0 a\r\nVia: 1.1 b, 1.1 llmproxy-0123,1.1 c\r\n"), Err(508));
    }
}
