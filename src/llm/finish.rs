//! Whether the last choice that a stream told of has ended: then nothing of it is to come but its
//! usage. A client that leaves there has got all of its text.

use memchr::memmem::FinderRev;
use std::sync::LazyLock;

const KEY: &[u8] = b"\"finish_reason\"";
/// Built once: it holds the vector routine chosen for this CPU.
static KEY_FINDER: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));

/// Bytes of a slice that are kept for the next one: as much as the key and the beginning of its
/// value have, with a few spaces. What has more of them is not recognised where it is cut.
const TAIL_BYTES: usize = 24;

/// Watches bytes of a stream of `choices`, cut anywhere.
#[derive(Debug, Default)]
pub struct FinishWatch {
    is_over: bool,
    tail: [u8; TAIL_BYTES],
    len: u8,
}

impl FinishWatch {
    /// The last choice has ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let kept = usize::from(self.len);
        let mut joined = [0; 2 * TAIL_BYTES];
        let (tail, begun) = (self.tail.get(..kept), bytes.get(..TAIL_BYTES).unwrap_or(bytes));
        let both = tail.unwrap_or_default().iter().chain(begun);
        joined.iter_mut().zip(both).for_each(|(to, from)| *to = *from);
        let joined = joined.get(..kept + begun.len()).unwrap_or_default();
        if let Some(is_over) = last_value(bytes).or_else(|| last_value(joined)) {
            self.is_over = is_over;
        }
        // All that is kept of the two lies at the end of one of them.
        let end = if bytes.len() >= TAIL_BYTES { bytes } else { joined };
        let end = end.last_chunk::<TAIL_BYTES>().map_or(end, <[u8; TAIL_BYTES]>::as_slice);
        self.tail.iter_mut().zip(end).for_each(|(to, from)| *to = *from);
        self.len = end.len() as u8;
    }
}

/// Whether the last one in these bytes tells of an end; `None`: there is none, or its value is cut.
/// In a model's own text the quotes of the key would be escaped.
fn last_value(bytes: &[u8]) -> Option<bool> {
    let mut before = bytes;
    while let Some(at) = KEY_FINDER.rfind(before) {
        let behind = bytes.get(at + KEY.len()..).unwrap_or_default().trim_ascii_start();
        match behind.strip_prefix(b":").map(<[u8]>::trim_ascii_start) {
            // TGI's text completions say `""` until then.
            Some([b'"', next, ..]) => return Some(*next != b'"'),
            Some([first, ..]) if *first != b'"' => return Some(false),
            _ => before = bytes.get(..at).unwrap_or_default(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_over<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let mut watch = FinishWatch::default();
        slices.into_iter().for_each(|slice| watch.feed(slice));
        watch.is_over()
    }

    /// Catches: an end that is seen where there is none, or not seen where a slice ends in it.
    #[test]
    fn the_last_choice_tells_however_the_stream_is_cut() {
        let event =
            |value: &str| format!("data: {{\"choices\":[{{\"finish_reason\":{value}}}]}}\n\n");
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n".to_owned();
        let said = r#"data: {"choices":[{"text":"\"finish_reason\":\"stop\""}]}"#.to_owned();
        for (stream, wanted) in [
            (event("null"), false),
            (event("\"stop\""), true),
            (event(" \"length\""), true),
            (event("\"\""), false),
            (event("null") + &event("\"stop\"") + &usage + "data: [DONE]\n\n", true),
            (event("\"stop\"") + &event("null"), false),
            (said.clone(), false),
            (event("\"stop\"") + &said, true),
            (usage, false),
        ] {
            let bytes = stream.as_bytes();
            assert_eq!(is_over([bytes]), wanted, "{stream}");
            for size in 1..bytes.len() {
                assert_eq!(is_over(bytes.chunks(size)), wanted, "{stream} in pieces of {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_taken(
            pieces in prop::collection::vec(prop_oneof![
                Just(&b"\"finish_reason\":\"x"[..]), Just(&b"\"finish_reason\":null"[..]),
                Just(&b"\"finish_"[..]), Just(&b"{\"a\":1}"[..]), Just(&b"   "[..]),
            ], 0..12),
            size in 1..40usize,
        ) {
            let stream = pieces.concat();
            let cut = is_over(stream.chunks(size));
            prop_assert_eq!(cut, is_over([&stream[..]]));
        }
    }
}
