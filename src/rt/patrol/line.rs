//! Small numbers in the order in which they came. Any of them may leave, at no cost: a list that is
//! linked by the numbers themselves.

/// No number: the end of the line.
const NONE: u32 = u32::MAX;

/// See above. Nobody stands in it when it is made.
pub struct Line {
    first: u32,
    last: u32,
    /// By number: who stands before and behind it; `None` when it does not stand in the line.
    links: Vec<Option<(u32, u32)>>,
}

impl Default for Line {
    fn default() -> Line {
        Line { first: NONE, last: NONE, links: Vec::new() }
    }
}

impl Line {
    /// Goes to the end of the line.
    pub fn join(&mut self, number: usize) {
        self.leave(number);
        if self.links.len() <= number {
            self.links.resize(number + 1, None);
        }
        self.links[number] = Some((self.last, NONE));
        let number = number as u32;
        match self.neighbour(self.last) {
            Some((_, behind)) => *behind = number,
            None => self.first = number,
        }
        self.last = number;
    }

    /// Leaves the line, if it stands in it.
    pub fn leave(&mut self, number: usize) {
        let Some((before, behind)) = self.links.get_mut(number).and_then(Option::take) else {
            return;
        };
        match self.neighbour(before) {
            Some((_, theirs)) => *theirs = behind,
            None => self.first = behind,
        }
        match self.neighbour(behind) {
            Some((theirs, _)) => *theirs = before,
            None => self.last = before,
        }
    }

    /// Who came first.
    pub fn first(&self) -> Option<usize> {
        (self.first != NONE).then_some(self.first as usize)
    }

    fn neighbour(&mut self, number: u32) -> Option<&mut (u32, u32)> {
        self.links.get_mut(number as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Catches: a number that is lost, stands twice, or stands in the wrong place, after any
        /// comings and goings.
        #[test]
        fn it_is_a_queue_from_which_anybody_may_leave(
            steps in proptest::collection::vec((any::<bool>(), 0usize..9), 0..60),
        ) {
            let (mut line, mut model) = (Line::default(), VecDeque::new());
            for (joins, number) in steps {
                model.retain(|other| *other != number);
                if joins {
                    line.join(number);
                    model.push_back(number);
                } else {
                    line.leave(number);
                }
                prop_assert_eq!(line.first(), model.front().copied());
            }
            while let Some(first) = line.first() {
                prop_assert_eq!(model.pop_front(), Some(first));
                line.leave(first);
            }
            prop_assert!(model.is_empty());
        }
    }
}
