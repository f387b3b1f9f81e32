//! Lanes against receivers on real sockets, with sources in memory and short waits.

mod senders;

use super::*;
use crate::base::id::RequestIds;
use crate::base::secret::Secret;
use crate::config::plan::{self, KeyForm, RecordFormat, ReporterKind, Webhook, WebhookBatch};
use crate::usage::counters::ReporterCounters;
use crate::usage::record::{tests::record, UsageRecord};
use crate::usage::source::{Delivery, Parcel, Read};
use crate::usage::spool::codec;
use crossbeam_channel::Receiver;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Mutex;

/// Long enough for a busy machine, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Back-off that a test can wait for.
const SHORT: Waits = Waits { least: Duration::from_millis(2), most: Duration::from_millis(20) };

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
    let mut answers: Vec<Answer> = answers.iter().rev().copied().collect();
    webhook_that(move |_| answers.pop().unwrap_or(Answer::Status(200)))
}

/// A webhook that answers what it likes, and tells what arrived.
fn webhook_that(
    mut answer: impl FnMut(&Arrived) -> Answer + Send + 'static,
) -> (SocketAddr, Receiver<Arrived>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, arrived) = crossbeam_channel::unbounded();
    thread::spawn(move || {
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            // One connection at a time: a reporter has one.
            while let Some(request) = read_request(&stream) {
                let answer = answer(&request);
                if told.send(request).is_err() {
                    return;
                }
                match answer {
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
        batch: WebhookBatch::Single,
        batch_size: 1,
        concurrency: 1,
        format: RecordFormat::Full,
    });
    plan::Reporter { name: "test".into(), api_key: KeyForm::Masked, kind }
}

/// A source that a test fills and looks into.
#[derive(Clone)]
pub(super) struct Shelf {
    kept: Arc<Mutex<Contents>>,
    ring: Sender<()>,
    bell: Receiver<()>,
}

#[derive(Default)]
struct Contents {
    waiting: VecDeque<Delivery>,
    done: u64,
    buried: Vec<(String, String)>,
    /// The dead letters take nothing.
    is_full: bool,
    /// How often the lane has looked for more.
    reads: u64,
}

impl Shelf {
    pub(super) fn new() -> Shelf {
        let (ring, bell) = crossbeam_channel::bounded(1);
        Shelf { kept: Arc::default(), ring, bell }
    }

    /// Puts records with these ids there, all of one key.
    pub(super) fn fill(&self, from: u64, ids: &[String]) {
        let mut kept = self.kept.lock().unwrap();
        for (i, id) in ids.iter().enumerate() {
            let request_id = crate::base::id::RequestId::from_client(id.as_bytes()).unwrap();
            let api_key = Some("sk-llmproxy-0123456789".into());
            let record = UsageRecord { request_id, api_key, ..record() };
            kept.waiting.push_back(Delivery { seq: from + i as u64, record });
        }
        drop(kept);
        let _ = self.ring.try_send(());
    }

    /// Puts records there, each with its place.
    pub(super) fn put(&self, records: &[(u64, UsageRecord)]) {
        let deliveries = records.iter().cloned().map(|(seq, record)| Delivery { seq, record });
        self.kept.lock().unwrap().waiting.extend(deliveries);
    }

    pub(super) fn reads(&self) -> u64 {
        self.kept.lock().unwrap().reads
    }

    pub(super) fn done(&self) -> u64 {
        self.kept.lock().unwrap().done
    }

    pub(super) fn buried(&self) -> Vec<(String, String)> {
        self.kept.lock().unwrap().buried.clone()
    }
}

impl Source for Shelf {
    fn read<'p>(&mut self, max: usize, room: &'p mut Parcel, into: &mut Read<'p>) -> bool {
        let mut kept = self.kept.lock().unwrap();
        kept.reads += 1;
        let count = max.min(kept.waiting.len());
        room.clear();
        for Delivery { seq, record } in kept.waiting.drain(..count) {
            let mut bytes = Vec::new();
            codec::encode(&record.borrowed(), &mut bytes);
            room.push(seq, &bytes);
        }
        let room: &Parcel = room;
        for (seq, bytes) in room.iter() {
            into.push(seq, codec::decode_ref(bytes).unwrap());
        }
        !kept.waiting.is_empty()
    }

    fn done(&mut self, through: u64) {
        let mut kept = self.kept.lock().unwrap();
        assert!(through > kept.done, "a checkpoint that does not rise");
        kept.done = through;
    }

    fn bell(&self) -> &Receiver<()> {
        &self.bell
    }

    fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()> {
        let id = record.request_id.as_str().to_owned();
        let mut kept = self.kept.lock().unwrap();
        if kept.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        kept.buried.push((id, reason.to_owned()));
        Ok(())
    }
}

