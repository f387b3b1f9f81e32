"""Starts processes on their cores, waits until they serve, and ends them."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import time

START_SECONDS_MAX = 20


class Failure(Exception):
    """Something did not run as it should; the text says what."""


class Process:
    """A process on some cores, its output in a file."""

    def __init__(self, name, command, cores, work, env=None, end_with=signal.SIGTERM):
        self.name = name
        self.end_with = end_with
        self.log = os.path.join(work, f"{name}-{time.monotonic_ns()}.log")
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                ["taskset", "-c", cores, *command], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env={**os.environ, **(env or {})})
        self.pid = self.child.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.send_signal(self.end_with)
        try:
            self.child.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def output(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def fail(self, what):
        raise Failure(f"{self.name} {what}:\n{self.output()[-3000:]}")

    def until(self, what, condition):
        """Waits for a condition; a process that has ended or takes too long is a failure."""
        end = time.monotonic() + START_SECONDS_MAX
        while not (result := condition()):
            if self.child.poll() is not None:
                self.fail(f"ended with code {self.child.returncode}")
            if time.monotonic() > end:
                self.fail(what)
            time.sleep(0.01)
        return result

    def announced(self):
        """The address in the line `listening on ADDRESS`."""
        pattern = re.compile(r"^listening on (\S+)$", re.MULTILINE)
        return self.until("does not listen", lambda: pattern.search(self.output())).group(1)

    def answers(self, address):
        """Waits until something accepts connections there."""
        self.until(f"does not listen on {address}", lambda: can_connect(address))


def can_connect(address):
    try:
        connect(address.removeprefix("https://")).close()
        return True
    except OSError:
        return False


def connect(address):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def free_address():
    """A loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def get(address, path):
    """The body of a GET, as text."""
    if (place := address.removeprefix("https://")) != address:
        # The certificate was made a moment ago, for this.
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(place, timeout=10, context=trusting)
    else:
        connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        raise Failure(f"GET {path}: {answer.status} {text[:200]}")
    return text
