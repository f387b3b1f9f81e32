//! What the mock engine says in every dialect, the product reads: two programs that share no code
//! agree on every engine's form.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops loudly")]

use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::ending::ended;
use llmproxy::llm::header_usage;
use llmproxy::llm::inflate::{self, Coding};
use llmproxy::llm::sse::EventFraming;
use llmproxy::llm::usage::UsageScan;
use loadtest::mock::pack::Packing;
use loadtest::script::{self, errors, Api, Ask, Dialect as Engine, Usage};

/// Every endpoint of every engine.
fn endpoints() -> Vec<(Engine, Api, &'static str)> {
    const ENGINES: [Engine; 5] =
        [Engine::Vllm, Engine::Sglang, Engine::Tgi, Engine::Llamacpp, Engine::Ollama];
    let mut all = vec![
        (Engine::Tgi, Api::Generate, "/generate_stream"),
        (Engine::Sglang, Api::Generate, "/generate"),
        (Engine::Llamacpp, Api::Completion, "/completion"),
        (Engine::Ollama, Api::OllamaChat, "/api/chat"),
        (Engine::Ollama, Api::OllamaGenerate, "/api/generate"),
    ];
    for engine in ENGINES {
        all.push((engine, Api::Chat, "/v1/chat/completions"));
        all.push((engine, Api::Completions, "/v1/completions"));
        all.push((engine, Api::Embeddings, "/v1/embeddings"));
        if engine != Engine::Tgi {
            all.push((engine, Api::Responses, "/v1/responses"));
            all.push((engine, Api::Messages, "/v1/messages"));
        }
    }
    all
}

fn ask(dialect: Engine, api: Api, stream: bool) -> Ask {
    Ask {
        dialect,
        api,
        stream: stream && api != Api::Embeddings,
        include_usage: true,
        details: true,
        tricky: true,
        tokens: 9,
        usage: Usage { prompt: 40, completion: 9, cached: Some(8) },
        ..Ask::default()
    }
}

/// Usage, end mark and error of a body fed in pieces of seven bytes.
fn read(
    dialect: Dialect,
    framing: Option<EventFraming>,
    body: &[u8],
) -> (Option<(u64, u64)>, bool, bool) {
    let mut usage = UsageScan::default();
    usage.expect(dialect, framing);
    body.chunks(7).for_each(|piece| usage.feed(piece));
    let counts = usage.usage().map(|u| (u.prompt_tokens, u.completion_tokens));
    (counts, ended(dialect, &usage) == Some(true), usage.facts().error())
}

fn framing(api: Api, stream: bool) -> Option<EventFraming> {
    match api {
        _ if !stream => None,
        Api::OllamaChat | Api::OllamaGenerate => Some(EventFraming::Lines),
        _ => Some(EventFraming::Events),
    }
}

/// Catches: an engine whose counts or end the product misses, in text made to mislead it.
#[test]
fn every_engine_is_understood() {
    for (engine, api, path) in endpoints() {
        let dialect = Dialect::of(path.as_bytes());
        for stream in [true, false] {
            let ask = ask(engine, api, stream);
            let expected = match api {
                Api::Embeddings => Some((40, 0)),
                // The head of a whole answer has both, and its body the completion alone.
                Api::Generate if engine == Engine::Tgi && !stream => None,
                _ => Some((40, 9)),
            };
            let body = script::expected_body(&ask);
            let (usage, ended, error) = read(dialect, framing(api, ask.stream), &body);
            assert_eq!((usage, error), (expected, false), "{engine:?} {api:?} {stream}");
            assert!(ended || !ask.stream, "{engine:?} {api:?}");
        }
    }
}

/// Catches: raw embeddings, whose body says nothing, and whose head is not read.
#[test]
fn the_head_of_raw_embeddings_has_their_usage() {
    let ask = Ask { raw: true, ..ask(Engine::Vllm, Api::Embeddings, false) };
    let metadata = script::metadata(&ask);
    let fields = [(&b"Metadata"[..], metadata.as_bytes())];
    let usage = header_usage::usage_of(fields).unwrap();
    let usage = usage.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (40, 0));
    let (of_body, _, error) = read(Dialect::Embeddings, None, &script::answer_body(&ask));
    assert_eq!((of_body, error), (None, false));
}

/// Catches: a failure inside a stream that counts as an answer.
#[test]
fn every_engines_error_in_a_stream_is_noticed() {
    for (engine, api, path) in endpoints() {
        let pieces = errors::in_stream(engine, api, 0);
        let body: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        let framing = framing(api, true);
        let (usage, _, error) = read(Dialect::of(path.as_bytes()), framing, &body);
        assert_eq!(usage, None);
        // Where the engine says nothing (it just ends), there is nothing to notice.
        assert_eq!(error, says_error(&body), "{engine:?} {api:?}");
    }
}

fn says_error(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).contains("error")
}

/// Catches: a packed stream or body whose usage is lost.
#[test]
fn every_engine_is_understood_packed() {
    for packing in [Packing::Gzip, Packing::Deflate, Packing::Zstd] {
        let coding = Coding::of(packing.name().as_bytes()).unwrap();
        for (engine, api, path) in endpoints() {
            for stream in [true, false] {
                let ask = ask(engine, api, stream);
                let packed: Vec<u8> = if ask.stream {
                    let pieces = packing.pieces(script::stream_pieces(&ask));
                    pieces.into_iter().flat_map(|piece| piece.bytes).collect()
                } else {
                    packing.body(&script::answer_body(&ask))
                };
                let form = (Dialect::of(path.as_bytes()), framing(api, ask.stream));
                let found = inflate::read(coding, &packed, form);
                let plain = script::expected_body(&ask);
                let mut scan = UsageScan::default();
                scan.expect(form.0, form.1);
                scan.feed(&plain);
                let is_in_head = engine == Engine::Tgi && api == Api::Generate && !stream;
                assert!(scan.usage().is_some() || is_in_head);
                let usage = found.map(|found| found.usage());
                assert_eq!(usage, Ok(scan.usage()), "{packing:?} {engine:?} {api:?}");
            }
        }
    }
}
