//! Why a backend got a try: a word for whoever reads what became of a request.

use crate::config::plan::LoadBalance;

/// How it came that a backend got a try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PickedBy {
    /// There is no other one for the request's model.
    #[default]
    OnlyOne,
    /// It was its turn, by weight.
    RoundRobin,
    /// It had the fewest requests for its weight.
    LeastConnections,
    /// It was likely to answer sooner.
    LatencyBased,
    /// It was drawn.
    Random,
    /// Nobody has read much of the prompt, and it had least to do.
    PrefixAffinity,
    /// It has read the beginning of the prompt.
    Prefix,
    /// It is at home there with its session.
    Session,
    /// No backend that comes before it could take the request.
    Spilled,
    /// A rule of `routing.fallback` names it.
    Rule,
    /// It had the last try, and gets another one.
    Again,
}

impl PickedBy {
    /// All of them; the place in the list is the number in a story.
    const ALL: [PickedBy; 11] = [
        PickedBy::OnlyOne,
        PickedBy::RoundRobin,
        PickedBy::LeastConnections,
        PickedBy::LatencyBased,
        PickedBy::Random,
        PickedBy::PrefixAffinity,
        PickedBy::Prefix,
        PickedBy::Session,
        PickedBy::Spilled,
        PickedBy::Rule,
        PickedBy::Again,
    ];

    /// Of the strategy alone.
    pub fn strategy(strategy: LoadBalance) -> PickedBy {
        match strategy {
            LoadBalance::RoundRobin => PickedBy::RoundRobin,
            LoadBalance::LeastConnections => PickedBy::LeastConnections,
            LoadBalance::LatencyBased => PickedBy::LatencyBased,
            LoadBalance::Random => PickedBy::Random,
            LoadBalance::PrefixAffinity => PickedBy::PrefixAffinity,
        }
    }

    /// The number in a story.
    pub fn number(self) -> u64 {
        self as u64
    }

    /// Of such a number.
    pub fn of(number: u64) -> PickedBy {
        let all = usize::try_from(number).ok().and_then(|at| PickedBy::ALL.get(at));
        all.copied().unwrap_or_default()
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PickedBy::OnlyOne => "only_one",
            PickedBy::RoundRobin => "round_robin",
            PickedBy::LeastConnections => "least_connections",
            PickedBy::LatencyBased => "latency_based",
            PickedBy::Random => "random",
            PickedBy::PrefixAffinity => "prefix_affinity",
            PickedBy::Prefix => "prefix",
            PickedBy::Session => "session",
            PickedBy::Spilled => "spilled",
            PickedBy::Rule => "rule",
            PickedBy::Again => "again",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a reason that is told as another one.
    #[test]
    fn each_reason_of_a_pick_comes_out_as_itself() {
        for by in PickedBy::ALL {
            assert_eq!(PickedBy::of(by.number()), by);
            let others = PickedBy::ALL.iter().filter(|other| other.as_str() == by.as_str());
            assert_eq!(others.count(), 1, "{by:?}");
        }
        assert_eq!(PickedBy::of(u64::MAX), PickedBy::default());
    }
}
