//! From a request to what shall be played: routes, knobs, and the request's own wishes.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use memchr::memmem;
use serde_json::json;

use super::bad::{self, Then};
use super::control;
use super::knobs::{Close, HeadTime, Knobs, Split};
use super::message::{self, Delimiter, HeadStyle, Kind, Message};
use super::receive::{Request, Wishes};
use super::server::{Key, Worker};
use crate::script::errors::{self, error_body};
use crate::script::{answer_body, checksum, Api, Ask, Dialect, Usage};

/// What shall be played.
pub struct Reply {
    /// The writes
    pub message: Rc<Message>,
    /// The knobs of this request
    pub knobs: Rc<Knobs>,
    /// From the request to the first event
    pub delay: Duration,
    /// From one step to the next
    pub gap: Duration,
    /// Silence after which a comment is sent
    pub comment: Option<Duration>,
    /// Broken bytes to send instead of the message
    pub bad: Option<(Vec<u8>, Then)>,
    /// It is about the engine itself and is not noted
    pub is_control: bool,
}

impl Reply {
    fn at_once(message: Message) -> Self {
        Reply {
            message: Rc::new(message),
            knobs: Rc::default(),
            delay: Duration::ZERO,
            gap: Duration::ZERO,
            comment: None,
            bad: None,
            is_control: false,
        }
    }
}

/// A request, complete.
pub struct Received<'a> {
    /// What the head says
    pub request: &'a Request,
    /// The head as it came; empty when nobody will look at it
    pub head: &'a str,
    /// The body, chunk framing taken off
    pub body: &'a [u8],
}

/// Decides the answer to one request; `is_last` says that the connection serves no more.
pub fn decide(worker: &Worker, received: &Received<'_>, is_last: bool) -> Reply {
    let Received { request, body, .. } = *received;
    let dialect = worker.shared.options.dialect;
    let closes = request.wants_close || is_last;
    let style = HeadStyle { dialect, status: 200, closes, extra: "" };
    let path = request.target.split('?').next().unwrap_or_default();
    if path.starts_with("/mock/") {
        let (status, text) = control::answer(&worker.shared, &request.method, &request.target);
        let reply = Reply::at_once(json_message(HeadStyle { status, ..style }, text.as_bytes()));
        return Reply { is_control: true, ..reply };
    }
    let mut knobs = worker.knobs();
    for (name, value) in &request.knobs {
        if let Err(why) = Rc::make_mut(&mut knobs).set(name, value) {
            let text = json!({ "error": { "message": why, "type": "mock" } }).to_string();
            let style = HeadStyle { status: 400, ..style };
            return Reply::at_once(json_message(style, text.as_bytes()));
        }
    }
    let body_kb = body.len() as f64 / 1024.0;
    let delay_ms = knobs.ttft_ms + knobs.prefill_us_per_kb * body_kb / 1e3;
    let delay = Duration::from_secs_f64(delay_ms.max(0.0) / 1e3);
    let gap = Duration::from_secs_f64(knobs.gap_ms.max(0.0) / 1e3);
    let comment = knobs.comment_ms.unwrap_or(match dialect {
        Dialect::Tgi => 15_000,
        Dialect::Llamacpp => 30_000,
        _ => 0,
    });
    let comment = (comment > 0).then(|| Duration::from_millis(comment));
    let mut bad = None;
    // A failing engine may well look healthy; POST /mock/health decides about probes.
    let status = knobs.status.filter(|_| request.method == "POST");
    let has_options = || memmem::find(body, b"\"stream_options\"").is_some();
    let refusal = knobs.refuse_options.filter(|_| status.is_none() && has_options());
    let message = if knobs.echo {
        Rc::new(json_message(style, echo(received).as_bytes()))
    } else if let Some(status) = refusal {
        let text = errors::refused_options(status);
        Rc::new(json_message(HeadStyle { status, ..style }, text.as_bytes()))
    } else if let Some(status) = status {
        Rc::new(failure(worker, &knobs, status, closes))
    } else if let Some(api) = api_of(dialect, path) {
        let ask = ask_of(worker, request, body, api, &knobs);
        bad = broken(&knobs, &ask);
        generation(worker, ask, &knobs, closes, request.is_http10)
    } else {
        let mut message = probe(worker, path, style)
            .or_else(|| load(dialect, path, style, knobs.load))
            .unwrap_or_else(|| failure(worker, &Knobs::default(), 404, closes));
        if request.method == "HEAD" {
            message.drop_body();
        }
        return Reply { knobs, ..Reply::at_once(message) };
    };
    Reply { message, knobs, delay, gap, comment, bad, is_control: false }
}

