//! Tokens of one request, as an engine counted them.

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
    pub fn plus(self, other: Usage) -> Usage {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        Usage {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            cached_tokens: sum(self.cached_tokens, other.cached_tokens),
            reasoning_tokens: sum(self.reasoning_tokens, other.reasoning_tokens),
        }
    }
}

/// What is strange in counts that are kept all the same: somebody should look at the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities(u8);

impl Oddities {
    /// A zero came after a count; the count was kept.
    pub const ZERO_AFTER_COUNT: Oddities = Oddities(1);
    /// More tokens of the prompt were cached than it had.
    pub const CACHED_EXCEEDS_PROMPT: Oddities = Oddities(2);
    /// Each of them, with its name in records.
    pub const ALL: [(Oddities, &'static str); 2] = [
        (Oddities::ZERO_AFTER_COUNT, "zero_after_count"),
        (Oddities::CACHED_EXCEEDS_PROMPT, "cached_exceeds_prompt"),
    ];

    /// These and those.
    pub fn and(self, others: Oddities) -> Oddities {
        Oddities(self.0 | others.0)
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
        let both = Oddities::ZERO_AFTER_COUNT.and(Oddities::CACHED_EXCEEDS_PROMPT);
        match self.0 & both.0 {
            0 => None,
            all if all == both.0 => Some("zero_after_count,cached_exceeds_prompt"),
            _ => self.names().next(),
        }
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Oddities::ALL.into_iter().filter(move |(one, _)| self.0 & one.0 != 0).map(|(_, name)| name)
    }
}

/// A number of tokens in a field of a head; `None` for one that cannot be.
pub fn count(number: &[u8]) -> Option<u64> {
    // 16 digits cannot overflow.
    if number.is_empty() || number.len() > 16 || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = number.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (count <= TOKENS_MAX).then_some(count)
}
