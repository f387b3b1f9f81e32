//! One `usage` object becomes token counts, whatever the names in it.

use super::json::{Fault, Reader};

/// Beyond this an integer is not exact in every JSON parser (RFC 8259 section 6), and no engine
/// ever counted so far.
const TOKENS_MAX: u64 = 1 << 53;

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
    let counts = Counts::read(&mut Reader::new(object)).ok()?;
    if counts.absurd {
        return None;
    }
    let in_parts = counts.prompt.is_none() && counts.completion.is_none();
    let uncached = counts.input.unwrap_or(0);
    let input = uncached + counts.cache_read.unwrap_or(0) + counts.cache_creation.unwrap_or(0);
    let prompt_tokens = counts.prompt.unwrap_or(input);
    let completion_tokens = counts.completion.or(counts.output).unwrap_or(0);
    let usage = Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: counts.total.unwrap_or(prompt_tokens + completion_tokens),
        cached_tokens: counts.cached.or(counts.cache_read),
        reasoning_tokens: counts.reasoning,
    };
    let empty = usage.total_tokens == 0 && prompt_tokens == 0 && completion_tokens == 0;
    (!empty).then_some(Report { usage, in_parts })
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
    fn read(reader: &mut Reader<'_>) -> Result<Counts, Fault> {
        let mut counts = Counts::default();
        let mut key = reader.enter_object()?;
        while let Some(name) = key {
            match name {
                b"prompt_tokens_details" | b"input_tokens_details" => {
                    counts.details(b"cached_tokens", reader)?;
                }
                b"completion_tokens_details" | b"output_tokens_details" => {
                    counts.details(b"reasoning_tokens", reader)?;
                }
                _ => counts.member(name, reader)?,
            }
            key = reader.next_key()?;
        }
        Ok(counts)
    }

    /// Reads the value of one key.
    fn member(&mut self, name: &[u8], reader: &mut Reader<'_>) -> Result<(), Fault> {
        let field = match name {
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
            _ => return reader.skip_value(),
        };
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

/// A number of tokens; `None` for one that cannot be.
fn count(number: &[u8]) -> Option<u64> {
    let count = std::str::from_utf8(number).ok()?.parse().ok()?;
    (count <= TOKENS_MAX).then_some(count)
}