fn broken(knobs: &Knobs, ask: &Ask) -> Option<(Vec<u8>, Then)> {
    let name = knobs.bad.as_deref()?;
    let body = answer_body(&Ask { stream: false, ..ask.clone() });
    bad::answer(name, knobs.bad_bytes, &body)
}

fn json_message(style: HeadStyle<'_>, body: &[u8]) -> Message {
    message::whole(style, Kind::Json, Delimiter::Length(body.len()), body)
}

fn failure(worker: &Worker, knobs: &Knobs, status: u16, closes: bool) -> Message {
    let dialect = worker.shared.options.dialect;
    let (_, body) = error_body(dialect, status);
    let extra = match knobs.retry_after {
        Some(seconds) => format!("retry-after: {seconds}\r\n"),
        None => String::new(),
    };
    // cpp-httplib closes after every 4xx and 5xx.
    let closes = closes || dialect == Dialect::Llamacpp || knobs.close != Close::Never;
    json_message(HeadStyle { dialect, status, closes, extra: &extra }, body.as_bytes())
}

fn api_of(dialect: Dialect, path: &str) -> Option<Api> {
    Some(match (path, dialect) {
        ("/v1/chat/completions", _) => Api::Chat,
        ("/v1/completions", _) => Api::Completions,
        ("/v1/embeddings", _) => Api::Embeddings,
        ("/v1/responses" | "/v1/messages", Dialect::Tgi) => return None,
        ("/v1/responses", _) => Api::Responses,
        ("/v1/messages", _) => Api::Messages,
        ("/generate", Dialect::Tgi | Dialect::Sglang) => Api::Generate,
        ("/generate_stream", Dialect::Tgi) => Api::Generate,
        ("/completion" | "/completions" | "/infill", Dialect::Llamacpp) => Api::Completion,
        ("/api/chat", Dialect::Ollama | Dialect::Sglang) => Api::OllamaChat,
        ("/api/generate", Dialect::Ollama | Dialect::Sglang) => Api::OllamaGenerate,
        _ => return None,
    })
}

/// What knobs and request together ask for.
fn ask_of(worker: &Worker, request: &Request, body: &[u8], api: Api, knobs: &Knobs) -> Ask {
    let wishes = Wishes::read(body);
    let explicit = request.knobs.iter().any(|(name, _)| name == "tokens");
    let natural = knobs.tokens.unwrap_or(16);
    // An engine stops at max_tokens; a test that names a count gets that count.
    let limit = wishes.max_tokens.filter(|_| !explicit).unwrap_or(u32::MAX);
    let tokens = natural.min(limit);
    let by_default = matches!(api, Api::OllamaChat | Api::OllamaGenerate);
    let stream = match api {
        Api::Embeddings => false,
        Api::Generate if worker.shared.options.dialect == Dialect::Tgi => {
            request.target.starts_with("/generate_stream")
        }
        _ => wishes.stream.unwrap_or(by_default),
    };
    let usage =
        knobs.usage.unwrap_or(Usage { prompt: 12, completion: u64::from(tokens), cached: None });
    Ask {
        dialect: worker.shared.options.dialect,
        api,
        stream,
        include_usage: wishes.include_usage,
        continuous_usage: wishes.continuous_usage,
        forced_usage: knobs.force_usage,
        usage_steps: knobs.usage_steps,
        details: wishes.details,
        raw: wishes.raw && worker.shared.options.dialect == Dialect::Vllm,
        model: wishes.model.unwrap_or_else(|| "m".to_string()),
        tokens,
        event_bytes: knobs.event_bytes,
        answer_bytes: knobs.answer_bytes,
        seed: knobs.seed,
        cut: natural > tokens,
        tricky: knobs.tricky,
        usage: Usage { cached: usage.cached.or(knobs.cached), ..usage },
    }
}

