//! A real authority: Pebble, the test server of Let's Encrypt, from Debian's package. It looks at
//! names by a name server of the test's own, on the ports that the test says. Between it and the
//! product stands a front that can fail as authorities do.

use super::backend::{Backend, Received, Served};
use super::client::Conn;
use super::process::Process;
use super::scratch::Scratch;
use super::services::{find, free_port, installed};
use super::tls::Pki;
use super::{await_until, NameServer, SOON};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const PEBBLE: &[&str] = &["pebble"];
/// Where Pebble takes orders.
const NEW_ORDER: &str = "/order-plz";
/// Where it says what is where, and, which is the front's own, when to renew.
const DIRECTORY: &str = "/dir";
const RENEWAL: &str = "/renewal/";
/// Where it takes accounts.
const NEW_ACCOUNT: &str = "/sign-me-up";
/// The one customer of [`AcmeServer::start_bound`], and the key that proves it.
pub const KID: &str = "kid-of-ours";
pub const HMAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// What the front does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeMood {
    /// It passes it on.
    Well,
    /// It closes the connection.
    Down,
    /// It answers with a page of HTML, as a proxy that is lost does.
    Html,
    /// It answers the next order with a limit, and so many seconds to wait; then it is well.
    RateLimited(u64),
    /// It takes the next nonce for a bad one; then it is well.
    BadNonce,
    /// It knows no account, until somebody makes one; then it is well.
    NoAccount,
}

#[derive(Default)]
struct Seen {
    mood: Mutex<Option<AcmeMood>>,
    orders: AtomicUsize,
    does_advise: AtomicBool,
    /// Certificates about which it was asked.
    advised: Mutex<Vec<String>>,
}

/// A running authority.
pub struct AcmeServer {
    /// Names that it can look up.
    pub names: NameServer,
    /// Where it asks for tokens.
    pub http_port: u16,
    /// Where it asks for certificates of challenges.
    pub tls_port: u16,
    pki: Pki,
    front: Backend,
    seen: Arc<Seen>,
    management: SocketAddr,
    _process: Process,
    _scratch: Scratch,
}

impl AcmeServer {
    /// Whether the machine has it.
    pub fn is_there() -> bool {
        find(PEBBLE).is_some()
    }

    /// One whose certificates live so many seconds, and that knows `localhost` alone.
    pub fn start(life_s: u64) -> AcmeServer {
        AcmeServer::start_for(life_s, false)
    }

    /// One that takes accounts of its customers only.
    pub fn start_bound(life_s: u64) -> AcmeServer {
        AcmeServer::start_for(life_s, true)
    }

