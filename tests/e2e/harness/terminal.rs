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
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
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

    /// Waits until something was written.
    pub fn await_text(&self, wanted: &str) {
        await_until(&format!("{wanted} on the terminal"), SOON, || self.text().contains(wanted));
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
