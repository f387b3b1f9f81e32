//! Traces: what engines are told of them, and the spans that a receiver of OTLP gets.

use crate::harness::backend::Received;
use crate::harness::message::Head;
use crate::harness::scratch::Scratch;
use crate::harness::services::free_port;
use crate::harness::tls::Authority;
use crate::harness::{await_some, Backend, Config, Engine, Proxy, SOON};
use crate::rig::{quiet, Rig, CHAT, CHATS, OK, STREAM};
use rustix::process::Signal;
use serde_json::Value;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

const PARENT_FIELD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What a client sends that is traced.
fn sampled() -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=1\r\n")
}

/// What it sends that is not to be traced.
fn unsampled() -> String {
    sampled().replace("-01\r\n", "-00\r\n")
}

/// A receiver of spans, which answers the n-th request (from 0) with this; nothing: it hangs.
fn serve(script: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static) -> Backend {
    Backend::start(script_of(script))
}

fn script_of(
    script: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static,
) -> impl Fn(&mut crate::harness::backend::Served) + Send + Sync + 'static {
    let count = Arc::new(AtomicUsize::new(0));
    move |served| {
        while served.request().is_some() {
            match script(count.fetch_add(1, Ordering::Relaxed)) {
                Some(answer) if served.send(answer) => {}
                Some(_) => return,
                None => drop(served.left_within(SOON)),
            }
        }
    }
}

const TAKEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

fn receiver() -> Backend {
    serve(|_| Some(TAKEN))
}

/// The section of the configuration.
fn otlp(url: &str, more: &str) -> String {
    format!("tracing: {{otlp: {{endpoint: \"{url}\"{more}}}}}")
}

/// All spans that came, of all requests.
fn spans(receiver: &Backend) -> Vec<Value> {
    let of = |request: &Received| {
        let read: Value = serde_json::from_slice(&request.body).unwrap();
        read["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    };
    receiver.requests().iter().flat_map(of).collect()
}

/// The spans, once there are so many; and no more than that.
fn await_spans(receiver: &Backend, count: usize) -> Vec<Value> {
    let all = await_some(&format!("{count} spans"), SOON, || {
        Some(spans(receiver)).filter(|all| all.len() >= count)
    });
    assert_eq!(all.len(), count, "{all:#?}");
    all
}

/// An attribute of a span, as text.
fn attribute(span: &Value, key: &str) -> Option<String> {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|one| one["key"] == key)?;
    let (_, value) = found["value"].as_object()?.iter().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn has(span: &Value, key: &str, value: &str) -> bool {
    attribute(span, key).as_deref() == Some(value)
}

/// A proxy that traces, before a backend that answers everything with OK.
fn pair(receiver: &Backend, more: &str) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url()).section(otlp(&receiver.url(), more));
    (config.start(), backend)
}

/// Sends a GET with these fields; gives the head that the backend got.
fn pass(proxy: &Proxy, backend: &Backend, fields: &str) -> Head {
    let request = format!("GET /v1/models/a HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    assert_eq!(proxy.connect().send(request).response().status(), 200);
    backend.requests().pop().unwrap().head
}

fn exported(proxy: &Proxy, result: &str, count: usize) {
    proxy.await_metric("llmproxy_trace_spans_total", &[("result", result)], count as f64);
}

/// Catches: an engine's spans that hang below the client's instead of ours, or in another trace; a
/// span without what dashboards of LLMs look for.
#[test]
fn a_stream_is_a_span_between_those_of_client_and_engine() {
    let receiver = receiver();
    let rig = Rig::with("name: gpu", |config| {
        config.section(otlp(&receiver.url(), "")).section("logging: {access: {}}")
    });
    let answer = rig.ask(STREAM, &sampled()).response();
    assert_eq!(answer.status(), 200);
    let (span, record) = (await_spans(&receiver, 1).remove(0), rig.record());
    assert_eq!((&span["traceId"], &span["parentSpanId"]), (&TRACE.into(), &PARENT.into()));
    let ours = span["spanId"].as_str().unwrap();
    assert_ne!(ours, PARENT);
    let head = rig.engine.posts()[0]["head"].as_str().unwrap().to_lowercase();
    assert!(head.contains(&format!("traceparent: 00-{TRACE}-{ours}-01")), "{head}");
    assert!(head.contains("tracestate: a=1") && head.matches("traceparent").count() == 1, "{head}");
    assert_eq!(span["name"], "chat m");
    let (id, port) = (record["request_id"].as_str().unwrap(), rig.engine.addr().port());
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "m"),
        ("gen_ai.usage.input_tokens", &record["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", &record["completion_tokens"].to_string()),
        ("server.address", "127.0.0.1"),
        ("server.port", &port.to_string()),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", CHATS),
        ("llmproxy.backend", "gpu"),
        ("llmproxy.request_id", id),
        ("llmproxy.stream", "true"),
        ("llmproxy.outcome", "complete"),
    ] {
        assert!(has(&span, key, value), "{key} is not {value}: {span:#}");
    }
    let time = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
    let first = &span["events"][0];
    assert_eq!(first["name"], "llmproxy.first_token");
    let times = ["startTimeUnixNano", "endTimeUnixNano"].map(|key| time(&span[key]));
    assert!((times[0]..=times[1]).contains(&time(&first["timeUnixNano"])), "{span:#}");
    // The line of the access log tells where to look.
    rig.proxy.await_event("the access line", |event| event["trace_id"] == TRACE);
    exported(&rig.proxy, "exported", 1);
    rig.assert_quiet();
}

