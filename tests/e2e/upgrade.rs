//! Hot restarts: SIGUSR2 and `llmproxy upgrade`. Another process takes the place of the one that
//! runs, with its sockets, and no client notices; or it does not start, and nothing has happened.

use crate::harness::client::Response;
use crate::harness::message::Ended;
use crate::harness::process::{program, run, Ran};
use crate::harness::proxy::llmproxy;
use crate::harness::tls::Pki;
use crate::harness::{
    await_some, await_until, pause, skip, AcmeServer, Backend, Config, Conn, Engine, Proxy,
    Webhook, SOON,
};
use crate::listeners::at_socket;
use crate::notify::Manager;
use crate::rig::{CHAT, CHATS, OK, STREAM};
use rustix::process::{kill_process, test_kill_process, Pid, Signal};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// A process that has the place of the one that a test has started. It ends with the test.
pub struct Successor(Pid);

impl Successor {
    /// The last one that the log tells of.
    fn of(proxy: &Proxy, before: usize) -> Successor {
        let number = await_some("a successor serves", SOON, || {
            let events = proxy.events();
            let mut upgraded = events.iter().filter(|event| {
                event["message"].as_str().is_some_and(|text| text.starts_with("upgraded: "))
            });
            upgraded.nth(before)?["process"].as_i64()
        });
        Successor(Pid::from_raw(i32::try_from(number).unwrap()).unwrap())
    }

    fn number(&self) -> String {
        self.0.as_raw_nonzero().to_string()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }

    pub fn await_end(&self) {
        await_until("the successor ends", SOON, || !is_there(self.0));
    }
}

