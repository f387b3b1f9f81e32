"""The rows P1-P16. Rows that need the same traffic share its runs: a *contest* lets its entries
run in turn, A B C A B C ..., and each round gives one ratio, so that whatever slows the machine
slows both sides of it."""

import statistics
import time

import machine
from contestants import SESSION, Direct, Floor, HAProxy, LLMProxy, Nginx
from process import Failure, connect
from verdict import Finding

# A proxy whose core was idle for longer was waiting for the load.
SATURATED = 0.9
# Share of the events that must have arrived by themselves where the cost of an event is measured.
APART = 0.8

SHORT = ["--answer-bytes", "600"]
# As engines write them: each event by itself.
STREAM = ["--stream", "--mock", "split=exact"]
# With role, finish and [DONE], 100 events. The gap keeps them apart: an engine that is never idle
# writes faster than a proxy is woken, and then many events cost one read and one write.
BURST = [*STREAM, "--tokens", "97"]
EVENTS = [*BURST, "--gap-ms", "5", "--connections", "320"]
MIB = 1 << 20
LARGE = ["--path", "/v1/embeddings", "--answer-bytes", str(MIB), "--connections", "16"]
SINGLE = ["--answer-bytes", "600", "--prompt-bytes", "950", "--connections", "1"]
KEYS = ["--keys"]
PROMPT = ["--prompt-bytes", "204800"]
PROMPTS = ["--answer-bytes", "600", *PROMPT, "--connections", "8"]
# How the reporters are called in the table.
WAYS = {"file": "file", "builtin": "builtin", "redis": "Redis", "batches": "webhook batches"}
# Before a burst: what the first requests left is given back by then.
SETTLED_SECONDS = 15


class Contest:
    """Entries (name, contestant, flags of loadgen), run in turn; a fourth item is a number of
    connections that is too large for their opening to go unnoticed."""

    def __init__(self, stage, effort, entries, seconds=None, warm_up=True):
        self.rounds = [{} for _ in range(effort.rounds)]
        for round_ in self.rounds:
            for name, contestant, flags, *connections in entries:
                length = seconds or effort.seconds
                round_[name] = (
                    stage.measure_open(contestant, flags, *connections, length) if connections
                    else stage.measure(contestant, flags, length, warm_up))
        samples = [sample for round_ in self.rounds for sample in round_.values()]
        cores = machine.description()["cores"]
        shares = [sample.foreign / (sample.seconds * cores) for sample in samples]
        self.foreign = statistics.median(shares)

    def ratios(self, figure, one, other):
        return [figure(round_[one]) / figure(round_[other]) for round_ in self.rounds]

    def median(self, figure, name):
        return statistics.median(figure(round_[name]) for round_ in self.rounds)

    def unsaturated(self, *names):
        """Doubts where requests/s was not the proxy's own limit: the load's core was."""
        idle = [name for name in names if self.median(lambda s: s.busy, name) < SATURATED]
        return [f"the load was the limit of {' and '.join(idle)}"] if idle else []

    def merged(self, *names):
        """Doubts where events came together although they were written apart."""
        apart = min(self.median(lambda s: s.load["gap_us"]["count"] / s.load["events"], name)
                    for name in names)
        return [f"only {100 * apart:.0f} % of the events came apart"] if apart < APART else []

    def names(self):
        return list(self.rounds[0])

    def figures(self):
        """Medians for the JSON and the charts."""
        def of(name):
            figures = {"requests_per_second": lambda s: s.rps,
                       "events_per_second": lambda s: s.load["events_per_second"],
                       "cpu_us_per_request": lambda s: s.cpu_per_request,
                       "cpu_us_per_event":
                           lambda s: s.cpu_per_event if s.load["events"] else None,
                       "core_busy": lambda s: s.busy,
                       "p50_us": lambda s: s.load["total_us"]["p50"],
                       "p99_us": lambda s: s.load["total_us"]["p99"]}
            return {key: self.median(figure, name) for key, figure in figures.items()
                    if figure(self.rounds[0][name]) is not None}
        return {name: of(name) for name in self.names()}


