//! Where facts stand in the JSON of an answer, by dialect: the objects that are entered, and what
//! their members mean. Whatever is not named here is stepped over: a client or a model may have
//! written it (the arguments of a tool call, a schema, metadata), and it may say anything.

use crate::llm::dialect::Dialect;

/// Bytes of the longest name below, once its escapes are decoded.
pub const NAME_BYTES_MAX: usize = 27;

/// An object whose members matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UsagePlace {
    /// The data of an event, a line, or a whole answer.
    #[default]
    Top,
    /// `response` of the events of `/v1/responses`.
    Response,
    /// `message` of the events of `/v1/messages`, and of Ollama's lines.
    Message,
    /// An entry of `choices`.
    Choice,
    /// What an event adds to a choice or to a block.
    Delta,
    /// `content_block` of `/v1/messages`.
    Block,
    /// `usage`.
    Usage,
    /// `usage` of `message_start`: what it says of the output is no count yet.
    EarlyUsage,
    /// Details of the prompt, in `usage`.
    PromptDetails,
    /// Details of the completion, in `usage`.
    CompletionDetails,
    /// llama.cpp's `timings`.
    Timings,
    /// SGLang's `meta_info`.
    Meta,
    /// TGI's `details`.
    Details,
    /// TGI's `token`.
    Token,
    /// What went wrong.
    Error,
    /// The data of an event behind the end mark. Clients read no further: an error is heard, and
    /// nothing is billed.
    BehindEnd,
}

/// Which count a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageField {
    /// Tokens of the prompt.
    Prompt,
    /// Tokens of the answer.
    Completion,
    /// Both.
    Total,
    /// Tokens of the prompt: without those that were cached (Messages), or all (Responses).
    Input,
    /// Tokens of the answer, in the same two.
    Output,
    /// Beside `Input`: found in the cache.
    CacheRead,
    /// Beside `Input`: put into the cache.
    CacheCreation,
    /// Of the prompt, found in the cache.
    Cached,
    /// Of the answer, spent on reasoning.
    Reasoning,
    /// llama.cpp: tokens of the prompt that were computed.
    TimedPrompt,
    /// llama.cpp: tokens of the prompt that were not.
    TimedCached,
    /// llama.cpp: tokens of the answer.
    TimedCompletion,
    /// llama.cpp's `tokens_cached`, which meant different things.
    InCache,
    /// Seconds of audio.
    Seconds,
}

/// Fields that there are.
pub const FIELDS: usize = UsageField::Seconds as usize + 1;

/// What a member means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemberName {
    /// Nothing.
    #[default]
    None,
    /// An object whose members matter.
    Enter(UsagePlace),
    /// A list of objects whose members matter.
    Each(UsagePlace),
    /// A number.
    Count(UsageField),
    /// TGI's list with an entry for each token of the prompt.
    Prefill,
    /// What a model wrote, when it is not empty.
    Content,
    /// Why a choice ended, or null.
    Finish,
    /// Which choice it is.
    Index,
    /// True when this is the end.
    End,
    /// A text when this is the end, or null.
    EndText,
    /// The type of an event.
    Type,
    /// What kind of object it says it is.
    Kind,
    /// The answer's id.
    Id,
    /// What went wrong: an object, or a text.
    Error,
    /// A code of what went wrong, the better the lower.
    Code(u8),
}

