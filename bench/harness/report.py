"""What was found, as a table, as JSON, and as the charts of docs/img."""

import datetime
import json
import os
import statistics

import chart
from process import Failure
from verdict import Finding

# What a row cannot show yet.
NOTES = {
    "P1": ["metering (to a file) and metrics are on; what keys and limits cost is P9b"],
}
QUANTILES = ["p50", "p90", "p99", "p999"]


def number(row):
    """What rows are sorted by: P9b comes behind P9, and those without a number first."""
    digits = row[1:].rstrip("b")
    return (int(digits) if digits.isdigit() else 0, row)


class Report:
    """Gathers findings while the rows run."""

    def __init__(self, wanted, effort, machine):
        self.wanted = wanted
        self.effort = effort
        self.machine = machine
        self.findings = []
        self.contests = {}
        self.streams_memory = {}
        self.ttft = {}
        self.scaling = {}

    def add(self, finding):
        """Takes a line of the table, and prints it at once."""
        if finding.row not in self.wanted:
            return
        if all(before.row != finding.row for before in self.findings):
            finding.remarks += NOTES.get(finding.row, [])
        self.findings.append(finding)
        print(line(finding, self.effort.verdicts), flush=True)
        for remark in dict.fromkeys(finding.remarks):
            print(f"      {remark}", flush=True)

    def ratio(self, row, what, contest, ratios, target, doubts=(), at_most=False, remarks=()):
        """A line whose figure is a ratio of two entries of a contest."""
        self.add(Finding(row, what, ratios, at_most, target, "x", contest.foreign, list(doubts),
                         list(remarks)))

    def contest(self, name, contest):
        """Keeps the medians of a contest, and prints them."""
        self.contests[name] = contest.figures()
        for entry, figures in self.contests[name].items():
            parts = [f"{figures['requests_per_second']:9.0f} requests/s"]
            if figures["core_busy"]:
                parts.append(f"core {100 * figures['core_busy']:3.0f} % busy")
                parts.append(f"{figures['cpu_us_per_request']:8.2f} us/request")
                if "cpu_us_per_event" in figures:
                    parts.append(f"{figures['cpu_us_per_event']:6.2f} us/event")
            print(f"      {entry:24} {'  '.join(parts)}", flush=True)

    def memory(self, found):
        """Bytes of each contestant for each number of live streams, in MB."""
        for name, steps in found.items():
            self.streams_memory[name] = {n: statistics.median(mb) for n, mb in steps.items()}
            told = "  ".join(f"{n}: {mb:.1f} MB" for n, mb in self.streams_memory[name].items())
            print(f"      {name:24} {told}", flush=True)

    def first_token(self, found):
        """TTFT of each contestant, one histogram a round: the median of each quantile."""
        for name, rounds in found.items():
            self.ttft[name] = {q: statistics.median(r[q] for r in rounds) for q in QUANTILES}
            told = "  ".join(f"{q} {us / 1000:.2f} ms" for q, us in self.ttft[name].items())
            print(f"      {name:24} TTFT {told}", flush=True)

    def print_table(self):
        print("\n" + HEADING)
        for finding in self.findings:
            print(line(finding, self.effort.verdicts))

    def write_json(self, folder, partial):
        """Writes `<date>.json`, or a name with the rows when only some ran."""
        os.makedirs(folder, exist_ok=True)
        date = datetime.date.today().isoformat()
        name = "-".join([date, *sorted(self.wanted)]) if partial else date
        path = os.path.join(folder, f"{name}.json")
        with open(path, "w") as file:
            json.dump({"date": date, "effort": self.effort.name, "machine": self.machine,
                       "findings": [finding.to_json() for finding in self.findings],
                       "medians": self.contests, "memory_mb": self.streams_memory,
                       "ttft_us": self.ttft, "scaling": self.scaling}, file, indent=1)
            file.write("\n")
        return path

    def write_tables(self, readme, performance):
        """Puts all rows between the markers of one Markdown file, and five of them, in sentences,
        between those of the other: what they say was measured."""
        replace_between_markers(performance, self.markdown())
        replace_between_markers(readme, self.short_markdown())

    def markdown(self):
        rows = [[f"{f.row}", f.what, f"{f.target_text()}", f"{f.median:.3g}",
                 f"{f.interval[0]:.3g} – {f.interval[1]:.3g}", f"{f.verdict()}"]
                for f in sorted(self.findings, key=lambda f: number(f.row))]
        return (self.taken() + table(["row", "what", "target", "median", "spread", "verdict"], rows))

    def short_markdown(self):
        """Five rows for whoever wants to know what the proxy costs, each one a sentence."""
        rows = []
        for row, sentence, *texts in SHORT:
            found = [f for text in texts for f in self.findings if (f.row, f.what) == (row, text)]
            if len(found) != len(texts):
                raise Failure(f"{row}: the short table wants {texts}")
            said = sentence.format(*(f"**{f.median:.3g}**" for f in found))
            rows.append([row, said, "; ".join(f"{f.target_text()}: {f.verdict()}" for f in found)])
        return self.taken() + table(["row", "what it costs", "target"], rows)

    def taken(self):
        """When, where and by what the rows were taken."""
        about = self.machine
        return (f"Taken {datetime.date.today().isoformat()} by `bench/compare"
                f"{self.effort.flag()}`: {about['cpu']}, {about['cores']} cores, Linux "
                f"{about['kernel']}, {about['driver']}, nginx {about['nginx']}, HAProxy "
                f"{about['haproxy']}; {self.effort.rounds} rounds.\n\n")

    def draw(self, folder):
        """Draws the charts of what ran."""
        os.makedirs(folder, exist_ok=True)
        where = lambda name: os.path.join(folder, f"{name}.svg")
        order = ["nginx", "HAProxy", "LLMProxy", "LLMProxy, Unix socket", "floor"]

        def bars(contest, figure, file, title, unit):
            medians = self.contests.get(contest, {})
            values = {name: medians[name][figure] for name in order if name in medians}
            if values:
                chart.bars(where(file), title, unit, values)

        bars("short_answers", "requests_per_second", "requests-per-second",
             "Requests per second on one core (600 B answers, 64 connections)", "requests/s")
        bars("short_answers", "cpu_us_per_request", "cpu-per-request",
             "CPU time per request (600 B answers, 64 connections)", "µs")
        bars("streams", "cpu_us_per_event", "cpu-per-event",
             "CPU time per event (320 streams of 100 events, 5 ms apart)", "µs")
        if self.streams_memory:
            series = {name: sorted(steps.items()) for name, steps in self.streams_memory.items()}
            chart.lines(where("memory-streams"), "Resident memory against live streams",
                        "live streams", "MB", series)
        if self.ttft:
            added = {name: [(q, (us[q] - self.ttft["direct"][q]) / 1000) for q in QUANTILES]
                     for name, us in self.ttft.items() if name != "direct"}
            title = "Time to the first token, added to a direct connection"
            chart.lines(where("added-ttft"), title, "quantile", "ms", added)
        for name, result in self.scaling.items():
            chart.lines(where(f"scaling-{name}"), result["title"], result["x"], result["y"],
                        result["series"], log_x=True)


