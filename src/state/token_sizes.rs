//! How many tokens requests have, in the buckets of OpenTelemetry's conventions for generative AI.

use super::meters::TokenSeries;

/// Upper bounds of the buckets: the powers of four.
pub const TOKEN_BOUNDS: [u64; 14] = {
    let mut bounds = [1; 14];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 4;
        at += 1;
    }
    bounds
};

/// Requests by how many tokens they had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenSizes {
    /// Within each bound, and not within the one before it; the last: beyond all.
    pub counts: [u64; TOKEN_BOUNDS.len() + 1],
    /// All their tokens.
    pub sum: u64,
}

impl TokenSizes {
    /// One with so many.
    pub fn record(&mut self, tokens: u64) {
        let place = TOKEN_BOUNDS.partition_point(|bound| *bound < tokens);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(tokens);
    }

    /// Adds others.
    pub fn absorb(&mut self, other: &TokenSizes) {
        self.counts.iter_mut().zip(other.counts).for_each(|(ours, theirs)| *ours += theirs);
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// Whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UseSeries {
    /// Label of the path, from a fixed set.
    pub path: &'static str,
    /// The model, and the backend.
    pub tokens: TokenSeries,
}

/// What requests sent, and what they got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUse {
    /// Tokens of prompts.
    pub input: TokenSizes,
    /// Tokens of completions, of requests that got any: what embeds has none.
    pub output: TokenSizes,
}

impl TokenUse {
    /// A request with so many.
    pub fn record(&mut self, prompt: u64, completion: u64) {
        self.input.record(prompt);
        if completion > 0 {
            self.output.record(completion);
        }
    }

    /// Adds others.
    pub fn absorb(&mut self, other: &TokenUse) {
        self.input.absorb(&other.input);
        self.output.absorb(&other.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a request in the bucket beside its own, bounds that are not those of the
    /// conventions, or a sum over workers that lacks some.
    #[test]
    fn a_request_is_in_the_first_bucket_that_holds_it() {
        assert_eq!((TOKEN_BOUNDS[1], TOKEN_BOUNDS[13]), (4, 67_108_864));
        let mut sizes = TokenSizes::default();
        [0, 1, 2, 4, 5, 67_108_864, 67_108_865].into_iter().for_each(|n| sizes.record(n));
        let mut counts = [0; 15];
        (counts[0], counts[1], counts[2], counts[13], counts[14]) = (2, 2, 1, 1, 1);
        assert_eq!((sizes.counts, sizes.sum), (counts, 12 + 67_108_864 + 67_108_865));
        let mut both = TokenUse::default();
        both.record(7, 0);
        both.record(7, 9);
        let once = both;
        both.absorb(&once);
        let counted = [both.input, both.output].map(|sizes| (sizes.counts.iter().sum(), sizes.sum));
        assert_eq!(counted, [(4, 28), (2, 18)]);
    }
}
