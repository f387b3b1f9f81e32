//! A story for a person: what was asked, then a line for each thing that happened, with when.

use crate::base::line::for_terminal;
use crate::usage::flight::story::FlightStory;

/// The whole of it. What clients, keys and engines are called cannot steer a terminal.
pub fn told(story: &FlightStory) -> String {
    let mut lines = vec![heading(story), asked(story)];
    lines.extend(whose(story));
    let mut events = events(story);
    // Those of the same moment stay in the order in which they happen.
    events.sort_by_key(|(at_ms, _)| *at_ms);
    let digits = story.latency_ms.to_string().len().max(6);
    let events = events.into_iter();
    lines.extend(events.map(|(at_ms, event)| format!("  {at_ms:>digits$} ms  {event}")));
    lines.push(amounts(story));
    lines.iter().map(|line| for_terminal(line) + "\n").collect()
}

fn heading(story: &FlightStory) -> String {
    let theirs = story.client_request_id.as_ref();
    let theirs = theirs.map(|id| format!(" (the client's: {id})")).unwrap_or_default();
    format!("request {}{theirs}, {}", story.request_id, story.timestamp)
}

fn asked(story: &FlightStory) -> String {
    let what = match story.method.as_str() {
        "" => "a head that could not be read".to_owned(),
        method => format!("{method} {}", story.path),
    };
    let model = match (&story.model, &story.served_model) {
        (Some(model), Some(served)) => format!(", model {model} (at the engines: {served})"),
        (Some(model), None) => format!(", model {model}"),
        (None, _) => String::new(),
    };
    format!("  {what}{model}{}", if story.is_stream { ", a stream" } else { "" })
}

