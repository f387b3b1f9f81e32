use super::*;
use crate::base::id::RequestIds;
use crate::base::secret::Secret;
use crate::config::plan::{RecordFormat, ReporterKind, Webhook};
use crate::usage::outbox;
use crate::usage::record::{tests::record, UsageRecord};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Long enough for a busy machine, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the webhook of a test does with one request.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    /// Reads the request and never answers; the test's end lets go of it.
    Silence,
    /// Reads the request and closes.
    Close,
}

/// A request that arrived: its head in lower case, and its body.
type Arrived = (String, serde_json::Value);

/// A webhook that answers in this order, then with 200, and tells what arrived.
fn webhook(answers: &[Answer]) -> (SocketAddr, Receiver<Arrived>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, arrived) = crossbeam_channel::unbounded();
    let mut answers: Vec<Answer> = answers.iter().rev().copied().collect();
    thread::spawn(move || {
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            // One connection at a time: a reporter has one.
            while let Some(request) = read_request(&stream) {
                if told.send(request).is_err() {
                    return;
                }
                match answers.pop().unwrap_or(Answer::Status(200)) {
                    Answer::Status(status) => {
                        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok");
                        (&stream).write_all(head.as_bytes()).unwrap();
                    }
                    Answer::Close => break,
                    Answer::Silence => {
                        silent.push(stream);
                        break;
                    }
                }
            }
        }
    });
    (address, arrived)
}

fn read_request(stream: &TcpStream) -> Option<Arrived> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1)?.lines().next()?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).unwrap()))
}

fn reporter(address: SocketAddr, retry: u32, timeout: Duration) -> plan::Reporter {
    let kind = ReporterKind::Webhook(Webhook {
        url: Secret::new(format!("http://{address}/hook?token=x")),
        method: "POST".into(),
        timeout,
        retry,
        headers: vec![("X-Secret".into(), Secret::new("s3"))],
        hmac_secret: Secret::default(),
        batch: plan::WebhookBatch::Single,
        batch_size: 1,
        concurrency: 1,
        format: RecordFormat::Full,
    });
    plan::Reporter { name: "test".into(), api_key: plan::KeyForm::None, kind }
}

/// Starts delivery, offers this many records with distinct ids, and gives their ids.
fn offered(
    reporters: &[plan::Reporter],
    records: usize,
) -> (Delivery, Arc<UsageCounters>, Vec<String>) {
    let outbox::Ends { mut workers, inbox, gauge } = outbox::open(reporters, 1);
    let outbox = workers.remove(0);
    let delivery = Delivery::start(inbox, reporters).unwrap();
    let mut ids = RequestIds::new(5);
    let mut offer = || {
        let record = UsageRecord { request_id: ids.next_id(), ..record() };
        let id = record.request_id.as_str().to_owned();
        assert!(outbox.offer(record));
        id
    };
    let ids = (0..records).map(|_| offer()).collect();
    (delivery, gauge.counters().clone(), ids)
}

fn arrived_ids(arrived: &Receiver<Arrived>) -> Vec<String> {
    arrived.try_iter().map(|(_, json)| json["request_id"].as_str().unwrap().to_owned()).collect()
}

/// delivered, failed, dropped, retried, queued
fn counts(counters: &ReporterCounters) -> [u64; 5] {
    let ReporterCounters { delivered, failed, dropped, retried, queued, .. } = counters;
    [delivered, failed, dropped, retried, queued].map(|counter| counter.load(Relaxed))
}

#[test]
fn records_arrive_in_order_and_stop_waits_for_them() {
    let (address, arrived) = webhook(&[]);
    let (delivery, counters, ids) = offered(&[reporter(address, 0, PATIENCE)], 50);
    assert_eq!(delivery.stop(PATIENCE), 0);
    assert_eq!(arrived_ids(&arrived), ids);
    assert_eq!(counts(&counters.reporters[0]), [50, 0, 0, 0, 0]);
}

