//! A webhook: one request with a JSON body per record, or per batch of records. Only 2xx is
//! success. A receiver can tell a repeated request by its `Idempotency-Key`, and that it is ours by
//! its signature: as with GitHub, the HMAC-SHA256 of the body's bytes alone.

use super::{Reporter, Shape, Tried};
use crate::base::fnv;
use crate::base::limits::{
    BATCH_BUFFER_BYTES_KEPT, GATHER_CALLS, GATHER_SINGLES, WEBHOOK_ANSWER_BYTES_MAX,
};
use crate::config::plan::{self, WebhookBatch};
use crate::store::http::HttpService;
use crate::store::Trouble;
use crate::usage::key_form::hex;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::json::JsonWriter;
use ring::hmac;
use std::time::Duration;
use ureq::http::Request;

/// A webhook, and the service behind it.
pub struct Webhook {
    plan: plan::Webhook,
    service: HttpService,
    signing: Option<hmac::Key>,
    /// The last body, of which the next one takes the room.
    body: Vec<u8>,
}

impl Webhook {
    /// Makes the client; connects to nothing yet.
    pub fn new(plan: plan::Webhook) -> Self {
        let service = HttpService::new(&plan.url);
        let secret = plan.hmac_secret.reveal().as_bytes();
        let signing = (!secret.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, secret));
        Webhook { plan, service, signing, body: Vec::new() }
    }
}

/// How a webhook wants to be called.
pub fn shape(plan: &plan::Webhook) -> Shape {
    let (batch, gather) = match plan.batch {
        WebhookBatch::Single => (1, GATHER_SINGLES),
        WebhookBatch::Array | WebhookBatch::Ndjson => (plan.batch_size as usize, GATHER_CALLS),
    };
    let concurrency = plan.concurrency as usize;
    Shape { batch, gather, concurrency, retries: plan.retry, timeout: plan.timeout }
}

impl Reporter for Webhook {
    fn place(&self) -> String {
        self.service.place().to_owned()
    }

    /// One request. Blocks for at most `limit`, from the name's lookup to the answer's end.
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let key = self.write(records);
        let content_type = match self.plan.batch {
            WebhookBatch::Single | WebhookBatch::Array => "application/json",
            WebhookBatch::Ndjson => "application/x-ndjson",
        };
        let mut request = Request::builder()
            .method(self.plan.method.as_str())
            .header("content-type", content_type)
            .header("idempotency-key", key);
        if let Some(key) = &self.signing {
            let signature = format!("sha256={}", hex(hmac::sign(key, &self.body).as_ref()));
            request = request.header("x-llmproxy-signature", signature);
        }
        for (name, value) in &self.plan.headers {
            request = request.header(name, value.reveal());
        }
        match self.service.send(request, &self.body, limit) {
            Ok(mut answer) => {
                // Read to its end so that the connection can be used again. What it says, and
                // whether all of it came, changes nothing: the status has decided.
                let rest = answer.body_mut().with_config().limit(WEBHOOK_ANSWER_BYTES_MAX);
                let _ = rest.read_to_vec();
                let named = answer.headers().get("retry-after").and_then(|v| v.to_str().ok());
                judge(answer.status().as_u16(), named)
            }
            Err(Trouble::Later(cause)) => Tried::Again(cause),
            Err(Trouble::Data(cause)) => Tried::Refused(cause),
        }
    }
}

