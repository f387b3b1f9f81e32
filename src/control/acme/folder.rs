//! What is kept on the disk, under `storage`: a folder for each authority, in which there are its
//! account, its certificates, what failed last, and the tokens that it asks for just now. Folders
//! are 0700 and files 0600. A file is replaced as a whole or not at all, and is on the disk when it
//! is.

use super::pause::Failures;
use crate::base::fnv;
use rustix::fs::{flock, Access, FlockOperation};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a file that are read. Chains have a few thousand.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Bytes that a disk must take before an authority is asked for anything: more than all the files
/// of an order have.
const PROBE_BYTES: usize = 64 * 1024;
/// Bytes of a token; RFC 8555 asks for 22 at least, and no authority has many more.
const TOKEN_BYTES_MAX: usize = 128;

/// The account, with its key.
const ACCOUNT: &str = "account.json";
/// What the instance that orders has locked.
const LOCK: &str = "lock";
/// The folder of the tokens.
const TOKENS: &str = "challenges";

/// The folder of one authority.
#[derive(Debug, Clone)]
pub struct AcmeFolder {
    path: PathBuf,
}

/// Which file it was: another one has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMark {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

/// The lock of a folder: whoever has it may order. It is free when this goes away, or the process.
pub struct OrderTurn {
    _file: File,
}

/// A token that lies there for the authority, until this goes away.
pub struct LaidToken {
    path: PathBuf,
}

impl Drop for LaidToken {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl AcmeFolder {
    /// The folder of an authority under `storage`. Nothing is made.
    pub fn of(storage: &Path, directory: &str) -> AcmeFolder {
        let host = directory.split("//").nth(1).unwrap_or(directory);
        let host = host.split(['/', '?']).next().unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let host: String = host.chars().map(plain).take(80).collect();
        // Two directories of one host are two authorities: production and staging, say.
        let mark = fnv::hash(directory.bytes()) as u32;
        AcmeFolder { path: storage.join(format!("{host}-{mark:08x}")) }
    }

    /// Makes the folder where it is not, and tries to write there.
    ///
    /// # Errors
    /// It cannot be written or read: a line that names it.
    pub fn make(&self) -> Result<(), String> {
        let tokens = self.path.join(TOKENS);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&tokens);
        made.map_err(|error| named(&tokens, &error))?;
        self.probe()?;
        self.account().map(drop)
    }

    /// Tries whether the disk takes what an order brings.
    ///
    /// # Errors
    /// It is full, or does not let itself be written to: a line that names the folder.
    pub fn probe(&self) -> Result<(), String> {
        let probe = self.path.join(format!(".probe.{}", std::process::id()));
        let tried = write_anew(&probe, &[0; PROBE_BYTES]);
        // What a full disk took of it must not stay there.
        let removed = fs::remove_file(&probe);
        tried.and(removed).map_err(|error| named(&self.path, &error))
    }

