//! A receiver of usage records that can be told to fail.

use super::await_some;
use super::backend::{Backend, Received};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A running receiver.
pub struct Webhook {
    backend: Backend,
}

impl Webhook {
    /// One that takes everything.
    pub fn start() -> Webhook {
        Webhook::scripted(|_, _| 204)
    }

    /// One that answers the n-th request (from 0) with the status that the script gives; 0 closes
    /// the connection without an answer.
    pub fn scripted(script: impl Fn(usize, &Received) -> u16 + Send + Sync + 'static) -> Webhook {
        let count = AtomicUsize::new(0);
        let backend = Backend::start(move |served| {
            while let Some(request) = served.request() {
                let status = script(count.fetch_add(1, Ordering::Relaxed), &request);
                let length = if status == 204 { "" } else { "Content-Length: 0\r\n" };
                if status == 0 || !served.send(format!("HTTP/1.1 {status} X\r\n{length}\r\n")) {
                    return;
                }
            }
        });
        Webhook { backend }
    }

    /// Where records are to be sent.
    pub fn url(&self) -> String {
        format!("{}/usage", self.backend.url())
    }

    /// All deliveries, failed ones too.
    pub fn deliveries(&self) -> Vec<Received> {
        self.backend.requests()
    }

    /// The records of all deliveries.
    pub fn records(&self) -> Vec<Value> {
        let parse = |request: &Received| serde_json::from_slice(&request.body).unwrap();
        self.deliveries().iter().map(parse).collect()
    }

    /// Waits until there are at least `count` deliveries and gives their records.
    pub fn await_records(&self, count: usize, limit: Duration) -> Vec<Value> {
        await_some(&format!("{count} usage records"), limit, || {
            let records = self.records();
            (records.len() >= count).then_some(records)
        })
    }
}
