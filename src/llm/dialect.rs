//! How an answer speaks of tokens, errors and its own end, as the path that was asked tells. The
//! engines differ less within a path than between paths: what one of them leaves out of a path's
//! form or adds to it is known where that form is read.

/// The form of the answers of one path (engines: vLLM, SGLang, TGI, llama.cpp, Ollama).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/chat/completions`, `/v1/completions`: `usage`, ended by `[DONE]`.
    OpenAi,
    /// `/v1/responses`: `response.usage` of the last event, ended by that event.
    Responses,
    /// `/v1/messages`: `usage` in two parts, ended by `message_stop`.
    Messages,
    /// Embeddings, rerank, score, classify, pooling: one object with `usage`, or none at all.
    Embeddings,
    /// Audio to text: `usage` in tokens or in seconds.
    Transcriptions,
    /// `/generate`, `/generate_stream`: SGLang's `meta_info` or TGI's `details`.
    Generate,
    /// llama.cpp's own `/completion` and `/infill`.
    LlamaCpp,
    /// `/completions` without its version: llama.cpp's own form too, and OpenAI's where another
    /// engine answers. Which of them it is, the answer tells.
    Completions,
    /// Ollama's own `/api/...`: one JSON object a line.
    Ollama,
    /// Nothing is known: `usage` is looked for, no end is asked for.
    #[default]
    Other,
}

/// A path without version and leading slash, or the end of a longer one, and its dialect.
const PATHS: &[(&str, Dialect)] = &[
    ("chat/completions", Dialect::OpenAi),
    ("v1/completions", Dialect::OpenAi),
    ("responses", Dialect::Responses),
    ("messages", Dialect::Messages),
    ("embeddings", Dialect::Embeddings),
    ("embed", Dialect::Embeddings),
    ("rerank", Dialect::Embeddings),
    ("score", Dialect::Embeddings),
    ("classify", Dialect::Embeddings),
    ("pooling", Dialect::Embeddings),
    ("audio/transcriptions", Dialect::Transcriptions),
    ("audio/translations", Dialect::Transcriptions),
    ("generate", Dialect::Generate),
    ("generate_stream", Dialect::Generate),
    ("completion", Dialect::LlamaCpp),
    ("completions", Dialect::Completions),
    ("infill", Dialect::LlamaCpp),
];
/// Bytes of the longest words below, and of what must stand before them; a longer path is told by
/// itself.
const WORDS_BYTES_MAX: usize = 32;
/// Ollama's, which share their last words with others.
const OLLAMA_PATHS: &[&str] = &["api/chat", "api/generate", "api/embed", "api/embeddings"];

impl Dialect {
    /// The dialect in which a path (without its query) is answered. Whatever stands before the
    /// known words, and a slash behind them, changes nothing.
    pub fn of(path: &[u8]) -> Dialect {
        // What nearly all ask for, before all else is looked at.
        if path == b"/v1/chat/completions" {
            return Dialect::OpenAi;
        }
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if OLLAMA_PATHS.iter().any(|ours| ends_with_words(path, ours)) {
            return Dialect::Ollama;
        }
        let known = PATHS.iter().find(|(words, _)| ends_with_words(path, words));
        known.map_or(Dialect::Other, |(_, dialect)| *dialect)
    }

    /// The dialect of a path behind a base path, where the base decides it: `/completions` is
    /// OpenAI's behind `/v1`. `None`: it is that of the path alone.
    pub fn behind(base: &str, path: &[u8]) -> Option<Dialect> {
        let mut joined = [0; 2 * WORDS_BYTES_MAX];
        let tail = base.as_bytes().last_chunk::<WORDS_BYTES_MAX>();
        let base = tail.map_or(base.as_bytes(), |tail| tail.as_slice());
        let whole = joined.get_mut(..base.len() + path.len())?;
        let (start, rest) = whole.split_at_mut(base.len());
        start.copy_from_slice(base);
        rest.copy_from_slice(path);
        Some(Dialect::of(whole)).filter(|dialect| *dialect != Dialect::Other)
    }

    /// The dialect of a request whose path has this one, by what its body asks for: `generates`
    /// when it has `messages` or a `prompt`. vLLM's `/invocations` is any of its endpoints.
    pub fn with_body(self, path: &[u8], generates: bool) -> Dialect {
        match self {
            Dialect::Other if !ends_with_words(path, "invocations") => Dialect::Other,
            Dialect::Other if generates => Dialect::OpenAi,
            Dialect::Other => Dialect::Embeddings,
            known => known,
        }
    }

