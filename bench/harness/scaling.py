"""How cost grows with what a deployment has more of. Nothing here has a target; each gives a chart,
and nothing may grow faster than the documentation says."""

from contestants import HAProxy, LLMProxy, Nginx

SHORT = ["--answer-bytes", "600"]


def connections(stage, effort):
    """Open connections, 64 of them active at a time."""
    most = min(9900, (stage.files - 100) // 2)
    steps = effort.steps([10, 100, 1000, most])
    flags = lambda n: [*SHORT, "--connections", str(n), "--active", str(min(n, 64))]
    return {"title": "CPU time per request against open connections (64 active)",
            "x": "open connections", "y": "µs",
            "series": sweep(stage, effort, peers(), steps, flags, cpu_per_request)}


def body(stage, effort):
    """Bytes of the prompt."""
    steps = effort.steps([1024, 16384, 131072, 1048576])
    flags = lambda n: [*SHORT, "--prompt-bytes", str(n), "--connections", "16"]
    return {"title": "CPU time per request against the size of the prompt",
            "x": "bytes of the prompt", "y": "µs",
            "series": sweep(stage, effort, peers(), steps, flags, cpu_per_request)}


def backends(stage, effort):
    """Backends: one engine under so many loopback addresses, each a backend of its own."""
    steps = effort.steps([1, 8, 64, 512])
    points = [(n, cpu_per_request(median_of(stage, effort, LLMProxy(backends=n), SHORT)))
              for n in steps]
    return {"title": "CPU time per request against the number of backends",
            "x": "backends", "y": "µs", "series": {"LLMProxy": points}}


def workers(stage, effort):
    """Workers. The second one shares its core with the load, so CPU per request tells more here
    than requests a second would."""
    points = [(n, cpu_per_request(median_of(stage, effort, LLMProxy(workers=n), SHORT)))
              for n in (1, 2)]
    return {"title": "CPU time per request against the number of workers",
            "x": "workers", "y": "µs", "series": {"LLMProxy": points}}


SWEEPS = [connections, body, backends, workers]


def peers():
    return [LLMProxy(), Nginx(), HAProxy()]


def cpu_per_request(sample):
    return sample.cpu_per_request


def sweep(stage, effort, contestants, steps, flags, figure):
    series = {str(c): [] for c in contestants}
    for n in steps:
        for contestant in contestants:
            sample = median_of(stage, effort, contestant, flags(n))
            series[str(contestant)].append((n, figure(sample)))
    return series


def median_of(stage, effort, contestant, flags):
    """The run with the median cost."""
    samples = [stage.measure(contestant, flags, effort.seconds) for _ in range(effort.rounds)]
    return sorted(samples, key=cpu_per_request)[len(samples) // 2]