fn generation(
    worker: &Worker,
    ask: Ask,
    knobs: &Knobs,
    closes: bool,
    is_http10: bool,
) -> Rc<Message> {
    let closes = closes || knobs.close != Close::Never;
    // uvicorn answers HTTP/1.0 in chunks all the same; the others let the close delimit.
    let delimited = is_http10 && !matches!(ask.dialect, Dialect::Vllm | Dialect::Sglang);
    let merged = knobs.split == Split::Merged;
    let is_plain = knobs.error.is_none()
        && knobs.retry_after.is_none()
        && knobs.encoding.is_none()
        && knobs.close != Close::Delimited
        && !delimited;
    if !is_plain {
        let close = if delimited { Close::Delimited } else { knobs.close };
        let mut made = message::answer(&ask, &Knobs { close, ..knobs.clone() }, closes);
        if merged {
            made.merge();
        }
        return Rc::new(made);
    }
    let head = match knobs.head {
        HeadTime::Dialect => 0,
        HeadTime::Early => 1,
        HeadTime::Late => 2,
    };
    worker.rendered(Key { ask, closes, merged, head }, |key| {
        let mut made = message::answer(&key.ask, knobs, key.closes);
        if merged {
            made.merge();
        }
        made
    })
}

/// The request as it was received, for tests of what a gateway forwards.
fn echo(received: &Received<'_>) -> String {
    let Received { request, head, body } = received;
    let fields: Vec<_> = head.lines().skip(1).filter_map(|line| line.split_once(':')).collect();
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name, value.trim())).collect();
    json!({
        "method": request.method,
        "target": request.target,
        "fields": fields,
        "head": head,
        "body_len": body.len(),
        "body_hash": format!("{:016x}", checksum(body)),
        "body": String::from_utf8_lossy(body.get(..65_536).unwrap_or(body)),
    })
    .to_string()
}