/// Lanes that run, with a shelf each that holds this many records.
struct Running {
    lanes: Lanes,
    shelves: Vec<Shelf>,
    counters: Arc<UsageCounters>,
    ids: Vec<String>,
}

fn running(reporters: &[plan::Reporter], records: usize) -> Running {
    let mut ids = RequestIds::new(5);
    let ids: Vec<String> = (0..records).map(|_| ids.next_id().as_str().to_owned()).collect();
    let shelves: Vec<Shelf> = reporters.iter().map(|_| Shelf::new()).collect();
    shelves.iter().for_each(|shelf| shelf.fill(1, &ids));
    let sources = shelves.iter().map(|s| Box::new(s.clone()) as Box<dyn Source>).collect();
    let counters = Arc::new(UsageCounters::new(reporters));
    let lanes = Lanes::start_with(sources, reporters, &counters, SHORT).unwrap();
    Running { lanes, shelves, counters, ids }
}

/// delivered, failed, buried, retried, batches
fn counts(counters: &UsageCounters) -> [u64; 5] {
    let r = &counters.reporters[0];
    let ReporterCounters { delivered, failed, buried, retried, batches, .. } = r;
    [delivered, failed, buried, retried, batches].map(|counter| counter.load(Relaxed))
}

impl Running {
    /// Waits until the first source was told of this place.
    fn await_done(&self, through: u64) {
        let start = Instant::now();
        while self.shelves[0].done() < through {
            assert!(start.elapsed() < PATIENCE, "{:?}", counts(&self.counters));
            thread::yield_now();
        }
    }

    /// Stops without haste; asserts that nothing was left, and gives the counts.
    fn stop(self) -> [u64; 5] {
        assert_eq!(self.lanes.stop(PATIENCE), 0);
        counts(&self.counters)
    }
}

fn arrived_ids(arrived: &Receiver<Arrived>) -> Vec<String> {
    arrived.try_iter().map(|(_, json)| json["request_id"].as_str().unwrap().to_owned()).collect()
}

/// Catches: records lost or out of order at a stop, and a source that is not told.
#[test]
fn records_arrive_in_order_and_stop_waits_for_them() {
    let (address, arrived) = webhook(&[]);
    let running = running(&[reporter(address, 0, PATIENCE)], 50);
    let (ids, shelf) = (running.ids.clone(), running.shelves[0].clone());
    assert_eq!(running.stop(), [50, 0, 0, 0, 50]);
    assert_eq!(arrived_ids(&arrived), ids);
    assert_eq!(shelf.done(), 50);
}

/// Catches: a lane that sleeps through the bell.
#[test]
fn records_that_come_later_wake_the_lane() {
    let (address, arrived) = webhook(&[]);
    let running = running(&[reporter(address, 0, PATIENCE)], 1);
    running.await_done(1);
    for round in 0..3_u64 {
        let ids: Vec<String> = (0..5).map(|i| format!("later-{round}-{i}")).collect();
        running.shelves[0].fill(2 + round * 5, &ids);
        running.await_done(6 + round * 5);
    }
    assert_eq!(running.stop()[0], 16);
    assert_eq!(arrived.try_iter().count(), 16);
}