/// Makes a function for each object, which gives what a name means there; the others mean nothing.
macro_rules! objects {
    ($($(#[$doc:meta])* $object:ident { $($name:literal => $meaning:expr,)* })*) => {
        $($(#[$doc])* fn $object(name: &[u8]) -> Option<MemberName> {
            match name {
                $($name => Some($meaning),)*
                _ => None,
            }
        })*

        #[cfg(test)]
        const NAMES: &[&[u8]] = &[$($($name),*),*];
    };
}

// Those at the top are named for their dialects.
objects! {
    /// What each dialect has at its top.
    openai {
        b"id" => MemberName::Id,
        b"choices" => MemberName::Each(UsagePlace::Choice),
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"timings" => MemberName::Enter(UsagePlace::Timings),
    }
    responses {
        b"delta" => MemberName::Content,
        b"response" => MemberName::Enter(UsagePlace::Response),
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"id" => MemberName::Id,
    }
    messages {
        b"delta" => MemberName::Enter(UsagePlace::Delta),
        b"content_block" => MemberName::Enter(UsagePlace::Block),
        b"message" => MemberName::Enter(UsagePlace::Message),
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"id" => MemberName::Id,
    }
    transcriptions {
        b"delta" => MemberName::Content,
        b"choices" => MemberName::Each(UsagePlace::Choice),
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"id" => MemberName::Id,
    }
    generate {
        b"index" => MemberName::Index,
        b"text" => MemberName::Content,
        b"token" => MemberName::Enter(UsagePlace::Token),
        b"generated_text" => MemberName::EndText,
        b"details" => MemberName::Enter(UsagePlace::Details),
        b"meta_info" => MemberName::Enter(UsagePlace::Meta),
    }
    /// Where llama.cpp has its own form something else may answer as on `/v1`.
    llama_cpp {
        b"index" => MemberName::Index,
        b"content" => MemberName::Content,
        b"stop" => MemberName::End,
        b"tokens_predicted" => MemberName::Count(UsageField::Completion),
        b"tokens_evaluated" => MemberName::Count(UsageField::Prompt),
        b"tokens_cached" => MemberName::Count(UsageField::InCache),
        b"timings" => MemberName::Enter(UsagePlace::Timings),
        b"choices" => MemberName::Each(UsagePlace::Choice),
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"id" => MemberName::Id,
    }
    ollama {
        b"message" => MemberName::Enter(UsagePlace::Message),
        b"response" => MemberName::Content,
        b"thinking" => MemberName::Content,
        b"done" => MemberName::End,
        b"prompt_eval_count" => MemberName::Count(UsageField::Prompt),
        b"eval_count" => MemberName::Count(UsageField::Completion),
    }
    other {
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"id" => MemberName::Id,
    }
    /// What errors have at their top, in every dialect.
    any_top {
        b"object" => MemberName::Kind,
        b"type" => MemberName::Type,
        b"error" => MemberName::Error,
        b"error_type" => MemberName::Code(2),
        b"code" => MemberName::Code(0),
    }
    response {
        b"id" => MemberName::Id,
        b"usage" => MemberName::Enter(UsagePlace::Usage),
        b"error" => MemberName::Enter(UsagePlace::Error),
    }
    message_of_messages {
        b"id" => MemberName::Id,
        b"usage" => MemberName::Enter(UsagePlace::EarlyUsage),
    }
    message_of_ollama {
        b"content" => MemberName::Content,
        b"thinking" => MemberName::Content,
        b"tool_calls" => MemberName::Content,
    }
    choice {
        b"index" => MemberName::Index,
        b"delta" => MemberName::Enter(UsagePlace::Delta),
        b"finish_reason" => MemberName::Finish,
        b"text" => MemberName::Content,
    }
    delta_of_choice {
        b"content" => MemberName::Content,
        b"tool_calls" => MemberName::Content,
        b"reasoning_content" => MemberName::Content,
        b"reasoning" => MemberName::Content,
        b"refusal" => MemberName::Content,
        b"function_call" => MemberName::Content,
    }
    delta_of_block {
        b"text" => MemberName::Content,
        b"partial_json" => MemberName::Content,
        b"thinking" => MemberName::Content,
        b"stop_reason" => MemberName::Finish,
    }
    /// A tool's name is what a model wrote.
    block {
        b"text" => MemberName::Content,
        b"thinking" => MemberName::Content,
        b"name" => MemberName::Content,
    }
    usage {
        b"prompt_tokens" => MemberName::Count(UsageField::Prompt),
        b"completion_tokens" => MemberName::Count(UsageField::Completion),
        b"total_tokens" => MemberName::Count(UsageField::Total),
        b"output_tokens" => MemberName::Count(UsageField::Output),
        b"input_tokens" => MemberName::Count(UsageField::Input),
        b"cache_read_input_tokens" => MemberName::Count(UsageField::CacheRead),
        b"cache_creation_input_tokens" => MemberName::Count(UsageField::CacheCreation),
        b"prompt_tokens_details" => MemberName::Enter(UsagePlace::PromptDetails),
        b"input_tokens_details" => MemberName::Enter(UsagePlace::PromptDetails),
        b"completion_tokens_details" => MemberName::Enter(UsagePlace::CompletionDetails),
        b"output_tokens_details" => MemberName::Enter(UsagePlace::CompletionDetails),
        // SGLang has it beside the counts, others among the details.
        b"reasoning_tokens" => MemberName::Count(UsageField::Reasoning),
        b"cached_tokens" => MemberName::Count(UsageField::Cached),
    }
    prompt_details {
        b"cached_tokens" => MemberName::Count(UsageField::Cached),
    }
    completion_details {
        b"reasoning_tokens" => MemberName::Count(UsageField::Reasoning),
    }
    timings {
        b"prompt_n" => MemberName::Count(UsageField::TimedPrompt),
        b"predicted_n" => MemberName::Count(UsageField::TimedCompletion),
        b"cache_n" => MemberName::Count(UsageField::TimedCached),
    }
    meta {
        b"id" => MemberName::Id,
        b"prompt_tokens" => MemberName::Count(UsageField::Prompt),
        b"completion_tokens" => MemberName::Count(UsageField::Completion),
        b"cached_tokens" => MemberName::Count(UsageField::Cached),
        b"reasoning_tokens" => MemberName::Count(UsageField::Reasoning),
        b"finish_reason" => MemberName::Finish,
    }
    details {
        b"generated_tokens" => MemberName::Count(UsageField::Completion),
        b"input_length" => MemberName::Count(UsageField::Prompt),
        b"prefill" => MemberName::Prefill,
    }
    token {
        b"text" => MemberName::Content,
    }
    error {
        b"code" => MemberName::Code(0),
        b"http_status_code" => MemberName::Code(1),
        b"type" => MemberName::Code(3),
    }
}

impl MemberName {
    /// What the member `name` means at the top of a whole answer. What an event has inside of an
    /// object of its own (`response`, `message`) stands at the top here, and what is inside of an
    /// object of that name may be anybody's.
    pub fn of_whole(dialect: Dialect, name: &[u8]) -> MemberName {
        match (dialect, MemberName::of(dialect, UsagePlace::Top, name)) {
            (Dialect::Responses | Dialect::Messages, MemberName::Enter(place))
                if place != UsagePlace::Usage =>
            {
                MemberName::None
            }
            (_, name) => name,
        }
    }

    /// What the member `name` means there.
    pub fn of(dialect: Dialect, place: UsagePlace, name: &[u8]) -> MemberName {
        let meaning = match place {
            UsagePlace::Top => {
                return top(dialect, name).or_else(|| any_top(name)).unwrap_or_default()
            }
            UsagePlace::Response => response(name),
            UsagePlace::Message if dialect == Dialect::Ollama => message_of_ollama(name),
            UsagePlace::Message => message_of_messages(name),
            UsagePlace::Choice => choice(name),
            UsagePlace::Delta if dialect == Dialect::Messages => delta_of_block(name),
            UsagePlace::Delta => delta_of_choice(name),
            UsagePlace::Block => block(name),
            UsagePlace::EarlyUsage if name == b"output_tokens" => return MemberName::None,
            UsagePlace::Usage if dialect == Dialect::Transcriptions && name == b"seconds" => {
                return MemberName::Count(UsageField::Seconds)
            }
            UsagePlace::Usage | UsagePlace::EarlyUsage => usage(name),
            UsagePlace::PromptDetails => prompt_details(name),
            UsagePlace::CompletionDetails => completion_details(name),
            UsagePlace::Timings => timings(name),
            UsagePlace::Meta => meta(name),
            UsagePlace::Details => details(name),
            UsagePlace::Token => token(name),
            UsagePlace::Error => error(name),
            UsagePlace::BehindEnd => any_top(name),
        };
        meaning.unwrap_or_default()
    }
}

fn top(dialect: Dialect, name: &[u8]) -> Option<MemberName> {
    match dialect {
        Dialect::OpenAi => openai(name),
        Dialect::Responses => responses(name),
        Dialect::Messages => messages(name),
        Dialect::Transcriptions => transcriptions(name),
        Dialect::Generate => generate(name),
        Dialect::LlamaCpp | Dialect::Completions => llama_cpp(name),
        Dialect::Ollama => ollama(name),
        Dialect::Embeddings | Dialect::Other => other(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a name that is longer than what is kept of one, and so is never found when its
    /// bytes arrive in two pieces.
    #[test]
    fn no_name_is_longer_than_what_is_kept() {
        assert_eq!(NAMES.iter().map(|name| name.len()).max(), Some(NAME_BYTES_MAX));
    }
}
