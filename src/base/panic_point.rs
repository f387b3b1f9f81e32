//! Places at which a test can have the program panic, to see what a panic of ours leaves behind. In
//! the program itself a place is nothing.

/// Outside of tests.
#[cfg(not(test))]
#[inline(always)]
pub fn pass(_place: &str) {}

#[cfg(test)]
pub use armed::{arm, pass};

#[cfg(test)]
mod armed {
    use std::cell::Cell;

    thread_local! {
        /// The place, and how often it is passed before.
        static ARMED: Cell<Option<(&'static str, u32)>> = const { Cell::new(None) };
    }

    /// From now on this thread panics at this place, once, after it has passed it so often.
    pub fn arm(place: &'static str, passes: u32) {
        ARMED.set(Some((place, passes)));
    }

    /// The place with this name.
    pub fn pass(place: &str) {
        match ARMED.get().filter(|(armed, _)| *armed == place) {
            None => {}
            Some((_, 0)) => {
                ARMED.set(None);
                panic!("as a test wants it at {place}");
            }
            Some((armed, left)) => ARMED.set(Some((armed, left - 1))),
        }
    }
}
