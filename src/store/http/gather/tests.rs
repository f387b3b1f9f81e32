use super::*;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use ureq::http::Request;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{DefaultConnector, LazyBuffers};
use ureq::{Agent, Timeout};

const LIMIT: Duration = Duration::from_secs(5);

/// What a connection was asked for.
#[derive(Debug, PartialEq)]
enum Call {
    Sent(Vec<u8>),
    Awaited,
    Probed,
}

/// A connection that notes what it is asked for.
struct Noted {
    buffers: LazyBuffers,
    calls: Arc<Mutex<Vec<Call>>>,
    /// What was left of the time when an answer was awaited.
    left: Arc<Mutex<Option<Left>>>,
    /// Each send takes so long.
    slow: Duration,
    broken: bool,
}

impl fmt::Debug for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noted")
    }
}

impl Transport for Noted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _timeout: NextTimeout) -> Result<(), Error> {
        if self.broken {
            return Err(Error::ConnectionFailed);
        }
        let began = Instant::now();
        while began.elapsed() < self.slow {}
        let sent = self.buffers.output()[..amount].to_vec();
        self.calls.lock().unwrap().push(Call::Sent(sent));
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        *self.left.lock().unwrap() = Some(timeout.after);
        self.calls.lock().unwrap().push(Call::Awaited);
        Ok(true)
    }

    fn is_open(&mut self) -> bool {
        self.calls.lock().unwrap().push(Call::Probed);
        true
    }
}

fn gathered() -> Gathered<Noted> {
    let (calls, left) = (Arc::default(), Arc::default());
    let buffers = LazyBuffers::new(BUFFER_BYTES, BUFFER_BYTES);
    let inner = Noted { buffers, calls, left, slow: Duration::ZERO, broken: false };
    Gathered { inner, held: Vec::new(), answered: false }
}

fn limit() -> NextTimeout {
    NextTimeout { after: LIMIT.into(), ..NextTimeout::default() }
}

/// As the library writes.
fn write(to: &mut Gathered<Noted>, bytes: &[u8]) {
    for part in bytes.chunks(BUFFER_BYTES) {
        to.buffers().output()[..part.len()].copy_from_slice(part);
        to.transmit_output(part.len(), limit()).unwrap();
    }
}

/// Catches: bytes that are sent one by one after all, twice, never, or behind the wait for their
/// answer; a request that takes the bytes of the one before.
#[test]
fn what_is_written_is_sent_at_once_when_the_answer_is_awaited() {
    let mut connection = gathered();
    for body in ["one", "two"] {
        write(&mut connection, b"HEAD ");
        write(&mut connection, body.as_bytes());
        assert_eq!(connection.inner.calls.lock().unwrap().len(), 0);
        assert!(connection.await_input(limit()).unwrap());
        assert!(connection.await_input(limit()).unwrap());
        let calls = std::mem::take(&mut *connection.inner.calls.lock().unwrap());
        let sent = Call::Sent([b"HEAD ", body.as_bytes()].concat());
        assert_eq!(calls, [sent, Call::Awaited, Call::Awaited]);
    }
    assert!(!format!("{connection:?}").contains("one"));
}

/// Catches: a large body that is held back whole, loses a byte, or ends with a piece too many.
#[test]
fn a_large_body_goes_in_pieces() {
    for len in [PIECE_BYTES - 5, PIECE_BYTES - 4, 2 * PIECE_BYTES - 5, 3 * PIECE_BYTES] {
        let body: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut connection = gathered();
        write(&mut connection, b"HEAD ");
        write(&mut connection, &body);
        assert!(connection.held.len() < PIECE_BYTES, "{len}");
        connection.await_input(limit()).unwrap();
        let mut sent = Vec::new();
        for call in connection.inner.calls.lock().unwrap().iter() {
            if let Call::Sent(piece) = call {
                sent.push(piece.clone());
            }
        }
        assert_eq!(sent.concat(), [b"HEAD ", body.as_slice()].concat());
        assert_eq!(sent.len(), (5 + len).div_ceil(PIECE_BYTES), "{len}");
    }
}

/// Catches: a failure to send that nobody hears of, so that an answer is awaited for nothing.
#[test]
fn a_failure_to_send_is_told_when_the_answer_is_awaited() {
    let mut connection = gathered();
    connection.inner.broken = true;
    write(&mut connection, b"HEAD body");
    assert!(matches!(connection.await_input(limit()), Err(Error::ConnectionFailed)));
    assert_eq!(connection.inner.calls.lock().unwrap().len(), 0);
}

/// Catches: a limit that counts anew for the answer, so that a try takes twice as long.
#[test]
fn sending_counts_in_the_time_of_the_answer() {
    let mut connection = gathered();
    connection.inner.slow = Duration::from_millis(5);
    write(&mut connection, &[0; PIECE_BYTES - 1]);
    connection.await_input(limit()).unwrap();
    let left = connection.inner.left.lock().unwrap().unwrap();
    assert!(*left <= LIMIT - Duration::from_millis(5) && !left.is_zero(), "{left:?}");
    let over = less(limit(), LIMIT * 2);
    assert!(over.after.is_zero() && over.reason == Timeout::Global);
}