def short_answers(stage, effort, report):
    """P1, P2, P9."""
    off = "LLMProxy, metering off"
    kinds = {"file": "LLMProxy", "builtin": "LLMProxy, builtin", "redis": "LLMProxy, redis",
             "batches": "LLMProxy, webhook batches"}
    contest = Contest(stage, effort, [
        *((name, LLMProxy(metering=kind), SHORT) for kind, name in kinds.items()),
        (off, LLMProxy(metering=None), SHORT), ("nginx", Nginx(), SHORT),
        ("HAProxy", HAProxy(), SHORT), ("floor", Floor(), SHORT)])
    report.contest("short_answers", contest)
    rps, cost = (lambda sample: sample.rps), (lambda sample: sample.cpu_per_request)
    per_cpu = lambda sample: 1 / cost(sample)
    for peer in ("nginx", "HAProxy"):
        possible = statistics.median(contest.ratios(per_cpu, "floor", peer))
        for name, state, target in (("LLMProxy", "", 1.15), (off, ", metering off", 1.25)):
            report.ratio("P1", f"600 B answers, requests per CPU second against {peer}{state}",
                         contest, contest.ratios(per_cpu, name, peer), target,
                         remarks=[f"the floor reaches {possible:.2f} x {peer} on this machine"])
    for name, state, target in (("LLMProxy", "", 1.25), (off, ", metering off", 1.2)):
        report.ratio("P2", f"the same, CPU per request against the floor{state}", contest,
                     contest.ratios(cost, name, "floor"), target, at_most=True)
    for kind, name in kinds.items():
        target = 1.2 if kind == "builtin" else 1.1
        report.ratio("P9", f"metering by {WAYS[kind]}, CPU per request against without", contest,
                     contest.ratios(cost, name, off), target, at_most=True)
        report.ratio("P9", f"metering by {WAYS[kind]}, requests/s against without", contest,
                     contest.ratios(rps, name, off), 0.93, contest.unsaturated(name, off))


def admission(stage, effort, report):
    """P9b. What it costs to know each request's key, to take from three limits and a quota, and to
    settle; and whether that depends on how many keys there are. Each request shows another key."""
    keys = effort.keys
    many, name = [*KEYS, str(keys)], f"{keys} keys, quotas, limits"
    for what, flags in (("600 B answers", SHORT), ("streams of 100 events", EVENTS)):
        contest = Contest(stage, effort, [
            (name, LLMProxy(keys=keys), [*flags, *many]),
            ("one key, quotas, limits", LLMProxy(keys=1), [*flags, *KEYS, "1"]),
            ("the same and a script", LLMProxy(keys=keys, script=True), [*flags, *many]),
            ("neither keys nor limits", LLMProxy(), [*flags, *many])])
        report.contest(f"admission_{what.split()[-1]}", contest)
        cost = lambda sample: sample.cpu_per_request
        for one, other, what_of, target in (
                (name, "neither keys nor limits", f"{name}, CPU per request against none", 1.05),
                (name, "one key, quotas, limits", "the same, against a single key", 1.05)):
            report.ratio("P9b", f"{what}: {what_of}", contest, contest.ratios(cost, one, other),
                         target, at_most=True)
        report.ratio("P9b", f"{what}: a script for each request, against none", contest,
                     contest.ratios(cost, "the same and a script", name), 1.5, at_most=True)