/// Catches: a traceparent that is changed although nobody traces the request, and a span of it.
#[test]
fn what_is_not_traced_goes_on_as_it_came() {
    let receiver = receiver();
    let (proxy, backend) = pair(&receiver, ", sample_ratio: 0");
    for sent in [unsampled(), "traceparent: 00-1-1-01\r\ntracestate: b=2\r\n".to_owned()] {
        let head = pass(&proxy, &backend, &sent);
        let again = |name: &str| -> String {
            head.all(name).iter().map(|value| format!("{name}: {value}\r\n")).collect()
        };
        let got = again("traceparent") + &again("tracestate");
        assert_eq!(got, sent);
    }
    assert_eq!(pass(&proxy, &backend, "").get("traceparent"), None);
    // What a client traces is traced, whatever the share of others.
    pass(&proxy, &backend, &sampled());
    let span = await_spans(&receiver, 1).remove(0);
    assert_eq!((&span["traceId"], &span["name"]), (&TRACE.into(), &"GET".into()));
    exported(&proxy, "exported", 1);
}

/// Catches: a trace that goes on by what is no valid parent, or by one of two; state of another
/// trace; our own pages among the spans.
#[test]
fn what_is_not_valid_begins_a_new_trace() {
    let receiver = receiver();
    let (proxy, backend) = pair(&receiver, "");
    let upper = sampled().replace(TRACE, &TRACE.to_uppercase());
    let nominated = format!("{}Connection: traceparent\r\n", sampled());
    let cases = ["".to_owned(), upper, sampled() + &sampled(), nominated];
    assert_eq!(proxy.get("/health").status(), 200);
    let mut told = Vec::new();
    for sent in &cases {
        let head = pass(&proxy, &backend, sent);
        let [parent] = head.all("traceparent")[..] else { panic!("{sent}: {head:?}") };
        let [_, trace, span, flags] = parent.split('-').collect::<Vec<_>>()[..] else {
            panic!("{parent}")
        };
        assert!(trace.len() == 32 && trace != TRACE && flags == "01", "{parent}");
        assert_eq!(head.get("tracestate"), None, "{sent}");
        told.push((trace.to_owned(), span.to_owned()));
    }
    let spans = await_spans(&receiver, cases.len());
    let text = |span: &Value, key: &str| span[key].as_str().unwrap().to_owned();
    let ours = |span: &Value| (text(span, "traceId"), text(span, "spanId"));
    assert_eq!(spans.iter().map(ours).collect::<Vec<_>>(), told);
    assert!(spans.iter().all(|span| span.get("parentSpanId").is_none()));
}

