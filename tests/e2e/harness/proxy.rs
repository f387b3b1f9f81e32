//! The product, as a process of its own.

use super::client::{Conn, Response};
use super::config::{Config, SPOOL};
use super::metrics::Metrics;
use super::process::{program, run, Process, Ran};
use super::scratch::Scratch;
use super::secrets::{files_in, SecretWatch};
use super::tls::{self, Pki};
use super::{await_some, SOON};
use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The name by which [`Proxy::start_linked`] starts it.
const LINK: &str = "llmproxy";

/// A running proxy.
pub struct Proxy {
    /// Goes first: it looks at what the others leave.
    secrets: SecretWatch,
    /// Its process.
    pub process: Process,
    address: SocketAddr,
    scratch: Scratch,
    /// How clients connect, where it serves them over TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Proxy {
    /// Starts it with a configuration, which must listen on port 0 and log JSON to standard
    /// output, and waits until it listens.
    pub fn start(yaml: &str) -> Proxy {
        Proxy::start_through(&[], yaml)
    }

    /// The same by way of another command: see [`Process::start_through`].
    pub fn start_through(way: &[&str], yaml: &str) -> Proxy {
        let scratch = Scratch::new();
        let config = scratch.write("config.yaml", with_spool_in(&scratch, yaml));
        // Tests of what happens without backends mean it.
        let args = ["--allow-empty", "--config", &config.to_string_lossy()];
        Proxy::start_in(scratch, way, &args)
    }

    /// The same by a link of the test's own, whose end another program may be put at:
    /// [`Proxy::install`].
    pub fn start_linked(way: &[&str], yaml: &str) -> Proxy {
        let scratch = Scratch::new();
        let config = scratch.write("config.yaml", with_spool_in(&scratch, yaml));
        let link = scratch.file(LINK);
        std::os::unix::fs::symlink(program("llmproxy"), &link).unwrap();
        let args = ["--allow-empty", "--config", &config.to_string_lossy()];
        Proxy::start_as(&link, scratch, way, &args)
    }

