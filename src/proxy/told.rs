//! What an answer says of its way here, where `routing.response_headers` wants it.

use super::receive::Request;
use crate::config::plan::ResponseHeader;
use crate::state::member::Member;

/// The fields, with their values. Nothing is allocated where none are configured.
pub fn fields(
    wanted: &[ResponseHeader],
    (request, backend, retries): (&Request, &Member, u32),
) -> Vec<(&'static str, String)> {
    let field = |header: &ResponseHeader| match header {
        ResponseHeader::Backend => ("x-llmproxy-backend", printable(&backend.name)),
        ResponseHeader::ServerTiming => {
            let ms = request.started.elapsed().as_secs_f64() * 1e3;
            let tries = u64::from(retries) + 1;
            ("server-timing", format!("llmproxy;dur={ms:.3}, tries;desc=\"{tries}\""))
        }
    };
    wanted.iter().map(field).collect()
}

/// A name may have any letters; a field may not.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a field that ends in the middle of the name of a backend, and one of its own.
    #[test]
    fn a_name_breaks_no_line() {
        assert_eq!(printable("gpu 1\r\nSet-Cookie: ä"), "gpu 1??Set-Cookie: ?");
    }
}
