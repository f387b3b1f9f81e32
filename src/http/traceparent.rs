//! `traceparent` of the W3C's Trace Context, by which the spans of one trace find each other. It is
//! read strictly, and written anew from what was understood: no byte of a client's gets by.

/// Bytes of the field in version 00, which is the one that is written.
pub const TRACEPARENT_BYTES: usize = 55;

/// Flags that have a meaning (level 2): sampled, and a trace id that is random. Others are zero in
/// what is sent (section 3.2.2.5).
const FLAG_SAMPLED: u8 = 1;
const FLAGS_KNOWN: u8 = 3;

/// A span, as another one names it that is its child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace that both belong to; never zero.
    pub trace_id: [u8; 16],
    /// The span itself; never zero.
    pub span_id: [u8; 8],
    flags: u8,
}

impl TraceParent {
    /// A span of a trace that begins with it, and is recorded.
    pub fn root(trace_id: [u8; 16], span_id: [u8; 8]) -> TraceParent {
        TraceParent { trace_id, span_id, flags: FLAG_SAMPLED }
    }

    /// Another span of the same trace.
    pub fn with_span(self, span_id: [u8; 8]) -> TraceParent {
        TraceParent { span_id, ..self }
    }

    /// Whoever began the trace records it.
    pub fn is_sampled(self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }

    /// Reads a value (section 3.2). `None` for one that is not valid: then a new trace begins. Of a
    /// later version, what is known of this one is read, and more may follow behind a `-`.
    pub fn parse(value: &[u8]) -> Option<TraceParent> {
        let (known, more) = value.split_at_checked(TRACEPARENT_BYTES)?;
        let has_dashes = [2, 35, 52].iter().all(|at| known.get(*at) == Some(&b'-'));
        let [version] = bytes_of(known.get(..2)?)?;
        let ends_well = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => matches!(more.first(), None | Some(b'-')),
        };
        let trace_id = bytes_of(known.get(3..35)?)?;
        let span_id = bytes_of(known.get(36..52)?)?;
        let [flags] = bytes_of(known.get(53..)?)?;
        let is_valid = has_dashes && ends_well && trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(TraceParent { trace_id, span_id, flags: flags & FLAGS_KNOWN })
    }

    /// The value of the field.
    pub fn value(&self) -> [u8; TRACEPARENT_BYTES] {
        let mut out = [b'-'; TRACEPARENT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            out.iter_mut().skip(at).zip(digits).for_each(|(out, digit)| *out = hex_digit(digit));
        };
        put(0, &[0]);
        put(3, &self.trace_id);
        put(36, &self.span_id);
        put(53, &[self.flags]);
        out
    }
}

/// Bytes written as pairs of lower-case hexadecimal digits; upper case is not valid.
fn bytes_of<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn hex_digit(value: u8) -> u8 {
    if value < 10 {
        b'0' + value
    } else {
        b'a' + value - 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn again(text: &str) -> Option<String> {
        let parent = TraceParent::parse(text.as_bytes())?;
        Some(String::from_utf8(parent.value().to_vec()).unwrap())
    }

    /// Catches: an id that is not the one that came, or a field that others refuse.
    #[test]
    fn what_is_valid_comes_back_as_version_00() {
        assert_eq!(again(GOOD).as_deref(), Some(GOOD));
        for (sent, flags, is_sampled) in [
            (GOOD.replace("-01", "-00"), "00", false),
            (GOOD.replace("-01", "-03"), "03", true),
            (GOOD.replace("-01", "-ff"), "03", true),
            (GOOD.replace("00-4", "01-4"), "01", true),
            (GOOD.replace("00-4", "cc-4") + "-what-comes", "01", true),
        ] {
            assert_eq!(again(&sent), Some(GOOD.replace("-01", &format!("-{flags}"))), "{sent}");
            assert_eq!(TraceParent::parse(sent.as_bytes()).unwrap().is_sampled(), is_sampled);
        }
        let parent = TraceParent::parse(GOOD.as_bytes()).unwrap();
        let child = parent.with_span([0xab; 8]);
        assert_eq!((child.trace_id, child.span_id), (parent.trace_id, [0xab; 8]));
        let root = TraceParent::root([1; 16], [2; 8]);
        assert!(root.is_sampled());
        let written = "00-01010101010101010101010101010101-0202020202020202-01";
        assert_eq!(root.value(), *written.as_bytes());
    }

    /// Catches: a trace that goes on although nobody can tell which (the W3C's own test cases).
    #[test]
    fn what_is_not_valid_is_none() {
        let long = format!("{GOOD}-what");
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473.-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b.-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
            &long,
        ] {
            assert_eq!(again(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "0[0-9a-f-]{0,3}-[0-9a-f]{32}-[0-9a-f]{16}-.{0,3}") {
            if let Some(parent) = TraceParent::parse(text.as_bytes()) {
                proptest::prop_assert_eq!(TraceParent::parse(&parent.value()), Some(parent));
            }
        }
    }
}