def half_load(stage, effort, report):
    """P14. An open loop at half of what saturates one core: what a request waits for that is not
    its own, with metering and without."""
    seconds = max(effort.seconds, 0.2)
    most = stage.measure(LLMProxy(metering=None), SHORT, seconds).rps
    flags = [*SHORT, "--rate", str(int(most / 2)), "--warmup", str(stage.warm_up)]
    off = "LLMProxy, metering off"
    entries = [("direct", Direct()), ("LLMProxy", LLMProxy()), (off, LLMProxy(metering=None)),
               ("nginx", Nginx()), ("HAProxy", HAProxy())]
    contest = Contest(stage, effort, [(*entry, flags) for entry in entries], seconds,
                      warm_up=False)
    report.contest("half_load", contest)

    def added(round_, name, quantile):
        # What adds nothing measurable would make the ratio meaningless.
        figure = {key: round_[key].load["total_us"][quantile] for key in (name, "direct")}
        return max(figure[name] - figure["direct"], 1)

    for quantile in ("p50", "p99", "p999"):
        for other, what in ((off, "metering off"), ("nginx", "nginx"), ("HAProxy", "HAProxy")):
            ratios = [added(r, "LLMProxy", quantile) / added(r, other, quantile)
                      for r in contest.rounds]
            # On is off, within what is told apart; the peers it must not exceed.
            report.add(Finding("P14", f"half of saturation, added {quantile} against {what}",
                               ratios, True, 1.0, "x", contest.foreign, alike=other == off))


def streams(stage, effort, report):
    """P3, P4."""
    contest = Contest(stage, effort, [
        ("LLMProxy", LLMProxy(), EVENTS), ("nginx", Nginx(), EVENTS),
        ("HAProxy", HAProxy(), EVENTS), ("floor", Floor(), EVENTS),
        ("LLMProxy, Unix socket", LLMProxy(unix=True), EVENTS),
        ("LLMProxy, at once", LLMProxy(), BURST), ("nginx, at once", Nginx(), BURST)])
    report.contest("streams", contest)
    cost = lambda sample: sample.cpu_per_event
    for peer, target in (("nginx", 1.0), ("floor", 1.05)):
        report.ratio("P3", f"streams of 100 events, CPU per event against {peer}", contest,
                     contest.ratios(cost, "LLMProxy", peer), target,
                     contest.merged("LLMProxy", peer), at_most=True)
    report.ratio("P3", "the same, all events written at once, against nginx", contest,
                 contest.ratios(cost, "LLMProxy, at once", "nginx, at once"), 1.0, at_most=True)
    report.ratio("P4", "the same from a Unix socket, against nginx over TCP", contest,
                 contest.ratios(cost, "LLMProxy, Unix socket", "nginx"), 0.85,
                 contest.merged("LLMProxy, Unix socket", "nginx"), at_most=True)


def with_tls(stage, effort, report):
    """P13. P1 and P3 with TLS to the clients, which nginx speaks too; and what a new connection
    costs, whose handshake is most of it."""
    contest = Contest(stage, effort, [
        (f"{who}, {what}", contestant, flags)
        for what, flags in (("answers", SHORT), ("streams", EVENTS),
                            ("handshakes", [*SHORT, "--no-keepalive"]))
        for who, contestant in (("LLMProxy", LLMProxy(tls=True)), ("nginx", Nginx(tls=True)))],
        # All handshakes are over long before.
        seconds=max(effort.seconds, 1))
    report.contest("tls", contest)
    for what, figure in (("answers", lambda s: 1 / s.cpu_per_request),
                         ("streams", lambda s: 1 / s.cpu_per_event),
                         ("handshakes", lambda s: 1 / s.cpu_per_request)):
        names = [f"{who}, {what}" for who in ("LLMProxy", "nginx")]
        said = {"answers": "600 B answers by TLS, requests per CPU second",
                "streams": "streams of 100 events by TLS, events per CPU second",
                "handshakes": "600 B answers, a new TLS connection for each, per CPU second"}[what]
        report.ratio("P13", f"{said} against nginx with TLS", contest,
                     contest.ratios(figure, *names), 1.0,
                     contest.merged(*names) if what == "streams" else [])


