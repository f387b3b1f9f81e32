//! Usage that stands in the head of an answer: TGI's and TEI's count fields, and the `metadata`
//! field of vLLM's binary embeddings.

use super::tokens::{Oddities, Usage};
use super::usage::number::{sum, Number, Odd};
use super::usage::UsageScan;

/// What a head says of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadUsage {
    /// Tokens, or why what is said of them may not stand in a bill.
    pub usage: Result<Usage, Odd>,
    /// What is strange in the counts.
    pub oddities: Oddities,
}

/// What the fields of an answer's head, as (name, value), say of tokens; `None` when they say
/// nothing. Of a field that stands there twice the last counts.
pub fn usage_of<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Option<HeadUsage> {
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
    let usage = match (prompt, generated, computed) {
        // TGI, with both.
        (Some(prompt), Some(generated), _) => counted(prompt, generated),
        (Some(_), None, _) | (None, Some(_), _) => Err(Odd::Missing),
        // TEI, which generates nothing.
        (None, None, Some(computed)) => counted(computed, b"0"),
        (None, None, None) => return scanned(metadata?),
    };
    Some(HeadUsage { usage, oddities: Oddities::default() })
}

/// Counts as header fields write them.
fn counted(prompt: &[u8], completion: &[u8]) -> Result<Usage, Odd> {
    let (prompt_tokens, completion_tokens) = (Number::read(prompt)?, Number::read(completion)?);
    let total_tokens = sum([prompt_tokens, completion_tokens])?;
    Ok(Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() })
}

/// JSON as in a body.
fn scanned(metadata: &[u8]) -> Option<HeadUsage> {
    let mut scan = UsageScan::default();
    scan.feed(metadata);
    let facts = scan.facts();
    let usage = facts.fault().map(Err).or(facts.usage().map(Ok))?;
    Some(HeadUsage { usage, oddities: facts.oddities() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &[(&str, &str)]) -> Option<HeadUsage> {
        usage_of(fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn read(fields: &[(&str, &str)]) -> Option<(u64, u64, u64)> {
        let usage = told(fields)?.usage.ok()?;
        Some((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens))
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
        assert_eq!(read(&[("X-COMPUTE-TOKENS", "8"), ("x-queue-time", "1")]), Some((8, 0, 8)));
        let vllm = r#"{"usage": {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}}"#;
        assert_eq!(read(&[("metadata", vllm)]), Some((5, 0, 5)));
    }

    /// Catches: a bill made of what is not a number of tokens, and nobody who is told.
    #[test]
    fn what_cannot_be_is_no_usage_and_says_why() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("content-type", "x"), ("x-prompt-tokensx", "1")]), None);
        for (value, odd) in [
            ("", Odd::NotANumber),
            ("a", Odd::NotANumber),
            ("-1", Odd::Negative),
            ("1.5", Odd::Fraction),
            ("9007199254740993", Odd::TooLarge),
            ("99999999999999999999", Odd::TooLarge),
        ] {
            let json =
                format!("{{\"usage\":{{\"prompt_tokens\":1,\"x\":0,\"total_tokens\":{value}}}}}");
            for fields in [
                &[("x-prompt-tokens", value), ("x-generated-tokens", "1")][..],
                &[("x-prompt-tokens", "1"), ("x-generated-tokens", value)],
                &[("x-compute-tokens", value)],
                &[("metadata", &json)],
            ] {
                let wanted = match value.is_empty() || value == "a" {
                    // Such JSON is none.
                    true if fields[0].0 == "metadata" => None,
                    _ => Some(Err(odd)),
                };
                assert_eq!(told(fields).map(|told| told.usage), wanted, "{fields:?}");
            }
        }
        let missing = Some(Err(Odd::Missing));
        assert_eq!(told(&[("x-prompt-tokens", "12")]).map(|told| told.usage), missing);
        assert_eq!(told(&[("x-generated-tokens", "12")]).map(|told| told.usage), missing);
        let most = "9007199254740992";
        let both = [("x-prompt-tokens", most), ("x-generated-tokens", "1")];
        assert_eq!(told(&both).map(|told| told.usage), Some(Err(Odd::TooLarge)));
        let whole = [("x-prompt-tokens", "12.0"), ("x-generated-tokens", "1e1")];
        assert_eq!(read(&whole), Some((12, 10, 22)), "as in a body");
        let strange = r#"{"usage": {"prompt_tokens": 5, "total_tokens": 9}}"#;
        let told = told(&[("metadata", strange)]).unwrap();
        assert_eq!(told.oddities, Oddities::TOTAL_DIFFERS);
    }
}