def replace_between_markers(path, tables):
    """Replaces what stands between the markers of a Markdown file."""
    with open(path) as file:
        text = file.read()
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise Failure(f"{path} has no place for the tables")
    with open(path, "w") as file:
        file.write(before + BEGIN + "\n" + tables + END + after)


# The README's table: of a row, a sentence, and the findings whose medians stand in it.
SHORT = [
    ("P1", "A core that does nothing else answers {} times as many short requests per second of "
     "CPU time as with nginx, {} times as many as with HAProxy.",
     "600 B answers, requests per CPU second against nginx",
     "600 B answers, requests per CPU second against HAProxy"),
    ("P3", "A streamed event takes {} times the CPU time that it takes with nginx.",
     "streams of 100 events, CPU per event against nginx"),
    ("P5", "With 1 000 live streams, the first token comes {} ms later than without a proxy, and "
     "for one stream in a hundred {} ms.",
     "1000 paced streams, added TTFT p50", "1000 paced streams, added TTFT p99"),
    ("P6", "8 800 live streams take {} MB of memory, which is {} times what nginx takes.",
     "resident memory with 8800 live streams", "the same against nginx"),
    ("P9", "A request that is metered, its record delivered, takes {} times the CPU time of one "
     "that is not (records to a file), {} times with records to Redis.",
     "metering by file, CPU per request against without",
     "metering by Redis, CPU per request against without"),
]

BEGIN, END = "<!-- bench/compare: begin -->", "<!-- bench/compare: end -->"


def table(heading, rows):
    """A table in Markdown."""
    lines_ = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines_)


HEADING = (f"{'row':4} {'what':66} {'median':>8} {'spread':>17} {'target':>9}  verdict")


def line(finding, verdicts):
    low, high = finding.interval
    target = finding.target_text()
    spread = f"{low:.3f} .. {high:.3f}"
    unit = "" if finding.unit == "x" else f" {finding.unit}"
    verdict = finding.verdict() if verdicts else "(smoke: none)"
    return (f"{finding.row:4} {finding.what + unit.replace(' ', ', '):66} "
            f"{finding.median:8.3f} {spread:>17} {target:>9}  {verdict}")
