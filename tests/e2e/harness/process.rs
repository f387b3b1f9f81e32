//! Processes that end with the test: by its end, by the end of the test program however it ends
//! (the kernel's parent-death signal), or by their own hard lifetime.

use super::{await_some, pause};
use rustix::process::{kill_process, Pid, Signal};
use std::io::{empty, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// No process of a test runs longer than this, whatever the test forgets.
const LIFETIME: Duration = Duration::from_secs(180);

/// Set in the environment, it makes all processes use epoll instead of io_uring.
pub const LEGACY_DRIVER: &str = "MONOIO_FORCE_LEGACY_DRIVER";

/// Set by `scripts/test`, which knows what the kernel grants, to how the driver's name must begin.
pub const EXPECTED_DRIVER: &str = "LLMPROXY_EXPECT_DRIVER";

/// [`LIFETIME`], or as many seconds as `LLMPROXY_TEST_LIFETIME` says: the long form of a test
/// needs them.
fn lifetime() -> Duration {
    let asked = std::env::var("LLMPROXY_TEST_LIFETIME").ok();
    asked.map_or(LIFETIME, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// A program of this workspace, by its name.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_llmproxy")).with_file_name(name);
    assert!(path.exists(), "{name} is not built: cargo build --workspace --bins");
    path
}

/// A running process whose output lines are collected.
pub struct Process {
    name: String,
    child: Arc<Mutex<Child>>,
    pid: Pid,
    /// Lines of its standard output.
    pub stdout: Lines,
    /// Lines of its standard error.
    pub stderr: Lines,
}

impl Process {
    /// Starts a program with arguments.
    pub fn start(program: &Path, args: &[&str]) -> Process {
        Process::start_through(&[], program, args)
    }

    /// The same by way of a command that changes something about itself and becomes the program:
    /// `env NAME=VALUE`.
    pub fn start_through(way: &[&str], program: &Path, args: &[&str]) -> Process {
        // util-linux's setpriv sets the signal and becomes the program: same pid, same exit code.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(way).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Process::of(command, program)
    }

    /// The same on a terminal, which is all that it has, in a session of its own: it must not find
    /// the terminal of whoever runs the tests.
    pub fn start_on(terminal: &OwnedFd, program: &Path, args: &[&str]) -> Process {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "setsid"]).arg(program).args(args);
        let end = || Stdio::from(terminal.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        Process::of(command, program)
    }

    fn of(command: Command, program: &Path) -> Process {
        let mut child = spawn(command);
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let stdout = child.stdout.take().map_or_else(|| Lines::read(empty()), Lines::read);
        let stderr = child.stderr.take().map_or_else(|| Lines::read(empty()), Lines::read);
        let child = Arc::new(Mutex::new(child));
        end_after(lifetime(), Arc::clone(&child));
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        Process { name, child, pid, stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Kills it, if it has not ended yet.
    pub fn kill(&self) {
        let _ = lock(&self.child).kill();
    }

    /// Sends a signal that [`Signal`] does not name.
    pub fn signal_number(&self, number: i32) {
        let command = format!("kill -{number} {}", self.pid.as_raw_nonzero());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Its exit status, if it has ended.
    pub fn try_status(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().unwrap()
    }

    /// Waits for its end. Panics when it still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> ExitStatus {
        await_some(&format!("{} ends", self.name), limit, || self.try_status())
    }

    /// The first line of standard output for which `pick` gives something. Panics when the process
    /// ends or `limit` passes first, with all that it said.
    pub fn await_line<T>(&self, limit: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let started = Instant::now();
        let mut seen = 0;
        loop {
            let ended = self.try_status().is_some();
            for line in self.stdout.from(seen) {
                seen += 1;
                if let Some(found) = pick(&line) {
                    return found;
                }
            }
            if ended || started.elapsed() > limit {
                // What it said last may still be on its way.
                pause(Duration::from_millis(50));
                panic!(
                    "{} {} without the line\nstdout:\n{}\nstderr:\n{}",
                    self.name,
                    if ended { "ended" } else { "went on" },
                    self.stdout.text(),
                    self.stderr.text()
                );
            }
            self.stdout.wait(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let (out, err) = (self.stdout.text(), self.stderr.text());
            println!("--- {} stdout\n{out}\n--- stderr\n{err}", self.name);
        }
    }
}

/// Lines that a thread reads from a pipe.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Lines {
        let lines = Lines { shared: Arc::default() };
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lock(&writer.shared.0).push(text);
                writer.shared.1.notify_all();
                line.clear();
            }
        });
        lines
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.from(0)
    }

    /// The lines behind the first `skip`.
    pub fn from(&self, skip: usize) -> Vec<String> {
        lock(&self.shared.0).iter().skip(skip).cloned().collect()
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        self.all().join("\n")
    }

    /// Waits for another line, at most `limit`.
    fn wait(&self, limit: Duration) {
        let guard = lock(&self.shared.0);
        drop(self.shared.1.wait_timeout(guard, limit));
    }
}

/// What a program that ends by itself said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end.
pub fn run(program: &Path, args: &[&str], limit: Duration) -> Ran {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &limit.as_secs().max(1).to_string()]).arg(program).args(args);
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Spawns on a thread that never ends: the parent-death signal fires when the thread that spawned
/// is gone, and the thread of a test is gone when its test is.
fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, child) = channel();
    lock(spawner).send((command, reply)).unwrap();
    child.recv().unwrap().expect("setpriv (util-linux) starts the program")
}

fn end_after(lifetime: Duration, child: Arc<Mutex<Child>>) {
    let child = Arc::downgrade(&child);
    std::thread::spawn(move || {
        let born = Instant::now();
        while born.elapsed() < lifetime {
            pause(Duration::from_millis(500));
            match child.upgrade() {
                None => return,
                Some(child) if matches!(lock(&child).try_wait(), Ok(Some(_))) => return,
                Some(_) => {}
            }
        }
        if let Some(child) = child.upgrade() {
            let _ = lock(&child).kill();
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A test that panicked left nothing half done in here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
