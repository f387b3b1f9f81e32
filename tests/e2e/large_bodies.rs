//! Bodies of megabytes, both ways: other buffers, pipes and system calls than for small ones, and
//! the same bytes.

use crate::harness::backend::Served;
use crate::harness::client::in_chunks;
use crate::harness::message::Ended;
use crate::harness::scratch::Scratch;
use crate::harness::tls::Authority;
use crate::harness::{await_until, pause, Backend, Config, Conn, Engine, Proxy, Webhook, SOON};
use crate::rig::{await_stall, before, leave, quiet, Leave, CHATS};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const EMBEDDINGS: &str = "/v1/embeddings";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Bytes that may be with the proxy and in the kernel for a client that stopped.
const IN_FLIGHT_MAX: usize = 2 * MIB;
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";

/// How an engine frames its answer.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Length,
    /// Chunks of about so many bytes.
    Chunks(usize),
    UntilClose,
}

/// An answer of exactly `size` bytes in which no two stretches are alike, with usage behind the
/// vectors, or before them.
fn answer(size: usize, usage_first: bool) -> Vec<u8> {
    let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":0,"total_tokens":7}"#;
    let (before, after) = match usage_first {
        true => (format!(r#"{{"id":"a",{usage},"data":""#), r#""}"#.to_owned()),
        false => (r#"{"id":"a","data":""#.to_owned(), format!(r#"",{usage}}}"#)),
    };
    let mut state = 1u64;
    let letter = |_| {
        // A generator of full period: where a byte is lost or moved, all that follows differs.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'a' + ((state >> 33) % 26) as u8
    };
    let data: Vec<u8> = (before.len() + after.len()..size).map(letter).collect();
    [before.as_bytes(), &data, after.as_bytes()].concat()
}

fn on_wire(body: &[u8], wire: Wire) -> Vec<u8> {
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    match wire {
        Wire::Length => {
            [format!("{HEAD}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        }
        Wire::Chunks(size) => {
            let sizes = [size, size / 2 + 1, size * 2];
            [HEAD.as_bytes(), chunked.as_bytes(), &in_chunks(body, &sizes)].concat()
        }
        Wire::UntilClose => [HEAD.as_bytes(), b"connection: close\r\n\r\n", body].concat(),
    }
}

/// An engine whose answers have the size that the request asks for.
fn engine(wire: Wire, usage_first: bool) -> Backend {
    Backend::start(move |served| {
        while let Some(request) = served.request() {
            let asked: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            let body = answer(asked["size"].as_u64().unwrap() as usize, usage_first);
            if !served.send(on_wire(&body, wire)) || matches!(wire, Wire::UntilClose) {
                return;
            }
        }
    })
}

fn asking(size: usize) -> String {
    json!({"model": "m", "size": size}).to_string()
}

/// Catches: bytes lost, doubled or moved where buffers change their size or are left out, and an
/// engine's connection that is kept in the middle of an answer.
#[test]
fn large_answers_arrive_byte_for_byte() {
    for wire in [Wire::Length, Wire::Chunks(64 * KIB), Wire::Chunks(1), Wire::UntilClose] {
        let engine = engine(wire, false);
        let (proxy, hook) = before(&engine, "");
        let mut conn = proxy.connect();
        let sizes = match wire {
            Wire::Chunks(1) => vec![100, 16 * KIB + 1, 300 * KIB],
            _ => [16, 64, 192, 256, 320, 512]
                .into_iter()
                .flat_map(|kib| [kib * KIB - 1, kib * KIB, kib * KIB + 1])
                .chain([100, MIB, 5 * MIB + 12_345])
                .collect(),
        };
        let mut asked = 0;
        for path in [EMBEDDINGS, CHATS] {
            for size in &sizes {
                let response = conn.post(path, "", asking(*size));
                let shown = format!("{wire:?} {path} {size}");
                assert_eq!(response.ended, Ended::Whole, "{shown}");
                assert!(response.body == answer(*size, false), "{shown}: other bytes");
                asked += 1;
                let record = hook.await_records(asked, SOON).remove(asked - 1);
                assert_eq!(record["response_bytes"], *size, "{shown}");
                assert_eq!(record["prompt_tokens"], 7, "{shown}: {record}");
            }
        }
        if !matches!(wire, Wire::UntilClose) {
            assert_eq!(engine.connections(), 1, "{wire:?}: its connection was not kept");
        }
        quiet(&proxy);
    }
}

/// Catches: a way around copying that holds for TCP alone, or that passes ciphertext.
#[test]
fn large_answers_arrive_over_other_transports() {
    let unix = Engine::start_unix(&[]);
    let proxy = Config::backend_at(unix.url()).start();
    let knob = format!("x-mock-answer-bytes: {}\r\n", 3 * MIB + 1);
    let direct = unix.connect().post(EMBEDDINGS, &knob, asking(0));
    let through = proxy.connect().post(EMBEDDINGS, &knob, asking(0));
    assert_eq!((direct.body.len(), through.ended), (3 * MIB + 1, Ended::Whole));
    assert!(through.body == direct.body, "other bytes over a Unix socket");

    let (authority, scratch) = (Authority::new(), Scratch::new());
    let tls =
        format!("tls: {{ca_file: \"{}\"}}", scratch.write("ca.pem", authority.pem()).display());
    let backend = Backend::start_tls(authority.server(&["127.0.0.1"]), |served| {
        while served.request().is_some() {
            served.send(on_wire(&answer(3 * MIB, false), Wire::Length));
        }
    });
    let proxy = Config::new().backend(backend.url_as("https", "127.0.0.1"), &tls).start();
    for path in [EMBEDDINGS, CHATS] {
        assert!(proxy.post(path, asking(0)).body == answer(3 * MIB, false), "{path} over TLS");
    }
}

/// Catches: chunks that cannot go out as they came (their sizes are padded, or the client knows no
/// chunks) and get lost between the many sends of one read.
#[test]
fn very_many_small_chunks_arrive_at_any_client() {
    let body = answer(200 * KIB, false);
    let mut chunked = format!("{HEAD}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for (i, byte) in body.iter().enumerate() {
        let size: &[u8] = if i % 3 == 0 { b"001\r\n" } else { b"1\r\n" };
        chunked.extend_from_slice(&[size, &[*byte], b"\r\n"].concat());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let engine = Backend::answering(chunked);
    let (proxy, _hook) = before(&engine, "");
    let response = proxy.post(CHATS, asking(0));
    assert!(response.ended == Ended::Whole && response.body == body, "to HTTP/1.1");
    let request = format!("POST {CHATS} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
    let response = proxy.connect().send(request).response();
    assert!(response.body == body, "to HTTP/1.0: {} bytes", response.body.len());
    quiet(&proxy);
}

/// Catches: usage that is only looked for at the end: llama.cpp writes it before the vectors.
#[test]
fn usage_before_the_vectors_of_a_large_answer_is_metered() {
    let engine = engine(Wire::Length, true);
    let (proxy, hook) = before(&engine, "");
    let response = proxy.post(EMBEDDINGS, asking(3 * MIB));
    assert!(response.body == answer(3 * MIB, true));
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["prompt_tokens"], &record["usage_source"]), (&json!(7), &json!("engine")));
}

/// Catches: an answer of another kind whose middle passes unseen: vLLM writes usage before the log
/// probabilities of a prompt, and behind those of its choices.
#[test]
fn usage_in_the_middle_of_a_large_chat_answer_is_metered() {
    let part = answer(2 * MIB, true);
    let text = String::from_utf8(part).unwrap();
    let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}"#;
    let body = format!(r#"{{"choices":{text},{usage},"prompt_logprobs":{text}}}"#)
        .replace(r#""usage":{"prompt_tokens":7,"completion_tokens":0,"total_tokens":7},"#, "");
    let engine = Backend::answering(on_wire(body.as_bytes(), Wire::Length));
    let (proxy, hook) = before(&engine, "");
    assert!(proxy.post(CHATS, asking(0)).body == body.as_bytes());
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["completion_tokens"], 4, "{record}");
}

/// A client with a small buffer that asked for a large answer.
fn slow_client(proxy: &Proxy, path: &str, size: usize) -> Conn {
    let mut conn = proxy.connect();
    socket2::SockRef::from(conn.stream().tcp()).set_recv_buffer_size(64 * KIB).unwrap();
    conn.start_post(path, "", asking(size));
    conn
}

/// Catches: bytes lost where a client takes a part of what it is given, and a slow client that is
/// taken for a stopped one.
#[test]
fn a_slow_client_gets_every_byte_of_a_large_answer() {
    for wire in [Wire::Length, Wire::Chunks(32 * KIB)] {
        let engine = engine(wire, false);
        let (proxy, _hook) = before(&engine, "");
        for path in [EMBEDDINGS, CHATS] {
            let mut conn = slow_client(&proxy, path, 4 * MIB);
            conn.head();
            let (mut body, mut pieces) = (Vec::new(), 0);
            let ended = loop {
                match conn.next_piece() {
                    Ok(piece) => body.extend_from_slice(&piece.bytes),
                    Err(ended) => break ended,
                }
                pieces += 1;
                if pieces % 8 == 0 {
                    pause(Duration::from_millis(2));
                }
            };
            assert_eq!(ended, Ended::Whole, "{wire:?} {path}");
            assert!(body == answer(4 * MIB, false), "{wire:?} {path}: other bytes");
        }
        quiet(&proxy);
    }
}

/// An engine that sends an answer of 64 MiB in small steps, and counts what was taken.
struct Giver {
    backend: Backend,
    taken: Arc<AtomicU64>,
    left: Arc<AtomicBool>,
}

const GIVEN: usize = 64 * MIB;

impl Giver {
    fn start() -> Giver {
        let (taken, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, gone) = (Arc::clone(&taken), Arc::clone(&left));
        let backend = Backend::start(move |served| {
            while served.request().is_some() {
                if !give(served, &count) {
                    gone.store(true, Ordering::Relaxed);
                    return;
                }
            }
        });
        Giver { backend, taken, left }
    }

    fn await_stall(&self) -> usize {
        await_stall(&self.taken) as usize
    }
}

fn give(served: &mut Served, taken: &AtomicU64) -> bool {
    socket2::SockRef::from(served.stream().tcp()).set_send_buffer_size(64 * KIB).unwrap();
    let piece = vec![b'x'; 16 * KIB];
    if !served.send(format!("{HEAD}content-length: {GIVEN}\r\n\r\n")) {
        return false;
    }
    (0..GIVEN / piece.len()).all(|_| {
        let sent = served.send(&piece);
        taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
        sent
    })
}

/// Catches: clients that stop in the middle of large answers and are given all of it in the
/// proxy's memory, or take the large buffers and pipes from everyone for ever.
#[test]
fn clients_that_stop_in_large_answers_hold_little() {
    for path in [EMBEDDINGS, CHATS] {
        let giver = Giver::start();
        let (proxy, _hook) = before(&giver.backend, "");
        let (start, files) = (proxy.resident_bytes(), proxy.open_files());
        let mut clients: Vec<Conn> = (0..20).map(|_| slow_client(&proxy, path, 0)).collect();
        let taken = giver.await_stall();
        println!("{path}: {taken} bytes are on their way to 20 clients");
        assert!(taken <= 20 * IN_FLIGHT_MAX, "{path}: {taken} bytes");
        let kind = if path == EMBEDDINGS { "pipe" } else { "buffer" };
        let denied = proxy.metric("llmproxy_large_reads_denied_total", &[("kind", kind)]);
        // Over TLS nothing goes by a pipe.
        let wants_one = kind == "buffer" || proxy.tls.is_none();
        assert_eq!(denied > 0.0, wants_one, "{path}: who found none is counted");
        let grown = proxy.resident_bytes().saturating_sub(start);
        // A session of TLS has records of its own, in and out.
        let sessions = if proxy.tls.is_some() { 20 * 64 * KIB as u64 } else { 0 };
        assert!(grown < (4 << 20) + sessions, "{path}: {grown} bytes more");
        // Two sockets each, the pipes of one worker on each core, and what the scrape takes.
        let opened = proxy.open_files() - files;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(opened <= 20 * 2 + workers * 2 * 4 + 4, "{path}: {opened} more files");
        // One that goes on is served to the end.
        let one = clients.swap_remove(0);
        drop(clients);
        let mut one = one;
        one.head();
        let (pieces, ended) = one.rest();
        let length: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        assert_eq!((length, ended), (GIVEN, Ended::Whole), "{path}");
        assert!(pieces.iter().all(|piece| piece.bytes.iter().all(|byte| *byte == b'x')));
        quiet(&proxy);
    }
}

/// Catches: an engine that goes on for a client that left in the middle of a large answer, and
/// one that is cut, or kept in the wrong place, although it must be drained.
#[test]
fn a_client_that_leaves_in_a_large_answer_frees_its_engine() {
    for path in [EMBEDDINGS, CHATS] {
        for how in [Leave::Fin, Leave::Rst] {
            for drained in [false, true] {
                let giver = Giver::start();
                let properties = if drained { "on_client_abort: drain" } else { "" };
                let (proxy, hook) = before(&giver.backend, properties);
                let conn = slow_client(&proxy, path, 0);
                giver.await_stall();
                let _half = leave(conn, how);
                let record = hook.await_records(1, SOON).remove(0);
                assert_eq!(record["status"], "client_left", "{record}");
                let bytes = record["response_bytes"].as_u64().unwrap() as usize;
                assert!(bytes > 0 && bytes < GIVEN, "{record}");
                let labels = [("phase", "relay")];
                proxy.await_metric("llmproxy_client_abort_total", &labels, 1.0);
                if drained {
                    let taken = || giver.taken.load(Ordering::Relaxed);
                    await_until("the engine has given all", SOON, || taken() == GIVEN as u64);
                    quiet(&proxy);
                    let mut next = slow_client(&proxy, path, 0);
                    next.head();
                    assert_eq!(next.rest().1, Ended::Whole);
                    assert_eq!(giver.backend.connections(), 1, "it was not kept");
                } else {
                    await_until("the engine is cut", SOON, || giver.left.load(Ordering::Relaxed));
                }
                quiet(&proxy);
            }
        }
    }
}

/// Catches: an engine that breaks in the middle of a large answer being taken for one that
/// finished.
#[test]
fn a_large_answer_that_breaks_is_cut_and_counted() {
    for path in [EMBEDDINGS, CHATS] {
        let body = answer(2 * MIB, false);
        let part = on_wire(&body, Wire::Length)[..MIB].to_vec();
        let engine = Backend::start(move |served| {
            if served.request().is_some() {
                served.send(&part);
            }
        });
        let (proxy, hook) = before(&engine, "");
        let mut conn = proxy.connect();
        conn.start_post(path, "", asking(0));
        conn.head();
        let (pieces, ended) = conn.rest();
        let got: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        assert_eq!(ended, Ended::Cut, "{path}");
        assert!(body.starts_with(&got) && got.len() > MIB - 200, "{path}: {} bytes", got.len());
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!(record["error"], "backend_broke", "{record}");
        assert_eq!(record["response_bytes"], got.len(), "{record}");
        quiet(&proxy);
    }
}

/// Catches: a client that stops for longer than its timeout in a large answer, and is kept.
#[test]
fn a_client_that_stays_stopped_in_a_large_answer_is_let_go() {
    for path in [EMBEDDINGS, CHATS] {
        let (giver, hook) = (Giver::start(), Webhook::start());
        let proxy = Config::backend_at(giver.backend.url())
            .server("write_timeout: 500ms")
            .webhook(&hook.url(), "")
            .start();
        let mut conn = slow_client(&proxy, path, 0);
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!(record["error"], "client_write_timeout", "{record}");
        quiet(&proxy);
        conn.head();
        assert_eq!(conn.rest().1, Ended::Cut);
    }
}

/// Catches: bytes lost where a prompt moves into a larger buffer, or shown to the next request,
/// and memory that a burst of them leaves behind.
#[test]
fn large_prompts_arrive_byte_for_byte() {
    let engine = Backend::start(|served| {
        while let Some(request) = served.request() {
            served.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{:8}",
                request.body.len()
            ));
        }
    });
    let (proxy, _hook) = before(&engine, "");
    let mut conn = proxy.connect();
    let sizes = [15, 16, 17, 200, 256, 300, 1024, 3000];
    let mut asked = 0;
    for size in sizes.into_iter().chain(sizes.into_iter().rev()) {
        for size in [size * KIB - 100, size * KIB] {
            let body = answer(size, false);
            let chunks = in_chunks(&body, &[10_000, 1, 70_000]);
            assert_eq!(conn.post(CHATS, "", &body).text(), format!("{size:8}"));
            conn.send(format!(
                "POST {CHATS} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
            ));
            conn.send(&chunks);
            assert_eq!(conn.response().text(), format!("{size:8}"));
            for received in engine.requests().iter().skip(asked) {
                assert!(received.body == body, "{size} bytes: other bytes");
            }
            asked += 2;
        }
    }
    quiet(&proxy);
}