    /// Puts another program where the proxy of [`Proxy::start_linked`] was started from: the
    /// product itself, or a script.
    pub fn install(&self, script: Option<&str>) {
        let fresh = self.scratch.file("fresh");
        match script {
            None => std::os::unix::fs::symlink(program("llmproxy"), &fresh).unwrap(),
            Some(script) => {
                std::fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&fresh, mode).unwrap();
            }
        }
        std::fs::rename(fresh, self.scratch.file(LINK)).unwrap();
    }

    /// Paths that a configuration does not name are below the working directory.
    fn start_in(scratch: Scratch, way: &[&str], args: &[&str]) -> Proxy {
        Proxy::start_as(&program("llmproxy"), scratch, way, args)
    }

    fn start_as(binary: &Path, scratch: Scratch, way: &[&str], args: &[&str]) -> Proxy {
        let folder = scratch.path().to_string_lossy().into_owned();
        let way = [&["env", "-C", &folder], way].concat();
        let given = files_in(scratch.path());
        let process = Process::start_through(&way, binary, args);
        let secrets = SecretWatch::new(&process, args, scratch.path(), given);
        let tls = tls::everywhere().filter(|pki| {
            // One that a test gave no file, or one of its own making, serves as that says.
            let files = args.iter().filter_map(|arg| std::fs::read_to_string(arg).ok());
            files.into_iter().any(|yaml| yaml.contains(&pki.server_line("")))
        });
        Proxy { tls: tls.map(Pki::client), ..Proxy::await_listening(process, secrets, scratch) }
    }

    /// Starts it with these arguments; `scratch` lives as long as it does.
    pub fn start_with(args: &[&str], scratch: Scratch) -> Proxy {
        Proxy::start_in(scratch, &[], args)
    }

    fn await_listening(process: Process, secrets: SecretWatch, scratch: Scratch) -> Proxy {
        let address = process.await_line(SOON, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            let listens = event["message"] == "listening";
            listens.then(|| event["addr"].as_str().unwrap().parse().unwrap())
        });
        Proxy { secrets, process, address, scratch, tls: None }
    }

    /// The configuration file that it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.scratch.file("config.yaml")
    }

    /// Puts another configuration in the place of its file, as editors do: by renaming.
    pub fn rewrite(&self, yaml: &str) {
        self.secrets.add(yaml);
        let fresh = self.scratch.write("config.yaml.new", with_spool_in(&self.scratch, yaml));
        std::fs::rename(fresh, self.config_file()).unwrap();
    }

    /// Tells it to read its file anew and waits for what becomes of that: true when it is in use.
    pub fn reload(&self) -> bool {
        let (before, _) = self.reloads();
        self.process.signal(Signal::HUP);
        self.await_reload(before)
    }

    /// Puts another configuration in place and has it read: true when it is in use.
    pub fn reload_with(&self, config: &Config) -> bool {
        self.rewrite(&config.yaml());
        self.reload()
    }

    /// Reloads that the log has told of, and whether the last one succeeded.
    pub fn reloads(&self) -> (usize, bool) {
        let lines = self.process.stdout.all();
        let told = |line: &String| match () {
            () if line.contains("configuration reloaded") => Some(true),
            () if line.contains("configuration not reloaded") => Some(false),
            () => None,
        };
        let outcomes: Vec<bool> = lines.iter().filter_map(told).collect();
        (outcomes.len(), outcomes.last().copied().unwrap_or_default())
    }

    /// Waits until there are more than so many; gives whether the last one succeeded.
    pub fn await_reload(&self, before: usize) -> bool {
        await_some("a reload", SOON, || {
            let (count, success) = self.reloads();
            (count > before).then_some(success)
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// A connection to it.
    pub fn connect(&self) -> Conn {
        self.connect_at(self.address)
    }

    /// The same at another of its addresses.
    pub fn connect_at(&self, address: SocketAddr) -> Conn {
        let Some(config) = &self.tls else { return Conn::open(address) };
        let conn = Conn::open_tls(address, Arc::clone(config));
        match tls::everywhere() {
            // Tests that know nothing of TLS may let it wait.
            Some(_) => conn.shake_hands(),
            None => conn,
        }
    }

    /// One GET on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.checked(path, self.connect().get(path))
    }

    /// One POST of JSON on a connection of its own.
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Response {
        self.checked(path, self.connect().post(path, "", body))
    }

    /// An answer of the proxy's own tells none of its secrets.
    fn checked(&self, path: &str, answer: Response) -> Response {
        if answer.status() >= 400 || path == "/metrics" {
            self.secrets.assert_none_in(path, &answer.body);
        }
        answer
    }

    /// The metrics page.
    pub fn metrics(&self) -> Metrics {
        let page = self.get("/metrics");
        assert_eq!(page.status(), 200, "{}", page.text());
        Metrics::parse(&page.text())
    }

    /// The sum of the series with this name and these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until that sum is as wanted: requests settle after their last byte has left.
    pub fn await_metric(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let mut last = 0.0;
        let what = format!("{name} {labels:?} is {wanted}");
        await_some(&what, SOON, || {
            last = self.metric(name, labels);
            (last == wanted).then_some(())
        });
    }

    /// Its log events so far.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.process.stdout.all();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log event.
    pub fn await_event(&self, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        await_some(what, SOON, || self.events().into_iter().find(&mut is_it))
    }

    /// Open file descriptors of the process.
    pub fn open_files(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.pid());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Processor time that the process has used.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.process.pid());
        let stat = std::fs::read_to_string(path).unwrap();
        // Behind the name, which may hold anything: fields 14 and 15 of proc_pid_stat(5), in
        // hundredths of a second on every Linux.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Memory that the process holds for itself, in bytes. The pages of its program do not count:
    /// a first request brings some in, the more the larger the program is.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

fn with_spool_in(scratch: &Scratch, yaml: &str) -> String {
    let line = "server:\n  listen:";
    let secured = tls::everywhere().filter(|_| !yaml.contains("  tls: "));
    let secured = secured.map(|pki| {
        yaml.replacen(line, &format!("server:\n  {}\n  listen:", pki.server_line("")), 1)
    });
    let yaml = secured.as_deref().unwrap_or(yaml);
    yaml.replace(SPOOL, &format!("\"{}\"", scratch.file("spool").display()))
}

/// Runs the binary to its end with these arguments.
pub fn llmproxy(args: &[&str]) -> Ran {
    run(&program("llmproxy"), args, 2 * SOON)
}