/// Catches: a request that went wrong and of which no span tells how; a key in a span.
#[test]
fn what_went_wrong_is_told() {
    let receiver = receiver();
    let down = "HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n";
    let (first, second) = (Backend::answering(down), Backend::answering(OK));
    let proxy = Config::new()
        .section("health_check: {enabled: false}")
        .backend(first.url(), "name: first")
        .backend(second.url(), "name: second, backup: true")
        .section("routing: {retry: {max_retries: 1}}")
        .section("auth: {pipeline: [{type: file}]}")
        .section("api_keys: [{key: sk-hunter2, name: team}]")
        .section(otlp(&receiver.url(), ""))
        .start();
    let key = "Authorization: Bearer sk-hunter2\r\n";
    assert_eq!(proxy.connect().post(CHATS, key, CHAT).text(), "ok");
    proxy.post(CHATS, CHAT).assert_refused(401, "missing_api_key");
    proxy.connect().post("/nowhere/a", key, CHAT).assert_refused(404, "unknown_path");
    let all = await_spans(&receiver, 3);
    let told = |status: &str| {
        let found = all.iter().find(|span| has(span, "http.response.status_code", status));
        found.unwrap_or_else(|| panic!("{status}: {all:#?}"))
    };
    let retried = told("200");
    assert!(
        has(retried, "http.request.resend_count", "1")
            && has(retried, "llmproxy.backend", "second")
    );
    assert!(has(retried, "llmproxy.key_name", "team"), "{retried:#}");
    let retry = &retried["events"][0];
    assert_eq!(retry["name"], "llmproxy.retry");
    assert!(
        has(retry, "llmproxy.backend", "first") && has(retry, "error.type", "503"),
        "{retry:#}"
    );
    assert!(has(told("401"), "error.type", "missing_api_key"));
    assert_eq!((&told("401")["name"], &told("404")["name"]), (&"chat".into(), &"POST".into()));
    assert!(all.iter().all(|span| span["status"].get("code").is_none()), "{all:#?}");
    assert!(receiver.requests().iter().all(|sent| !text_of(sent).contains("hunter2")));
    quiet(&proxy);
}

fn text_of(request: &Received) -> String {
    String::from_utf8_lossy(&request.body).into_owned()
}

/// Catches: a client that left, or an engine that broke off, told as if all had gone well.
#[test]
fn what_broke_off_is_told() {
    let receiver = receiver();
    let rig = Rig::with("", |config| config.section(otlp(&receiver.url(), "")));
    let mut conn = rig.ask(STREAM, "x-mock-stall-after: 3\r\n");
    conn.head();
    conn.read_until("data:");
    drop(conn);
    let left = await_spans(&receiver, 1).remove(0);
    assert!(has(&left, "llmproxy.outcome", "client_left"), "{left:#}");
    assert!(attribute(&left, "error.type").is_some() && left["status"].get("code").is_none());
    let closing = Backend::start(|served| drop(served.request()));
    let config = Config::backend_at(closing.url()).section(otlp(&receiver.url(), ""));
    let proxy = config.start();
    proxy.post(CHATS, CHAT).assert_refused(502, "backend_closed");
    let broken = await_spans(&receiver, 2).remove(1);
    assert!(has(&broken, "error.type", "backend_closed"), "{broken:#}");
    assert_eq!(broken["status"]["code"], 2, "{broken:#}");
}

/// Catches: spans that are lost because their receiver was not there for a moment, sent twice
/// though they were taken, or sent for ever though they are refused.
#[test]
fn a_receiver_that_was_away_gets_what_waited() {
    let later = "HTTP/1.1 503 X\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
    let refused = "HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n";
    let partly = "HTTP/1.1 200 X\r\nContent-Length: 40\r\n\r\n\
                  {\"partialSuccess\":{\"rejectedSpans\":\"1\"}}";
    let receiver = serve(move |n| Some([later, TAKEN, refused, partly][n.min(3)]));
    let (proxy, backend) = pair(&receiver, "");
    pass(&proxy, &backend, &sampled());
    exported(&proxy, "exported", 1);
    let tries = receiver.requests();
    assert_eq!((tries.len(), &tries[0].body), (2, &tries[1].body));
    pass(&proxy, &backend, &sampled());
    exported(&proxy, "refused", 1);
    pass(&proxy, &backend, &sampled());
    exported(&proxy, "refused", 2);
    assert_eq!(receiver.requests().len(), 4);
    proxy.await_event("the receiver is well", |e| e["message"] == "spans are taken again");
    // And one that is not there at all when the first span comes.
    let place = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let config = Config::backend_at(backend.url()).section(otlp(&format!("http://{place}"), ""));
    let proxy = config.start();
    pass(&proxy, &backend, &sampled());
    proxy.await_event("nobody is there", |event| event["message"] == "spans are not taken");
    let receiver = await_some("the port is free still", SOON, || {
        Backend::start_at(place, script_of(|_| Some(TAKEN)))
    });
    exported(&proxy, "exported", 1);
    assert_eq!(receiver.requests()[0].head.target(), "/v1/traces");
}

