//! What a run does: the command line, and the requests made from it.

use clap::Parser;

use crate::net::Address;
use crate::script::{expected_body, Api, Ask, Dialect, Usage};

/// Sends chat requests and measures the answers.
#[derive(Debug, Clone, Parser)]
#[command(name = "loadgen")]
pub struct Plan {
    /// http://HOST:PORT, https://HOST:PORT (any certificate) or unix:/path; several spread the
    /// connections over them
    #[arg(long, required = true)]
    pub target: Vec<Address>,
    /// Path of the requests
    #[arg(long, default_value = "/v1/chat/completions")]
    pub path: String,
    /// Further request fields, "Name: value"
    #[arg(long)]
    pub header: Vec<String>,
    /// Knobs for the mock engine, "name=value" becomes "x-mock-name: value"
    #[arg(long)]
    pub mock: Vec<String>,
    /// Model named in the requests
    #[arg(long, default_value = "m")]
    pub model: String,
    /// Ask for streams
    #[arg(long)]
    pub stream: bool,
    /// Ask for the usage event of a stream
    #[arg(long)]
    pub include_usage: bool,
    /// Open loop: requests per second, whether or not answers come
    #[arg(long)]
    pub rate: Option<f64>,
    /// Connections; in the open loop the most that are opened
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Closed loop: exchanges at a time, in turn over all connections [all]
    #[arg(long)]
    pub active: Option<usize>,
    /// Seconds to measure
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Stop after so many requests (warm-up included), if that is sooner
    #[arg(long)]
    pub requests: Option<u64>,
    /// Seconds before measuring
    #[arg(long, default_value_t = 0.0)]
    pub warmup: f64,
    /// Seconds over which the connections are opened [1 for each 5000 of them]
    #[arg(long)]
    pub ramp: Option<f64>,
    /// Seconds that exchanges under way may take at the end
    #[arg(long, default_value_t = 5.0)]
    pub drain: f64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Content events of a stream
    #[arg(long)]
    pub tokens: Option<u32>,
    /// Milliseconds before the first event
    #[arg(long)]
    pub ttft_ms: Option<f64>,
    /// Milliseconds between content events
    #[arg(long)]
    pub gap_ms: Option<f64>,
    /// Characters of content in an event
    #[arg(long)]
    pub event_bytes: Option<u32>,
    /// Bytes of an unstreamed answer
    #[arg(long)]
    pub answer_bytes: Option<u32>,
    /// Characters of the prompt
    #[arg(long, default_value_t = 16)]
    pub prompt_bytes: usize,
    /// Different texts that are asked for in turn
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// Compare every body byte with what the mock engine must have sent
    #[arg(long)]
    pub verify: bool,
    /// The mock engine's dialect, for --verify: vllm, sglang, tgi, llamacpp, ollama
    #[arg(long, default_value = "vllm")]
    pub dialect: Dialect,
    /// Read no faster than this
    #[arg(long)]
    pub read_bytes_per_sec: Option<u64>,
    /// Leave each stream after so many events
    #[arg(long)]
    pub abort_after_events: Option<u64>,
    /// Leave each answer after so many milliseconds
    #[arg(long)]
    pub abort_after_ms: Option<u64>,
    /// A new connection for each request
    #[arg(long)]
    pub no_keepalive: bool,
    /// Milliseconds of silence that fail an exchange
    #[arg(long, default_value_t = 30_000)]
    pub timeout_ms: u64,
    /// Send a different x-request-id with each request
    #[arg(long)]
    pub request_ids: bool,
    /// Different API keys that are shown in turn: sk-bench-00000000, -00000001 ... [none]
    #[arg(long, default_value_t = 0)]
    pub keys: u64,
    /// Write the results as JSON to this file; - = standard output
    #[arg(long)]
    pub json: Option<String>,
    /// No table and no progress line
    #[arg(long)]
    pub quiet: bool,
}

/// A request ready to be sent.
#[derive(Debug)]
pub struct Prepared {
    /// The head, its empty line included
    pub head: Vec<u8>,
    /// Where 16 digits of the request id stand in the head
    pub id_at: Option<usize>,
    /// The body
    pub body: Vec<u8>,
    /// What must come back, if that is checked
    pub expected: Option<Vec<u8>>,
}

/// Stands where the request id will be.
const ID_PLACE: &str = "################";

impl Plan {
    /// Exchanges at a time.
    pub fn active(&self) -> usize {
        self.active.unwrap_or(self.connections)
    }

