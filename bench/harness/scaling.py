"""How cost grows with what a deployment has more of. Nothing here has a target; each gives a chart,
and nothing may grow faster than the documentation says."""

import statistics

import rows
from contestants import HAProxy, LLMProxy, Nginx

SHORT = ["--answer-bytes", "600"]
# Enough for the shape of a curve.
ROUNDS_MAX = 3


def connections(stage, effort):
    """Open connections, 64 of them active at a time."""
    most = min(8800, rows.clients(stage))
    steps = effort.steps([10, 100, 1000, most])

    def run(contestant, n):
        flags = [*SHORT, "--active", str(min(n, 64))]
        return stage.measure_open(contestant, flags, n, effort.seconds)

    return {"title": "CPU time per request against open connections (64 active)",
            "x": "open connections", "y": "µs", "series": sweep(effort, peers(), steps, run)}


def body(stage, effort):
    """Bytes of the prompt."""
    steps = effort.steps([1024, 16384, 131072, 1048576])

    def run(contestant, n):
        flags = [*SHORT, "--prompt-bytes", str(n), "--connections", "16"]
        return stage.measure(contestant, flags, effort.seconds)

    return {"title": "CPU time per request against the size of the prompt",
            "x": "bytes of the prompt", "y": "µs",
            "series": sweep(effort, peers(), steps, run)}


def answer(stage, effort):
    """Bytes of an answer that is not streamed."""
    steps = effort.steps([1024, 16384, 131072, 1048576])

    def run(contestant, n):
        flags = ["--path", "/v1/embeddings", "--answer-bytes", str(n), "--connections", "16"]
        return stage.measure(contestant, flags, effort.seconds)

    contestants = [LLMProxy(), Nginx("64k"), HAProxy(65536)]
    return {"title": "CPU time per request against the size of the answer",
            "x": "bytes of the answer", "y": "µs",
            "series": sweep(effort, contestants, steps, run)}


def backends(stage, effort):
    """Backends: one engine under so many loopback addresses, each a backend of its own."""
    steps = effort.steps([1, 8, 64, 512])
    run = lambda _, n: stage.measure(LLMProxy(backends=n), SHORT, effort.seconds)
    return {"title": "CPU time per request against the number of backends",
            "x": "backends", "y": "µs", "series": sweep(effort, [LLMProxy()], steps, run)}


def workers(stage, effort):
    """Workers. The second one shares its core with the load, so CPU per request tells more here
    than requests a second would."""
    steps = effort.steps([1, 2])
    run = lambda _, n: stage.measure(LLMProxy(workers=n), SHORT, effort.seconds)
    return {"title": "CPU time per request against the number of workers",
            "x": "workers", "y": "µs", "series": sweep(effort, [LLMProxy()], steps, run)}


SWEEPS = [connections, body, answer, backends, workers]


def peers():
    return [LLMProxy(), Nginx(), HAProxy()]


def sweep(effort, contestants, steps, run):
    """For each contestant, (step, CPU per request): the median of a few runs."""
    series = {str(c): [] for c in contestants}
    for n in steps:
        for contestant in contestants:
            rounds = range(min(effort.rounds, ROUNDS_MAX))
            costs = [run(contestant, n).cpu_per_request for _ in rounds]
            series[str(contestant)].append((n, statistics.median(costs)))
    return series