impl Webhook {
    /// Writes the body for these records; gives the key by which a receiver knows it again.
    fn write(&mut self, records: &[RecordRef<'_>]) -> String {
        self.body.clear();
        self.body.shrink_to(BATCH_BUFFER_BYTES_KEPT);
        let mut writer = JsonWriter::new(&mut self.body, self.plan.format);
        let first = records.first().map(|record| record.request_id).unwrap_or_default();
        match self.plan.batch {
            WebhookBatch::Single => {
                records.iter().for_each(|record| writer.record(record));
                return first.to_owned();
            }
            WebhookBatch::Array => {
                for (place, record) in records.iter().enumerate() {
                    writer.byte(if place == 0 { b'[' } else { b',' });
                    writer.record(record);
                }
                writer.byte(b']');
            }
            WebhookBatch::Ndjson => {
                records.iter().for_each(|record| writer.line(record));
            }
        }
        format!("{first}-{}-{:016x}", records.len(), sum_of_ids(records))
    }
}

/// A sum over the ids of a batch (FNV-1a), the same in each process and version. It tells batches
/// apart that begin alike and are as long. The ids are of our making: nobody chooses them so that
/// sums are equal, and a cryptographic digest would take a seventh of a lane's time.
fn sum_of_ids(records: &[RecordRef<'_>]) -> u64 {
    let ids = records.iter().flat_map(|record| record.request_id.bytes().chain([b'\n']));
    fnv::hash(ids)
}

/// A receiver that says 4xx has read the record and will say it again; the two that mean "later"
/// are 408 and 429. Of 5xx, three come from before the application or when it is overloaded; with
/// the others it may have stumbled over the record.
fn judge(status: u16, retry_after: Option<&str>) -> Tried {
    let said = format!("it answered {status}");
    // The form with a date would be the wait of a clock that is not ours.
    let named = retry_after.and_then(|seconds| seconds.trim().parse().ok());
    match (status, named) {
        (200..=299, _) => Tried::Delivered,
        (429 | 503, Some(seconds)) => Tried::Later(said, Duration::from_secs(seconds)),
        (408 | 429 | 502..=504, _) => Tried::Again(said),
        (400..=499, _) => Tried::Refused(said),
        _ => Tried::Failed(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::config::plan::RecordFormat;
    use crate::usage::record::tests::record;
    use crate::usage::record::UsageRecord;

    fn webhook(url: &str, batch: WebhookBatch) -> Webhook {
        Webhook::new(plan::Webhook {
            url: Secret::new(url),
            method: "POST".into(),
            timeout: Duration::from_secs(1),
            retry: 0,
            headers: Vec::new(),
            hmac_secret: Secret::default(),
            batch,
            batch_size: 7,
            concurrency: 3,
            format: RecordFormat::Full,
        })
    }

    /// Catches: a token of a URL in a log.
    #[test]
    fn a_log_shows_neither_credentials_nor_path() {
        for (url, place) in [
            ("https://user:pw@hooks.example:8443/T0/s3cret?token=x", "https://hooks.example:8443"),
            ("http://h?token=x", "http://h"),
            ("http://h", "http://h"),
            ("https://a@b@h/x@y", "https://h"),
        ] {
            assert_eq!(webhook(url, WebhookBatch::Single).place(), place);
        }
    }

    /// Catches: a record given up for a failure of the receiver, or sent for ever for its own.
    #[test]
    fn a_status_tells_whose_fault_it_is() {
        assert_eq!(judge(204, None), Tried::Delivered);
        for status in [408, 429, 502, 503, 504] {
            assert!(matches!(judge(status, None), Tried::Again(_)), "{status}");
        }
        for status in [500, 501, 505, 302, 101] {
            assert!(matches!(judge(status, None), Tried::Failed(_)), "{status}");
        }
        for status in [400, 401, 404, 409, 422] {
            assert!(matches!(judge(status, Some("3")), Tried::Refused(_)), "{status}");
        }
    }

    /// Catches: a receiver that names a wait and is asked before.
    #[test]
    fn a_wait_that_the_receiver_names_is_told() {
        for status in [429, 503] {
            let said = format!("it answered {status}");
            let later = Tried::Later(said.clone(), Duration::from_secs(30));
            assert_eq!(judge(status, Some(" 30 ")), later);
            let date = judge(status, Some("Wed, 21 Oct 2015 07:28:00 GMT"));
            assert_eq!(date, Tried::Again(said));
        }
    }

    /// Catches: a batch that is no JSON, or whose key differs when it is repeated, or does not when
    /// it is another.
    #[test]
    fn a_batch_is_one_body_with_one_key() {
        let with_id = |id: &str| UsageRecord {
            request_id: crate::base::id::RequestId::from_client(id.as_bytes()).unwrap(),
            ..record()
        };
        let (one, two, three) = (with_id("one"), with_id("two"), with_id("three"));
        let ids = |json: serde_json::Value| json["request_id"].as_str().unwrap().to_owned();
        let (one, two, three) = (one.borrowed(), two.borrowed(), three.borrowed());
        let mut array = webhook("http://h", WebhookBatch::Array);
        let key = array.write(&[one, two]);
        let parsed: Vec<serde_json::Value> = serde_json::from_slice(&array.body).unwrap();
        assert_eq!(parsed.into_iter().map(ids).collect::<Vec<_>>(), ["one", "two"]);
        // Repeated by another version of the program it is to be the same.
        assert_eq!(key, "one-2-7b9c7bc72169cef7");
        assert_eq!(array.write(&[one, two]), key);
        assert_ne!(array.write(&[one, three]), key);
        let mut lines = webhook("http://h", WebhookBatch::Ndjson);
        lines.write(&[one, two]);
        let lines = String::from_utf8(lines.body).unwrap();
        assert!(lines.ends_with('\n'));
        let parsed = lines.lines().map(|line| ids(serde_json::from_str(line).unwrap()));
        assert_eq!(parsed.collect::<Vec<_>>(), ["one", "two"]);
        let mut single = webhook("http://h", WebhookBatch::Single);
        assert_eq!(single.write(&[one]), "one");
        assert_eq!(ids(serde_json::from_slice(&single.body).unwrap()), "one");
    }

    /// Catches: a webhook whose requests go out in parts. A receiver that was slow to wake would
    /// read both at once: not a hundred times.
    #[test]
    fn a_record_is_sent_at_once() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/usage", listener.local_addr().unwrap());
        let (mut webhook, record) = (webhook(&url, WebhookBatch::Single), record());
        webhook.write(&[record.borrowed()]);
        let body = webhook.body.clone();
        let served = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut bytes = vec![0; 64 * 1024];
            for request in 0..100 {
                let len = stream.read(&mut bytes).unwrap();
                let whole = bytes.starts_with(b"POST /usage ") && bytes[..len].ends_with(&body);
                assert!(whole, "{request}: {}", String::from_utf8_lossy(&bytes[..len]));
                stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").unwrap();
            }
        });
        for _ in 0..100 {
            let tried = webhook.send(&[record.borrowed()], Duration::from_secs(5));
            assert_eq!(tried, Tried::Delivered);
        }
        served.join().unwrap();
    }

    /// Catches: batches where one record was asked for, or senders that nobody configured.
    #[test]
    fn its_shape_is_the_configured_one() {
        for (batch, most) in [(WebhookBatch::Single, 1), (WebhookBatch::Ndjson, 7)] {
            let shape = shape(&webhook("http://h", batch).plan);
            assert_eq!((shape.batch, shape.concurrency), (most, 3));
        }
    }
}
