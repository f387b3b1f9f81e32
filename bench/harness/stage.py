"""What all measurements share: the engine, the receiver of records, folders, and one loaded run."""

import json
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass

import machine
from contestants import PEER_FILES
from process import Failure, Process, connect, free_address, get

# How long the receiver of usage records takes for each: it must not use up the core of the load.
RECEIVER_MS = 5


# Between the opening of many connections and the measurement.
SETTLE_SECONDS = 0.5


@dataclass
class Sample:
    """One loaded run of one contestant."""

    contestant: str
    load: dict
    """What loadgen printed."""
    cpu: float
    """Seconds of CPU of the proxy."""
    seconds: float
    """Wall time of the whole run."""
    foreign: float
    """Seconds of CPU that others used on this machine meanwhile."""

    @property
    def rps(self):
        return self.load["rps"]

    @property
    def cpu_per_request(self):
        return 1e6 * self.cpu / self.load["requests"]

    @property
    def cpu_per_event(self):
        return 1e6 * self.cpu / self.load["events"]

    @property
    def bytes_per_cpu_second(self):
        return self.load["bytes"] / self.cpu

    @property
    def busy(self):
        """Share of one core, while requests were begun."""
        return self.cpu / self.load["seconds"]


class Stage:
    """Use as a context: at its end the engine and the files are gone."""

    def __init__(self, binaries, peers, warm_up):
        self.binaries = binaries
        self.warm_up = warm_up  # seconds before each run
        self.peers = peers
        self.proxy_cores, self.load_cores = machine.cores()
        self.all_cores = f"{self.proxy_cores},{self.load_cores}"
        self.files = machine.raise_file_limit()
        self.running = {}
        self.keys_in_redis = 0

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.work = self.folder.name
        os.chmod(self.work, 0o755)  # nginx's worker is another user
        return self

    def __exit__(self, *_):
        for process in self.running.values():
            process.__exit__()
        self.folder.cleanup()

    def binary(self, name):
        return os.path.join(self.binaries, name)

    def config(self, name, **values):
        """Fills in a file of bench/peers; gives the path of the result."""
        with open(os.path.join(PEER_FILES, name)) as file:
            text = file.read()
        for key, value in {"WORK": self.work, **values}.items():
            text = text.replace(f"@{key}@", str(value))
        path = os.path.join(self.work, f"{time.monotonic_ns()}-{name}")
        with open(path, "w") as file:
            file.write(text)
        return path

    def engine(self):
        """Address of the engine, on all loopback addresses."""
        return "127.0.0.1:" + self.mock("engine", "0.0.0.0:0").rsplit(":", 1)[1]

    def engine_unix(self):
        return self.mock("engine-unix", f"unix:{self.work}/engine.sock")

    def receiver(self):
        """Address of the receiver of usage records."""
        return self.mock("receiver", "127.0.0.1:0", "--ttft-ms", str(RECEIVER_MS))

    def certificate(self):
        """Files of a certificate and its key, on the curve that most servers have."""
        cert, key = (os.path.join(self.work, name) for name in ("cert.pem", "key.pem"))
        if not os.path.exists(key):
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                       "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                       "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key,
                       "-out", cert]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise Failure(f"openssl makes no certificate: {done.stderr[-500:]}")
        return cert, key

    def redis(self):
        """Address of a Redis server that keeps nothing."""
        if "redis" not in self.running:
            address = free_address()
            host, port = address.rsplit(":", 1)
            command = [self.peers.find("redis-server"), "--bind", host, "--port", port,
                       "--save", "", "--appendonly", "no", "--dir", self.work]
            process = Process("redis", command, self.load_cores, self.work,
                              self.peers.environment())
            process.answers(address)
            self.running["redis"] = process
            self.redis_address = address
        return self.redis_address

    def redis_with_keys(self, count):
        """Address of that server, with so many keys in it as loadgen shows them; ten of a user."""
        address = self.redis()
        if count > self.keys_in_redis:
            with connect(address) as connection:
                answers = connection.makefile("rb")
                for i in range(self.keys_in_redis, count):
                    connection.sendall(
                        b"HSET llmproxy:key:sk-bench-%08d user_id user-%d status active "
                        b"total_quota 900000000000 quota_reset_period monthly\r\n" % (i, i // 10))
                    if not answers.readline().startswith(b":"):
                        raise Failure("Redis does not take the keys")
            self.keys_in_redis = count
        return address

    def mock(self, name, listen, *flags):
        """Starts a mock engine the first time it is asked for."""
        if name not in self.running:
            command = [self.binary("mock-engine"), "--listen", listen, "--log", "0",
                       "--split", "merged", "--idle-close-ms", "0", *flags]
            self.running[name] = Process(name, command, self.load_cores, self.work)
        return self.running[name].announced()

    def load(self, address, flags, seconds, meanwhile=lambda: None):
        """Runs the load generator to its end; gives what it counted."""
        command = ["taskset", "-c", self.load_cores, self.binary("loadgen"), "--json", "-",
                   "--target", target(address), "--duration", str(seconds), *flags]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as running:
            try:
                meanwhile()
                out, error = running.communicate(timeout=120 + 10 * seconds)
            except subprocess.TimeoutExpired:
                raise Failure(f"{' '.join(command[3:])}\ndoes not end") from None
            finally:
                running.kill()  # nothing, when it has ended
        if running.returncode != 0:
            raise Failure(f"{' '.join(command[3:])}\nended with code {running.returncode}: "
                          f"{error[-500:]}{errors_in(out)}")
        return json.loads(out)

    def background_load(self, address, flags):
        """A load generator that runs until it is ended."""
        command = [self.binary("loadgen"), "--quiet", "--target", target(address),
                   "--duration", "3600", *flags]
        return Process("loadgen", command, self.load_cores, self.work)

    def connections_open(self):
        """Connections that the engine has, without the one that asks."""
        return json.loads(get(self.engine(), "/mock/stats"))["connections_open"] - 1

    def measure(self, contestant, flags, seconds, warm_up=True):
        """Starts a contestant anew (so that no round owes its figure to one lucky layout of
        memory), warms it up, loads it, and ends it."""
        process, address = contestant.start(self)
        try:
            if warm_up and self.warm_up:
                self.load(address, flags, self.warm_up)
            delivered = contestant.delivered(address)
            before = usage(process)
            load = self.load(address, flags, seconds)
            # What its records cost belongs to it.
            contestant.deliver(address, delivered + load["requests"])
            return sample(contestant, load, before, usage(process))
        except Failure as failure:
            raise told_by(contestant, process, failure) from None
        finally:
            if process:
                process.__exit__()

    def measure_open(self, contestant, flags, connections, seconds):
        """The same for many connections: only what happens after all of them were opened and
        before the first is closed."""
        opening = 0.5 + connections / 5000
        flags = [*flags, "--connections", str(connections), "--ramp", str(opening),
                 "--warmup", str(SETTLE_SECONDS)]
        process, address = contestant.start(self)
        seen = []

        def look():
            for wait in (opening + SETTLE_SECONDS, seconds):
                time.sleep(wait)
                seen.append(usage(process))

        try:
            load = self.load(address, flags, seconds, look)
            return sample(contestant, load, *seen)
        except Failure as failure:
            raise told_by(contestant, process, failure) from None
        finally:
            process.__exit__()


def target(address):
    return address if "://" in address else f"http://{address}"


def usage(process):
    """Now: time, CPU seconds of everybody, of this program and its children (those that have
    ended too), and of one of them."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = machine.cpu_seconds(os.getpid()) + children.ru_utime + children.ru_stime
    cpu = machine.cpu_seconds(process.pid) if process else 0
    return time.monotonic(), machine.busy_seconds(), ours, cpu


def sample(contestant, load, before, after):
    seconds, everybody, ours, cpu = (b - a for a, b in zip(before, after))
    return Sample(str(contestant), load, cpu, seconds, max(everybody - ours, 0))


def told_by(contestant, process, failure):
    """The failure, with what the proxy said."""
    said = process.output()[-2000:] if process else ""
    return Failure(f"{contestant}: {failure}\n{said}")


def errors_in(text):
    try:
        return json.dumps(json.loads(text)["errors_by_kind"])
    except (ValueError, KeyError):
        return text[-500:]
