"""The machine: its cores, what a process has used of them, and who else is using them."""

import glob
import os
import platform
import re
import resource

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")


def cores():
    """The core of the proxy under test, and those of load and engine, as `taskset -c` takes them.
    """
    ours = sorted(os.sched_getaffinity(0))
    rest = ours[1:] or ours
    return str(ours[0]), ",".join(map(str, rest))


def raise_file_limit():
    """Gives the limit of open files after raising it as far as it goes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def description():
    """What a reader must know to judge the figures."""
    model = "unknown"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    proxy, load = cores()
    # Only the version proper: what a distributor or a cloud adds to it names a machine.
    kernel = re.match(r"[0-9.]+", platform.release()).group().rstrip(".")
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": kernel,
            "core_of_proxy": proxy, "cores_of_load": load}


def tree(pid):
    """A process and its descendants (nginx works in a child)."""
    found, ahead = [], [pid]
    while ahead:
        pid = ahead.pop()
        found.append(pid)
        for path in glob.glob(f"/proc/{pid}/task/*/children"):
            try:
                with open(path) as file:
                    ahead += map(int, file.read().split())
            except OSError:
                pass  # the thread has just ended
    return found


def cpu_seconds(pid):
    """CPU time of all threads of a process and its descendants, the kernel's part included. The
    first number of schedstat is nanoseconds on a core, exact, unlike the ticks of `stat`."""
    total = 0
    for process in tree(pid):
        for path in glob.glob(f"/proc/{process}/task/*/schedstat"):
            try:
                with open(path) as file:
                    total += int(file.read().split()[0])
            except OSError:
                pass
    return total / 1e9


def rss_bytes(pid):
    """Resident memory of a process and its descendants."""
    total = 0
    for process in tree(pid):
        with open(f"/proc/{process}/statm") as file:
            total += int(file.read().split()[1]) * PAGE
    return total


def busy_seconds():
    """CPU time that all of the machine has used, and what the host took away from it."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICKS
