//! What OpenTelemetry's conventions for generative AI call what a request asks for.

/// What the conventions call a request to a path; `None` for what generates nothing.
pub fn operation(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    match path {
        "/chat/completions" | "/messages" | "/responses" | "/api/chat" => Some("chat"),
        "/completions" | "/completion" | "/generate" | "/generate_stream" | "/infill"
        | "/invocations" | "/api/generate" => Some("text_completion"),
        "/embeddings" | "/embedding" | "/embed" | "/embed_all" | "/embed_sparse" | "/api/embed"
        | "/api/embeddings" => Some("embeddings"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::operation;

    /// Catches: an API whose requests are missing from dashboards of these names.
    #[test]
    fn each_api_has_its_operation() {
        for (path, expected) in [
            ("/v1/chat/completions", Some("chat")),
            ("/chat/completions", Some("chat")),
            ("/v1/messages", Some("chat")),
            ("/v1/completions", Some("text_completion")),
            ("/api/generate", Some("text_completion")),
            ("/v1/embeddings", Some("embeddings")),
            ("/v1/models", None),
            ("other", None),
        ] {
            assert_eq!(operation(path), expected, "{path}");
        }
    }
}
