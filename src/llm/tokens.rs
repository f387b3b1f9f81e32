//! Tokens of one request, as an engine counted them.

use super::usage::number::{sum, Odd};
use std::sync::LazyLock;

/// Beyond this an integer is not exact in every JSON parser (RFC 8259 section 6), and no engine
/// ever counted so far.
pub const TOKENS_MAX: u64 = 1 << 53;

/// Tokens of one request as an engine reported them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens`, or `input_tokens` with the cached ones that Anthropic's form leaves out.
    pub prompt_tokens: u64,
    /// `completion_tokens` or `output_tokens`.
    pub completion_tokens: u64,
    /// `total_tokens`, or the sum.
    pub total_tokens: u64,
    /// Of the prompt: found in the engine's prefix cache. `None` when it does not say.
    pub cached_tokens: Option<u64>,
    /// Of the completion: spent on reasoning. `None` when it does not say.
    pub reasoning_tokens: Option<u64>,
}

impl Usage {
    /// Both together: two choices that an engine answered as tasks of their own.
    pub fn plus(self, other: Usage) -> Result<Usage, Odd> {
        let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => sum([a, b]).map(Some),
            (a, b) => Ok(a.or(b)),
        };
        Ok(Usage {
            prompt_tokens: sum([self.prompt_tokens, other.prompt_tokens])?,
            completion_tokens: sum([self.completion_tokens, other.completion_tokens])?,
            total_tokens: sum([self.total_tokens, other.total_tokens])?,
            cached_tokens: both(self.cached_tokens, other.cached_tokens)?,
            reasoning_tokens: both(self.reasoning_tokens, other.reasoning_tokens)?,
        })
    }
}

/// The names of each set of oddities that there may be, by its bits, in one text.
static WORDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let sets = 0..1 << Oddities::ALL.len();
    sets.map(|bits| Oddities(bits).names().collect::<Vec<_>>().join(",")).collect()
});

/// What is strange in counts that are kept all the same: somebody should look at the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities(u8);

impl Oddities {
    /// A zero came after a count; the count was kept.
    pub const ZERO_AFTER_COUNT: Oddities = Oddities(1);
    /// More tokens of the prompt were cached than it had.
    pub const CACHED_EXCEEDS_PROMPT: Oddities = Oddities(2);
    /// The total is not the sum of prompt and completion.
    pub const TOTAL_DIFFERS: Oddities = Oddities(4);
    /// Something stood behind the JSON of the answer, or of an event of it: clients may not have
    /// been able to read it.
    pub const TEXT_BEHIND: Oddities = Oddities(8);
    /// Each of them, with its name in records.
    pub const ALL: [(Oddities, &'static str); 4] = [
        (Oddities::ZERO_AFTER_COUNT, "zero_after_count"),
        (Oddities::CACHED_EXCEEDS_PROMPT, "cached_exceeds_prompt"),
        (Oddities::TOTAL_DIFFERS, "total_differs"),
        (Oddities::TEXT_BEHIND, "text_behind"),
    ];

    /// These and those.
    pub fn and(self, others: Oddities) -> Oddities {
        Oddities(self.0 | others.0)
    }

    /// These, and those if it is so.
    pub fn and_if(self, is_so: bool, others: Oddities) -> Oddities {
        if is_so {
            self.and(others)
        } else {
            self
        }
    }

    /// As bits, for the spool.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// From bits; those that this version does not know stay.
    pub fn from_bits(bits: u8) -> Oddities {
        Oddities(bits)
    }

    /// True when there is nothing strange.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their names in one text; `None` when there is none.
    pub fn words(self) -> Option<&'static str> {
        let words = WORDS.get(usize::from(self.0) % WORDS.len())?;
        Some(words.as_str()).filter(|words| !words.is_empty())
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Oddities::ALL.into_iter().filter(move |(one, _)| self.0 & one.0 != 0).map(|(_, name)| name)
    }
}
