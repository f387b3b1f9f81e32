"""Where things are, programs that are started and ended, bare roots of Debian."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(REPO, "deploy")
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(REPO, "target"))
TOOLS = os.environ.get("LLMPROXY_TEST_CLIENTS", os.path.join(TARGET, "test-clients"))
BINS = os.environ.get("LLMPROXY_BINS", os.path.join(TARGET, "debug"))
# For whatever has to happen. Long: the machine may be busy.
SOON = 60


def binary(name):
    path = os.path.join(BINS, name)
    if not os.access(path, os.X_OK):
        raise AssertionError(f"{path} is not built: cargo build --workspace --bins")
    return path


def missing(what):
    """For a test whose tools are not there. scripts/test installs them: there it fails."""
    if "LLMPROXY_TEST_CLIENTS" in os.environ:
        raise AssertionError(f"{what} is not installed")
    raise unittest.SkipTest(f"{what} is not installed (scripts/test does)")


def tool(name):
    """A program that scripts/test installs."""
    unpacked = os.path.join(TOOLS, "promtool/usr/bin", name)
    path = unpacked if os.access(unpacked, os.X_OK) else shutil.which(name)
    return path or missing(name)


def needs_root():
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root: it makes the tree of another system")


def read(*parts):
    with open(os.path.join(DEPLOY, *parts), encoding="utf-8") as file:
        return file.read()


def run(*command, code=0, **more):
    """Runs it to its end. Gives what it said on both streams; any other exit code is a failure."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, timeout=300, check=False, **more)
    if code is not None and done.returncode != code:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def fetch(*command, **more):
    """Runs what needs Debian's mirrors. They may not be reached from everywhere."""
    try:
        return run(*command, **more)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        why = str(error)[-300:]
        raise unittest.SkipTest(f"no tree of Debian can be made here: {why!r}") from None


def await_some(what, look, limit=SOON):
    """Looks until there is something, and gives it."""
    end = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.02)


class Process:
    """A program that runs until the test ends, with its output in a file."""

    def __init__(self, test, command, **more):
        self.log = tempfile.NamedTemporaryFile("w+b", suffix=".log")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT,
                                      stdin=subprocess.DEVNULL, **more)
        test.addCleanup(self.end)

    def text(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as file:
            return file.read()

    def find(self, pattern):
        """The first group of a pattern, once it is in the output."""
        def look():
            found = re.search(pattern, self.text(), re.M)
            if not found and self.child.poll() is not None:
                raise AssertionError(f"it ended ({self.child.returncode}):\n{self.text()}")
            return found
        return await_some(f"{pattern}", look).group(1)

    def stop(self):
        """SIGTERM; gives the exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(SOON)

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.log.close()


def ask(address, path, body=None, headers=None):
    """One request; gives status and text."""
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=SOON)
    try:
        data = None if body is None else json.dumps(body)
        fields = {"content-type": "application/json"} if data else {}
        connection.request("POST" if data else "GET", path, data, {**fields, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def engine(test, *more):
    """A mock engine; gives its address."""
    command = [binary("mock-engine"), "--listen", "127.0.0.1:0", "--dialect", "vllm", *more]
    return Process(test, command).find(r"^listening on ([^ \n]+)")


def listening(proxy):
    """The address that a proxy says it listens on."""
    return proxy.find(r'"listening".*"addr":"([^"]+)"')


def driver(address):
    """What the workers of a proxy run on."""
    status, page = ask(address, "/metrics")
    assert status == 200, page
    return re.search(r'^llmproxy_workers\{driver="([^"]+)"', page, re.M).group(1)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def folder(test):
    path = tempfile.mkdtemp(prefix="llmproxy-deploy-")
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    os.chmod(path, 0o755)
    return path


def bare_root(test, with_systemd=False):
    """A copy of Debian's smallest tree, made once for each machine."""
    needs_root()
    made = made_root()
    return own_root(test, booting_root(made) if with_systemd else made)


def made_root():
    """Debian's smallest tree."""
    made = os.path.join(TOOLS, "bookworm")
    if not os.path.exists(os.path.join(made, "etc/debian_version")):
        tool("debootstrap")
        shutil.rmtree(made + ".new", ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        os.makedirs(TOOLS, exist_ok=True)
        fetch("debootstrap", "--variant=minbase", "bookworm", made + ".new",
              "http://deb.debian.org/debian")
        run("chroot", made + ".new", "sh", "-c", "apt-get clean; rm -rf /var/lib/apt/lists/*")
        os.rename(made + ".new", made)
    return made


def booting_root(bare):
    """That tree with systemd in it, which can be booted as a container."""
    made = bare + "-systemd"
    if not os.path.exists(os.path.join(made, "lib/systemd/systemd")):
        shutil.rmtree(made + ".new", ignore_errors=True)
        run("cp", "-a", bare, made + ".new")
        shutil.copy("/etc/resolv.conf", os.path.join(made + ".new", "etc/resolv.conf"))
        inside(made + ".new", "sh", "-c", "apt-get update -qq && apt-get install -y -qq "
               "--no-install-recommends systemd dbus && apt-get clean; rm -rf /var/lib/apt/lists/*",
               with_run=fetch)
        shutil.rmtree(made, ignore_errors=True)
        os.rename(made + ".new", made)
    return made


def own_root(test, made):
    """A tree that a test may change."""
    at = folder(test)
    root = os.path.join(at, "root")
    for name in ["root", "upper", "work"]:
        os.mkdir(os.path.join(at, name), 0o755)
    options = f"lowerdir={made},upperdir={at}/upper,workdir={at}/work"
    if "failed" in run("mount", "-t", "overlay", "-o", options, "overlay", root, code=None):
        run("cp", "-a", made + "/.", root)
    else:
        test.addCleanup(run, "umount", root, code=None)
    # Without it, nothing that runs inside sees itself (/proc/self), or its processes.
    try:
        run("mount", "-t", "proc", "proc", os.path.join(root, "proc"))
    except AssertionError as error:
        raise unittest.SkipTest(f"nothing can be mounted here: {str(error)[-200:]!r}") from None
    test.addCleanup(run, "umount", "--recursive", os.path.join(root, "proc"), code=None)
    shutil.copy("/etc/resolv.conf", os.path.join(root, "etc/resolv.conf"))
    return root


def inside(root, *command, with_run=run, **more):
    """Runs a command in such a tree, as its root."""
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
           "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    return with_run("chroot", root, *command, env=env, **more)


def tree(root, *below):
    """Path -> (kind and rights, hash) of all files below some folders of a tree."""
    found = {}
    for part in below:
        for at, folders, files in os.walk(os.path.join(root, part)):
            for name in folders + files:
                path = os.path.join(at, name)
                about = os.lstat(path)
                data = b""
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as file:
                        data = file.read()
                sha = hashlib.sha256(data).hexdigest()
                found[os.path.relpath(path, root)] = (oct(about.st_mode), about.st_gid, sha)
    return found