/// Whose it is, where that is known.
fn whose(story: &FlightStory) -> Option<String> {
    let parts = [
        story.key_id.as_ref().map(|id| format!("key {id}")),
        story.key_name.as_ref().map(|name| format!("name {name}")),
        story.user_id.as_ref().map(|user| format!("user {user}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("  {}", parts.join(", ")))
}

fn events(story: &FlightStory) -> Vec<(u64, String)> {
    let mut events = vec![(0, "its head is here".to_owned())];
    let first_pick = story.failed_tries.first().map(|one| one.picked_ms).or(story.picked_ms);
    if let Some(waited) = story.queue_wait_ms {
        match first_pick {
            Some(at_ms) => events.push((at_ms, format!("its turn, after {waited} ms of waiting"))),
            None => events.push((story.latency_ms, format!("has waited for {waited} ms in vain"))),
        }
    }
    for one in &story.failed_tries {
        events.push((one.picked_ms, format!("to {} ({})", one.backend, why(&one.picked_by))));
        events.push((one.failed_ms, format!("{} failed: {}", one.backend, one.reason)));
    }
    let untold = story.failed_count.saturating_sub(story.failed_tries.len() as u64);
    if let (Some(last), 1..) = (story.failed_tries.last(), untold) {
        events.push((
            last.failed_ms,
            format!("and {untold} more that failed, of which no more is kept"),
        ));
    }
    // Where the last try that failed was followed by none, it is told already.
    let is_new = story.failed_count <= u64::from(story.retry_count);
    if let (Some(at_ms), Some(backend), true) = (story.picked_ms, &story.backend, is_new) {
        let by = story.picked_by.as_deref().unwrap_or_default();
        events.push((at_ms, format!("to {backend} ({})", why(by))));
    }
    if let Some(at_ms) = story.first_byte_ms {
        events.push((at_ms, "first byte of the answer".to_owned()));
    }
    if let (Some(at_ms), 1..) = (story.ttft_ms, story.events) {
        events.push((at_ms, "first token".to_owned()));
    }
    events.push((story.latency_ms, end(story)));
    events
}

/// Why a backend got a try.
fn why(word: &str) -> &str {
    match word {
        "only_one" => "no other one serves the model",
        "round_robin" => "its turn, round_robin",
        "least_connections" => "least_connections",
        "latency_based" => "likely to be sooner, latency_based",
        "random" => "drawn, random",
        "prefix_affinity" => "least to do, prefix_affinity",
        "prefix" => "has read the beginning of the prompt",
        "session" => "where its session is at home",
        "spilled" => "those before it could not take it",
        "rule" => "a rule of routing.fallback",
        "again" => "once more",
        // What a newer gateway says.
        other => other,
    }
}

fn end(story: &FlightStory) -> String {
    let code = story.error.as_deref().unwrap_or("no reason is known");
    let (status, backend) = (story.status_code, story.backend.as_deref());
    let backend = backend.unwrap_or("the engine");
    let engine = story.engine_error.as_ref();
    let engine = engine.map(|word| format!(" (its word: {word})")).unwrap_or_default();
    match story.status.as_str() {
        "complete" if code == "quota_exhausted" => {
            format!("cut where the quota of its key ended: {code}, status {status}")
        }
        "complete" if story.backend.is_none() => {
            format!("answered by the gateway, status {status}")
        }
        "complete" => format!("complete, status {status}"),
        "client_left" => format!("aborted by the client: {code}"),
        "backend_error" => format!("{backend} failed: {code}{engine}, status {status}"),
        "timed_out" => format!("{backend} took too long: {code}, status {status}"),
        "refused" => format!("refused: {code}, status {status}"),
        "aborted" => format!("cut by the gateway: {code}, status {status}"),
        other => format!("{other}: {code}, status {status}"),
    }
}

fn amounts(story: &FlightStory) -> String {
    let events = match story.events {
        0 => String::new(),
        events => format!(" in {events} events"),
    };
    let bytes =
        format!("  {} bytes in, {} bytes out{events}", story.request_bytes, story.response_bytes);
    let count = |tokens: Option<u64>| tokens.map_or("?".to_owned(), |n| n.to_string());
    let cached = story.cached_tokens.map(|n| format!(", {n} of them cached")).unwrap_or_default();
    match (story.usage_source.as_deref(), &story.usage_missing_reason) {
        (None, _) => bytes,
        (Some("missing"), None) => format!("{bytes}; tokens not told"),
        (Some("missing"), Some(why)) => format!("{bytes}; tokens not told: {why}"),
        (Some(source), _) => format!(
            "{bytes}; tokens by the {}: {} in{cached}, {} out",
            if source == "counted" { "events that passed" } else { source },
            count(story.prompt_tokens),
            count(story.completion_tokens),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::flight::story::FailedTry;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn story() -> FlightStory {
        FlightStory {
            request_id: "0f".into(),
            timestamp: "2026-01-02T03:04:05.006Z".into(),
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            model: text("m"),
            is_stream: true,
            backend: text("gpu-2"),
            picked_by: text("round_robin"),
            picked_ms: Some(0),
            status: "complete".into(),
            status_code: 200,
            first_byte_ms: Some(80),
            ttft_ms: Some(90),
            latency_ms: 1200,
            request_bytes: 400,
            response_bytes: 5000,
            events: 12,
            prompt_tokens: Some(3),
            completion_tokens: Some(9),
            usage_source: text("engine"),
            ..FlightStory::default()
        }
    }

    /// Catches: a thing that happened and is not told, is told at another time, or behind what
    /// followed it; a name that writes elsewhere on the terminal.
    #[test]
    fn all_that_happened_is_told_in_its_order() {
        let failed = FailedTry {
            backend: "gpu\u{1b}-1".into(),
            picked_by: "session".into(),
            picked_ms: 52,
            failed_ms: 60,
            reason: "connect_failed".into(),
        };
        let story = FlightStory {
            client_request_id: text("mine"),
            key_id: text("00ab"),
            user_id: text("ann\u{202e}"),
            served_model: text("big"),
            queue_wait_ms: Some(50),
            failed_tries: vec![failed],
            failed_count: 2,
            retry_count: 2,
            picked_ms: Some(61),
            picked_by: text("spilled"),
            cached_tokens: Some(1),
            ..story()
        };
        let wanted = "\
request 0f (the client's: mine), 2026-01-02T03:04:05.006Z
  POST /v1/chat/completions, model m (at the engines: big), a stream
  key 00ab, user ann\u{fffd}
       0 ms  its head is here
      52 ms  its turn, after 50 ms of waiting
      52 ms  to gpu\u{fffd}-1 (where its session is at home)
      60 ms  gpu\u{fffd}-1 failed: connect_failed
      60 ms  and 1 more that failed, of which no more is kept
      61 ms  to gpu-2 (those before it could not take it)
      80 ms  first byte of the answer
      90 ms  first token
    1200 ms  complete, status 200
  400 bytes in, 5000 bytes out in 12 events; tokens by the engine: 3 in, 1 of them cached, 9 out
";
        assert_eq!(told(&story), wanted);
    }

    /// Catches: an end that is told as another one.
    #[test]
    fn each_end_has_its_words() {
        let end = |status: &str, error: Option<&str>| {
            let (status, error) = (status.to_owned(), error.map(str::to_owned));
            end(&FlightStory { status, error, status_code: 418, ..story() })
        };
        let ends = [
            ("complete", None, "complete, status 418"),
            (
                "complete",
                Some("quota_exhausted"),
                "cut where the quota of its key ended: quota_exhausted, status 418",
            ),
            ("client_left", Some("client_left"), "aborted by the client: client_left"),
            ("backend_error", Some("backend_broke"), "gpu-2 failed: backend_broke, status 418"),
            ("timed_out", Some("x"), "gpu-2 took too long: x, status 418"),
            ("refused", Some("x"), "refused: x, status 418"),
            ("aborted", Some("shutting_down"), "cut by the gateway: shutting_down, status 418"),
        ];
        for (status, error, wanted) in ends {
            assert_eq!(end(status, error), wanted);
        }
        let mut left = FlightStory { retry_count: 0, picked_ms: Some(3), ..story() };
        let failed = FailedTry { backend: "gpu-2".into(), picked_ms: 3, ..FailedTry::default() };
        (left.failed_tries, left.failed_count) = (vec![failed], 1);
        assert_eq!(told(&left).matches("to gpu-2").count(), 1, "there was no other try");
        let refused = FlightStory {
            status: "refused".into(),
            error: text("backends_full"),
            backend: None,
            picked_ms: None,
            first_byte_ms: None,
            ttft_ms: None,
            usage_source: None,
            queue_wait_ms: Some(300),
            events: 0,
            ..story()
        };
        let told = told(&refused);
        assert!(told.contains("has waited for 300 ms in vain\n"), "{told}");
        assert!(!told.contains("tokens") && !told.contains("to gpu"), "{told}");
    }
}
