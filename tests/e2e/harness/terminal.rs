//! A terminal of the test's own, with a program on it.

use super::process::{program, Process};
use super::{await_until, SOON};
use rustix::fs::{open, Mode, OFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcgetattr, tcsetwinsize, LocalModes, Termios, Winsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

const ROWS: usize = 24;
const COLUMNS: usize = 80;

/// The product on a terminal of 80 by 24.
pub struct Terminal {
    /// The program.
    pub process: Process,
    /// What somebody types.
    keys: File,
    screen: OwnedFd,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts it with these arguments.
    pub fn start(args: &[&str]) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = open(&*name, flags, Mode::empty()).unwrap();
        let (ws_row, ws_col) = (ROWS as u16, COLUMNS as u16);
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&screen, size).unwrap();
        let before = tcgetattr(&screen).unwrap();
        let keys = File::from(master);
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, all) = (keys.try_clone().unwrap(), Arc::clone(&written));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // An error: nobody has the terminal any more.
            while let Ok(got @ 1..) = reader.read(&mut piece) {
                all.lock().unwrap().extend_from_slice(&piece[..got]);
            }
        });
        let process = Process::start_on(&screen, &program("llmproxy"), args);
        Terminal { process, keys, screen, before, written }
    }

    /// All that was written on it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until something stands in a line of it, or has stood there. What is written is only
    /// what differs from the picture before, so it is not looked for in that.
    pub fn await_text(&self, wanted: &str) {
        await_until(&format!("{wanted} on the terminal"), SOON, || was_shown(&self.text(), wanted));
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Whether it gives programs whole lines, as it does when nobody has changed that.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.screen).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Asserts that it is as it was before the program, and shows what it showed then.
    pub fn assert_restored(&self) {
        let now = tcgetattr(&self.screen).unwrap();
        let modes =
            |it: &Termios| (it.local_modes.bits(), it.input_modes.bits(), it.output_modes.bits());
        assert_eq!(modes(&now), modes(&self.before));
        await_until("the screen is as it was", SOON, || {
            let text = self.text();
            let (last_on, last_off) = (text.rfind("\x1b[?1049h"), text.rfind("\x1b[?1049l"));
            last_on.is_some() && last_off > last_on
        });
        let text = self.text();
        assert!(text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l"), "the cursor is hidden");
    }
}

/// Whether a line of the terminal ever had this in it, by all that was written. Understood are
/// moves of the cursor and the clearing of the screen; other sequences change no letter.
fn was_shown(written: &str, wanted: &str) -> bool {
    let mut lines = vec![[' '; COLUMNS]; ROWS];
    let (mut row, mut column) = (0, 0);
    let has_it = |line: &[char; COLUMNS]| line.iter().collect::<String>().contains(wanted);
    let mut rest = written.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '\x1b' if rest.as_str().starts_with('[') => {
                let (mut sequence, mut last) = (String::new(), None);
                for letter in rest.by_ref().skip(1) {
                    if letter.is_alphabetic() {
                        last = Some(letter);
                        break;
                    }
                    sequence.push(letter);
                }
                match last {
                    Some('H') => {
                        if has_it(&lines[row]) {
                            return true;
                        }
                        let mut places = sequence.split(';').map(|it| it.parse().unwrap_or(1));
                        let mut next = |most: usize| places.next().unwrap_or(1).clamp(1, most) - 1;
                        (row, column) = (next(ROWS), next(COLUMNS));
                    }
                    Some('J') => lines = vec![[' '; COLUMNS]; ROWS],
                    _ => {}
                }
            }
            '\r' => column = 0,
            '\n' => row = (row + 1).min(ROWS - 1),
            letter => {
                if let Some(place) = lines[row].get_mut(column) {
                    *place = letter;
                }
                column += 1;
            }
        }
    }
    has_it(&lines[row])
}