#[test]
fn a_request_has_the_fields_that_a_receiver_needs() {
    let (address, arrived) = webhook(&[]);
    let (delivery, _, ids) = offered(&[reporter(address, 0, PATIENCE)], 1);
    let (head, json) = arrived.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("post /hook?token=x http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    assert!(head.contains(&format!("idempotency-key: {}\r\n", ids[0])), "{head}");
    assert!(head.contains("x-secret: s3\r\n"), "{head}");
    assert_eq!(
        (&json["request_id"], &json["usage"]["total_tokens"]),
        (&ids[0].as_str().into(), &57.into())
    );
    assert_eq!(delivery.stop(PATIENCE), 0);
}

#[test]
fn a_failed_try_is_repeated_with_the_same_key() {
    use Answer::*;
    let failures = [Status(500), Status(429), Close, Status(302)];
    let (address, arrived) = webhook(&failures);
    let (delivery, counters, ids) = offered(&[reporter(address, 4, PATIENCE)], 2);
    assert_eq!(delivery.stop(PATIENCE), 0);
    let expected = [vec![ids[0].clone(); 5], vec![ids[1].clone()]].concat();
    assert_eq!(arrived_ids(&arrived), expected, "and the second waits for the first");
    assert_eq!(counts(&counters.reporters[0]), [2, 0, 0, 4, 0]);
}

#[test]
fn a_silent_receiver_costs_one_timeout_a_try() {
    let (address, arrived) = webhook(&[Answer::Silence]);
    let timeout = Duration::from_millis(200);
    let (delivery, counters, _) = offered(&[reporter(address, 1, timeout)], 1);
    assert_eq!(delivery.stop(PATIENCE), 0);
    assert_eq!(arrived_ids(&arrived).len(), 2);
    assert_eq!(counts(&counters.reporters[0]), [1, 0, 0, 1, 0]);
}

#[test]
fn what_the_receiver_refuses_is_not_sent_again() {
    let (address, arrived) = webhook(&[Answer::Status(400)]);
    let (delivery, counters, ids) = offered(&[reporter(address, 5, PATIENCE)], 2);
    assert_eq!(delivery.stop(PATIENCE), 0);
    assert_eq!(arrived_ids(&arrived), ids);
    assert_eq!(counts(&counters.reporters[0]), [1, 1, 0, 0, 0]);
}

#[test]
fn a_dead_reporter_holds_up_no_other() {
    // A port on which nothing listens.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, arrived) = webhook(&[]);
    let reporters = [reporter(dead, 1000, PATIENCE), reporter(address, 0, PATIENCE)];
    let (delivery, counters, ids) = offered(&reporters, 3);
    for id in &ids {
        let (_, json) = arrived.recv_timeout(PATIENCE).unwrap();
        assert_eq!(json["request_id"], id.as_str());
    }
    let start = Instant::now();
    assert_eq!(delivery.stop(Duration::from_millis(300)), 3, "left by the dead one");
    assert!(start.elapsed() < PATIENCE, "the deadline bounds the stop");
    let [delivered, failed, _, _, queued] = counts(&counters.reporters[0]);
    assert_eq!([delivered, failed, queued], [0, 0, 0]);
    assert_eq!(counts(&counters.reporters[1]), [3, 0, 0, 0, 0]);
}

#[test]
fn a_refused_connection_is_given_up_after_the_last_try() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (delivery, counters, _) = offered(&[reporter(dead, 2, PATIENCE)], 1);
    assert_eq!(delivery.stop(PATIENCE), 0);
    assert_eq!(counts(&counters.reporters[0]), [0, 1, 0, 2, 0]);
}

#[test]
fn a_full_queue_drops_for_its_reporter_and_counts() {
    let (address, arrived) = webhook(&[Answer::Silence]);
    let reporters = [reporter(address, 0, PATIENCE)];
    let outbox::Ends { mut workers, inbox, gauge } = outbox::open(&reporters, 1);
    let outbox = workers.remove(0);
    let counters = gauge.counters().clone();
    let delivery = Delivery::start_with(inbox, &reporters, 2).unwrap();
    outbox.offer(record());
    arrived.recv_timeout(PATIENCE).unwrap();
    // One is under way and two wait: the fourth and the fifth are one and two too many.
    (0..4).for_each(|_| assert!(outbox.offer(record())));
    let start = Instant::now();
    while counters.reporters[0].dropped.load(Relaxed) < 2 {
        assert!(start.elapsed() < PATIENCE, "{:?}", counts(&counters.reporters[0]));
        thread::yield_now();
    }
    assert_eq!(counts(&counters.reporters[0]), [0, 0, 2, 0, 3]);
    drop(delivery); // The silent webhook would keep a stop waiting.
}

#[test]
fn waits_double_up_to_a_limit_and_differ() {
    for (tries, most) in [(0, 100), (1, 200), (6, 6400), (7, 10_000), (4_000_000_000, 10_000)] {
        let wait = wait(tries).as_millis();
        assert!((most / 2..=most).contains(&wait), "{wait} after {tries}");
    }
    let waits: std::collections::HashSet<_> = (0..32).map(|_| wait(9)).collect();
    assert!(waits.len() > 8);
}