def first_token(stage, effort, report):
    """P5. An open loop: streams start on a schedule, and each is timed from the moment at which
    it was meant to start, so a proxy that stalls is charged for those it kept waiting."""
    tokens, gap_ms = 10, 200
    rate = effort.live_ttft * 1000 // (tokens * gap_ms)
    flags = [*STREAM, "--tokens", str(tokens), "--gap-ms", str(gap_ms), "--rate", str(rate),
             "--connections", str(effort.live_ttft * 3 // 2), "--ramp", "0",
             "--warmup", str(tokens * gap_ms / 1000)]
    entries = [(str(c), c, flags) for c in (Direct(), LLMProxy(), Nginx(), HAProxy())]
    # Only the times: what began in the warm-up is not counted, but its CPU time would be.
    seconds = max(effort.seconds, 2 if effort.verdicts else 0.3)
    contest = Contest(stage, effort, entries, seconds, warm_up=False)
    report.first_token({name: [round_[name].load["ttft_us"] for round_ in contest.rounds]
                        for name in contest.names()})
    for quantile, target_ms in (("p50", 0.2), ("p99", 1.0)):
        added = [(round_["LLMProxy"].load["ttft_us"][quantile]
                  - round_["direct"].load["ttft_us"][quantile]) / 1000
                 for round_ in contest.rounds]
        report.add(Finding("P5", f"{effort.live_ttft} paced streams, added TTFT {quantile}",
                           added, True, target_ms, "ms", contest.foreign))


def clients(stage):
    """How many clients LLMProxy takes with the open files that there are: each may need a second
    one towards a backend, and a quarter as many are for answers whose clients have left."""
    return (stage.files - 200) * 4 // 9


def memory(stage, effort, report):
    """P6. Resident memory while all streams are live; the engine counts them."""
    most = min(effort.live_max, clients(stage))
    steps = sorted({most // 10, most // 4, most // 2, most}) if effort.verdicts else [most]
    contestants = [LLMProxy(), Nginx(), HAProxy()]
    found = {str(c): {} for c in contestants}
    for live in steps:
        # The last step is the row; the others are for the chart.
        for _ in range(effort.memory_rounds if live == most else 1):
            for contestant in contestants:
                bytes_ = resident(stage, contestant, live)
                found[str(contestant)].setdefault(live, []).append(bytes_ / 1e6)
    report.memory(found)
    ours = found["LLMProxy"][most]
    remarks = []
    if most < effort.live_max:
        remarks.append(f"the limit of open files allows {most} streams")
    # The target is 40 MB for 9 900; with fewer it is lower by as much, though a part is constant.
    target = round(40 * most / 9900, 1)
    report.add(Finding("P6", f"resident memory with {most} live streams", ours, True, target, "MB",
                       remarks=remarks))
    for peer, target in (("nginx", 0.25), ("HAProxy", 1.0)):
        ratios = [a / b for a, b in zip(ours, found[peer][most])]
        report.add(Finding("P6", f"the same against {peer}", ratios, True, target, "x"))
    if effort.after_burst_seconds:
        after_bursts(stage, effort, report)


def after_bursts(stage, effort, report):
    """P6. What a burst leaves behind: resident memory when it is over and forgotten, against that
    of the same process before it, which had served a few of the same requests."""
    streams = [*STREAM, "--tokens", "8", "--gap-ms", "500", "--ramp", "0.5"]
    for what, flags in (("streams", streams),
                        ("streams with 200 KB prompts", [*streams, *PROMPT])):
        ratios = []
        for _ in range(effort.memory_rounds):
            before, after = around_burst(stage, LLMProxy(), flags, effort)
            print(f"      {effort.burst} {what}: {before / 1e6:.1f} MB before, "
                  f"{after / 1e6:.1f} MB {effort.after_burst_seconds} s later", flush=True)
            ratios.append(after / before)
        report.add(Finding("P6", f"memory after {effort.burst} {what}, against before", ratios,
                           True, 1.1, "x"))


def around_burst(stage, contestant, flags, effort):
    """Bytes that a process holds before and after a burst of requests, all at a time."""
    process, address = contestant.start(stage)
    try:
        def send(requests):
            count = str(requests)
            # It ends when all are answered.
            load = stage.load(address, [*flags, "--connections", count, "--requests", count], 60)
            if load["errors"]:
                raise Failure(f"{load['errors']} of {count} failed: {load['errors_by_kind']}")

        send(effort.burst // 50)
        time.sleep(SETTLED_SECONDS)
        before = machine.rss_bytes(process.pid)
        send(effort.burst)
        time.sleep(effort.after_burst_seconds)
        return before, machine.rss_bytes(process.pid)
    except Failure as failure:
        raise Failure(f"{failure}\n{process.output()[-2000:]}") from None
    finally:
        process.__exit__()


def resident(stage, contestant, live):
    """Bytes that a fresh process holds with so many streams running through it."""
    process, address = contestant.start(stage)
    flags = [*STREAM, "--tokens", "1000000", "--gap-ms", "500", "--drain", "0",
             "--connections", str(live)]
    load = stage.background_load(address, flags)
    try:
        load.until(f"does not get {live} streams through {contestant}",
                   lambda: stage.connections_open() >= live)
        time.sleep(1.2)  # every stream has had two events
        samples = []
        for _ in range(5):
            samples.append(machine.rss_bytes(process.pid))
            time.sleep(0.1)
        if stage.connections_open() < live:
            raise Failure(f"{contestant} lost some of {live} streams")
        return statistics.median(samples)
    except Failure as failure:
        raise Failure(f"{failure}\n{process.output()[-2000:]}") from None
    finally:
        load.__exit__()
        process.__exit__()
        # The next one must not count these.
        stage.running["engine"].until("keeps connections", lambda: stage.connections_open() == 0)


def large_answers(stage, effort, report):
    """P7."""
    contest = Contest(stage, effort, [
        ("LLMProxy", LLMProxy(), LARGE), ("nginx", Nginx("64k"), LARGE),
        ("HAProxy", HAProxy(65536), LARGE)])
    report.contest("large_answers", contest)
    for peer in ("nginx", "HAProxy"):
        ratios = contest.ratios(lambda s: s.bytes_per_cpu_second, "LLMProxy", peer)
        report.ratio("P7", f"1 MiB answers, bytes per CPU second against {peer}", contest,
                     ratios, 1.0)


def start(stage, effort, report):
    """P8. From the moment the process is made to the end of the first answer."""
    seconds = []
    for _ in range(max(effort.rounds, 3)):
        begin = time.monotonic()
        process, address = LLMProxy().launch(stage)
        try:
            first_answer(process, address)
            seconds.append(1000 * (time.monotonic() - begin))
        finally:
            process.__exit__()
    report.add(Finding("P8", "start to first answered request", seconds, True, 100, "ms"))


def first_answer(process, address):
    body = b'{"model":"m","messages":[]}'
    request = (b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
               b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)) + body
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with connect(address) as connection:
                connection.sendall(request)
                if connection.makefile("rb").read().startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.0005)
    process.fail("does not answer")


def single(stage, effort, report):
    """P10."""
    entries = [(str(c), c, SINGLE) for c in (Direct(), LLMProxy(), Nginx(), HAProxy())]
    contest = Contest(stage, effort, entries)
    report.contest("single", contest)

    def added(round_, name):
        # A proxy that adds nothing measurable would make the ratio meaningless.
        p50 = {key: round_[key].load["total_us"]["p50"] for key in (name, "direct")}
        return max(p50[name] - p50["direct"], 1)

    ratios = [added(r, "LLMProxy") / added(r, "nginx") for r in contest.rounds]
    report.ratio("P10", "one connection, 1 KB: added p50 against nginx's", contest, ratios, 1.0,
                 at_most=True)


def prompts(stage, effort, report):
    """P11. The row is with an alias: its model is looked up, and replaced in the body."""
    plain = "LLMProxy, any model"
    contest = Contest(stage, effort, [
        ("LLMProxy", LLMProxy(alias=True), PROMPTS), (plain, LLMProxy(), PROMPTS),
        ("nginx", Nginx(), PROMPTS), ("HAProxy", HAProxy(), PROMPTS)])
    report.contest("prompts", contest)
    cost = lambda sample: sample.cpu_per_request
    report.ratio("P11", "the same, CPU per request against that without models and aliases", contest,
                 contest.ratios(cost, "LLMProxy", plain), 1.05, at_most=True)
    for peer, target in (("HAProxy", 1.0), ("nginx", 1.6)):
        report.ratio("P11", f"200 KB prompts, requests/s against {peer}", contest,
                     contest.ratios(lambda s: s.rps, "LLMProxy", peer), target,
                     contest.unsaturated("LLMProxy", peer))
        report.ratio("P11", f"the same, requests per CPU second against {peer}", contest,
                     contest.ratios(lambda s: 1 / s.cpu_per_request, "LLMProxy", peer), target)


def choices(stage, effort, report):
    """P16. What it costs to look at a prompt's prefix, or for a session, with eight backends: each
    strategy is one choice a request, so the difference is the hashing, the look-up and what is
    learnt. (What a choice among 1, 32 and 512 backends takes is in benches/path.rs.)"""
    for size, flags in (("1 KB", [*SHORT, "--prompt-bytes", "950"]), ("200 KB", PROMPTS)):
        contest = Contest(stage, effort, [
            (strategy, LLMProxy(backends=8, strategy=strategy), flags)
            for strategy in ("least_connections", "prefix_affinity")])
        report.contest(f"choice_{size.replace(' ', '').lower()}", contest)
        cost = lambda sample: sample.cpu_per_request
        ratios = contest.ratios(cost, "prefix_affinity", "least_connections")
        report.ratio("P16", f"{size} prompts, choice by prefix, CPU per request against by load",
                     contest, ratios, 1.05, at_most=True)
    # All requests name the same session, which is more than one backend's share: the dearest case.
    flags = [*SHORT, "--prompt-bytes", "950", "--header", f"{SESSION}: 8c5f9e0a-3a52-4a5e-9d0c"]
    load = "least_connections"
    contest = Contest(stage, effort, [
        (name, LLMProxy(backends=8, strategy=load, sessions=name == "session_affinity"), flags)
        for name in (load, "session_affinity")])
    report.contest("choice_session", contest)
    ratios = contest.ratios(lambda sample: sample.cpu_per_request, "session_affinity", load)
    report.ratio("P16", "choice by session, CPU per request against by load", contest, ratios, 1.05,
                 at_most=True)


def idle_connections(stage, effort, report):
    """P12."""
    active = [*SHORT, "--active", "64"]
    contest = Contest(stage, effort, [
        ("64 connections", LLMProxy(), active, 64),
        ("spread", LLMProxy(), active, effort.spread),
        ("nginx, 64 connections", Nginx(), active, 64),
        ("nginx, spread", Nginx(), active, effort.spread)])
    report.contest("idle_connections", contest)
    rps = lambda sample: sample.rps
    nginx = statistics.median(contest.ratios(rps, "nginx, spread", "nginx, 64 connections"))
    report.ratio("P12", f"64 active of {effort.spread} connections, requests/s against P1's",
                 contest, contest.ratios(rps, "spread", "64 connections"), 0.9,
                 contest.unsaturated("spread", "64 connections"),
                 remarks=[f"nginx keeps {nginx:.2f} of its own"])


def metering(stage, effort, report):
    """What metering by single posts costs. Their receiver takes a few hundred a second, so most
    records of such a run stay behind: this says what a post costs, not what metering does."""
    ways = [("a request per record", "webhook"),
            ("the same, one at a time", "webhook, one at a time"),
            ("in batches of 500", "batches"), ("off", None)]
    for name, flags in (("answers", SHORT), ("streams", EVENTS)):
        contest = Contest(stage, effort,
                          [(way, LLMProxy(metering=kind), flags) for way, kind in ways])
        report.contest(f"metering_{name}", contest)


CONTESTS = [
    (short_answers, {"P1", "P2", "P9"}),
    (admission, {"P9b"}),
    (streams, {"P3", "P4"}),
    (first_token, {"P5"}),
    (memory, {"P6"}),
    (large_answers, {"P7"}),
    (start, {"P8"}),
    (single, {"P10"}),
    (prompts, {"P11"}),
    (idle_connections, {"P12"}),
    (with_tls, {"P13"}),
    (half_load, {"P14"}),
    (choices, {"P16"}),
]
# Run when they are asked for: they have no target.
EXTRA = [(metering, {"metering"})]