    /// Whether it could be made, or written to, as far as that can be seen without trying.
    ///
    /// # Errors
    /// It cannot: a line that names it, or the folder in which it would be made.
    pub fn look(&self) -> Result<(), String> {
        let relative = |path: &&Path| !path.as_os_str().is_empty();
        let there = self.path.ancestors().filter(relative).find(|path| path.exists());
        let there = there.unwrap_or(Path::new("."));
        if !there.is_dir() {
            return Err(format!("{}: is no folder", there.display()));
        }
        let access = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK);
        access.map_err(|error| named(there, &error.into()))
    }

    /// Where the certificate of a name lies.
    pub fn certificate_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.pem"))
    }

    /// Which file lies there now, without reading it; `None`: none.
    pub fn mark(&self, name: &str) -> Option<FileMark> {
        let found = fs::metadata(self.certificate_path(name)).ok()?;
        Some(FileMark {
            inode: found.ino(),
            changed: (found.ctime(), found.ctime_nsec()),
            bytes: found.len(),
        })
    }

    /// The text of the file of a name, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn certificate(&self, name: &str) -> Result<Option<String>, String> {
        read(&self.certificate_path(name))
    }

    /// Puts another one there.
    ///
    /// # Errors
    /// It is not on the disk; what was there before is.
    pub fn put_certificate(&self, name: &str, text: &str, _turn: &OrderTurn) -> Result<(), String> {
        replace(&self.certificate_path(name), text.as_bytes())
    }

    /// The account, as it was put there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn account(&self) -> Result<Option<String>, String> {
        read(&self.path.join(ACCOUNT))
    }

    /// Puts another one there.
    ///
    /// # Errors
    /// It is not on the disk.
    pub fn put_account(&self, text: &str, _turn: &OrderTurn) -> Result<(), String> {
        replace(&self.path.join(ACCOUNT), text.as_bytes())
    }

    /// Puts it aside: the authority does not know it.
    ///
    /// # Errors
    /// It stays.
    pub fn drop_account(&self, _turn: &OrderTurn) -> Result<(), String> {
        let path = self.path.join(ACCOUNT);
        let aside = self.path.join(format!("{ACCOUNT}.unknown"));
        match fs::rename(&path, aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(&path, &error)),
            _ => Ok(()),
        }
    }

    /// What failed last for a name. None, if nothing did or nobody can read it.
    pub fn failures(&self, name: &str) -> Failures {
        let text = read(&self.failures_path(name)).ok().flatten().unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Writes down what failed, or that nothing does any more.
    ///
    /// # Errors
    /// It is not on the disk.
    pub fn put_failures(&self, name: &str, failures: &Failures) -> Result<(), String> {
        let path = self.failures_path(name);
        if failures.count == 0 {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(&path, &error)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_string(failures).unwrap_or_default();
        replace(&path, text.as_bytes())
    }

    fn failures_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.failed.json"))
    }

    /// Takes the lock, if nobody has it. Tokens that lie there then are those of somebody who was
    /// ended in the middle.
    ///
    /// # Errors
    /// There can be no lock here.
    pub fn take_turn(&self) -> Result<Option<OrderTurn>, String> {
        let path = self.path.join(LOCK);
        let told = |error: io::Error| named(&path, &error);
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(told)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(told(error.into())),
        }
        for left in fs::read_dir(self.path.join(TOKENS)).into_iter().flatten().flatten() {
            let _ = fs::remove_file(left.path());
        }
        Ok(Some(OrderTurn { _file: file }))
    }

    /// Lays down what is to be answered to a token.
    ///
    /// # Errors
    /// It cannot be written, or is no token.
    pub fn lay_token(
        &self,
        token: &str,
        answer: &str,
        _turn: &OrderTurn,
    ) -> Result<LaidToken, String> {
        let path = self.token_path(token.as_bytes());
        let path = path.ok_or("the authority's token is none")?;
        replace(&path, answer.as_bytes())?;
        Ok(LaidToken { path })
    }

    /// What is to be answered to a token that somebody asks for.
    pub fn token(&self, asked: &[u8]) -> Option<String> {
        read(&self.token_path(asked)?).ok().flatten()
    }

    /// `None` for what is no token: anybody may ask for anything.
    fn token_path(&self, token: &[u8]) -> Option<PathBuf> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.iter().all(is_plain);
        let name = std::str::from_utf8(token).ok().filter(|_| fits)?;
        Some(self.path.join(TOKENS).join(name))
    }
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn read(path: &Path) -> Result<Option<String>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(path, &error)),
    };
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
    read.map(|_| Some(text)).map_err(|error| named(path, &error))
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let replaced = write_anew(&fresh, bytes).and_then(|()| fs::rename(&fresh, path));
    let replaced = replaced.and_then(|()| match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    });
    replaced.map_err(|error| named(path, &error))
}

