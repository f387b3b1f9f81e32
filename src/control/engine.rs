//! What engine a backend is, where the configuration leaves that to be found out. Asked are the few
//! paths by which they can be told apart; what is found changes where the probes go, and never
//! makes them stricter: a guess must not take a backend out of service that serves.

use super::visit;
use crate::base::limits::{
    ENGINE_GUESSES_MAX, ENGINE_GUESS_TIME, MODEL_LIST_BYTES_MAX, PEEKED_ANSWER_BYTES_MAX,
};
use crate::config::plan::Engine;
use crate::http::request::Method;
use crate::rt::await_peer;
use crate::state::member::Member;
use serde::Deserialize;

/// What llama.cpp's server calls itself in each of its answers. The others do not say who they are:
/// `uvicorn` is vLLM's and SGLang's, and many another's.
const LLAMA_CPP: &[u8] = b"llama.cpp";

/// How often one backend was asked since it came up.
#[derive(Debug, Default)]
pub(super) struct Guess {
    asked: u32,
}

impl Guess {
    /// A probe was answered well; `server` is what the answer calls its server. Finds out what the
    /// backend is, unless that is known, or was asked often enough.
    pub(super) async fn hear_well(&mut self, member: &Member, server: Option<&[u8]>) {
        if member.engine() != Engine::Auto || self.asked >= ENGINE_GUESSES_MAX {
            return;
        }
        self.asked += 1;
        let found = match server {
            Some(LLAMA_CPP) => Some(Engine::LlamaCpp),
            _ => await_peer(ENGINE_GUESS_TIME, ask(member)).await.flatten(),
        };
        if let Some(engine) = found {
            member.set_engine(engine);
            let (backend, engine) = (&*member.name, engine.name());
            tracing::info!(backend, engine, "it is known what engine the backend is");
        }
    }

    /// The backend is down: what comes back may be another engine.
    pub(super) fn hear_down(&mut self, member: &Member) {
        self.asked = 0;
        member.set_engine(Engine::Auto);
    }
}

/// Asks what all but Ollama and TGI tell with their models, and then for what only these have.
async fn ask(member: &Member) -> Option<Engine> {
    let models = get(member, "/v1/models", MODEL_LIST_BYTES_MAX).await;
    if let Some(engine) = models.and_then(|body| owner(&body)) {
        return Some(engine);
    }
    if let Some(body) = get(member, "/api/version", PEEKED_ANSWER_BYTES_MAX).await {
        if serde_json::from_slice::<Version>(&body).is_ok() {
            return Some(Engine::Ollama);
        }
    }
    let info = get(member, "/info", PEEKED_ANSWER_BYTES_MAX).await?;
    let info: Info = serde_json::from_slice(&info).ok()?;
    info.router.starts_with("text-generation-router").then_some(Engine::Tgi)
}

/// The body of a good answer.
async fn get(member: &Member, path: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let mut link = visit::open(member, ENGINE_GUESS_TIME).await.ok()?;
    visit::send(&mut link, member, ("GET", path), "health").await.ok()?;
    let mut bytes = Vec::new();
    let head = visit::read_head(&mut link, Method::Get, &mut bytes).await.ok()?;
    let is_good = head.status == 200 && !head.encoded;
    match is_good {
        true => visit::read_body(&mut link, &head, bytes, bytes_max).await.ok(),
        false => None,
    }
}

/// Of a list of models.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    owned_by: String,
}

/// Ollama's `/api/version`.
#[derive(Deserialize)]
struct Version {
    #[serde(rename = "version")]
    _version: String,
}

/// TGI's `/info`.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    router: String,
}

/// The engine that says of a model that it owns it.
fn owner(body: &[u8]) -> Option<Engine> {
    let models: Models = serde_json::from_slice(body).ok()?;
    models.data.iter().find_map(|model| match model.owned_by.as_str() {
        "vllm" => Some(Engine::Vllm),
        "sglang" => Some(Engine::Sglang),
        "llamacpp" => Some(Engine::LlamaCpp),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an engine that is told from what a model is called, and one that is guessed.
    #[test]
    fn an_engine_is_told_by_who_owns_its_models() {
        for (owned_by, engine) in [
            ("vllm", Some(Engine::Vllm)),
            ("sglang", Some(Engine::Sglang)),
            ("llamacpp", Some(Engine::LlamaCpp)),
            ("library", None),
            ("vLLM", None),
            ("", None),
        ] {
            let body =
                format!(r#"{{"data":[{{"id":"vllm"}},{{"id":"m","owned_by":"{owned_by}"}}]}}"#);
            assert_eq!(owner(body.as_bytes()), engine, "{owned_by}");
        }
        for garbage in ["", "[]", "{}", r#"{"data":null}"#, r#"{"data":[{"owned_by":7}]}"#] {
            assert_eq!(owner(garbage.as_bytes()), None, "{garbage}");
        }
    }
}
