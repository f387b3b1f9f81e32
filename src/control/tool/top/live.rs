//! The live view: one thread asks, this one draws and hears the keys.

use super::draw::{draw, TopView};
use super::follower::{Follower, TopScreen};
use super::{lines, said, Watcher};
use crate::config::cli::{Printout, FINE, UNUSABLE, WOULD_NOT_START};
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender, TryRecvError};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

/// A key, a signal and what was found are noticed within so long.
const TICK: Duration = Duration::from_millis(100);

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    End,
    /// The next process.
    Next,
    /// Move the table by so many rows.
    Move(isize),
}

/// Runs until somebody ends it.
pub fn run(watcher: Watcher, interval: Duration) -> Printout {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let message = "llmproxy top: this is no terminal: --once prints what is found once\n";
        return said(message.to_owned(), UNUSABLE);
    }
    let ends = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&ends)) {
            return said(lines(&[format!("signals: {error}")]), WOULD_NOT_START);
        }
    }
    let (screens, wishes) = match ask_again_and_again(watcher, interval) {
        Ok(ends) => ends,
        Err(error) => return said(lines(&[error.to_string()]), WOULD_NOT_START),
    };
    // A panic puts the terminal back too, before it is told.
    let shown = ratatui::try_init()
        .and_then(|mut terminal| show(&mut terminal, (&screens, &wishes), &ends));
    let restored = ratatui::try_restore();
    match shown.and(restored) {
        Ok(()) => said(String::new(), FINE),
        Err(error) => said(lines(&[error.to_string()]), WOULD_NOT_START),
    }
}

/// What is to be shown, and where it is said that the next process is wanted.
type Asking = (Receiver<TopScreen>, Sender<()>);

/// A thread that asks, until nobody wants to know.
fn ask_again_and_again(watcher: Watcher, interval: Duration) -> io::Result<Asking> {
    let (to_view, screens) = bounded(1);
    let (wishes, wanted) = bounded(1);
    let body = move || {
        let (mut follower, mut next) = (Follower::default(), false);
        while to_view.send(follower.follow(watcher.look(), next)).is_ok() {
            next = match wanted.recv_timeout(interval) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
        }
    };
    std::thread::Builder::new().name("top".into()).spawn(body)?;
    Ok((screens, wishes))
}

/// Draws what comes, and hears the keys.
fn show(
    terminal: &mut DefaultTerminal,
    (screens, wishes): (&Receiver<TopScreen>, &Sender<()>),
    ends: &AtomicBool,
) -> io::Result<()> {
    let mut view = TopView::default();
    terminal.draw(|frame| draw(frame, &mut view))?;
    while !ends.load(Relaxed) {
        let mut is_new = false;
        if event::poll(TICK)? {
            is_new = true;
            // Anything else is a window of another size.
            if let Event::Key(key) = event::read()? {
                match wish_of(key) {
                    Some(Wish::End) => return Ok(()),
                    // One that waits is enough.
                    Some(Wish::Next) => drop(wishes.try_send(())),
                    Some(Wish::Move(rows)) => view.scroll(rows),
                    None => is_new = false,
                }
            }
        }
        match screens.try_recv() {
            Ok(screen) => {
                view.take(screen);
                is_new = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(io::Error::other("nobody asks")),
        }
        if is_new {
            terminal.draw(|frame| draw(frame, &mut view))?;
        }
    }
    Ok(())
}

fn wish_of(key: KeyEvent) -> Option<Wish> {
    /// About a screen.
    const PAGE: isize = 10;
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match (key.kind, key.code) {
        (KeyEventKind::Release, _) => None,
        (_, KeyCode::Char('c' | 'd' | '\\')) if with_control => Some(Wish::End),
        (_, _) if with_control => None,
        (_, KeyCode::Char('q' | 'Q') | KeyCode::Esc) => Some(Wish::End),
        (_, KeyCode::Tab) => Some(Wish::Next),
        (_, KeyCode::Up | KeyCode::Char('k')) => Some(Wish::Move(-1)),
        (_, KeyCode::Down | KeyCode::Char('j')) => Some(Wish::Move(1)),
        (_, KeyCode::PageUp) => Some(Wish::Move(-PAGE)),
        (_, KeyCode::PageDown) => Some(Wish::Move(PAGE)),
        (_, KeyCode::Home) => Some(Wish::Move(isize::MIN)),
        (_, KeyCode::End) => Some(Wish::Move(isize::MAX)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a view that only another terminal can end, and one that a letter ends which the
    /// table has a use for.
    #[test]
    fn keys_do_what_is_said_of_them() {
        let plain = |code| wish_of(KeyEvent::new(code, KeyModifiers::NONE));
        let control = |c| wish_of(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
        for end in [plain(KeyCode::Char('q')), plain(KeyCode::Esc), control('c')] {
            assert_eq!(end, Some(Wish::End));
        }
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(control('q'), None);
        assert_eq!(plain(KeyCode::Tab), Some(Wish::Next));
        assert_eq!(plain(KeyCode::Down), Some(Wish::Move(1)));
    }
}
