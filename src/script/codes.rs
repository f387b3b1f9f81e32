//! Codes that scripts refuse with. A code is a word of the program's own everywhere else: it labels
//! metrics. So there is a fixed number of places for those of scripts, which are never given up.

use crate::base::limits::SCRIPT_CODES_MAX;
use std::sync::OnceLock;

type Places = [OnceLock<String>; SCRIPT_CODES_MAX];

static CODES: Places = [const { OnceLock::new() }; SCRIPT_CODES_MAX];

/// The code, for as long as the process lives; `None`: there are too many already.
pub(super) fn kept(code: &str) -> Option<&'static str> {
    kept_in(&CODES, code)
}

fn kept_in(places: &'static Places, code: &str) -> Option<&'static str> {
    places.iter().find_map(|place| {
        let kept = place.get_or_init(|| code.to_owned());
        (kept == code).then_some(kept.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a script that makes a label of a metric for each of its clients.
    #[test]
    fn there_are_only_so_many_codes() {
        static OWN: Places = [const { OnceLock::new() }; SCRIPT_CODES_MAX];
        let keep = |n: usize| kept_in(&OWN, &format!("code_{n}"));
        let first = keep(0).unwrap();
        let all: Vec<_> = (0..2 * SCRIPT_CODES_MAX).filter_map(keep).collect();
        assert_eq!(all.len(), SCRIPT_CODES_MAX);
        assert_eq!(keep(0).unwrap().as_ptr(), first.as_ptr());
    }
}