/// Whether a process is there that is no zombie: nobody but its parent, which may be slow, or the
/// first process of the machine, takes note of its end.
fn is_there(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z ")) && test_kill_process(process).is_ok()
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

fn upgrade(args: &[&str]) -> Ran {
    llmproxy(&[&["upgrade"], args].concat())
}

/// Asks for an upgrade by the command, which must succeed.
pub fn upgraded(proxy: &Proxy, pid: &str, before: usize) -> Successor {
    let ran = upgrade(&["--pid", pid]);
    // Whatever became of it, it must not outlive the test.
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let successor = Successor::of(proxy, before);
    assert_eq!(
        ran.stdout,
        format!("process {} serves in the place of {pid}\n", successor.number())
    );
    successor
}

fn refused(ran: &Ran, code: i32, why: &str) {
    assert!(ran.code == Some(code) && ran.stderr.contains(why), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

fn pid_of(proxy: &Proxy) -> String {
    proxy.process.pid().to_string()
}

/// Answers of so many new connections.
fn all_are_answered(proxy: &Proxy, count: usize) {
    for _ in 0..count {
        assert_eq!(proxy.connect().post(CHATS, "", CHAT).status(), 200);
    }
}

/// A connection that a leaving process has is served until it says that it closes it. That is not
/// its first answer: each worker is told at its own time.
fn is_answered_for_the_last_time(conn: &mut Conn, mut ask: impl FnMut(&mut Conn) -> Response) {
    await_until("its answer is the last one", SOON, || {
        let answer = ask(conn);
        assert_eq!(answer.status(), 200);
        answer.head.get("connection") == Some("close")
    });
    conn.assert_closes();
}

/// Catches: a stream, or a request over a kept connection, that an upgrade cuts; an old process
/// that stays, or that goes before its time; metrics that come from the one that leaves; a pid file
/// with the number of a process that is gone; a second upgrade that fails because the first one's
/// process was not started by a person; records that are lost between the two.
#[test]
fn another_process_takes_the_place_and_no_client_notices() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let scratch = crate::harness::scratch::Scratch::new();
    let pid_file = scratch.file("run.pid");
    let config = Config::backend_at(engine.url())
        .server("workers: 2")
        .server(format!("pid_file: \"{}\"", pid_file.display()))
        .section("metrics: {listen: \"127.0.0.1:0\"}")
        .webhook(&hook.url(), "");
    let proxy = Proxy::start_linked(&[], &config.yaml());
    let metrics: SocketAddr = {
        let event = proxy.await_event("metrics", |event| event["message"] == "metrics");
        event["addr"].as_str().unwrap().parse().unwrap()
    };
    let scraped = |name: &str| {
        let page = Conn::open(metrics).get("/metrics");
        assert_eq!(page.status(), 200);
        crate::harness::metrics::Metrics::parse(&page.text()).sum(name, &[])
    };
    let number = || std::fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    let mut streaming = proxy.connect();
    streaming.start_post(CHATS, "x-mock-tokens: 40\r\nx-mock-gap-ms: 50\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    streaming.read_until("data:");
    let mut kept = proxy.connect();
    assert_eq!(kept.post(CHATS, "", CHAT).head.get("connection"), None);
    let mut probing = proxy.connect();
    assert_eq!(probing.get("/ready").status(), 200);
    assert!(scraped("llmproxy_connections_total") >= 2.0);
    assert_eq!(number(), pid_of(&proxy));

    let first = upgraded(&proxy, &pid_of(&proxy), 0);
    assert_eq!(number(), first.number());
    assert!(proxy.process.try_status().is_none(), "a stream runs");
    // A kept connection is still that of the old one.
    let mut asked = 1;
    is_answered_for_the_last_time(&mut kept, |conn| {
        asked += 1;
        conn.post(CHATS, "", CHAT)
    });
    is_answered_for_the_last_time(&mut probing, |conn| conn.get("/ready"));
    // New ones are not its business any more.
    let mut fresh = proxy.connect();
    let answer = fresh.post(CHATS, "", CHAT);
    assert_eq!((answer.status(), answer.head.get("connection")), (200, None));
    assert_eq!(scraped("llmproxy_upgrade_failure_total"), 0.0);
    // What is said to the old one now does no harm.
    proxy.process.signal(Signal::HUP);
    proxy.process.signal(Signal::USR2);
    refused(&upgrade(&["--pid", &pid_of(&proxy)]), 1, &first.number());
    let (pieces, ended) = streaming.rest();
    let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    assert!(ended == Ended::Whole && text.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(number(), first.number(), "the old one leaves the file alone");

    let file = proxy.config_file();
    let ran = upgrade(&["--config", file.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let second = Successor::of(&proxy, 1);
    assert_eq!(number(), second.number());
    drop(fresh);
    first.await_end();
    all_are_answered(&proxy, 8);
    second.signal(Signal::TERM);
    second.await_end();
    assert!(!pid_file.exists());
    // The stream, the kept connection's, the new one's, and the last eight.
    let records = asked + 1 + 1 + 8;
    assert_eq!(hook.await_records(records, SOON).len(), records);
}

/// Catches: a broken release that takes the service down, an upgrade that says it succeeded when it
/// did not, a reason that nobody hears.
#[test]
fn what_does_not_start_leaves_the_old_one_serving() {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url());
    let proxy = Proxy::start_linked(&[], &config.yaml());
    let pid = pid_of(&proxy);
    let mut kept = proxy.connect();
    let mut serves = |failures: f64| {
        let answer = kept.post(CHATS, "", CHAT);
        assert_eq!((answer.status(), answer.head.get("connection")), (200, None));
        all_are_answered(&proxy, 4);
        proxy.await_metric("llmproxy_upgrade_failure_total", &[], failures);
        assert_eq!(proxy.metric("llmproxy_connections_refused_total", &[]), 0.0);
    };
    proxy.install(Some("exit 3"));
    refused(&upgrade(&["--pid", &pid]), 1, "exit status: 3");
    serves(1.0);
    // No program at all.
    std::fs::remove_file(proxy.config_file().with_file_name("llmproxy")).unwrap();
    refused(&upgrade(&["--pid", &pid]), 1, "No such file");
    serves(2.0);
    proxy.install(None);
    // One that finds something that it cannot use, after it was handed the listeners.
    proxy.rewrite(&config.clone().section("metrics: {listen: \"192.0.2.1:1\"}").yaml());
    refused(&upgrade(&["--pid", &pid]), 1, "192.0.2.1:1");
    serves(3.0);
    // A file that is broken is found before anything is sent, and by whoever sends the signal.
    proxy.rewrite("backends: [{url: 'ht");
    refused(&upgrade(&["--pid", &pid]), 2, "config.yaml");
    serves(3.0);
    proxy.process.signal(Signal::USR2);
    serves(4.0);
    proxy.rewrite(&config.yaml());
    let successor = upgraded(&proxy, &pid, 0);
    drop(kept);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    all_are_answered(&proxy, 4);
    drop(successor);
}

/// Catches: two successors at a time, one that an end of the process leaves behind, and an end that
/// waits for one that never gets ready.
#[test]
fn an_end_ends_a_successor_that_is_not_ready() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::start_linked(&[], &Config::backend_at(backend.url()).yaml());
    proxy.install(Some("exec sleep 100"));
    proxy.process.signal(Signal::USR2);
    let event =
        proxy.await_event("it starts", |event| event["message"] == "a successor is started");
    let number = i32::try_from(event["process"].as_i64().unwrap()).unwrap();
    let sleeper = Successor(Pid::from_raw(number).unwrap());
    proxy.process.signal(Signal::USR2);
    proxy.await_event("one at a time", |event| event["message"] == "an upgrade is refused");
    refused(&upgrade(&["--pid", &pid_of(&proxy)]), 1, "an upgrade is under way");
    all_are_answered(&proxy, 4);
    assert!(is_there(sleeper.0));
    proxy.process.signal(Signal::TERM);
    await_until("nobody listens", SOON, || std::net::TcpStream::connect(proxy.addr()).is_err());
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    await_until("it is gone too", SOON, || !is_there(sleeper.0));
}

/// Catches: a listener of the old process that no worker of the new one serves, an address that is
/// new and is not listened at, and one that was taken out and still is.
#[test]
fn workers_and_addresses_may_change() {
    let backend = Backend::answering(OK);
    let config = |workers: usize, listen: &str| {
        let config = Config::backend_at(backend.url()).server(format!("workers: {workers}"));
        config.yaml().replacen("listen: \"127.0.0.1:0\"", &format!("listen: {listen}"), 1)
    };
    let proxy = Proxy::start_linked(&[], &config(3, "[\"127.0.0.1:0\", \"127.0.0.1:0\"]"));
    let addresses = await_some("both are told", SOON, || {
        let events = proxy.events();
        let listening = events.iter().filter(|event| event["message"] == "listening");
        let all: Vec<SocketAddr> =
            listening.map(|event| event["addr"].as_str().unwrap().parse().unwrap()).collect();
        (all.len() == 2).then_some(all)
    });
    let (mut pid, mut successors) = (pid_of(&proxy), Vec::new());
    for (n, workers) in [1, 4, 2].into_iter().enumerate() {
        let both = format!("[\"{}\", \"{}\"]", addresses[0], addresses[1]);
        proxy.rewrite(&config(workers, &both));
        let successor = upgraded(&proxy, &pid, n);
        for address in &addresses {
            for _ in 0..12 {
                assert_eq!(proxy.connect_at(*address).get("/health").status(), 200);
            }
        }
        // The old one takes a moment to tell its workers.
        proxy.await_metric("llmproxy_workers", &[], workers as f64);
        pid = successor.number();
        successors.push(successor);
        // Limits are counted by four processes at most.
        await_until("the others are gone", SOON, || {
            proxy.events().iter().filter(|event| event["message"] == "stopped").count() == n + 1
        });
    }
    proxy.rewrite(&config(2, &format!("\"{}\"", addresses[1])));
    let successor = upgraded(&proxy, &pid, 3);
    assert_eq!(proxy.connect_at(addresses[1]).get("/health").status(), 200);
    await_until("it is closed", SOON, || std::net::TcpStream::connect(addresses[0]).is_err());
    drop((successors, successor));
}

/// Catches: a Unix socket that an upgrade makes anew, so that who waits in its queue is lost; whose
/// file goes with the process that has given it away, or stays when the last one ends; that of a
/// configuration that does not start, which is lost with it.
#[test]
fn unix_sockets_are_handed_over() {
    let (engine, scratch) = (Engine::start(&[]), crate::harness::scratch::Scratch::new());
    let path = scratch.file("llm.sock");
    let config = at_socket(&engine.url(), &path, "").server("workers: 2");
    let proxy = Proxy::start_linked(&[], &config.yaml());
    proxy.await_event("it listens", |event| {
        event["message"] == "listening" && event["addr"] == format!("unix:{}", path.display())
    });
    let file = || std::fs::metadata(&path).map(|file| (file.ino(), file.mode() & 0o777)).ok();
    let number = file().unwrap().0;
    let connect = || Conn::open(path.as_path());
    let mut streaming = connect();
    streaming.start_post(CHATS, "x-mock-tokens: 20\r\nx-mock-gap-ms: 100\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    let failing = at_socket(&engine.url(), &path, ", mode: \"0666\"");
    proxy.rewrite(&failing.clone().section("metrics: {listen: \"192.0.2.1:1\"}").yaml());
    refused(&upgrade(&["--pid", &pid_of(&proxy)]), 1, "192.0.2.1:1");
    assert_eq!(file(), Some((number, 0o660)));
    assert_eq!(connect().post(CHATS, "", CHAT).status(), 200);
    proxy.rewrite(&failing.yaml());
    let first = upgraded(&proxy, &pid_of(&proxy), 0);
    assert_eq!(file(), Some((number, 0o666)));
    for _ in 0..8 {
        assert_eq!(connect().post(CHATS, "", CHAT).status(), 200);
    }
    assert_eq!(streaming.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(file(), Some((number, 0o666)), "the old one leaves it");
    let second = upgraded(&proxy, &first.number(), 1);
    first.await_end();
    assert_eq!(connect().post(CHATS, "", CHAT).status(), 200);
    second.signal(Signal::TERM);
    second.await_end();
    assert_eq!(file(), None);
}

/// Catches: clients of TLS that an upgrade cuts or refuses.
#[test]
fn over_tls_it_is_the_same() {
    let (engine, pki) = (Engine::start(&[]), Pki::new());
    let config = Config::backend_at(engine.url()).server(pki.server_line(""));
    let mut proxy = Proxy::start_linked(&[], &config.yaml());
    proxy.tls = Some(pki.client());
    let mut streaming = proxy.connect();
    streaming.start_post(CHATS, "x-mock-tokens: 10\r\nx-mock-gap-ms: 100\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    let successor = upgraded(&proxy, &pid_of(&proxy), 0);
    all_are_answered(&proxy, 4);
    assert_eq!(streaming.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    all_are_answered(&proxy, 4);
    drop(successor);
}

/// Catches: a successor that serves before it has found anybody to ask, though the old process has.
#[test]
fn a_successor_finds_its_backends_first() {
    let backend = Backend::answering(OK);
    let rows = format!("[{{\"name\": \"a\", \"url\": \"{}\"}}]", backend.url());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{rows}", rows.len());
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let list = Backend::start(move |served| {
        while served.request().is_some() {
            if slow.load(Ordering::Relaxed) {
                // More than a start without a predecessor waits.
                pause(Duration::from_millis(1500));
            }
            served.send(&answer);
        }
    });
    let source = format!("{{type: http, http: {{url: \"{}/list\", interval: 100ms}}}}", list.url());
    let discovery = format!("discovery: {{enabled: true, sources: [{source}]}}");
    let proxy = Proxy::start_linked(&[], &Config::new().section(discovery).yaml());
    all_are_answered(&proxy, 1);
    is_slow.store(true, Ordering::Relaxed);
    let successor = upgraded(&proxy, &pid_of(&proxy), 0);
    all_are_answered(&proxy, 8);
    drop(successor);
}

/// Catches: an old process that takes the place back when its successor has given it on.
#[test]
fn three_may_be_in_a_row() {
    let (manager, engine) = (Manager::new(), Engine::start(&[]));
    let variables = manager.variables();
    let way: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    let proxy = Proxy::start_linked(&way, &Config::backend_at(engine.url()).yaml());
    assert!(manager.next().starts_with("READY=1\n"));
    let mut streaming = proxy.connect();
    streaming.start_post(CHATS, "x-mock-tokens: 20\r\nx-mock-gap-ms: 200\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    let second = upgraded(&proxy, &pid_of(&proxy), 0);
    assert_eq!(manager.next(), format!("MAINPID={}", second.number()));
    let third = upgraded(&proxy, &second.number(), 1);
    assert_eq!(manager.next(), format!("MAINPID={}", third.number()));
    second.await_end();
    assert!(proxy.process.try_status().is_none(), "the first one's stream runs");
    assert_eq!(streaming.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    third.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"), "of the third");
    third.await_end();
}

/// Catches: a limit that begins anew with the successor, or a request of the old process that it
/// does not see.
#[test]
fn both_processes_count_together() {
    let engine = Engine::start(&[]);
    let limits = "rate_limit: {per_key: {requests_per_minute: 6, max_concurrent: 1}}";
    let config = Config::backend_at(engine.url()).section(limits);
    let proxy = Proxy::start_linked(&[], &config.yaml());
    let ask = |key: &str| {
        let fields = format!("Authorization: Bearer {key}\r\n");
        proxy.connect().post(CHATS, &fields, CHAT)
    };
    for _ in 0..4 {
        assert_eq!(ask("a").status(), 200);
    }
    let mut streaming = proxy.connect();
    let knobs = "Authorization: Bearer b\r\nx-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n";
    streaming.start_post(CHATS, knobs, STREAM);
    assert_eq!(streaming.head().status(), 200);
    let successor = upgraded(&proxy, &pid_of(&proxy), 0);
    assert_eq!(ask("b").status(), 429, "one runs in the old process");
    streaming.shutdown(std::net::Shutdown::Both);
    await_until("its place is free", SOON, || ask("b").status() == 200);
    // Six in a minute, of which one more may have come since.
    let more = (0..8).filter(|_| ask("a").status() == 200).count();
    assert!((2..=4).contains(&more), "{more}");
    drop(successor);
}

/// Catches: a manager that takes the end of the old process for the end of the service, or that
/// kills the new one because it hears no sign of life from it.
#[test]
fn a_service_manager_is_told_who_has_the_place() {
    let (manager, backend) = (Manager::new(), Backend::answering(OK));
    let variables = manager.variables();
    let way: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    let proxy = Proxy::start_linked(&way, &Config::backend_at(backend.url()).yaml());
    assert!(manager.next().starts_with("READY=1\n"));
    let successor = upgraded(&proxy, &pid_of(&proxy), 0);
    assert_eq!(manager.next(), format!("MAINPID={}", successor.number()));
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    for _ in 0..4 {
        assert_eq!(manager.any(), "WATCHDOG=1", "of the one that is left");
    }
    successor.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    successor.await_end();
}

/// Catches: an old process that ends as if all were well though nobody serves.
#[test]
fn an_old_process_says_when_its_successor_died() {
    let (manager, engine) = (Manager::new(), Engine::start(&[]));
    let variables = manager.variables();
    let way: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    let proxy = Proxy::start_linked(&way, &Config::backend_at(engine.url()).yaml());
    assert!(manager.next().starts_with("READY=1\n"));
    let mut streaming = proxy.connect();
    streaming.start_post(CHATS, "x-mock-tokens: 10\r\nx-mock-gap-ms: 200\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    let successor = upgraded(&proxy, &pid_of(&proxy), 0);
    assert!(manager.next().starts_with("MAINPID="));
    successor.signal(Signal::KILL);
    assert!(manager.next().starts_with(&format!("MAINPID={}\n", pid_of(&proxy))));
    assert_eq!(streaming.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(1));
}

/// Catches: a signal to somebody else, which would end it.
#[test]
fn no_other_process_is_asked() {
    let sleeper = crate::harness::process::Process::start(Path::new("/bin/sleep"), &["60"]);
    refused(&upgrade(&["--pid", &sleeper.pid().to_string()]), 1, "is no llmproxy");
    refused(&upgrade(&["--pid-file", "/nonexistent.pid"]), 1, "there is no such file");
    refused(&upgrade(&["-c", "/nonexistent.yaml"]), 2, "there is no such file");
    assert_eq!(upgrade(&["--pid", "1", "--pid-file", "x"]).code, Some(2));
    assert!(sleeper.try_status().is_none());
}

/// Catches: a successor that fetches a certificate again, shows none, or leaves port 80 to nobody.
#[test]
fn a_fetched_certificate_and_its_listener_go_along() {
    if !crate::clients::is_there("certificates go along", AcmeServer::is_there()) {
        return;
    }
    let authority = AcmeServer::start(crate::acme::LONG_S);
    let (client, storage) = (authority.client(), crate::harness::scratch::Scratch::new());
    let more = crate::acme::by_http(&authority);
    let yaml = crate::acme::yaml(&authority, storage.path(), authority.tls_port, &more);
    let proxy = Proxy::start_linked(&[], &yaml);
    crate::acme::await_served(&proxy, &client);
    let _successor = upgraded(&proxy, &pid_of(&proxy), 0);
    proxy.process.wait(SOON);
    assert!(crate::acme::is_served(&proxy, &client));
    let plain = SocketAddr::from(([127, 0, 0, 1], authority.http_port));
    let sent_on = Conn::open(plain).send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!((sent_on.status(), authority.orders()), (308, 1));
}

/// A successor that is told to go on, and then neither serves nor ends until it is told to.
const LATE: &str = r#"
import os, signal, socket, sys
def note(name):
    open(os.path.join(sys.argv[1], name), "w").close()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
wire = socket.socket(fileno=0)
def until(word):
    while wire.recv(1024) != word:
        pass
until(b"no-more")
wire.send(b"ready")
until(b"go")
note("go")
signal.sigwait([signal.SIGTERM])
note("told to end")
wire.send(b"serving")
"#;

/// Catches: an end that is asked for while another process takes the place, and that process, which
/// serves on though the service was stopped.
#[test]
fn an_end_in_the_middle_of_it_ends_both() {
    let (engine, scratch) = (Engine::start(&[]), crate::harness::scratch::Scratch::new());
    let proxy = Proxy::start_linked(&[], &Config::backend_at(engine.url()).yaml());
    let late = scratch.write("late.py", LATE);
    let command = format!("exec python3 {} {}", late.display(), scratch.path().display());
    proxy.install(Some(&command));
    let mut streaming = proxy.connect();
    streaming.start_post(CHATS, "x-mock-tokens: 10\r\nx-mock-gap-ms: 100\r\n", STREAM);
    assert_eq!(streaming.head().status(), 200);
    proxy.process.signal(Signal::USR2);
    await_until("it is told to go on", SOON, || scratch.file("go").exists());
    proxy.process.signal(Signal::TERM);
    await_until("it is told to end", SOON, || scratch.file("told to end").exists());
    assert_eq!(streaming.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

/// Catches: an upgrade in a container that ends with the process, and takes the successor along:
/// where it is the first one there, or the one that the first one follows.
#[test]
fn a_process_with_which_its_container_ends_stays() {
    let scratch = crate::harness::scratch::Scratch::new();
    let tini = scratch.file("tini");
    std::os::unix::fs::symlink("/bin/sh", &tini).unwrap();
    let own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let init = [tini.to_str().unwrap(), "-c", "\"$@\" & wait", "tini"];
    if run(Path::new("unshare"), &[&own[1..], &["true"]].concat(), SOON).code != Some(0) {
        return skip("upgrade in a container: no namespace of processes can be made here");
    }
    let backend = Backend::answering(OK);
    for (way, why) in [
        (own.to_vec(), "this is the first process of its container, which would end with it"),
        ([&own[..], &init].concat(), "`tini`, the first process of this container, follows this"),
    ] {
        let proxy = Proxy::start_linked(&way, &Config::backend_at(backend.url()).yaml());
        let mut pid = pid_of(&proxy);
        while let Some(child) = child_of(&pid) {
            pid = child;
        }
        refused(&upgrade(&["--pid", &pid]), 1, why);
        all_are_answered(&proxy, 4);
        assert_eq!(proxy.metric("llmproxy_upgrade_failure_total", &[]), 1.0);
    }
}

/// The one process that a process has started, if it has.
fn child_of(pid: &str) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().map(str::to_owned)
}

/// Catches: a gateway with a right beyond its user's (low ports), of which that user is told that
/// it is too old to be upgraded.
#[test]
fn who_may_not_look_is_told_so() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::start_linked(&[], &Config::backend_at(backend.url()).yaml());
    let way = ["--bounding-set=-all", "--inh-caps=-all", "--"];
    if run(Path::new("setpriv"), &[&way[..], &["true"]].concat(), SOON).code != Some(0) {
        return skip("upgrade without rights: there are none to give away here");
    }
    let (program, pid) = (program("llmproxy"), pid_of(&proxy));
    let asked = [program.to_str().unwrap(), "upgrade", "--pid", &pid];
    let ran = run(Path::new("setpriv"), &[&way[..], &asked].concat(), SOON);
    refused(&ran, 1, "cannot be read: Permission denied");
    assert!(ran.stderr.contains("run this as root"), "{ran:?}");
    all_are_answered(&proxy, 4);
    assert_eq!(proxy.metric("llmproxy_upgrade_failure_total", &[]), 0.0);
}
