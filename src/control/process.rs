//! Another process, looked at by way of `/proc`: whether it is an llmproxy that serves, and what it
//! serves with. A signal goes to the process that was looked at, or to none: while this holds it,
//! its number is not given to another one.

use crate::config::cli;
use crate::config::origin::{ConfigSource, Origin};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{kill_process, pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The name of the program, as the kernel keeps it.
const NAME: &str = "llmproxy";

/// A process that serves, and that understands SIGHUP.
pub struct Serving {
    pid: Pid,
    /// `None` where the kernel knows no such thing (before Linux 5.3), or a sandbox refuses it.
    handle: Option<OwnedFd>,
    folder: PathBuf,
    origin: Option<Origin>,
}

impl Serving {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is none, or another program, or serves nobody: what is said of it to a person.
    pub fn find(number: u32) -> Result<Serving, String> {
        let none = || format!("there is no process {number}");
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(none)?;
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(handle),
            Err(Errno::NOSYS | Errno::PERM) => None,
            Err(_) => return Err(none()),
        };
        let folder = PathBuf::from(format!("/proc/{number}"));
        let comm = fs::read_to_string(folder.join("comm")).map_err(|_| none())?;
        if comm.trim_end() != NAME && !is_same_file(&folder.join("exe"), "/proc/self/exe".as_ref())
        {
            return Err(format!("process {number} is no llmproxy, but `{}`", comm.trim_end()));
        }
        let status = fs::read_to_string(folder.join("status")).map_err(|_| none())?;
        if !catches(&status, Signal::HUP) {
            return Err(format!("process {number} is an llmproxy that serves nobody (yet)"));
        }
        let command_line = words(&fs::read(folder.join("cmdline")).unwrap_or_default());
        let origin = cli::origin_of(command_line);
        Ok(Serving { pid, handle, folder, origin })
    }

    /// Its number.
    pub fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What it reads at a reload, with a path that leads there from here too; `None` where its
    /// command line cannot be read.
    pub fn origin(&self) -> Option<Origin> {
        let mut origin = self.origin.clone()?;
        if let ConfigSource::File(file) = &mut origin.source {
            if file.is_relative() {
                let whence = fs::read_link(self.folder.join("cwd")).ok()?;
                *file = whence.join(&*file);
            }
        }
        Some(origin)
    }

    /// Its environment, as it was started; `None` where we may not read it.
    pub fn variables(&self) -> Option<Vec<(OsString, OsString)>> {
        let bytes = fs::read(self.folder.join("environ")).ok()?;
        let pairs = words(&bytes).into_iter().filter_map(|word| {
            let at = word.as_bytes().iter().position(|byte| *byte == b'=')?;
            let (name, value) = word.as_bytes().split_at(at);
            Some((OsStr::from_bytes(name).into(), OsStr::from_bytes(value.get(1..)?).into()))
        });
        Some(pairs.collect())
    }

    /// Tells it to read its configuration anew.
    pub fn hang_up(&self) -> Result<(), String> {
        self.signal(Signal::HUP)
    }

    /// Tells it to start a successor. To be sent only to one that has a note of what becomes of it:
    /// an older version takes this for nothing.
    pub fn ask_to_upgrade(&self) -> Result<(), String> {
        self.signal(Signal::USR2)
    }

    /// False once it has ended.
    pub fn is_there(&self) -> bool {
        self.folder.join("comm").exists()
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        let sent = match &self.handle {
            Some(handle) => pidfd_send_signal(handle, signal),
            None => kill_process(self.pid, signal),
        };
        sent.map_err(|error| format!("process {}: {error}", self.number()))
    }
}

/// True for two names of one file.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    id(one).is_some() && id(one) == id(other)
}

/// Whether a process has a handler for a signal: without one, the signal would end it.
fn catches(status: &str, signal: Signal) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// What stands between zero bytes.
fn words(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let words = bytes.split(|byte| *byte == 0);
    words.map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a signal that ends whoever has the number now, or an llmproxy without a handler.
    #[test]
    fn only_an_llmproxy_that_serves_is_found() {
        assert_eq!(Serving::find(u32::MAX).err().unwrap(), "there is no process 4294967295");
        assert!(Serving::find(1).err().unwrap().contains("is no llmproxy"));
        // This very program has the same file, and no handler.
        let own = Serving::find(std::process::id()).err().unwrap();
        assert!(own.contains("serves nobody"), "{own}");
    }

    #[test]
    fn a_handler_is_a_bit_of_a_mask() {
        let status = "Name:\tllmproxy\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000401\n";
        assert!(catches(status, Signal::HUP) && !catches(status, Signal::TERM));
        assert!(!catches("SigIgn:\tffffffffffffffff\n", Signal::HUP));
    }

    #[test]
    fn zero_bytes_stand_between_words() {
        assert_eq!(words(b"llmproxy\0-c\0a b\0"), ["llmproxy", "-c", "a b"]);
        assert_eq!(words(b"a\0\0b"), ["a", "", "b"]);
    }
}
