//! One `usage` object becomes token counts, whatever the names in it.

use super::json::{Fault, Reader};

mod plain;
pub use plain::read_plain;

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

/// One usage object, and whether others may complete it.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    usage: Usage,
    /// Written with `input_tokens`/`output_tokens`: Anthropic streams report in two parts.
    in_parts: bool,
}

/// Reads a whole object. `None` when it holds no tokens (audio seconds, all zeros as Ollama and
/// LocalAI send before the real one) or a number that cannot be: a wrong bill is worse than a
/// missing one, because a missing one is seen.
pub fn read(object: &[u8]) -> Option<Report> {
    Counts::read(&mut Reader::new(object)).ok()?.report()
}

impl Report {
    /// This report, the later one, with what only the earlier one said. Anthropic's
    /// `message_start` has the input and `message_delta` the output, some with a better input
    /// (Ollama's first is an estimate). All other reports stand alone.
    pub fn after(mut self, earlier: Option<Report>) -> Report {
        if let Some(Report { usage: earlier, in_parts: true }) = earlier.filter(|_| self.in_parts) {
            let usage = &mut self.usage;
            let missing = earlier.prompt_tokens.saturating_sub(usage.prompt_tokens);
            usage.prompt_tokens += missing;
            usage.total_tokens += missing;
            usage.cached_tokens = usage.cached_tokens.or(earlier.cached_tokens);
        }
        self
    }

    /// The tokens.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// The numbers by the names that engines use.
#[derive(Default)]
struct Counts {
    prompt: Option<u64>,
    completion: Option<u64>,
    total: Option<u64>,
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_creation: Option<u64>,
    cached: Option<u64>,
    reasoning: Option<u64>,
    /// A number was negative, broken or beyond [`TOKENS_MAX`].
    absurd: bool,
}

impl Counts {
    fn report(&self) -> Option<Report> {
        if self.absurd {
            return None;
        }
        let in_parts = self.prompt.is_none() && self.completion.is_none();
        let uncached = self.input.unwrap_or(0);
        let input = uncached + self.cache_read.unwrap_or(0) + self.cache_creation.unwrap_or(0);
        let prompt_tokens = self.prompt.unwrap_or(input);
        let completion_tokens = self.completion.or(self.output).unwrap_or(0);
        let usage = Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: self.total.unwrap_or(prompt_tokens + completion_tokens),
            cached_tokens: self.cached.or(self.cache_read),
            reasoning_tokens: self.reasoning,
        };
        let empty = usage.total_tokens == 0 && prompt_tokens == 0 && completion_tokens == 0;
        (!empty).then_some(Report { usage, in_parts })
    }

    fn read(reader: &mut Reader<'_>) -> Result<Counts, Fault> {
        let mut counts = Counts::default();
        let mut key = reader.enter_object()?;
        while let Some(name) = key {
            match wanted_of(name) {
                Some(wanted) => counts.details(wanted, reader)?,
                None => counts.member(name, reader)?,
            }
            key = reader.next_key()?;
        }
        Ok(counts)
    }

    /// Where the number under a name belongs.
    fn field(&mut self, name: &[u8]) -> Option<&mut Option<u64>> {
        Some(match name {
            b"prompt_tokens" => &mut self.prompt,
            b"completion_tokens" => &mut self.completion,
            b"total_tokens" => &mut self.total,
            b"input_tokens" => &mut self.input,
            b"output_tokens" => &mut self.output,
            b"cache_read_input_tokens" => &mut self.cache_read,
            b"cache_creation_input_tokens" => &mut self.cache_creation,
            b"cached_tokens" => &mut self.cached,
            // SGLang has it beside the counts, others among the details.
            b"reasoning_tokens" => &mut self.reasoning,
            _ => return None,
        })
    }

    /// Reads the value of one key.
    fn member(&mut self, name: &[u8], reader: &mut Reader<'_>) -> Result<(), Fault> {
        let Some(field) = self.field(name) else { return reader.skip_value() };
        if !matches!(reader.peek(), Some(b'-' | b'0'..=b'9')) {
            return reader.skip_value();
        }
        match count(reader.number()?) {
            Some(count) => *field = Some(count),
            None => self.absurd = true,
        }
        Ok(())
    }

    /// Reads a details object (or the null that vLLM sends for none) for one number in it.
    fn details(&mut self, wanted: &[u8], reader: &mut Reader<'_>) -> Result<(), Fault> {
        if reader.peek() != Some(b'{') {
            return reader.skip_value();
        }
        let mut key = reader.enter_object()?;
        while let Some(name) = key {
            if name == wanted {
                self.member(name, reader)?;
            } else {
                reader.skip_value()?;
            }
            key = reader.next_key()?;
        }
        Ok(())
    }
}

/// The number that is wanted of a details object, by the name of that.
fn wanted_of(details: &[u8]) -> Option<&'static [u8]> {
    match details {
        b"prompt_tokens_details" | b"input_tokens_details" => Some(b"cached_tokens"),
        b"completion_tokens_details" | b"output_tokens_details" => Some(b"reasoning_tokens"),
        _ => None,
    }
}

/// A number of tokens; `None` for one that cannot be.
pub fn count(number: &[u8]) -> Option<u64> {
    // 16 digits cannot overflow, and a JSON number has no zeros before the others.
    if number.is_empty() || number.len() > 16 || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = number.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (count <= TOKENS_MAX).then_some(count)
}