/// Catches: a receiver that cannot tell who sent what, or that sees a whole key.
#[test]
fn a_request_has_the_fields_that_a_receiver_needs() {
    let (address, arrived) = webhook(&[]);
    let running = running(&[reporter(address, 0, PATIENCE)], 1);
    let (head, json) = arrived.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("post /hook?token=x http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    assert!(head.contains(&format!("idempotency-key: {}\r\n", running.ids[0])), "{head}");
    assert!(head.contains("x-secret: s3\r\n"), "{head}");
    assert!(!head.contains("signature"), "{head}");
    assert_eq!(json["request_id"], running.ids[0].as_str());
    assert_eq!(
        (&json["usage"]["total_tokens"], &json["api_key"]),
        (&57.into(), &"sk-l...6789".into())
    );
    running.stop();
}

/// Catches: records given up or overtaken because their receiver had a bad time.
#[test]
fn a_failed_try_is_repeated_with_the_same_key() {
    use Answer::*;
    let failures = [Status(500), Status(429), Close, Status(302), Status(503)];
    let (address, arrived) = webhook(&failures);
    let running = running(&[reporter(address, 4, PATIENCE)], 2);
    let ids = running.ids.clone();
    assert_eq!(running.stop(), [2, 5, 0, 5, 7]);
    let expected = [vec![ids[0].clone(); 6], vec![ids[1].clone()]].concat();
    assert_eq!(arrived_ids(&arrived), expected, "and the second waits for the first");
}

/// Catches: a try without end.
#[test]
fn a_silent_receiver_costs_one_timeout_a_try() {
    let (address, arrived) = webhook(&[Answer::Silence]);
    let running = running(&[reporter(address, 1, Duration::from_millis(200))], 1);
    assert_eq!(running.stop(), [1, 1, 0, 1, 2]);
    assert_eq!(arrived_ids(&arrived).len(), 2);
}

/// A webhook that refuses the first record that it sees, and takes all others.
fn refusing_the_first() -> (SocketAddr, Receiver<Arrived>) {
    let mut first = None;
    webhook_that(move |(_, json)| {
        let id = json["request_id"].clone();
        match *first.get_or_insert_with(|| id.clone()) == id {
            true => Answer::Status(400),
            false => Answer::Status(200),
        }
    })
}

/// Catches: a refused record that vanishes, is tried for ever, or stops all behind it.
#[test]
fn what_the_receiver_refuses_is_buried_after_its_tries() {
    let (address, arrived) = refusing_the_first();
    let running = running(&[reporter(address, 2, PATIENCE)], 20);
    let (ids, shelf) = (running.ids.clone(), running.shelves[0].clone());
    running.await_done(20);
    let tries = tries_of_the_first(&arrived, &ids);
    assert_eq!(running.stop()[..3], [19, tries, 1]);
    assert_eq!(shelf.buried(), [(ids[0].clone(), "it answered 400".to_owned())]);
}

/// Catches: dead letters that are dropped because their file is full, a lane that sends on and
/// makes more of them, one that does not go on when there is room, and one that never ends.
#[test]
fn full_dead_letters_stop_the_lane_until_there_is_room() {
    for is_stopped in [false, true] {
        let (address, _arrived) = refusing_the_first();
        let running = running(&[reporter(address, 2, PATIENCE)], 0);
        let shelf = running.shelves[0].clone();
        shelf.kept.lock().unwrap().is_full = true;
        let ids: Vec<String> = (0..20).map(|i| format!("id-{i}")).collect();
        shelf.fill(1, &ids);
        let waiting = || running.counters.reporters[0].unburied.load(Relaxed);
        let start = Instant::now();
        while waiting() == 0 {
            assert!(start.elapsed() < PATIENCE, "{:?}", counts(&running.counters));
            thread::yield_now();
        }
        let delivered = counts(&running.counters)[0];
        shelf.fill(21, &["later".to_owned()]);
        let looks = shelf.reads();
        while shelf.reads() < looks + 2 {
            assert!(start.elapsed() < PATIENCE);
            thread::yield_now();
        }
        assert_eq!((counts(&running.counters)[0], shelf.done()), (delivered, 0));
        if is_stopped {
            assert_eq!(running.lanes.stop(PATIENCE), 21 - delivered);
            assert_eq!((shelf.buried(), shelf.done()), (Vec::new(), 0));
            continue;
        }
        shelf.kept.lock().unwrap().is_full = false;
        running.await_done(21);
        assert_eq!((shelf.buried().len(), waiting()), (1, 0));
        assert_eq!(running.stop()[0], 20);
    }
}

/// Catches: records that are given up since the receiver refuses whatever it gets.
#[test]
fn a_receiver_that_refuses_everything_gets_all_of_it_later() {
    let mut first_answers = [401, 403, 404, 405, 410, 401, 422, 404].iter();
    let (address, arrived) =
        webhook_that(move |_| Answer::Status(first_answers.next().copied().unwrap_or(200)));
    let running = running(&[reporter(address, 0, PATIENCE)], 5);
    let (ids, shelf) = (running.ids.clone(), running.shelves[0].clone());
    running.await_done(5);
    assert_eq!(running.stop()[..3], [5, 8, 0]);
    assert_eq!(shelf.buried(), []);
    let mut seen = arrived_ids(&arrived);
    seen.dedup();
    assert_eq!(seen.last(), ids.last());
}

/// Catches: a lane that does not bury what the window gives up for lost tries, or tells no cause.
#[test]
fn what_cuts_each_connection_is_buried_in_the_end() {
    let mut first = None;
    let (address, arrived) = webhook_that(move |(_, json)| {
        let id = json["request_id"].clone();
        match *first.get_or_insert_with(|| id.clone()) == id {
            true => Answer::Close,
            false => Answer::Status(200),
        }
    });
    let running = running(&[reporter(address, 0, PATIENCE)], 40);
    let (ids, shelf) = (running.ids.clone(), running.shelves[0].clone());
    running.await_done(40);
    assert_eq!(running.stop()[..3], [39, tries_of_the_first(&arrived, &ids), 1]);
    let [(id, cause)] = &shelf.buried()[..] else { panic!("{:?}", shelf.buried()) };
    assert!(*id == ids[0] && !cause.is_empty(), "{cause}");
}

/// How often the first record came; asserts that the others came once, and in order.
fn tries_of_the_first(arrived: &Receiver<Arrived>, ids: &[String]) -> u64 {
    let (first, others): (Vec<_>, Vec<_>) =
        arrived_ids(arrived).into_iter().partition(|id| *id == ids[0]);
    assert_eq!(others, ids[1..]);
    first.len() as u64
}

/// Catches: reporters that wait for each other, records given up at a dead one, an endless stop.
#[test]
fn a_dead_reporter_holds_up_no_other() {
    // A port on which nothing listens.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, arrived) = webhook(&[]);
    let running = running(&[reporter(dead, 0, PATIENCE), reporter(address, 0, PATIENCE)], 3);
    for id in &running.ids {
        let (_, json) = arrived.recv_timeout(PATIENCE).unwrap();
        assert_eq!(json["request_id"], id.as_str());
    }
    let start = Instant::now();
    assert_eq!(running.lanes.stop(Duration::from_millis(300)), 3, "left by the dead one");
    assert!(start.elapsed() < PATIENCE, "the deadline bounds the stop");
    let [delivered, failed, buried, ..] = counts(&running.counters);
    assert!(failed > 0);
    assert_eq!([delivered, buried], [0, 0]);
    assert_eq!((running.shelves[0].done(), running.shelves[1].done()), (0, 3));
}

/// Catches: a lane that sleeps on records it knows of, because it has delivered all that it held
/// and nothing rings for the rest: an outage that filled its window left the remainder waiting.
#[test]
fn what_did_not_fit_into_the_window_is_read_when_there_is_room() {
    let (address, _arrived) = webhook(&[]);
    // The window of a lane with one sender holds 1 024; the shelf rings once, at the beginning.
    let running = running(&[reporter(address, 0, PATIENCE)], 2500);
    running.await_done(2500);
    assert_eq!(running.stop()[0], 2500);
}
