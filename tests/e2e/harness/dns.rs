//! A name server for tests: it shares no parser with the product, and answers what it is told to.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A record of a name.
#[derive(Debug, Clone)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// Priority, weight, port, target.
    Srv(u16, u16, u16, String),
}

/// What the server does with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Well,
    /// The same, but by UDP it says that the answer is too long.
    Truncating,
    /// It says that it cannot.
    Failing,
    /// The same, of addresses of IPv6 alone.
    FailingV6,
    /// It says nothing.
    Silent,
    /// It answers with noise.
    Garbage,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Vec<Record>>>,
    mood: Mutex<Option<Mood>>,
    by_udp: AtomicUsize,
    by_tcp: AtomicUsize,
    stopped: AtomicBool,
}

/// A running server, on the same port by UDP and TCP.
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl NameServer {
    /// One that knows no name.
    pub fn start() -> NameServer {
        // Somebody else may have the port by TCP.
        let (udp, tcp) = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
            Some((udp, tcp))
        })
        .flatten()
        .next()
        .unwrap();
        let address = udp.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let inner = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !inner.stopped.load(Relaxed) {
                let Ok((n, from)) = udp.recv_from(&mut bytes) else { continue };
                inner.by_udp.fetch_add(1, Relaxed);
                if let Some(answer) = inner.answer(&bytes[..n], true) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        let inner = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                if inner.stopped.load(Relaxed) {
                    return;
                }
                let (mut stream, mut length) = (stream, [0; 2]);
                let Ok(()) = stream.read_exact(&mut length) else { continue };
                let mut question = vec![0; u16::from_be_bytes(length) as usize];
                let Ok(()) = stream.read_exact(&mut question) else { continue };
                inner.by_tcp.fetch_add(1, Relaxed);
                if let Some(answer) = inner.answer(&question, false) {
                    let length = (answer.len() as u16).to_be_bytes();
                    let _ = stream.write_all(&[&length[..], &answer].concat());
                }
            }
        });
        NameServer { address, shared }
    }

    /// Where it is asked.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// From now on a name has these records.
    pub fn set(&self, name: &str, records: Vec<Record>) {
        self.shared.names.lock().unwrap().insert(name.to_owned(), records);
    }

    /// From now on a name has these addresses.
    pub fn set_addresses(&self, name: &str, addresses: &[&str]) {
        let address = |text: &&str| Record::Address(text.parse().unwrap());
        self.set(name, addresses.iter().map(address).collect());
    }

    /// From now on a name is not there.
    pub fn forget(&self, name: &str) {
        self.shared.names.lock().unwrap().remove(name);
    }

    /// How it does from now on.
    pub fn set_mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = Some(mood);
    }

    /// Questions by UDP and by TCP.
    pub fn asked(&self) -> (usize, usize) {
        (self.shared.by_udp.load(Relaxed), self.shared.by_tcp.load(Relaxed))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        let _ = std::net::TcpStream::connect(self.address);
    }
}

impl Shared {
    fn answer(&self, question: &[u8], is_udp: bool) -> Option<Vec<u8>> {
        let mood = self.mood.lock().unwrap().unwrap_or(Mood::Well);
        let mut labels = Vec::new();
        let mut at = 12;
        while question[at] > 0 {
            let end = at + 1 + question[at] as usize;
            labels.push(String::from_utf8(question[at + 1..end].to_vec()).unwrap());
            at = end;
        }
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        let mut answer = question[..at + 5].to_vec();
        let records = self.names.lock().unwrap().get(&labels.join(".")).cloned();
        let (flags, records) = match (mood, records) {
            (Mood::Silent, _) => return None,
            (Mood::Garbage, _) => {
                answer.extend_from_slice(&[0xc0; 40]);
                answer[7] = 3;
                answer[2] |= 0x80;
                return Some(answer);
            }
            (Mood::Failing, _) => (0x02, vec![]),
            (Mood::FailingV6, _) if kind == 28 => (0x02, vec![]),
            (_, None) => (0x03, vec![]),
            (Mood::Truncating, Some(_)) if is_udp => (0x0200, vec![]),
            (_, Some(records)) => (0, records),
        };
        let mut count = 0u16;
        for record in records {
            let (record_kind, data) = match record {
                Record::Address(IpAddr::V4(ip)) => (1u16, ip.octets().to_vec()),
                Record::Address(IpAddr::V6(ip)) => (28, ip.octets().to_vec()),
                Record::Srv(priority, weight, port, target) => {
                    let numbers = [priority, weight, port].map(u16::to_be_bytes).concat();
                    let mut data = numbers;
                    for label in target.split('.') {
                        data.push(label.len() as u8);
                        data.extend_from_slice(label.as_bytes());
                    }
                    data.push(0);
                    (33, data)
                }
            };
            if record_kind != kind {
                continue;
            }
            count += 1;
            answer.extend_from_slice(&[0xc0, 12]);
            answer.extend_from_slice(&record_kind.to_be_bytes());
            answer.extend_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
            answer.extend_from_slice(&data);
        }
        answer[2..4].copy_from_slice(&(0x8180u16 | flags).to_be_bytes());
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        answer[8..12].fill(0);
        Some(answer)
    }
}