/// Catches: a kept connection that nobody probes, or that is probed twice.
#[test]
fn a_kept_connection_is_probed_once() {
    let mut connection = gathered();
    assert!(connection.is_open());
    write(&mut connection, b"HEAD body");
    connection.await_input(limit()).unwrap();
    // Put aside, taken up again.
    assert!(connection.is_open() && connection.is_open());
    let probes = connection.inner.calls.lock().unwrap();
    assert_eq!(probes.iter().filter(|call| **call == Call::Probed).count(), 2);
}

fn gathering() -> impl Connector {
    DefaultConnector::new().chain(Gather)
}

fn agent(tls: TlsConfig, connector: impl Connector) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        .tls_config(tls)
        .timeout_global(Some(LIMIT))
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES);
    Agent::with_parts(config.build(), connector, DefaultResolver::default())
}

fn post(agent: &Agent, url: &str, body: &[u8]) -> Result<u16, Error> {
    let answer = agent.run(Request::post(url).body(body).unwrap())?;
    Ok(answer.status().as_u16())
}

const ANSWER: &[u8] = b"HTTP/1.1 204 X\r\n\r\n";

/// Answers so many requests on one connection.
fn receiver(requests: usize) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let serve = move || {
        let mut stream = listener.accept().unwrap().0;
        for _ in 0..requests {
            let mut request = Vec::new();
            while !request.ends_with(b"{}") {
                let mut bytes = [0; 1024];
                let len = stream.read(&mut bytes).unwrap();
                request.extend_from_slice(&bytes[..len]);
            }
            stream.write_all(ANSWER).unwrap();
        }
    };
    (url, std::thread::spawn(serve))
}

/// Counts how often the connection below is probed.
#[derive(Debug, Clone, Default)]
struct Probes(Arc<AtomicUsize>);

#[derive(Debug)]
struct Probed<T>(T, Probes);

impl<In: Transport> Connector<In> for Probes {
    type Out = Probed<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Probed<In>>, Error> {
        Ok(chained.map(|inner| Probed(inner, self.clone())))
    }
}

impl<T: Transport> Transport for Probed<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.1 .0.fetch_add(1, Relaxed);
        self.0.is_open()
    }
}

/// Catches: a library that does not probe any more when it takes a connection up again, so that
/// one that its receiver closed is used.
#[test]
fn the_library_probes_what_it_takes_up_again() {
    let (url, served) = receiver(3);
    let probes = Probes::default();
    let connector = DefaultConnector::new().chain(probes.clone()).chain(Gather);
    let agent = agent(TlsConfig::default(), connector);
    for before in 0..3 {
        assert_eq!(post(&agent, &url, b"{}").unwrap(), 204);
        assert_eq!(probes.0.load(Relaxed), before);
    }
    served.join().unwrap();
}

/// Catches: an end of the connection, or silence, that a try waits for beyond its limit.
#[test]
fn a_receiver_that_leaves_or_is_silent_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let leave = std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        listener
    });
    let agent = agent(TlsConfig::default(), gathering());
    let left = post(&agent, &url, b"{}").unwrap_err();
    assert!(!matches!(left, Error::Timeout(_)), "{left}");
    let _silent = leave.join().unwrap();
    let short = Some(Duration::from_millis(50));
    let request = Request::post(&url).body(&b"{}"[..]).unwrap();
    let request = agent.configure_request(request).timeout_global(short).build();
    assert!(matches!(agent.run(request), Err(Error::Timeout(_))));
}

/// Catches: two records for one request.
#[test]
fn a_request_is_one_tls_record() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (key.cert.der().clone(), key.signing_key.serialize_der());
    let roots: RootCerts = [Certificate::from_der(&certificate).to_owned()].into_iter().into();
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let records = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&records);
    let serve = std::thread::spawn(move || {
        let mut tls = ServerConnection::new(Arc::new(server)).unwrap();
        let mut stream = listener.accept().unwrap().0;
        for _ in 0..2 {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n{\"body\":1}") {
                request.extend(record(&mut stream, &mut tls, &seen));
            }
            tls.writer().write_all(ANSWER).unwrap();
            tls.write_tls(&mut stream).unwrap();
        }
    });
    let agent = agent(TlsConfig::builder().root_certs(roots).build(), gathering());
    for _ in 0..2 {
        assert_eq!(post(&agent, &url, b"{\"body\":1}").unwrap(), 204);
    }
    serve.join().unwrap();
    assert_eq!(records.load(Relaxed), 2);
}

/// Reads one TLS record, and gives what it holds for the application; counts those that do.
fn record(stream: &mut TcpStream, tls: &mut ServerConnection, seen: &AtomicUsize) -> Vec<u8> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).unwrap();
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + len, 0);
    stream.read_exact(&mut record[5..]).unwrap();
    tls.read_tls(&mut record.as_slice()).unwrap();
    let mut plain = vec![0; tls.process_new_packets().unwrap().plaintext_bytes_to_read()];
    if !plain.is_empty() {
        seen.fetch_add(1, Relaxed);
        tls.reader().read_exact(&mut plain).unwrap();
    }
    while tls.wants_write() {
        tls.write_tls(stream).unwrap();
    }
    plain
}
