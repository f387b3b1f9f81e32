//! The endpoints of engines that are known by name: which of them are forwarded unless the file
//! says otherwise, which methods they have, and which paths manage an engine instead of asking it.

/// An endpoint of one engine or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its whole path; also its label in metrics.
    pub path: &'static str,
    /// What it answers.
    pub methods: Methods,
}

/// Methods of an endpoint. `OPTIONS` is everywhere: browsers ask with it before they post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// `POST`: the body is the request.
    Post,
    /// `GET` and `HEAD`.
    Read,
    /// All three.
    PostOrRead,
    /// `GET`, `HEAD` and `DELETE`.
    ReadOrDelete,
}

/// The known endpoints, those that are asked most often first. All are forwarded by default: they
/// infer, or they list models.
///
/// The OpenAI-shaped ones with and without their version; then what vLLM, SGLang, TGI, llama.cpp,
/// Ollama, TEI and SageMaker-style servers have of their own.
pub const ENDPOINTS: &[Endpoint] = &[
    post("/v1/chat/completions"),
    post("/v1/completions"),
    post("/v1/embeddings"),
    post("/v1/responses"),
    post("/v1/messages"),
    post("/v1/messages/count_tokens"),
    read("/v1/models"),
    post("/v1/rerank"),
    post("/v1/reranking"),
    post("/v1/score"),
    post("/v1/classify"),
    post("/v1/pooling"),
    post("/v1/tokenize"),
    post("/v1/detokenize"),
    post("/v1/moderations"),
    post("/v1/audio/transcriptions"),
    post("/v1/audio/translations"),
    post("/v1/audio/speech"),
    post("/v1/images/generations"),
    post("/v1/images/edits"),
    post("/v1/images/variations"),
    post("/v2/rerank"),
    post("/chat/completions"),
    post("/completions"),
    post("/embeddings"),
    post("/responses"),
    read("/models"),
    post("/generate"),
    post("/generate_stream"),
    post("/completion"),
    post("/infill"),
    post("/invocations"),
    post("/tokenize"),
    post("/detokenize"),
    post("/chat_tokenize"),
    post("/apply-template"),
    post("/embed"),
    post("/embed_all"),
    post("/embed_sparse"),
    post("/embedding"),
    post("/rerank"),
    post("/reranking"),
    post("/score"),
    post("/classify"),
    post("/pooling"),
    post("/api/chat"),
    post("/api/generate"),
    post("/api/embed"),
    post("/api/embeddings"),
    read("/api/tags"),
    read("/api/ps"),
    post("/api/show"),
    read("/api/version"),
    Endpoint { path: "/ping", methods: Methods::PostOrRead },
    read("/version"),
];

/// Prefixes that are forwarded by default beside [`ENDPOINTS`]: one model by its name, and one
/// stored answer.
pub const PREFIXES: &[&str] = &["/v1/models/*", "/v1/responses/*"];

/// What stands below the list of models. Names have slashes, which clients encode
/// (`/v1/models/org%2Fname`), and who only reads cannot ask for anything else with one.
pub const BELOW_MODELS: &str = "/v1/models/";

/// What stands below the responses of the API of that name: stored ones. They are read, deleted and
/// cancelled there; whatever an engine would make of a POST, nobody would count.
pub const BELOW_RESPONSES: &str = "/v1/responses/";

/// Paths by which engines are managed: models pulled, deleted or put to sleep, weights and adapters
/// changed, caches emptied, prompts of others read. None is forwarded unless `server.paths` names
/// it, and what is named there is warned of, be it one of them or a prefix that covers one.
pub const MANAGEMENT: &[&str] = &[
    // vLLM and SGLang.
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/load_lora_adapter",
    "/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/flush_cache",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/collective_rpc",
    "/start_profile",
    "/stop_profile",
    "/abort_request",
    "/pause",
    "/resume",
    "/pause_generation",
    "/continue_generation",
    "/open_session",
    "/close_session",
    "/set_internal_state",
    "/configure_logging",
    "/scale_elastic_ep",
    "/update_weights",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/init_weights_update_group",
    "/get_weights_by_name",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/server_info",
    "/get_server_info",
    // llama.cpp.
    "/slots",
    "/props",
    "/lora-adapters",
    "/models/load",
    "/models/unload",
    // Ollama.
    OLLAMA_DELETE,
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/blobs/",
    // All of them.
    "/metrics",
];

/// Paths that we answer ourselves, beside the metrics page.
pub const OWN_PATHS: [&str; 2] = ["/health", "/ready"];

/// The one endpoint of any engine whose DELETE has a body.
pub const OLLAMA_DELETE: &str = "/api/delete";

impl Endpoint {
    /// The endpoint with this very path.
    pub fn of(path: &[u8]) -> Option<&'static Endpoint> {
        ENDPOINTS.iter().find(|endpoint| endpoint.path.as_bytes() == path)
    }
}

/// Those paths of [`MANAGEMENT`] that an entry of `server.paths` opens. Engines differ in what they
/// make of a slash at the end and of capitals: both count as the path itself.
pub fn opened_by(entry: &str) -> impl Iterator<Item = &'static str> {
    let plain = entry.to_ascii_lowercase();
    MANAGEMENT.iter().copied().filter(move |path| match plain.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix) || is_below(prefix, path),
        None => plain.trim_end_matches('/') == path.trim_end_matches('/') || is_below(&plain, path),
    })
}

/// True for what stands below a path that is the beginning of many.
fn is_below(named: &str, path: &str) -> bool {
    path.ends_with('/') && named.starts_with(path)
}

/// The default of `server.paths`.
pub fn default_paths() -> Vec<String> {
    let known = ENDPOINTS.iter().map(|endpoint| endpoint.path);
    known.chain(PREFIXES.iter().copied()).map(str::to_owned).collect()
}

const fn post(path: &'static str) -> Endpoint {
    Endpoint { path, methods: Methods::Post }
}

const fn read(path: &'static str) -> Endpoint {
    Endpoint { path, methods: Methods::Read }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_an_engine_is_known_in_any_spelling() {
        for entry in ["/sleep", "/sleep/", "/SLEEP", "/sle*", "/*", "/api/blobs/sha256:1", "/api/*"]
        {
            assert!(opened_by(entry).next().is_some(), "{entry}");
        }
        for entry in ["/sleeping", "/v1/*", "/v1/models/*"] {
            assert_eq!(opened_by(entry).find(|path| !path.starts_with("/v1/")), None, "{entry}");
        }
    }

    /// Catches: a management path that is open by default, or a path that stands twice.
    #[test]
    fn nothing_that_manages_an_engine_is_open_by_default() {
        let open = default_paths();
        for path in MANAGEMENT {
            assert!(opened_by(path).any(|opened| opened == *path), "{path}");
        }
        for path in &open {
            assert_eq!(opened_by(path).next(), None, "{path}");
        }
        for (at, path) in open.iter().enumerate() {
            assert!(!open[..at].contains(path), "{path} stands twice");
        }
    }
}