    fn start_for(life_s: u64, is_bound: bool) -> AcmeServer {
        let (pki, scratch, names) = (Pki::new(), Scratch::new(), NameServer::start());
        names.set_addresses("localhost", &["127.0.0.1"]);
        let [port, management, http_port, tls_port] = [(); 4].map(|()| free_port());
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": pki.path("cert.pem"),
            "privateKey": pki.path("key.pem"),
            "httpPort": http_port,
            "tlsPort": tls_port,
            "certificateValidityPeriod": life_s,
            "externalAccountBindingRequired": is_bound,
            "externalAccountMACKeys": {KID: HMAC_KEY},
        }});
        let config = scratch.write("pebble.json", config.to_string());
        let way = ["env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0"];
        let (config, resolver) = (config.to_string_lossy(), names.addr().to_string());
        let args = ["-config", &config, "-dnsserver", &resolver];
        let process = Process::start_through(&way, &installed(PEBBLE), &args);
        let [to, management] = [port, management].map(at);
        await_until("pebble listens", SOON, || {
            let ended = process.try_status();
            assert!(ended.is_none(), "pebble ended: {ended:?}\n{}", process.stdout.text());
            [to, management].iter().all(|at| TcpStream::connect(at).is_ok())
        });
        let seen = Arc::new(Seen::default());
        let (inner, client) = (Arc::clone(&seen), pki.client());
        let shown = pki.authority().server(&["127.0.0.1"]);
        let front = Backend::start_tls(shown, move |served| {
            while let Some(request) = served.request() {
                if !inner.answer(served, &request, || Conn::open_tls(to, Arc::clone(&client))) {
                    return;
                }
            }
        });
        AcmeServer {
            names,
            http_port,
            tls_port,
            pki,
            front,
            seen,
            management,
            _process: process,
            _scratch: scratch,
        }
    }

    /// How it does from now on.
    pub fn set_mood(&self, mood: AcmeMood) {
        *self.seen.mood.lock().unwrap() = Some(mood);
    }

    /// From now on it says that the first certificate about which it is asked is to be renewed at
    /// once, and all others in a hundred years.
    pub fn advise(&self) {
        self.seen.does_advise.store(true, Ordering::SeqCst);
    }

    /// Certificates about which it was asked, each as often as it was.
    pub fn advised(&self) -> Vec<String> {
        self.seen.advised.lock().unwrap().clone()
    }

    /// Orders that it has taken.
    pub fn orders(&self) -> usize {
        self.seen.orders.load(Ordering::SeqCst)
    }

    /// Orders that were tried, whatever it said.
    pub fn tries(&self) -> usize {
        self.front.requests().iter().filter(|request| request.head.target() == NEW_ORDER).count()
    }

    /// Properties of `server.tls.acme` that lead to it.
    pub fn properties(&self) -> String {
        let (port, ca) = (self.front.addr().port(), self.pki.path("ca.pem"));
        format!("directory: \"https://127.0.0.1:{port}/dir\", ca_file: \"{ca}\"")
    }

    /// Clients that trust what it signs, and ask for `localhost`. They look at each certificate
    /// anew.
    pub fn client(&self) -> Arc<ClientConfig> {
        let root = Conn::open_tls(self.management, self.pki.client()).get("/roots/0").body;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&root).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Seen {
    /// False: the connection closes.
    fn answer(&self, served: &mut Served, request: &Received, to: impl Fn() -> Conn) -> bool {
        let (method, target) = (request.head.method(), request.head.target());
        if let Some(mark) = target.strip_prefix(RENEWAL) {
            return served.send(self.advice(mark));
        }
        let mood = {
            let mut mood = self.mood.lock().unwrap();
            let meant = match mood.unwrap_or(AcmeMood::Well) {
                AcmeMood::RateLimited(_) if target != NEW_ORDER => AcmeMood::Well,
                AcmeMood::BadNonce if method != "POST" => AcmeMood::Well,
                AcmeMood::NoAccount if target == NEW_ACCOUNT => {
                    *mood = Some(AcmeMood::Well);
                    AcmeMood::Well
                }
                AcmeMood::NoAccount if method != "POST" => AcmeMood::Well,
                meant => meant,
            };
            if matches!(meant, AcmeMood::RateLimited(_) | AcmeMood::BadNonce) {
                *mood = Some(AcmeMood::Well);
            }
            meant
        };
        match mood {
            AcmeMood::Well => self.pass(served, request, to()),
            AcmeMood::Down => false,
            AcmeMood::Html => {
                let page = "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n";
                served.send(format!("{page}Content-Length: 6\r\n\r\n<html>"))
            }
            AcmeMood::RateLimited(seconds) => {
                let field = format!("Retry-After: {seconds}\r\n");
                served.send(problem(429, "rateLimited", "too many certificates", &field))
            }
            AcmeMood::NoAccount => {
                served.send(problem(400, "accountDoesNotExist", "no such account", ""))
            }
            AcmeMood::BadNonce => served.send(problem(400, "badNonce", "no such nonce", "")),
        }
    }

    fn advice(&self, mark: &str) -> String {
        let mut advised = self.advised.lock().unwrap();
        advised.push(mark.to_owned());
        let year = if advised[0] == mark { 2000 } else { 2126 };
        let [start, end] = [1, 2].map(|day| format!("{year}-01-0{day}T00:00:00Z"));
        let window =
            serde_json::json!({"suggestedWindow": {"start": start, "end": end}}).to_string();
        let length = window.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRetry-After: 3600\r\n\
             Content-Length: {length}\r\n\r\n{window}"
        )
    }

    fn pass(&self, served: &mut Served, request: &Received, mut to: Conn) -> bool {
        let mut text = format!("{}\r\nConnection: close\r\n", request.head.first_line);
        for (name, value) in &request.head.fields {
            if !name.eq_ignore_ascii_case("connection") {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        to.send(text + "\r\n").send(&request.body);
        let is_head = request.head.method() == "HEAD";
        let mut answer = if is_head { to.response_to_head() } else { to.response() };
        if request.head.target() == DIRECTORY && self.does_advise.load(Ordering::SeqCst) {
            let mut directory = answer.json();
            let host = request.head.get("host").unwrap();
            directory["renewalInfo"] =
                format!("https://{host}{}", RENEWAL.trim_end_matches('/')).into();
            answer.body = directory.to_string().into_bytes();
        }
        if request.head.target() == NEW_ORDER && answer.status() == 201 {
            self.orders.fetch_add(1, Ordering::SeqCst);
        }
        let mut text = format!("{}\r\n", answer.head.first_line);
        for (name, value) in &answer.head.fields {
            let ours = ["connection", "content-length", "transfer-encoding"];
            if !ours.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
        served.send([text.as_bytes(), &answer.body].concat())
    }
}

fn problem(status: u16, kind: &str, detail: &str, field: &str) -> String {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    let body = serde_json::json!({"type": kind, "detail": detail, "status": status}).to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} No\r\nContent-Type: application/problem+json\r\n{field}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}
