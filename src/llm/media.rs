//! Pictures and recordings in a request's body, as base64: their bytes say nothing of the tokens
//! that an engine makes of them.

use memchr::{memchr3, memmem};

/// Bytes of a body that are looked through: a worker does nothing else meanwhile.
const SCAN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// No picture fits into a shorter body.
const BODY_BYTES_MIN: usize = 1024;

/// What a body carries beside text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Media {
    /// Pictures and recordings.
    pub items: u64,
    /// Their bytes, as they stand in the body.
    pub bytes: u64,
}

/// The media of a JSON body: `"url": "data:…"` of OpenAI's parts, `"data": "…"` of its recordings
/// and of Anthropic's sources, and `"images": ["…"]` of Ollama's messages. All of these are names
/// of members, which nobody can write into a text: a quote has a backslash there. What has a blank
/// or a backslash in it is text, and counted as such.
pub fn media_in(body: &[u8]) -> Media {
    let mut found = Media::default();
    if body.len() < BODY_BYTES_MIN {
        return found;
    }
    let seen = body.get(..SCAN_BYTES_MAX).unwrap_or(body);
    let finder = memmem::Finder::new(b"\"data");
    let mut from = 0;
    while let Some(at) = seen.get(from..).and_then(|rest| finder.find(rest)) {
        let (before, rest) = body.split_at(from + at);
        from += at + 1;
        let value = match rest.get(5) {
            Some(b':') if is_url(before) => rest.get(1..),
            Some(b'"') => value_of(rest.get(6..).unwrap_or_default()),
            _ => None,
        };
        let Some(value) = value else { continue };
        let end = memchr3(b'"', b'\\', b' ', value);
        if let Some(len) = end.filter(|end| value.get(*end) == Some(&b'"')) {
            found.items += 1;
            found.bytes += len as u64;
            // Behind its last quote.
            from = body.len() - value.len() + len + 1;
        }
    }
    add_lists(body, seen.len(), &mut found);
    found
}

/// The pictures of all lists of them that begin within so many bytes.
fn add_lists(body: &[u8], seen: usize, found: &mut Media) {
    let finder = memmem::Finder::new(b"\"images\"");
    let mut from = 0;
    while let Some(at) = body.get(from..seen).and_then(|rest| finder.find(rest)) {
        from += at + b"\"images\"".len();
        let behind = body.get(from..).unwrap_or_default().trim_ascii_start();
        let list = behind.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        let mut list = list.and_then(|list| list.strip_prefix(b"[")).unwrap_or_default();
        while let Some(value) = list.trim_ascii_start().strip_prefix(b"\"") {
            let end = memchr3(b'"', b'\\', b' ', value);
            let Some(len) = end.filter(|end| value.get(*end) == Some(&b'"')) else { break };
            found.items += 1;
            found.bytes += len as u64;
            let behind = value.get(len + 1..).unwrap_or_default();
            // Behind its last quote.
            from = body.len() - behind.len();
            let Some(next) = behind.trim_ascii_start().strip_prefix(b",") else { break };
            list = next;
        }
    }
}

/// Whether what follows is the value of a member that may be a picture or a file.
fn is_url(before: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"\"url\"", b"\"image_url\"", b"\"file_data\""];
    let name = before.trim_ascii_end().strip_suffix(b":").map(<[u8]>::trim_ascii_end);
    name.is_some_and(|name| NAMES.iter().any(|known| name.ends_with(known)))
}

/// The text that is the value of a member, behind whose name this is.
fn value_of(behind: &[u8]) -> Option<&[u8]> {
    behind.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base64(len: usize) -> String {
        "QUJD/+==".chars().cycle().take(len).collect()
    }

    fn of(text: &str) -> (u64, u64) {
        let Media { items, bytes } = media_in(text.as_bytes());
        (items, bytes)
    }

    /// Catches: a picture that counts as a million tokens, in any of its forms.
    #[test]
    fn pictures_and_recordings_are_found() {
        let data = base64(4000);
        let url = format!(r#"{{"image_url":{{"url":"data:image/png;base64,{data}"}}}}"#);
        assert_eq!(of(&url), (1, 4000 + 22));
        let spaced = format!("{{\"url\" :\n \"data:image/png;base64,{data}\"}}");
        assert_eq!(of(&spaced), (1, 4000 + 22));
        let short =
            format!(r#"{{"type":"input_image","image_url":"data:image/png;base64,{data}"}}"#);
        assert_eq!(of(&short), (1, 4000 + 22));
        let audio = format!(r#"{{"input_audio":{{"data": "{data}","format":"wav"}}}}"#);
        assert_eq!(of(&audio), (1, 4000));
        let listed = format!("{{\"images\": [ \"{data}\",\n\"{data}\" ], \"content\": \"a\"}}");
        assert_eq!(of(&listed), (2, 2 * 4000));
        let all = [url, spaced, audio, listed].concat();
        assert_eq!(of(&all), (5, 5 * 4000 + 2 * 22));
    }

    /// Catches: a prompt that is told as a picture, and costs nothing.
    #[test]
    fn text_is_no_picture() {
        let data = base64(4000);
        let words = "tell me everything ".repeat(100);
        for text in [
            format!(r#"{{"content":"data:image/png;base64,{data}"}}"#),
            format!(r#"{{"content":"say \"data\":\"{data}\""}}"#),
            format!(r#"{{"content":"say \"url\":\"data:{data}\""}}"#),
            format!(r#"{{"data":"{words}"}}"#),
            format!(r#"{{"url":"data:{words}"}}"#),
            format!(r#"{{"database":"{data}"}}"#),
            format!(r#"{{"data":{{"a":"{data}"}}}}"#),
            format!(r#"{{"data":"{data}"#),
            format!(r#"{{"content":"say \"images\":[\"{data}\"]"}}"#),
            format!(r#"{{"images":["{words}"]}}"#),
            format!(r#"{{"images":"{data}"}}"#),
            format!(r#"{{"images":[{{"a":"{data}"}}]}}"#),
            format!(r#"{{"images":["{data}"#),
            format!(r#"{{"curl":"data:{data}","url":1}}"#),
        ] {
            assert_eq!(of(&text), (0, 0), "{text}");
        }
        assert_eq!(of(r#"{"data":"QUJD"}"#), (0, 0), "too short to be worth a look");
    }

    proptest! {
        /// Catches: bytes that are counted twice, or a panic on any bytes.
        #[test]
        fn no_more_than_the_body(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("\"data\":\"".to_owned()),
                    Just("\"url\":\"data:".to_owned()),
                    Just("\"images\":[\"".to_owned()),
                    Just("\",\"".to_owned()),
                    Just("\"".to_owned()),
                    "[a-z\\\\ :]{0,20}",
                    (0..900_usize).prop_map(base64),
                ],
                0..30,
            ),
        ) {
            let body = pieces.concat();
            let media = media_in(body.as_bytes());
            prop_assert!(media.bytes <= body.len() as u64);
            prop_assert!(media.items <= 60);
        }
    }
}