/// What somebody who was ended left under this name goes first: its rights may be others.
fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder that goes away with this.
    pub(in crate::control::acme) struct ScratchFolder(pub PathBuf);

    impl ScratchFolder {
        pub(in crate::control::acme) fn new(name: &str) -> ScratchFolder {
            let name = format!("llmproxy-acme-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            ScratchFolder(path)
        }

        pub(in crate::control::acme) fn folder(&self) -> AcmeFolder {
            let folder = AcmeFolder::of(&self.0, "https://ca.example/directory");
            folder.make().unwrap();
            folder
        }
    }

    impl Drop for ScratchFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Catches: a key that others of the machine can read, a file that is half there.
    #[test]
    fn nobody_else_reads_and_nothing_is_left_over() {
        let scratch = ScratchFolder::new("rights");
        let folder = scratch.folder();
        let turn = folder.take_turn().unwrap().unwrap();
        assert_eq!(folder.certificate("a.example").unwrap(), None);
        // A write that was cut off, with other rights.
        fs::write(folder.path.join("a.example.pem.new"), "half").unwrap();
        let before = folder.mark("a.example");
        folder.put_certificate("a.example", "one", &turn).unwrap();
        let first = folder.mark("a.example");
        folder.put_certificate("a.example", "two", &turn).unwrap();
        assert!(before.is_none() && first.is_some() && folder.mark("a.example") != first);
        folder.put_account("{}", &turn).unwrap();
        assert_eq!(folder.certificate("a.example").unwrap().unwrap(), "two");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder.path).unwrap() {
            let entry = entry.unwrap();
            let wanted = if entry.path().is_dir() { 0o700 } else { 0o600 };
            let mode = entry.metadata().unwrap().mode() & 0o777;
            assert_eq!(mode, wanted, "{:?}", entry.path());
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(names, ["a.example.pem", "account.json", "challenges", "lock"]);
        assert_eq!(fs::metadata(&folder.path).unwrap().mode() & 0o777, 0o700);
    }

    /// Catches: two instances that order at once, and a lock that outlives who had it.
    #[test]
    fn one_at_a_time_has_its_turn() {
        let scratch = ScratchFolder::new("turns");
        let folder = scratch.folder();
        let turn = folder.take_turn().unwrap().unwrap();
        let token = folder.lay_token("tok-en_1", "answer", &turn).unwrap();
        assert_eq!(folder.token(b"tok-en_1").as_deref(), Some("answer"));
        assert!(folder.take_turn().unwrap().is_none());
        drop(token);
        assert_eq!(folder.token(b"tok-en_1"), None);
        std::mem::drop(folder.lay_token("tok", "a", &turn).map(std::mem::ManuallyDrop::new));
        assert!(folder.token(b"tok").is_some());
        drop(turn);
        let _turn = folder.take_turn().unwrap().unwrap();
        assert_eq!(folder.token(b"tok"), None, "left by who was ended in the middle");
    }

    /// Catches: somebody who reads the account's key under the name of a token.
    #[test]
    fn a_token_is_no_path() {
        let scratch = ScratchFolder::new("tokens");
        let folder = scratch.folder();
        let turn = folder.take_turn().unwrap().unwrap();
        folder.put_account("secret", &turn).unwrap();
        for asked in ["../account.json", "..", ".", "", "a/b", "a\0", "\u{e9}"] {
            assert_eq!(folder.token(asked.as_bytes()), None, "{asked}");
        }
        assert!(folder.lay_token(&"x".repeat(129), "a", &turn).is_err());
        assert!(folder.lay_token("../x", "a", &turn).is_err());
    }

    /// Catches: the account, or a test certificate, of one authority taken for another one's.
    #[test]
    fn each_authority_has_its_own() {
        let of = |directory: &str| AcmeFolder::of(Path::new("/s"), directory).path;
        let one = of("https://ca.example:14000/directory");
        assert!(one.to_str().unwrap().starts_with("/s/ca.example-14000-"), "{one:?}");
        assert_ne!(one, of("https://ca.example:14000/other"));
        assert_eq!(of("https://../../x").parent(), Some(Path::new("/s")));
    }

    /// Catches: a start that goes well and a certificate that then cannot be kept.
    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let scratch = ScratchFolder::new("file");
        fs::write(&scratch.0, "a file").unwrap();
        let folder = AcmeFolder::of(&scratch.0, "https://ca.example/");
        let told = folder.look().unwrap_err();
        assert!(told.contains("is no folder"), "{told}");
        let told = folder.make().unwrap_err();
        assert!(told.contains("llmproxy-acme-file"), "{told}");
        fs::remove_file(&scratch.0).unwrap();
        folder.look().unwrap();
        assert!(!scratch.0.exists(), "a look makes nothing");
    }

    /// Catches: a restart that forgets why, and until when, nobody may ask.
    #[test]
    fn failures_are_kept() {
        let scratch = ScratchFolder::new("failures");
        let folder = scratch.folder();
        assert_eq!(folder.failures("a.example"), Failures::default());
        let failures = Failures { count: 2, until_ms: 77, why: "no".into() };
        folder.put_failures("a.example", &failures).unwrap();
        assert_eq!(folder.failures("a.example"), failures);
        folder.put_failures("a.example", &Failures::default()).unwrap();
        folder.put_failures("a.example", &Failures::default()).unwrap();
        assert_eq!(folder.failures("a.example"), Failures::default());
    }
}
