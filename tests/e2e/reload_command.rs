//! `llmproxy reload` and `server.pid_file`.

use crate::harness::process::{Process, Ran};
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Proxy, SOON};
use crate::rig::OK;
use rustix::process::Signal;
use std::path::Path;

struct Place {
    backend: Backend,
    scratch: Scratch,
}

impl Place {
    fn new() -> Place {
        Place { backend: Backend::answering(OK), scratch: Scratch::new() }
    }

    fn pid_file(&self) -> String {
        self.scratch.file("run.pid").display().to_string()
    }

    fn config(&self, name: &str) -> Config {
        let line = format!("pid_file: \"{}\"", self.pid_file());
        Config::new().backend(self.backend.url(), &format!("name: {name}")).server(line)
    }

    /// The number in the file.
    fn number(&self) -> Option<u32> {
        std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }
}

fn reload(args: &[&str]) -> Ran {
    llmproxy(&[&["reload"], args].concat())
}

fn refused(ran: &Ran, code: i32, why: &str) {
    assert!(ran.code == Some(code) && ran.stderr.contains(why), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

/// Catches: a file that is not there while it runs, or is when it does not, or that two share.
#[test]
fn the_pid_file_is_there_while_it_runs() {
    let place = Place::new();
    let proxy = place.config("a").start();
    assert_eq!(place.number(), Some(proxy.process.pid()));
    // A second one would take the first one's signals.
    let second = place.scratch.write("second.yaml", place.config("b").yaml());
    let ran = llmproxy(&["--config", &second.to_string_lossy()]);
    assert!(ran.code == Some(1) && ran.stderr.contains("server.pid_file"), "{ran:?}");
    assert_eq!(place.number(), Some(proxy.process.pid()));
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert_eq!(place.number(), None);
    assert!(!Path::new(&place.pid_file()).exists());
    // One that was killed leaves its number behind.
    let proxy = place.config("a").start();
    proxy.process.signal(Signal::KILL);
    proxy.process.wait(SOON);
    assert_eq!(place.number(), Some(proxy.process.pid()));
    let proxy = place.config("a").start();
    assert_eq!(place.number(), Some(proxy.process.pid()));
}

/// Catches: a process that is told to read a broken file; one that is told nothing.
#[test]
fn a_process_is_told_once_its_file_is_valid() {
    let place = Place::new();
    let proxy = place.config("a").start();
    let (file, pid) = (proxy.config_file(), proxy.process.pid().to_string());
    let file = file.to_str().unwrap();
    let mut told = 0;
    for args in [&["--config", file][..], &["--pid", &pid], &["--pid", &pid, "-c", file]] {
        proxy.rewrite(&place.config(&format!("n{told}")).yaml());
        let ran = reload(args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains(&format!("process {pid} was told")), "{ran:?}");
        assert!(proxy.await_reload(told), "{args:?}");
        told += 1;
    }
    std::fs::write(file, "backends: [{url: 'ht").unwrap();
    for args in [&["--config", file][..], &["--pid", &pid]] {
        refused(&reload(args), 2, "config.yaml");
    }
    proxy.rewrite(&format!(
        "{}hooks: {{on_auth: {{enabled: true, script: x}}}}\n",
        place.config("a").yaml()
    ));
    refused(&reload(&["--pid", &pid]), 1, "not built yet");
    let tls = place.config("a").backend("https://b", "tls: {ca_file: /nonexistent}");
    proxy.rewrite(&tls.yaml());
    refused(&reload(&["--pid", &pid]), 1, "ca_file");
    assert_eq!(proxy.reloads(), (told, true), "nothing was sent");
}

/// Catches: a signal to whoever has the number now. SIGHUP would end all of these.
#[test]
fn no_other_process_is_told() {
    let place = Place::new();
    let config = place.scratch.write("config.yaml", place.config("a").yaml());
    let config = config.to_str().unwrap();
    refused(&reload(&["--config", config]), 1, "no llmproxy runs with it");
    let sleeper = Process::start(Path::new("/bin/sleep"), &["60"]);
    std::fs::write(place.pid_file(), sleeper.pid().to_string()).unwrap();
    refused(&reload(&["--config", config]), 1, "is no llmproxy, but `sleep`");
    refused(&reload(&["--pid", &sleeper.pid().to_string()]), 1, "is no llmproxy");
    std::fs::write(place.pid_file(), "4194305\n").unwrap();
    refused(&reload(&["--config", config]), 1, "there is no process 4194305");
    std::fs::write(place.pid_file(), "nobody\n").unwrap();
    refused(&reload(&["--config", config]), 1, "is no pid file");
    let other = Config::backend_at(place.backend.url()).start();
    let other_pid = other.process.pid().to_string();
    refused(&reload(&["--pid", &other_pid, "-c", config]), 1, "runs with");
    refused(&reload(&["-c", other.config_file().to_str().unwrap()]), 1, "names no server.pid_file");
    refused(&reload(&["-c", "/nonexistent.yaml"]), 2, "there is no such file");
    assert_eq!(reload(&["--pid", "0"]).code, Some(2));
    assert!(sleeper.try_status().is_none() && other.process.try_status().is_none());
    assert_eq!(other.reloads().0, 0);
}

/// Catches: a file that is checked with other variables than the process has.
#[test]
fn variables_are_those_of_the_process() {
    let place = Place::new();
    let yaml = place.config("\"${RELOAD_TEST_NAME}\"").yaml();
    let proxy = Proxy::start_through(&["env", "RELOAD_TEST_NAME=a"], &yaml);
    assert_eq!(reload(&["--pid", &proxy.process.pid().to_string()]).code, Some(0));
    assert!(proxy.await_reload(0));
    await_until("it goes on under its name", SOON, || {
        proxy.metrics().text.contains("llmproxy_backend_up{backend=\"a\"}")
    });
}
