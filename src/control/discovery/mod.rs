//! Discovery: asks, while the process runs, where engines are.
//!
//! *Takes:* the sources of a plan. *Gives:* the backends that they name, and word to the supervisor
//! when these are others. *Runs on:* a thread for each source, so that one that hangs holds up no
//! other; what was found is put together on the supervisor's. *May:* block, up to the source's own
//! time limit. *Never:* changes the configuration in use, forgets a good answer because
//! of a bad one.

mod consul;
mod dns;
mod file;
mod finder;
mod http;

pub use finder::{Finder, FinderNumbers};

use super::supervisor::Event;
use crate::config::plan::{Backend, DiscoveryMode, Plan};
use crossbeam_channel::Sender;
use finder::Spec;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The way by which finders say that there is something new.
#[derive(Clone)]
pub struct News {
    supervisor: Sender<Event>,
    /// Said, and not looked at yet: nobody needs to say it again.
    is_told: Arc<AtomicBool>,
}

impl News {
    /// Towards the supervisor.
    pub fn to(supervisor: Sender<Event>) -> News {
        News { supervisor, is_told: Arc::default() }
    }

    /// Waits for room in the supervisor's queue if it must: unlike a reload, what was found is not
    /// read again by whatever waits there.
    fn tell(&self) {
        if !self.is_told.swap(true, Ordering::AcqRel) {
            let _ = self.supervisor.send(Event::Discovered);
        }
    }

    /// To be called before what was found is looked at.
    pub fn heard(&self) {
        self.is_told.store(false, Ordering::Release);
    }
}

/// The finders in use, for the metrics page.
#[derive(Debug, Default)]
pub struct FindersInUse(Mutex<Vec<Arc<FinderNumbers>>>);

impl FindersInUse {
    /// Those of now.
    pub fn numbers(&self) -> Vec<Arc<FinderNumbers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on the page shows these.
    pub fn show(&self, discovery: &Finders) {
        let numbers = discovery.finders.iter().map(|finder| finder.numbers()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
    }
}

/// What runs for the `discovery` section of a plan. Its threads end when the last of it is dropped.
#[derive(Default)]
pub struct Finders {
    is_first_enough: bool,
    finders: Vec<Arc<Finder>>,
    /// What the sources of an earlier configuration found. It holds until each of the new ones has
    /// named a backend: a reload must not take all engines away for as long as that takes.
    inherited: Vec<Backend>,
}

impl Finders {
    /// What is to run for a plan, when this runs. Sources that are as before go on; for others a
    /// thread starts. Drop it, and this goes on as it was.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn next(&self, plan: &Plan, news: &News) -> Result<Finders, String> {
        let Some(wanted) = &plan.discovery else { return Ok(Finders::default()) };
        let mut finders = Vec::new();
        for source in &wanted.sources {
            let Some(spec) = Spec::of(source, wanted.interval, &plan.routing) else { continue };
            let same = self.finders.iter().find(|finder| finder.is_for(&spec));
            finders.push(match same {
                Some(finder) => Arc::clone(finder),
                None => Arc::new(Finder::start(spec, news.clone())?),
            });
        }
        // What others than these found is kept until these have found something.
        let goes_on = |old: &Arc<Finder>| finders.iter().any(|new| Arc::ptr_eq(old, new));
        let dropped = self.finders.iter().filter(|old| !goes_on(old));
        let mut inherited: Vec<Backend> =
            dropped.filter_map(|old| old.found()).flat_map(|found| found.to_vec()).collect();
        if self.finders.iter().any(|old| old.found().is_none()) {
            inherited.extend(self.inherited.iter().cloned());
        }
        let is_first_enough = wanted.mode == DiscoveryMode::First;
        Ok(Finders { is_first_enough, finders, inherited })
    }

    /// Waits until each source was asked once, whatever came of it, for at most so long.
    pub fn await_first(&self, wait: Duration) {
        let due = Instant::now() + wait;
        self.finders.iter().for_each(|finder| finder.await_asked(due));
    }

    /// The backends that the sources name, in the order of the sources.
    pub fn found(&self) -> Vec<Backend> {
        let each = self.finders.iter().map(|finder| finder.found());
        together(each.collect(), self.is_first_enough, &self.inherited)
    }
}

/// What sources found, each in its turn; `None` = it never named a backend. Until all have, what is
/// inherited counts too, behind them.
fn together(
    found: Vec<Option<Arc<Vec<Backend>>>>,
    is_first_enough: bool,
    inherited: &[Backend],
) -> Vec<Backend> {
    let take = if is_first_enough { 1 } else { usize::MAX };
    // Of a source behind the first that counts nothing is wanted.
    let asked = match found.iter().position(Option::is_some) {
        Some(first) if is_first_enough => &found[..first],
        _ => &found[..],
    };
    let is_one_missing = asked.iter().any(Option::is_none);
    let known = found.iter().flatten().take(take).flat_map(|backends| backends.iter());
    let inherited = inherited.iter().filter(|_| is_one_missing);
    known.chain(inherited).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Option<Arc<Vec<Backend>>> {
        Some(Arc::new(names.iter().map(|name| Backend::sample(name)).collect()))
    }

    fn names(backends: &[Backend]) -> Vec<&str> {
        backends.iter().map(|backend| backend.name.as_str()).collect()
    }

    /// Catches: a source that hides another, engines that vanish with a reload, and such that stay
    /// though all sources know better.
    #[test]
    fn sources_add_up_as_the_mode_says() {
        let old = [Backend::sample("old")];
        let add = |found, first| names(&together(found, first, &old)).join(" ");
        assert_eq!(add(vec![found(&["a"]), found(&["b", "c"])], false), "a b c");
        assert_eq!(add(vec![found(&["a"]), found(&["b", "c"])], true), "a");
        assert_eq!(add(vec![None, found(&["b"])], false), "b old");
        assert_eq!(add(vec![None, found(&["b"]), found(&["c"])], true), "b old");
        assert_eq!(add(vec![found(&["a"]), None], true), "a", "what it names is not wanted");
        assert_eq!(add(vec![None], true), "old");
        assert_eq!(add(vec![], false), "");
    }

    /// Catches: a queue full of the same word, and a word that is lost.
    #[test]
    fn news_are_told_once_until_they_are_heard() {
        let (to_it, events) = super::super::supervisor::events();
        let news = News::to(to_it);
        news.tell();
        news.tell();
        assert_eq!(events.try_iter().collect::<Vec<_>>(), [Event::Discovered]);
        news.heard();
        news.tell();
        assert_eq!(events.try_iter().count(), 1);
    }
}
