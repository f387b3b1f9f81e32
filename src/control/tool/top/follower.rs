//! Which of the gateways that run is shown: the one that was shown before, until it ends or another
//! one starts, which may take its place.

use super::sight::{TopSight, TopSnapshot};
use super::watcher::TopFound;
use std::collections::HashMap;

/// Who follows one of them.
#[derive(Default)]
pub struct Follower {
    /// The process that is shown.
    followed: Option<u32>,
    /// What each said last, by its number.
    before: HashMap<u32, TopSight>,
}

/// What is to be shown.
pub struct TopScreen {
    /// Of the process that is followed; `None`: none runs.
    pub snapshot: Option<TopSnapshot>,
    /// How many run.
    pub processes: usize,
    /// What a person should know beside it.
    pub notices: Vec<String>,
}

impl Follower {
    /// Takes what was found, and gives what to show of it. `next`: the next process is wanted.
    pub fn follow(&mut self, found: TopFound, next: bool) -> TopScreen {
        let TopFound { sights, silent } = found;
        let (all_answer, mut notices) = (silent.is_empty(), silent);
        let pids: Vec<u32> = sights.iter().map(|sight| sight.roster.pid).collect();
        let chosen = self.chosen(&pids, next);
        match (self.followed, chosen) {
            (Some(old), Some(new)) if old != new && !next => {
                let fate = match (pids.contains(&old), all_answer) {
                    (true, _) => "still runs",
                    (false, true) => "has ended",
                    (false, false) => "does not answer",
                };
                notices.push(format!("process {new} is shown now: {old} {fate}"));
            }
            (Some(old), None) if notices.is_empty() => {
                notices.push(format!("process {old} is gone"))
            }
            _ => {}
        }
        self.followed = chosen.or(self.followed);
        let shown = sights.iter().find(|sight| Some(sight.roster.pid) == chosen);
        let snapshot =
            shown.map(|sight| TopSnapshot::of(sight, self.before.get(&sight.roster.pid)));
        if all_answer {
            self.before.clear();
        }
        // Whoever does not answer once is not forgotten: it would be taken for one that starts.
        self.before.extend(sights.into_iter().map(|sight| (sight.roster.pid, sight)));
        TopScreen { snapshot, processes: pids.len(), notices }
    }

    /// Of these, the oldest of which comes first.
    fn chosen(&self, pids: &[u32], next: bool) -> Option<u32> {
        let newest = pids.last().copied();
        let Some(at) = pids.iter().position(|pid| Some(*pid) == self.followed) else {
            return newest;
        };
        if next {
            return pids.get((at + 1) % pids.len()).copied();
        }
        // One that was not there before.
        let fresh = newest.filter(|pid| !self.before.contains_key(pid));
        fresh.or(self.followed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::tests::sight;
    use super::*;

    fn found(pids: &[u32]) -> TopFound {
        // The first one runs for longest.
        let sights = pids.iter().enumerate();
        let sights = sights.map(|(at, pid)| sight(*pid, 1000.0 - at as f64, 0, ""));
        TopFound { sights: sights.collect(), silent: Vec::new() }
    }

    fn shown(screen: &TopScreen) -> (Option<u32>, usize) {
        (screen.snapshot.as_ref().map(|it| it.pid), screen.processes)
    }

    /// Catches: a view that goes on with the process that an upgrade has drained, one that stays
    /// with a process that is gone, and one that jumps to and fro between two.
    #[test]
    fn the_successor_is_shown_and_the_one_that_is_left() {
        let mut follower = Follower::default();
        assert_eq!(shown(&follower.follow(found(&[10]), false)), (Some(10), 1));
        let both = follower.follow(found(&[10, 20]), false);
        assert_eq!(shown(&both), (Some(20), 2));
        assert_eq!(both.notices, ["process 20 is shown now: 10 still runs"]);
        let same = follower.follow(found(&[10, 20]), false);
        assert_eq!((shown(&same), same.notices.len()), ((Some(20), 2), 0));
        let back = follower.follow(found(&[10]), false);
        assert_eq!(shown(&back), (Some(10), 1));
        assert_eq!(back.notices, ["process 10 is shown now: 20 has ended"]);
    }

    /// Catches: an end that is not said, a new start that is not found, and one that does not
    /// answer once and is then taken for another one.
    #[test]
    fn an_end_is_said_and_a_new_start_is_found() {
        let mut follower = Follower::default();
        follower.follow(found(&[10]), false);
        let silent = TopFound { sights: Vec::new(), silent: vec!["it hangs".into()] };
        let none = follower.follow(silent, false);
        assert_eq!((shown(&none), none.notices), ((None, 0), vec!["it hangs".to_owned()]));
        let again = follower.follow(found(&[10]), false);
        assert_eq!((shown(&again), again.notices.len()), ((Some(10), 1), 0));
        follower.follow(TopFound::default(), false);
        let new = follower.follow(found(&[30]), false);
        assert_eq!(shown(&new), (Some(30), 1));
        assert_eq!(new.notices, ["process 30 is shown now: 10 has ended"]);
    }

    /// Catches: a key that shows the same process again, or none behind the last.
    #[test]
    fn each_of_several_can_be_shown() {
        let mut follower = Follower::default();
        assert_eq!(shown(&follower.follow(found(&[10, 20, 30]), false)).0, Some(30));
        for wanted in [10, 20, 30, 10] {
            let screen = follower.follow(found(&[10, 20, 30]), true);
            assert_eq!((shown(&screen).0, screen.notices.len()), (Some(wanted), 0));
        }
        assert_eq!(shown(&follower.follow(found(&[10, 20, 30]), false)).0, Some(10));
    }
}
