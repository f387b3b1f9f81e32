//! What becomes of upgrades, for whoever may look into the process: `llmproxy upgrade` reads there
//! whether the one that it asked for came to something. A page of memory with a name, among the
//! open files of the process: there is no file to clean up, and no door that somebody else could
//! knock at.

use rustix::fs::{memfd_create, MemfdFlags};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Its name, as `/proc` shows it.
const NAME: &str = "llmproxy-upgrades";
/// Bytes of a note: longer ones are cut, shorter ones filled up.
const BYTES: usize = 1024;

/// How far the last upgrade is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeState {
    /// There was none.
    None,
    /// It is under way.
    UnderWay,
    /// The process with this number serves in our place.
    Succeeded(u32),
    /// This process serves on; why.
    Failed(String),
}

/// The state of the last upgrade, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeNote {
    /// Upgrades that were asked for, this one included.
    pub number: u64,
    /// What became of it.
    pub state: UpgradeState,
}

/// The note of this process.
pub struct Notepad(File);

impl Notepad {
    /// A new one: no upgrade yet.
    pub fn new() -> io::Result<Notepad> {
        let pad = Notepad(memfd_create(NAME, MemfdFlags::CLOEXEC)?.into());
        pad.write(&UpgradeNote { number: 0, state: UpgradeState::None })?;
        Ok(pad)
    }

    /// Writes it down.
    pub fn write(&self, note: &UpgradeNote) -> io::Result<()> {
        let UpgradeNote { number, state } = note;
        let mut text = match state {
            UpgradeState::None => format!("{number} none"),
            UpgradeState::UnderWay => format!("{number} under-way"),
            UpgradeState::Succeeded(process) => format!("{number} succeeded {process}"),
            UpgradeState::Failed(why) => format!("{number} failed {}", why.replace('\n', " ")),
        }
        .into_bytes();
        text.resize(BYTES - 1, b' ');
        text.push(b'\n');
        self.0.write_all_at(&text, 0)
    }
}

/// The note of another process.
pub struct ForeignNote(File);

impl ForeignNote {
    /// Of the process with this number; `None`: it has none, for it is of a version that knows no
    /// upgrades.
    ///
    /// # Errors
    /// We may not look into that process: it is another user's, or has rights that we have not.
    pub fn of(process: i32) -> io::Result<Option<ForeignNote>> {
        let wanted = format!("/memfd:{NAME} ");
        let mut hidden = None;
        for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
            let path = entry?.path();
            let leads_to = match fs::read_link(&path) {
                Ok(leads_to) => leads_to,
                // The numbers of its files may be seen, and not what they are.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    hidden = Some(error);
                    continue;
                }
                // One that was closed meanwhile is none of ours.
                Err(_) => continue,
            };
            if leads_to.to_string_lossy().starts_with(&wanted) {
                return Ok(Some(ForeignNote(File::open(path)?)));
            }
        }
        hidden.map_or(Ok(None), Err)
    }

    /// Of this process.
    #[cfg(test)]
    pub(super) fn own(pad: &Notepad) -> ForeignNote {
        ForeignNote(pad.0.try_clone().unwrap())
    }

    /// What it says; `None`: it is just being written.
    pub fn read(&self) -> Option<UpgradeNote> {
        let look = || {
            let mut bytes = vec![0; BYTES];
            self.0.read_exact_at(&mut bytes, 0).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = look()?;
        (Some(&text) == look().as_ref()).then(|| parse(&text))?
    }
}

fn parse(text: &str) -> Option<UpgradeNote> {
    let mut words = text.trim_end().splitn(3, ' ');
    let number = words.next()?.parse().ok()?;
    let (state, rest) = (words.next()?, words.next().unwrap_or_default());
    let state = match state {
        "none" => UpgradeState::None,
        "under-way" => UpgradeState::UnderWay,
        "succeeded" => UpgradeState::Succeeded(rest.parse().ok()?),
        "failed" => UpgradeState::Failed(rest.to_owned()),
        _ => return None,
    };
    Some(UpgradeNote { number, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an outcome that `llmproxy upgrade` cannot find, or reads as another one.
    #[test]
    fn what_is_written_is_found_by_others() {
        let process = i32::try_from(std::process::id()).unwrap();
        let pad = Notepad::new().unwrap();
        // Another thread of this process may have one, too.
        let foreign = ForeignNote::of(process).unwrap().unwrap();
        assert!(foreign.read().is_some());
        let own = ForeignNote::own(&pad);
        for state in [
            UpgradeState::None,
            UpgradeState::UnderWay,
            UpgradeState::Succeeded(4711),
            UpgradeState::Failed("it said: no".into()),
            UpgradeState::Failed(String::new()),
        ] {
            let note = UpgradeNote { number: 7, state };
            pad.write(&note).unwrap();
            assert_eq!(own.read(), Some(note));
        }
        let why = format!("a\nb {}", "ä".repeat(BYTES));
        pad.write(&UpgradeNote { number: 8, state: UpgradeState::Failed(why) }).unwrap();
        assert_eq!(own.0.metadata().unwrap().len(), BYTES as u64);
        assert_eq!(own.read().unwrap().number, 8, "one that is cut inside a letter");
        assert!(ForeignNote::of(1).map_or(true, |note| note.is_none()));
    }
}