    /// True where a model goes on from a prompt, of which its engine keeps what it has computed.
    pub fn generates(self) -> bool {
        !matches!(self, Dialect::Embeddings | Dialect::Transcriptions | Dialect::Other)
    }

    /// True for the engines' own forms, whose counts stand under names of their own.
    pub fn is_native(self) -> bool {
        matches!(self, Dialect::Generate | Dialect::Ollama) || self.is_llama_cpp()
    }

    /// True for llama.cpp's own form.
    pub fn is_llama_cpp(self) -> bool {
        matches!(self, Dialect::LlamaCpp | Dialect::Completions)
    }

    /// True where an engine may tell the usage of a stream because it is asked for it. Whoever
    /// tells it anyway, or does not know the wish, passes over it (llama.cpp).
    pub fn takes_wish(self) -> bool {
        matches!(self, Dialect::OpenAi | Dialect::Completions)
    }
}

/// True when the path is these segments, or ends with them.
fn ends_with_words(path: &[u8], words: &str) -> bool {
    path.strip_suffix(words.as_bytes()).is_some_and(|before| before.ends_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a path whose answers are read in another engine's form, or not at all.
    #[test]
    fn the_path_tells_the_dialect() {
        for (path, dialect) in [
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/v1/chat/completions/", Dialect::OpenAi),
            ("/base/v1/completions", Dialect::OpenAi),
            ("/chat/completions", Dialect::OpenAi),
            ("/v1/responses", Dialect::Responses),
            ("/v1/responses/resp_1", Dialect::Other),
            ("/v1/messages", Dialect::Messages),
            ("/v1/messages/count_tokens", Dialect::Other),
            ("/v1/embeddings", Dialect::Embeddings),
            ("/embed", Dialect::Embeddings),
            ("/v2/rerank", Dialect::Embeddings),
            ("/score", Dialect::Embeddings),
            ("/classify", Dialect::Embeddings),
            ("/pooling", Dialect::Embeddings),
            ("/v1/audio/transcriptions", Dialect::Transcriptions),
            ("/v1/audio/translations", Dialect::Transcriptions),
            ("/generate", Dialect::Generate),
            ("/generate_stream", Dialect::Generate),
            ("/completion", Dialect::LlamaCpp),
            ("/completions", Dialect::Completions),
            ("/infill", Dialect::LlamaCpp),
            ("/api/chat", Dialect::Ollama),
            ("/api/generate", Dialect::Ollama),
            ("/api/embed", Dialect::Ollama),
            ("/api/embeddings", Dialect::Ollama),
            ("/api/tags", Dialect::Other),
            ("/v1/models", Dialect::Other),
            ("/regenerate", Dialect::Other),
            ("/", Dialect::Other),
            ("*", Dialect::Other),
            ("", Dialect::Other),
        ] {
            assert_eq!(Dialect::of(path.as_bytes()), dialect, "{path}");
        }
    }

    /// Catches: a dialect by what the client wrote instead of by what the engine is asked.
    #[test]
    fn a_base_path_and_a_body_tell_it_too() {
        for (base, path, dialect) in [
            ("/v1", "/completions", Some(Dialect::OpenAi)),
            ("/x/v1", "/completions/", Some(Dialect::OpenAi)),
            ("/v1", "/v1/chat/completions", Some(Dialect::OpenAi)),
            ("/x", "/completions", Some(Dialect::Completions)),
            ("/api", "/chat", Some(Dialect::Ollama)),
            ("/api", "/generate", Some(Dialect::Ollama)),
            ("/v1", "/models", None),
        ] {
            assert_eq!(Dialect::behind(base, path.as_bytes()), dialect, "{base} {path}");
        }
        let long = format!("/{}/v1/completions", "x".repeat(100));
        assert_eq!(Dialect::behind("/v1", long.as_bytes()), None, "the path alone tells");
        assert_eq!(Dialect::behind(&long, b"/v1/completions"), Some(Dialect::OpenAi));
        let of = |path: &[u8], generates| Dialect::of(path).with_body(path, generates);
        assert_eq!(of(b"/invocations", true), Dialect::OpenAi);
        assert_eq!(of(b"/invocations", false), Dialect::Embeddings);
        assert_eq!(of(b"/v1/messages", true), Dialect::Messages);
        assert_eq!(of(b"/v1/files", true), Dialect::Other);
    }
}