/// Catches: requests, or the end of the process, that wait for a receiver of spans.
#[test]
fn a_receiver_that_hangs_holds_nobody_up() {
    let receiver = serve(|_| None);
    let (proxy, backend) = pair(&receiver, ", timeout: 60s");
    pass(&proxy, &backend, "");
    await_some("a try that hangs", SOON, || receiver.requests().pop());
    (0..20).for_each(|_| drop(pass(&proxy, &backend, "")));
    exported(&proxy, "exported", 0);
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
}

/// Catches: what waits at the end of the process, and is never sent; fields and packing that are
/// configured and not used.
#[test]
fn the_last_spans_are_sent_before_the_end() {
    let receiver = receiver();
    let more = ", compression: gzip, service_name: edge, headers: {X-Token: hunter2}";
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).section(otlp(&receiver.url(), more));
    let proxy = config.start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
    let sent = receiver.requests().pop().unwrap();
    let field = |name| sent.head.get(name);
    assert_eq!((field("x-token"), field("content-encoding")), (Some("hunter2"), Some("gzip")));
    assert_eq!(field("content-type"), Some("application/json"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*sent.body).read_to_string(&mut text).unwrap();
    let read: Value = serde_json::from_str(&text).unwrap();
    let resource = &read["resourceSpans"][0]["resource"];
    assert!(has(resource, "service.name", "edge"), "{resource:#}");
}

/// Catches: a share of traces that needs a restart, or spans that are made when nobody wants any.
#[test]
fn a_reload_changes_how_many_are_traced() {
    let (receiver, backend) = (receiver(), Backend::answering(OK));
    let with = |more: &str| Config::backend_at(backend.url()).section(otlp(&receiver.url(), more));
    let is_traced = |proxy: &Proxy| pass(proxy, &backend, "").get("traceparent").is_some();
    let proxy = with(", sample_ratio: 0").start();
    assert!(!is_traced(&proxy));
    assert!(proxy.reload_with(&with(", sample_ratio: 1")));
    assert!(is_traced(&proxy));
    assert!(proxy.reload_with(&Config::backend_at(backend.url())));
    assert_eq!(pass(&proxy, &backend, &sampled()).get("traceparent"), Some(PARENT_FIELD));
    await_spans(&receiver, 1);
    // Who was told to be off is not on again without a restart.
    assert!(proxy.reload_with(&with("")));
    assert!(!is_traced(&proxy));
    proxy.await_event("the reload says so", |event| {
        event["keys"].to_string().contains("tracing.otlp.endpoint")
    });
}

/// Catches: spans that go to whoever answers there, and a receiver with TLS that gets none.
#[test]
fn a_receiver_with_tls_has_to_prove_itself() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let roots = format!("SSL_CERT_FILE={}", scratch.write("ca.pem", authority.pem()).display());
    let own = authority.server(&["localhost"]);
    let foreign = Authority::new().server(&["localhost"]);
    for (server, is_known) in [(own, true), (foreign, false)] {
        let receiver = Backend::start_tls(server, script_of(|_| Some(TAKEN)));
        let backend = Backend::answering(OK);
        let config = Config::backend_at(backend.url());
        let config = config.section(otlp(&receiver.url_as("https", "localhost"), ""));
        let way = ["env", "-u", "SSL_CERT_DIR", &roots];
        let proxy = Proxy::start_through(&way, &config.yaml());
        pass(&proxy, &backend, &sampled());
        match is_known {
            true => exported(&proxy, "exported", 1),
            false => {
                proxy.await_event("it is not believed", |event| {
                    event["message"] == "spans are not taken"
                        && event["why"].to_string().contains("certificate")
                });
                assert!(receiver.requests().is_empty());
            }
        }
    }
}
