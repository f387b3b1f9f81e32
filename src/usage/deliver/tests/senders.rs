//! A reporter with several connections.

use super::*;

/// Catches: senders that wait for each other, or of which one takes all.
#[test]
fn several_senders_deliver_at_one_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut reporter = reporter(listener.local_addr().unwrap(), 0, PATIENCE);
    if let ReporterKind::Webhook(webhook) = &mut reporter.kind {
        webhook.concurrency = 3;
    }
    let running = running(&[reporter], 0);
    let with_key = |seq: u64| {
        let api_key = Some(format!("key-{seq}"));
        Delivery { seq, record: UsageRecord { api_key, ..record() } }
    };
    running.shelves[0].kept.lock().unwrap().waiting.extend((1..=6).map(with_key));
    running.shelves[0].ring.send(()).unwrap();
    // None is answered before three have come.
    let streams: Vec<TcpStream> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    let answers: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            read_request(&stream).unwrap();
            thread::spawn(move || loop {
                let answer = b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\nok";
                if (&stream).write_all(answer).is_err() || read_request(&stream).is_none() {
                    return;
                }
            })
        })
        .collect();
    running.await_done(6);
    assert_eq!(running.stop(), [6, 0, 0, 0, 6]);
    answers.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Catches: a batch of a lane with several senders that is sent by none, or is lost with the first
/// try; records of one key out of order.
#[test]
fn several_senders_deliver_what_fits_one_batch() {
    // This receiver has one connection at a time: the next is another sender's.
    let (address, arrived) = webhook(&[Answer::Close]);
    let mut reporter = reporter(address, 2, PATIENCE);
    if let ReporterKind::Webhook(webhook) = &mut reporter.kind {
        (webhook.batch, webhook.batch_size, webhook.concurrency) = (WebhookBatch::Array, 10, 3);
    }
    let running = running(&[reporter], 4);
    running.await_done(4);
    let ids = running.ids.clone();
    let [delivered, failed, buried, ..] = running.stop();
    assert_eq!([delivered, failed, buried], [4, 1, 0]);
    let batches: Vec<Vec<String>> = arrived
        .try_iter()
        .map(|(_, json)| {
            let records = json.as_array().unwrap();
            records.iter().map(|r| r["request_id"].as_str().unwrap().to_owned()).collect()
        })
        .collect();
    assert_eq!(batches[0], ids, "all that waits in one batch");
    assert_eq!(batches[1..].concat(), ids);
}