    /// Seconds over which connections are opened.
    pub fn ramp_seconds(&self) -> f64 {
        let gentle = if self.connections > 1000 { self.connections as f64 / 5000.0 } else { 0.0 };
        self.ramp.unwrap_or(gentle)
    }

    /// Whether a body is JSON lines, where each line is an event.
    pub fn is_lines(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// Thread `index`'s share of the work.
    pub fn share(&self, index: usize) -> Plan {
        let threads = self.threads.max(1);
        let part = |whole: usize| whole / threads + usize::from(index < whole % threads);
        let requests = self.requests.map(|n| part(n as usize) as u64);
        Plan {
            connections: part(self.connections),
            active: self.active.map(part),
            rate: self.rate.map(|rate| rate / threads as f64),
            requests,
            ..self.clone()
        }
    }

    /// The requests that are sent in turn.
    pub fn prepare(&self) -> Vec<Prepared> {
        let body = self.body().into_bytes();
        let seeds = self.seeds.max(1);
        (0..seeds.max(self.keys))
            .map(|turn| {
                let seed = turn % seeds;
                let head = self.head(seed, turn, body.len());
                let id_at = head.find(ID_PLACE);
                let expected = self.verify.then(|| expected_body(&self.ask(seed)));
                Prepared { head: head.into_bytes(), id_at, body: body.clone(), expected }
            })
            .collect()
    }

    /// What the mock engine is asked for, as its script sees it.
    pub fn ask(&self, seed: u64) -> Ask {
        let default = Ask::default();
        let tokens = self.tokens.unwrap_or(default.tokens);
        let api = match self.path.as_str() {
            "/v1/completions" => Api::Completions,
            "/v1/embeddings" => Api::Embeddings,
            "/v1/responses" => Api::Responses,
            "/v1/messages" => Api::Messages,
            "/generate" | "/generate_stream" => Api::Generate,
            "/completion" => Api::Completion,
            "/api/chat" => Api::OllamaChat,
            "/api/generate" => Api::OllamaGenerate,
            _ => Api::Chat,
        };
        Ask {
            dialect: self.dialect,
            api,
            stream: self.stream,
            include_usage: self.include_usage && self.stream,
            model: self.model.clone(),
            tokens,
            event_bytes: self.event_bytes.unwrap_or(default.event_bytes),
            answer_bytes: self.answer_bytes.unwrap_or(0),
            seed,
            usage: Usage { completion: u64::from(tokens), ..default.usage },
            ..default
        }
    }

    fn body(&self) -> String {
        let prompt: String =
            "The quick brown fox jumps over it. ".chars().cycle().take(self.prompt_bytes).collect();
        let input = match self.path.as_str() {
            "/v1/embeddings" | "/v1/responses" => format!(r#""input":"{prompt}""#),
            "/generate" | "/generate_stream" => format!(r#""inputs":"{prompt}""#),
            "/v1/completions" | "/completion" | "/api/generate" => {
                format!(r#""prompt":"{prompt}""#)
            }
            _ => format!(r#""messages":[{{"role":"user","content":"{prompt}"}}]"#),
        };
        let stream = match (self.stream, self.include_usage) {
            (true, true) => r#""stream":true,"stream_options":{"include_usage":true},"#,
            (true, false) => r#""stream":true,"#,
            (false, _) if self.is_lines() => r#""stream":false,"#,
            (false, _) => "",
        };
        format!(r#"{{"model":"{}",{stream}{input}}}"#, self.model)
    }

    fn head(&self, seed: u64, turn: u64, length: usize) -> String {
        let mut head = format!(
            "POST {} HTTP/1.1\r\nHost: loadtest\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n",
            self.path
        );
        let mut field = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        if self.no_keepalive {
            field("Connection", "close");
        }
        if self.request_ids {
            field("x-request-id", &format!("load-{ID_PLACE}"));
        }
        if let Some(key) = turn.checked_rem(self.keys) {
            field("Authorization", &format!("Bearer sk-bench-{key:08}"));
        }
        let mut knob = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                field(&format!("x-mock-{name}"), &value);
            }
        };
        knob("tokens", self.tokens.map(|n| n.to_string()));
        knob("ttft-ms", self.ttft_ms.map(|n| n.to_string()));
        knob("gap-ms", self.gap_ms.map(|n| n.to_string()));
        knob("event-bytes", self.event_bytes.map(|n| n.to_string()));
        knob("answer-bytes", self.answer_bytes.map(|n| n.to_string()));
        knob("seed", (self.seeds > 1).then(|| seed.to_string()));
        for pair in &self.mock {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
            knob(name, Some(value.to_string()));
        }
        for line in &self.header {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head + "\r\n"
    }
}
