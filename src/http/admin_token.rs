//! What a request shows for the token of the admin API.

use super::request::RequestHead;

/// All that a request shows for a token.
pub fn shown<'b>(head: &RequestHead, bytes: &'b [u8]) -> Vec<&'b [u8]> {
    let fields = head.fields.iter().filter_map(|field| {
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        match () {
            () if name.eq_ignore_ascii_case(b"x-admin-token") => Some(value),
            () if name.eq_ignore_ascii_case(b"authorization") => {
                let (scheme, token) = value.split_at_checked(7)?;
                Some(if scheme.eq_ignore_ascii_case(b"bearer ") {
                    token.trim_ascii()
                } else {
                    value
                })
            }
            () => None,
        }
    });
    fields.collect()
}
