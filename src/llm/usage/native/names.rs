//! The members that matter, by dialect and place.

use crate::llm::dialect::Dialect;

/// Bytes of the longest name below; a longer one is none of them.
pub const NAME_BYTES_MAX: usize = 20;

/// Which object a member stands in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Section {
    /// An object of the answer.
    #[default]
    Top,
    /// One inside it whose members matter.
    Inner(Inner),
}

/// The objects inside that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inner {
    /// SGLang's `meta_info`.
    Meta,
    /// TGI's `details`.
    Details,
    /// llama.cpp's `timings`.
    Timings,
    /// `usage`, as everywhere else.
    Usage,
}

/// What a member is to us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Name {
    /// Nothing.
    #[default]
    None,
    /// Tokens of the prompt.
    Prompt,
    /// Tokens of the answer.
    Completion,
    /// Of the prompt, reused.
    Cached,
    /// Of the answer, reasoning.
    Reasoning,
    /// Tokens of the prompt that were computed, as timed.
    TimedPrompt,
    /// Tokens of the answer, as timed.
    TimedCompletion,
    /// llama.cpp's `tokens_cached`.
    InCache,
    /// The end mark: true or false.
    End,
    /// The end mark: text or null.
    Text,
    /// Why a choice ended, or null.
    Finish,
    /// An error.
    Error,
    /// A list with an entry for each token of the prompt.
    Prefill,
    /// An object whose members matter.
    Object(Inner),
}

impl Name {
    /// What `name` means there. Names are compared as they are written: no engine escapes them.
    pub fn of(dialect: Dialect, section: Section, name: &[u8]) -> Name {
        match (dialect, section) {
            (_, Section::Top) if name == b"error" => Name::Error,
            (Dialect::Ollama, Section::Top) => match name {
                b"done" => Name::End,
                b"prompt_eval_count" => Name::Prompt,
                b"eval_count" => Name::Completion,
                _ => Name::None,
            },
            (Dialect::LlamaCpp, Section::Top) => match name {
                b"stop" => Name::End,
                b"tokens_evaluated" => Name::Prompt,
                b"tokens_predicted" => Name::Completion,
                b"tokens_cached" => Name::InCache,
                b"timings" => Name::Object(Inner::Timings),
                // On `/completions` something else than llama.cpp may answer as on `/v1`.
                b"usage" => Name::Object(Inner::Usage),
                _ => Name::None,
            },
            (_, Section::Inner(Inner::Timings)) => match name {
                b"prompt_n" => Name::TimedPrompt,
                b"predicted_n" => Name::TimedCompletion,
                b"cache_n" => Name::Cached,
                _ => Name::None,
            },
            (Dialect::Generate, Section::Top) => match name {
                b"generated_text" => Name::Text,
                b"details" => Name::Object(Inner::Details),
                b"meta_info" => Name::Object(Inner::Meta),
                _ => Name::None,
            },
            (_, Section::Inner(Inner::Details)) => match name {
                b"generated_tokens" => Name::Completion,
                b"input_length" => Name::Prompt,
                b"prefill" => Name::Prefill,
                _ => Name::None,
            },
            (_, Section::Inner(Inner::Meta | Inner::Usage)) => match name {
                b"prompt_tokens" => Name::Prompt,
                b"completion_tokens" => Name::Completion,
                b"cached_tokens" => Name::Cached,
                b"reasoning_tokens" => Name::Reasoning,
                b"finish_reason" => Name::Finish,
                _ => Name::None,
            },
            _ => Name::None,
        }
    }
}
