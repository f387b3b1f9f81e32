//! What a service manager is told in systemd's way, and the sockets that it opens for the proxy.

use crate::harness::config::PLAIN;
use crate::harness::metrics::Metrics;
use crate::harness::process::LEGACY_DRIVER;
use crate::harness::scratch::Scratch;
use crate::harness::services::free_port;
use crate::harness::stream::Stream;
use crate::harness::{await_some, await_until, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

/// What listens where a service manager does.
pub struct Manager {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    pub fn new() -> Manager {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.file("notify")).unwrap();
        Manager { socket, scratch }
    }

    /// The variables by which it says where it is, and that it wants a sign of life every second.
    pub fn variables(&self) -> [String; 2] {
        let path = self.scratch.file("notify");
        [format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=1000000".into()]
    }

    /// The next message that is no sign of life.
    pub fn next(&self) -> String {
        loop {
            let message = self.any();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// The next message.
    pub fn any(&self) -> String {
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes).expect("the manager is told something");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }
}

/// Catches: a service that counts as started before anybody can connect, a reload that the manager
/// waits for in vain, signs of life that do not come, an end that it takes for a crash.
#[test]
fn a_service_manager_is_told_how_it_goes() {
    let (manager, backend) = (Manager::new(), Backend::answering(OK));
    let config = Config::backend_at(backend.url());
    let variables = manager.variables();
    let way: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    let proxy = Proxy::start_through(&way, &config.yaml());
    let ready = manager.next();
    assert_eq!(ready, format!("READY=1\nSTATUS=Serving at {}", proxy.addr()));
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    for (yaml, is_good) in [(config.yaml(), true), ("backends: [".into(), false)] {
        proxy.rewrite(&yaml);
        let asked = monotonic_usec();
        proxy.process.signal(Signal::HUP);
        let reloading = manager.next();
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a reload");
        let usec: u64 = usec.parse().unwrap();
        assert!((asked..=monotonic_usec()).contains(&usec), "the manager's own clock");
        let done = manager.next();
        assert!(done.starts_with("READY=1\nSTATUS="), "{done}");
        assert_eq!(!done.contains("could not"), is_good, "{done}");
    }
    // Nothing is open: workers sleep, and the process lives.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(manager.any(), "WATCHDOG=1");
    }
    proxy.process.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

/// As systemd compares it with the time at which it asked.
fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Opens sockets as a service manager does, and becomes the program behind: two TCP sockets that
/// listen, at the addresses of the arguments, and one that is something else.
const OPEN: &str = "\
import os, socket, sys
sockets = [socket.create_server(('127.0.0.1', int(port))) for port in sys.argv[1:3]]
sockets.append(socket.socket(socket.AF_UNIX))
for n, one in enumerate([os.dup(one.fileno()) for one in sockets]):
    os.dup2(one, 20 + n)
for n in range(3):
    os.dup2(20 + n, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='3', LISTEN_FDNAMES='a:b:c')
os.execv(sys.argv[3], sys.argv[3:])
";

/// The same with a Unix socket that has a file, and one of the kernel's own, by these names.
const OPEN_UNIX: &str = "\
import os, socket, sys
sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for one, name in zip(sockets, [sys.argv[1], '\\0' + sys.argv[2]]):
    one.bind(name)
    one.listen(8)
os.chmod(sys.argv[1], 0o640)
for n, one in enumerate([os.dup(one.fileno()) for one in sockets]):
    os.dup2(one, 20 + n)
for n in range(2):
    os.dup2(20 + n, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='a:b')
os.execv(sys.argv[3], sys.argv[3:])
";

/// Catches: a Unix socket of the manager that is in use because the manager has it, whose file is
/// changed or taken away at the end, though those who come meanwhile are to wait there; one that an
/// upgrade takes for its own.
#[test]
fn unix_sockets_of_a_service_manager_stay_its_own() {
    let (backend, scratch) = (Backend::answering(OK), Scratch::new());
    let (path, name) = (scratch.file("a.sock"), format!("llmproxy-lent-{}", std::process::id()));
    let file = path.display().to_string();
    let listeners =
        format!("listeners: [{{listen: \"unix:{file}\"}}, {{listen: \"unix:@{name}\"}}]");
    let config = Config::backend_at(backend.url()).server(listeners).server("workers: 2");
    let way = ["python3", "-c", OPEN_UNIX, &file, &name];
    let proxy = Proxy::start_linked(&way, &config.yaml());
    let used = |event: &serde_json::Value| event["message"] == "a socket of the service manager";
    assert_eq!(proxy.events().iter().filter(|event| used(event)).count(), 2);
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let serves = || {
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        let by_name = Stream::Unix(UnixStream::connect_addr(&address).unwrap());
        let mut both = [Conn::open(path.as_path()), Conn::over(by_name)];
        both.iter_mut().all(|conn| conn.post(CHATS, "", CHAT).status() == 200) && mode() == 0o640
    };
    assert!(serves());
    let pid = proxy.process.pid().to_string();
    let successor = crate::upgrade::upgraded(&proxy, &pid, 0);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert!(serves());
    successor.signal(Signal::TERM);
    successor.await_end();
    assert_eq!(mode(), 0o640);
}

/// Catches: an address that is in use because the manager has it, a worker without a listener, one
/// that waits for ever in an accept because the manager's socket does, a socket of another kind
/// that ends the start.
#[test]
fn sockets_of_a_service_manager_are_used() {
    let backend = Backend::answering(OK);
    let [clients, metrics] = [free_port(), free_port()];
    let config = Config::backend_at(backend.url()).server("workers: 3");
    let config = config.section(format!("metrics: {{listen: \"127.0.0.1:{metrics}\"}}"));
    let yaml = config.yaml().replacen("127.0.0.1:0", &format!("127.0.0.1:{clients}"), 1);
    let ports = [clients, metrics].map(|port| port.to_string());
    let proxy = Proxy::start_through(&["python3", "-c", OPEN, &ports[0], &ports[1]], &yaml);
    assert_eq!(proxy.addr().port(), clients);
    let used = |event: &serde_json::Value| event["message"] == "a socket of the service manager";
    assert_eq!(proxy.events().iter().filter(|event| used(event)).count(), 2);
    proxy.await_event("one is of no use", |event| {
        event["message"] == "a socket of the service manager is not used" && event["name"] == "c"
    });
    for _ in 0..24 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    let page = Conn::open(SocketAddr::from(([127, 0, 0, 1], metrics))).get("/metrics");
    assert_eq!(Metrics::parse(&page.text()).sum("llmproxy_workers", &[]), 3.0);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", clients)).is_err(), "nobody else has it here");
}

/// Catches: the real thing, which passes its sockets otherwise than our tests do.
#[test]
fn systemds_own_activation_starts_it_at_the_first_connection() {
    let tool = std::path::Path::new("/usr/bin/systemd-socket-activate");
    if !tool.exists() {
        return crate::harness::skip("systemd-socket-activate is not installed");
    }
    let backend = Backend::answering(OK);
    let address = format!("127.0.0.1:{}", free_port());
    let config = Config::backend_at(backend.url()).server(PLAIN);
    let (yaml, knocked) = (config.yaml(), address.clone());
    let yaml = yaml.replacen("127.0.0.1:0", &address, 1);
    // Nothing runs before somebody comes; whoever came first is served when it runs.
    let first = std::thread::spawn(move || {
        let connect = || TcpStream::connect(&knocked).ok();
        let _knock = await_some("somebody listens", SOON, connect);
        Conn::open(knocked.parse::<SocketAddr>().unwrap()).get("/health").status()
    });
    let mut way = vec![tool.to_str().unwrap(), "-l", &address];
    if std::env::var_os(LEGACY_DRIVER).is_some() {
        way.extend(["-E", LEGACY_DRIVER]);
    }
    let proxy = Proxy::start_through(&way, &yaml);
    assert_eq!(first.join().unwrap(), 200);
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.process.signal(Signal::TERM);
    await_until("it ends", SOON, || proxy.process.try_status().is_some());
}
