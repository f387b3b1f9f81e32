//! Usage that stands in the head of an answer: TGI's and TEI's count fields, and the `metadata`
//! field of vLLM's binary embeddings.

use super::tokens::{self, Usage};
use super::usage::UsageScan;

/// What the fields of an answer's head, as (name, value), say of tokens; `None` when they say
/// nothing. Of a field that stands there twice the last counts. A number that cannot be is no
/// usage, and neither is anything beside it.
pub fn usage_of<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Option<Usage> {
    let (mut prompt, mut generated, mut computed, mut metadata) = (None, None, None, None);
    for (name, value) in fields {
        // Most names have another length, and are not looked at.
        let field = match name.len() {
            8 if name.eq_ignore_ascii_case(b"metadata") => &mut metadata,
            15 if name.eq_ignore_ascii_case(b"x-prompt-tokens") => &mut prompt,
            16 if name.eq_ignore_ascii_case(b"x-compute-tokens") => &mut computed,
            18 if name.eq_ignore_ascii_case(b"x-generated-tokens") => &mut generated,
            _ => continue,
        };
        *field = Some(value.trim_ascii());
    }
    if prompt.is_some() || generated.is_some() {
        // TGI, with both.
        return counted(prompt, generated);
    }
    if computed.is_some() {
        // TEI, which generates nothing.
        return counted(computed, None);
    }
    let mut scan = UsageScan::default();
    scan.feed(metadata?);
    scan.usage()
}

/// Counts as header fields write them.
fn counted(prompt: Option<&[u8]>, completion: Option<&[u8]>) -> Option<Usage> {
    let count = |text: Option<&[u8]>| text.map_or(Some(0), tokens::count);
    let (prompt_tokens, completion_tokens) = (count(prompt)?, count(completion)?);
    Some(Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> Option<(u64, u64, u64)> {
        let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        usage_of(fields).map(|u| (u.prompt_tokens, u.completion_tokens, u.total_tokens))
    }

    /// Catches: an engine that speaks through its head and is not heard, in any case of letters.
    #[test]
    fn each_engines_fields_are_read() {
        let tgi = [
            ("x-compute-type", "1-gpu"),
            ("X-Prompt-Tokens", "12"),
            ("x-generated-tokens", " 20 "),
            ("x-time-per-token", "30"),
        ];
        assert_eq!(read(&tgi), Some((12, 20, 32)));
        assert_eq!(read(&[("x-prompt-tokens", "12")]), Some((12, 0, 12)));
        assert_eq!(read(&[("X-COMPUTE-TOKENS", "8"), ("x-queue-time", "1")]), Some((8, 0, 8)));
        let vllm = r#"{"usage": {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}}"#;
        assert_eq!(read(&[("metadata", vllm)]), Some((5, 0, 5)));
    }

    /// Catches: a bill made of what is not a number of tokens.
    #[test]
    fn what_cannot_be_is_no_usage() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("content-type", "x"), ("x-prompt-tokensx", "1")]), None);
        for odd in ["", "-1", "1.5", "1e3", "a", "9007199254740993", "99999999999999999999"] {
            assert_eq!(read(&[("x-prompt-tokens", odd), ("x-generated-tokens", "1")]), None);
            assert_eq!(read(&[("x-compute-tokens", odd)]), None, "{odd}");
            assert_eq!(read(&[("metadata", odd)]), None, "{odd}");
        }
    }
}
