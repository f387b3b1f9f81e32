"""From repeated figures to a verdict, or to the statement that there is none."""

from dataclasses import dataclass, field
from math import comb
from statistics import median

# Half of the difference that is too small to matter. A spread within it does not hinder a verdict.
SMALL = 0.02
# Widest spread, as a share of the target, within which "no difference" says something.
ALIKE_SPREAD_MAX = 0.5
# CPU time of others in that of a run, above which nothing is concluded.
FOREIGN_MAX = 0.05
ROUNDS_MIN = 3


@dataclass
class Finding:
    """One line of the table: a figure taken once a round, and what it should be."""

    row: str
    what: str
    values: list
    at_most: bool
    target: float
    unit: str = ""
    """`x` for a ratio, else what the figure is in."""
    foreign: float = 0.0
    """Share of the machine's time in these runs that others took."""
    doubts: list = field(default_factory=list)
    """Why the figure does not say what it should."""
    remarks: list = field(default_factory=list)
    alike: bool = False
    """It passes unless it is worse than the target beyond the spread, if that is narrow enough."""

    @property
    def median(self):
        return median(self.values)

    @property
    def interval(self):
        return interval_of_median(self.values)

    def verdict(self):
        """The word for the table.

        >>> def at_most_one(*values, **more):
        ...     return Finding("P0", "x", list(values), True, 1.0, **more).verdict()
        >>> at_most_one(0.90, 0.95, 0.99), at_most_one(1.1, 1.2, 1.3), at_most_one(0.9, 0.9)
        ('pass', 'miss', 'too few rounds')
        >>> at_most_one(0.90, 0.95, 1.10)
        'too noisy: the target lies within the spread'
        >>> at_most_one(0.985, 0.99, 1.01), at_most_one(0.99, 1.005, 1.01)
        ('pass', 'miss')
        >>> at_most_one(0.8, 0.8, 0.8, foreign=0.5)
        'too noisy: others took 50 % of the machine'
        >>> at_most_one(0.8, 0.8, 0.8, doubts=["a", "b"])
        'none: a; b'
        >>> at_most_one(0.9, 1.1, 1.2, alike=True), at_most_one(1.1, 1.2, 1.3, alike=True)
        ('pass', 'miss')
        >>> at_most_one(0.5, 1.1, 1.2, alike=True)
        'too noisy: a difference would not be seen'
        """
        if len(self.values) < ROUNDS_MIN:
            return "too few rounds"
        if self.foreign > FOREIGN_MAX:
            return f"too noisy: others took {100 * self.foreign:.0f} % of the machine"
        if self.doubts:
            return f"none: {'; '.join(self.doubts)}"
        low, high = self.interval
        passes = [self.good(value) for value in (low, self.median, high)]
        if self.alike:
            if not passes[0] and not passes[2]:
                return "miss"
            hidden = high - low > ALIKE_SPREAD_MAX * self.target
            return "too noisy: a difference would not be seen" if hidden else "pass"
        near = max(abs(value - self.target) for value in (low, high)) <= SMALL * self.target
        if all(passes) or not any(passes) or near:
            return "pass" if passes[1] else "miss"
        return "too noisy: the target lies within the spread"

    def target_text(self):
        """
        >>> Finding("P0", "x", [1], True, 1.0, "ms").target_text()
        '<= 1 ms'
        """
        unit = "" if self.unit == "x" else f" {self.unit}"
        return f"{'<=' if self.at_most else '>='} {self.target:g}{unit}"

    def good(self, value):
        return value <= self.target if self.at_most else value >= self.target

    def to_json(self):
        low, high = self.interval
        return {"row": self.row, "what": self.what, "values": self.values,
                "median": self.median, "low": low, "high": high,
                "target": self.target_text(),
                "unit": self.unit, "foreign": self.foreign, "doubts": self.doubts,
                "remarks": self.remarks, "verdict": self.verdict()}


def interval_of_median(values):
    """The narrowest pair of values, counted from both ends, with the true median between them in
    9 of 10 cases; the extremes when there are too few for that. It holds for any distribution,
    because each value is as likely above the median as below it.

    >>> interval_of_median([3, 1, 2])
    (1, 3)
    >>> interval_of_median([5, 4, 3, 2, 1])
    (1, 5)
    >>> interval_of_median(range(1, 10))
    (2, 8)
    """
    ordered, n = sorted(values), len(values)
    cut = 0
    while cut + 1 < n / 2 and 1 - 2 * sum(comb(n, i) for i in range(cut + 2)) / 2 ** n >= 0.9:
        cut += 1
    return ordered[cut], ordered[n - 1 - cut]
