//! `llmproxy backends`, and the admin socket that it asks.

use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{CHAT, CHATS, OK};
use crate::spool::in_a_folder;
use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const NO_PROBES: &str = "health_check: {enabled: false}";

/// `llmproxy backends`, about a configuration.
fn backends(config: &Path, more: &[&str]) -> Ran {
    llmproxy(&[&["backends", "--config", &config.to_string_lossy()], more].concat())
}

fn rosters(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line of a table that begins with a name.
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut named = rows.filter(|words| words.first() == Some(&name));
    named.next().unwrap_or_else(|| panic!("no {name}: {table}"))
}

/// A gateway's configuration with its own spool, in this folder.
fn with_spool(scratch: &Scratch, config: &Config, hook: &Webhook) -> PathBuf {
    let spool = format!("\"{}\"", scratch.file("spool").display());
    let yaml = config.clone().webhook(&hook.url(), "").yaml();
    scratch.write("config.yaml", yaml.replace(crate::harness::config::SPOOL, &spool))
}

fn start(config: &Path) -> Proxy {
    Proxy::start_with(&["--config", &config.to_string_lossy()], Scratch::new())
}

fn end(proxy: &Proxy) {
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
}

/// Catches: an operator who cannot tell who gets requests and who does not, and why; figures that
/// are not those of the metrics; a socket that others may open, or that stays behind.
#[test]
fn the_backends_of_a_running_gateway_are_shown() {
    let (scratch, hook) = (Scratch::new(), Webhook::start());
    let well = Backend::answering(OK);
    let config = Config::new()
        .section(NO_PROBES)
        .section("routing: {load_balance: random}")
        .server("region: eu")
        .backend(well.url(), "name: well, weight: 4, region: eu, models: [m, \"x-*\"]")
        .backend("http://127.0.0.1:1", "name: dead, region: eu, max_concurrent: 7");
    let file = with_spool(&scratch, &config, &hook);
    let nobody = backends(&file, &[]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("no gateway runs with"), "{nobody:?}");
    let proxy = start(&file);
    let socket = in_a_folder(&scratch.file("spool"), "admin.sock").unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let is_up = || proxy.metric("llmproxy_backend_up", &[("backend", "dead")]);
    await_until("the dead one is ejected", SOON, || {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
        is_up() == 0.0
    });
    let ran = backends(&file, &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let pid = proxy.process.pid().to_string();
    let table = ran.stdout.as_str();
    assert!(table.contains(&format!("process {pid}, up ")), "{table}");
    assert!(table.contains(", random, region eu"), "{table}");
    assert_eq!(row(table, "well")[1], "up");
    assert_eq!(row(table, "dead")[1], "ejected");
    assert!(row(table, "dead").windows(3).any(|words| words == ["0", "of", "7"]), "{table}");
    assert!(table.contains("dead: requests found it dead "), "{table}");
    let [roster] = &rosters(&backends(&file, &["--json"]))[..] else { panic!() };
    assert_eq!(
        (&roster["version"], &roster["backends"][0]["models"][1]),
        (&1.into(), &"x-*".into())
    );
    for (entry, name) in roster["backends"].as_array().unwrap().iter().zip(["well", "dead"]) {
        assert_eq!(entry["name"], name);
        let count = |what: &str| {
            proxy.metric(&format!("llmproxy_backend_{what}_total"), &[("backend", name)])
        };
        assert_eq!(entry["picked"].as_f64(), Some(count("picked")), "{entry}");
        assert_eq!(entry["failed"].as_f64(), Some(count("failures")), "{entry}");
    }
    // So any client of HTTP may ask, for the metrics too.
    let by_hand = Conn::open(&*socket).get("/metrics");
    assert!(by_hand.status() == 200 && by_hand.text().contains("llmproxy_backend_up"));
    let same = llmproxy(&["backends", "--json", "--socket", &socket.to_string_lossy()]);
    assert_eq!(rosters(&same)[0]["pid"].to_string(), pid);
    end(&proxy);
    assert!(!socket.exists());
    assert_eq!(backends(&file, &[]).code, Some(1));
}

/// Catches: one of two gateways on one spool that is not shown, a socket of a process that was
/// killed that is taken for one that hangs, or keeps the next one from making its own.
#[test]
fn each_of_several_gateways_is_shown_and_a_killed_one_is_not() {
    let (scratch, hook, engine) = (Scratch::new(), Webhook::start(), Backend::answering(OK));
    let file = with_spool(&scratch, &Config::backend_at(engine.url()), &hook);
    let (one, two) = (start(&file), start(&file));
    let pids = || {
        let mut pids: Vec<u64> = rosters(&backends(&file, &["--json"]))
            .iter()
            .map(|roster| roster["pid"].as_u64().unwrap())
            .collect();
        pids.sort_unstable();
        pids
    };
    let mut wanted = [&one, &two].map(|proxy| u64::from(proxy.process.pid()));
    wanted.sort_unstable();
    assert_eq!(pids(), wanted);
    for proxy in [&one, &two] {
        proxy.process.signal(Signal::KILL);
        proxy.process.wait(SOON);
    }
    assert!(in_a_folder(&scratch.file("spool"), "admin.sock").is_some(), "left behind");
    assert_eq!(backends(&file, &[]).code, Some(1));
    let next = start(&file);
    assert_eq!(pids(), [u64::from(next.process.pid())]);
    end(&next);
}

/// Catches: a gateway that cannot be asked because it has no spool, and an operator who is not told
/// what to do about it; a file of somebody else's that is replaced.
#[test]
fn without_a_spool_it_is_beside_the_pid_file() {
    let (scratch, engine) = (Scratch::new(), Backend::answering(OK));
    let write = |name: &str, server: &[String]| {
        let config = Config::backend_at(engine.url());
        let config = server.iter().fold(config, |config, line| config.server(line));
        scratch.write(name, config.yaml())
    };
    let none = write("none.yaml", &[]);
    let proxy = start(&none);
    let told = backends(&none, &[]);
    assert!(told.code == Some(1) && told.stderr.contains("`server.pid_file`"), "{told:?}");
    end(&proxy);
    let pid_file = format!("pid_file: \"{}\"", scratch.file("a.pid").display());
    let file = write("with.yaml", &[pid_file]);
    let proxy = start(&file);
    let socket = scratch.file("a.admin.sock");
    assert!(socket.exists());
    assert_eq!(row(&backends(&file, &[]).stdout, &engine.addr().to_string())[1], "up");
    end(&proxy);
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    let proxy = start(&file);
    proxy.await_event("a warning", |event| {
        event["message"].as_str().is_some_and(|text| text.starts_with("no admin socket"))
    });
    assert_eq!(backends(&file, &[]).code, Some(1));
    end(&proxy);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    let broken = scratch.write("broken.yaml", "backends: 7\n");
    let told = backends(&broken, &[]);
    assert!(told.code == Some(2) && told.stderr.contains("--socket PATH"), "{told:?}");
}

/// Catches: a gateway that nobody can ask any more because its folder was replaced while it ran.
#[test]
fn the_socket_is_made_anew_when_its_folder_is_replaced() {
    let (scratch, hook, engine) = (Scratch::new(), Webhook::start(), Backend::answering(OK));
    let file = with_spool(&scratch, &Config::backend_at(engine.url()), &hook);
    let proxy = start(&file);
    let socket = in_a_folder(&scratch.file("spool"), "admin.sock").unwrap();
    let is_shown = || backends(&file, &[]).code == Some(0);
    assert!(is_shown());
    std::fs::remove_file(&socket).unwrap();
    await_until("it is there again", 2 * SOON, is_shown);
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    std::fs::rename(scratch.file("spool"), scratch.file("moved")).unwrap();
    // A new folder is made with the next record.
    await_until("there is one in the new folder", 3 * SOON, || {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
        is_shown()
    });
    end(&proxy);
    assert!(!socket.exists());
}

/// Catches: a local client that sends nothing, noise, or what is not to be had, and thereby keeps
/// requests, scrapes or its betters waiting.
#[test]
fn whoever_holds_the_socket_up_holds_nobody_else_up() {
    let (scratch, hook, engine) = (Scratch::new(), Webhook::start(), Backend::answering(OK));
    let file = with_spool(&scratch, &Config::backend_at(engine.url()), &hook);
    let proxy = start(&file);
    let socket = in_a_folder(&scratch.file("spool"), "admin.sock").unwrap();
    assert_eq!(Conn::open(&*socket).get("/nowhere").status(), 404);
    assert_eq!(Conn::open(&*socket).post("/backends", "", "{}").status(), 405);
    assert_eq!(Conn::open(&*socket).send("\0\r\n\r\n").response().status(), 400);
    let mut silent: Vec<Conn> = (0..4).map(|_| Conn::open(&*socket)).collect();
    let told = backends(&file, &[]);
    assert!(told.code == Some(0), "the oldest makes room: {told:?}");
    silent[0].assert_closes();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    assert!(proxy.get("/metrics").text().contains("llmproxy_backend_up"));
    drop(silent);
    let mut late: Vec<Conn> = (0..4).map(|_| Conn::open(&*socket)).collect();
    late.iter_mut().for_each(|conn| conn.assert_closes());
    end(&proxy);
}