/// Health, versions and model lists.
fn probe(worker: &Worker, path: &str, style: HeadStyle<'_>) -> Option<Message> {
    let options = &worker.shared.options;
    let status = worker.shared.health.load(Relaxed);
    let is_well = status == 200;
    let healthy = HeadStyle { status, ..style };
    let text = |style, kind, body: &str| {
        Some(message::whole(style, kind, Delimiter::Length(body.len()), body.as_bytes()))
    };
    match (options.dialect, path) {
        (Dialect::Vllm, "/health" | "/ping")
        | (Dialect::Sglang, "/health" | "/health_generate" | "/ready" | "/ping")
        | (Dialect::Tgi, "/" | "/health" | "/ping")
            if is_well =>
        {
            text(healthy, Kind::Untyped, "")
        }
        (Dialect::Vllm | Dialect::Sglang, "/health" | "/health_generate" | "/ready" | "/ping") => {
            text(healthy, Kind::Untyped, "")
        }
        (Dialect::Tgi, "/" | "/health" | "/ping") => {
            text(healthy, Kind::Json, r#"{"error":"unhealthy","error_type":"healthcheck"}"#)
        }
        (Dialect::Llamacpp, "/health" | "/v1/health") if is_well => {
            text(healthy, Kind::Json, r#"{"status":"ok"}"#)
        }
        (Dialect::Llamacpp, "/health" | "/v1/health") => text(
            healthy,
            Kind::Json,
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
        ),
        (Dialect::Ollama, "/") => text(healthy, Kind::Text, "Ollama is running"),
        (Dialect::Ollama, "/api/version") => text(healthy, Kind::Json, r#"{"version":"0.12.0"}"#),
        (Dialect::Ollama, "/api/tags" | "/api/ps") => {
            let models: Vec<_> = options.models.iter().map(|m| json!({ "name": m })).collect();
            text(style, Kind::Json, &json!({ "models": models }).to_string())
        }
        (Dialect::Vllm | Dialect::Sglang, "/tokenize") => text(
            style,
            Kind::Json,
            r#"{"count":3,"max_model_len":4096,"tokens":[1,2,3],"token_strs":null}"#,
        ),
        (Dialect::Llamacpp, "/tokenize") => text(style, Kind::Json, r#"{"tokens":[1,2,3]}"#),
        (Dialect::Tgi, "/tokenize") => {
            text(style, Kind::Json, r#"[{"id":1,"text":"a","start":0,"stop":1}]"#)
        }
        (Dialect::Sglang, "/rerank" | "/v1/rerank") => {
            text(style, Kind::Json, r#"[{"score":0.9,"index":0}]"#)
        }
        (Dialect::Vllm | Dialect::Llamacpp, "/rerank" | "/v1/rerank" | "/v2/rerank") => text(
            style,
            Kind::Json,
            r#"{"model":"m","usage":{"prompt_tokens":12,"total_tokens":12},"results":[{"index":0,"relevance_score":0.9}]}"#,
        ),
        (Dialect::Vllm | Dialect::Sglang, "/score" | "/v1/score") => text(
            style,
            Kind::Json,
            r#"{"id":"score-0","object":"list","created":1700000000,"model":"m","data":[{"index":0,"object":"score","score":0.9}],"usage":{"prompt_tokens":12,"total_tokens":12,"completion_tokens":0,"prompt_tokens_details":null}}"#,
        ),
        (Dialect::Tgi, "/info") => {
            text(style, Kind::Json, r#"{"model_id":"m","router":"text-generation-router"}"#)
        }
        (_, "/v1/models") => {
            let data: Vec<_> = options.models.iter().map(|m| model(options.dialect, m)).collect();
            text(style, Kind::Json, &json!({ "object": "list", "data": data }).to_string())
        }
        _ => None,
    }
}

/// The page for Prometheus, with the gauges of the load alone.
fn load(
    dialect: Dialect,
    path: &str,
    style: HeadStyle<'_>,
    (running, waiting): (u32, u32),
) -> Option<Message> {
    let (run, wait) = match dialect {
        Dialect::Vllm => (
            "vllm:num_requests_running{engine=\"0\",model_name=\"m\"}",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"}",
        ),
        Dialect::Sglang => {
            ("sglang:num_running_reqs{model_name=\"m\"}", "sglang:num_queue_reqs{model_name=\"m\"}")
        }
        Dialect::Tgi => ("tgi_batch_current_size", "tgi_queue_size"),
        Dialect::Llamacpp => ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
        Dialect::Ollama => return None,
    };
    let page = format!("# TYPE a gauge\n{run} {running}.0\n{wait} {waiting}.0\n");
    let body = page.as_bytes();
    (path == "/metrics")
        .then(|| message::whole(style, Kind::Text, Delimiter::Length(body.len()), body))
}

fn model(dialect: Dialect, name: &str) -> serde_json::Value {
    let (owner, length) = match dialect {
        Dialect::Vllm => ("vllm", Some(4096)),
        Dialect::Sglang => ("sglang", Some(4096)),
        // It says that the model owns itself.
        Dialect::Tgi => (name, None),
        Dialect::Llamacpp => ("llamacpp", None),
        Dialect::Ollama => ("library", None),
    };
    let mut model = json!({
        "id": name, "object": "model", "created": 1_700_000_000, "owned_by": owner,
    });
    if let (Some(length), Some(fields)) = (length, model.as_object_mut()) {
        fields.insert("max_model_len".into(), length.into());
    }
    model
}
