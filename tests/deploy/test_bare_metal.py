"""The unit of systemd, scripts/install and the Debian package, in a bare tree of Debian."""

import gzip
import os
import re
import shutil
import subprocess
import unittest

import common
import sandbox
from common import await_some, ask, inside, read, run

UNIT = sandbox.Unit(read("systemd", "llmproxy.service"))
INSTALL = os.path.join(common.REPO, "scripts/install")
DEB = os.path.join(common.REPO, "scripts/deb")


def install(root, *more):
    return run(INSTALL, "--root", root, "--binary", common.binary("llmproxy"), *more)


def start_as_the_unit_says(test, root, unit):
    """Its user, folders, limits and system calls, and its command line."""
    user = unit.one("User")
    for setting, above in [("RuntimeDirectory", "/run"), ("StateDirectory", "/var/lib"),
                           ("LogsDirectory", "/var/log")]:
        mode = int(unit.one(setting + "Mode"), 8)
        sandbox.own(f"{above}/{unit.one(setting)}", root, user, mode)
    rules = sandbox.allow_only(unit.calls())
    enter = sandbox.confined(root, user, unit.one("WorkingDirectory"),
                             int(unit.one("LimitNOFILE")), rules)
    command = unit.one("ExecStart").split()
    return common.Process(test, command, preexec_fn=enter, env={"PATH": "/usr/bin"}), enter


def configure(root, engine, more=""):
    """Another port and engine in the configuration that was installed."""
    path = os.path.join(root, "etc/llmproxy/config.yaml")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    changed = text.replace('":8000"', '"127.0.0.1:0"').replace("http://127.0.0.1:8080", engine)
    assert changed.count(engine) == 1 and "127.0.0.1:0" in changed, text
    with open(path, "w", encoding="utf-8") as file:
        file.write(changed + more)


class Systemd(unittest.TestCase):
    def test_verify(self):
        """Catches: a setting that systemd does not know, or that is misspelt."""
        common.needs_root()
        common.tool("systemd-analyze")
        folder = common.folder(self)
        names = ["llmproxy.service", "llmproxy.socket", "off-gpu-cores.conf", "low-ports.conf"]
        for name in names:
            is_unit = not name.endswith(".conf")
            place = name if is_unit else f"llmproxy.service.d/{name}"
            path = os.path.join(folder, place)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            text = read("systemd", name).replace("/usr/bin/llmproxy", common.binary("llmproxy"))
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        for name in ["llmproxy.service", "llmproxy.socket"]:
            said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                       os.path.join(folder, name))
            self.assertEqual(said.strip(), "")
        # That it would say so.
        with open(os.path.join(folder, "llmproxy.service"), "a", encoding="utf-8") as file:
            file.write("[Service]\nLimitNOFIEL=1\n")
        said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                   os.path.join(folder, "llmproxy.service"), code=None)
        self.assertIn("LimitNOFIEL", said)

    def test_exposure(self):
        """Catches: a protection that was taken away. 0 is locked up, 10 is root without any."""
        common.tool("systemd-analyze")
        path = os.path.join(common.DEPLOY, "systemd/llmproxy.service")
        said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", path, code=None)
        if "Overall exposure level" not in said:
            self.skipTest(f"this systemd cannot look at a file: {said[-200:]}")
        level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said).group(1)
        # 0.1 of it is NotifyAccess=all: an upgrade's successor is another process of the unit.
        self.assertLessEqual(float(level), 1.7, said)

    def test_times_fit_the_drain(self):
        """Catches: a stop that systemd ends with SIGKILL before the drain is over."""
        self.assertGreaterEqual(int(UNIT.one("TimeoutStopSec")), 25 + 5)
        self.assertEqual(UNIT.one("RuntimeDirectoryPreserve"), "yes")
        self.assertEqual(UNIT.one("RuntimeDirectoryMode"), "0700")

    def test_it_runs_as_the_unit_says(self):
        """Catches: a rule of the unit that the proxy, its reload or its stop cannot live with."""
        root = common.bare_root(self)
        install(root)
        engine = common.engine(self)
        own = "{name: own, type: builtin, builtin: {path: ./data/usage.db}}"
        configure(root, f"http://{engine}", f"usage: {{reporters: [{own}]}}\n")
        with open(os.path.join(root, "etc/systemd/system/llmproxy.service"),
                  encoding="utf-8") as file:
            unit = sandbox.Unit(file.read())
        proxy, enter = start_as_the_unit_says(self, root, unit)
        address = common.listening(proxy)
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        status, text = ask(address, "/v1/chat/completions", chat)
        self.assertEqual(status, 200)
        self.assertIn("[DONE]", text)
        self.assertTrue(os.path.isdir(os.path.join(root, "var/lib/llmproxy/data/spool")))
        # In memory that the unit keeps for the next start, not on the disk.
        rings = os.listdir(os.path.join(root, "run/llmproxy"))
        self.assertIn("llmproxy.pid", rings)
        self.assertGreater(len(rings), 1, proxy.text())
        if self.machine_has_io_uring():
            self.assertIn("io_uring", common.driver(address), proxy.text())
        # ExecReload, under the same rules.
        command = unit.one("ExecReload").replace("$MAINPID", str(proxy.child.pid)).split()
        said = run(*command, preexec_fn=enter)
        self.assertIn("was told to read it", said)

        def reloaded():
            page = ask(address, "/metrics")[1]
            return re.search(r"^llmproxy_config_reload_success_total 1", page, re.M)
        await_some("the reload", reloaded)
        configure_broken = os.path.join(root, "etc/llmproxy/config.yaml")
        with open(configure_broken, "a", encoding="utf-8") as file:
            file.write("nonsense: [\n")
        said = run(*command, code=2, preexec_fn=enter)
        self.assertEqual(proxy.stop(), 0, proxy.text())
        # The records are there for the next start.
        self.assertTrue(os.path.isdir(os.path.join(root, "run/llmproxy")))

    def machine_has_io_uring(self):
        done = subprocess.run(["python3", "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(None)"
                               ".syscall(425, 1, ctypes.create_string_buffer(120)) < 0)"],
                              check=False)
        return done.returncode == 0


class Install(unittest.TestCase):
    def test_install_again_and_uninstall(self):
        """Catches: an upgrade that overwrites what an administrator wrote, leftovers."""
        root = common.bare_root(self)
        below = ["usr/local", "etc"]
        before = common.tree(root, *below)
        said = install(root)
        self.assertIn("valid", said)
        made = common.tree(root, *below)
        for path in ["usr/local/bin/llmproxy", "etc/systemd/system/llmproxy.service"]:
            self.assertIn(path, made)
        owner = os.stat(os.path.join(root, "etc/llmproxy/config.yaml"))
        self.assertEqual(owner.st_mode & 0o777, 0o640)
        self.assertNotEqual(owner.st_gid, 0)
        self.assertIn("/usr/local/bin/llmproxy", self.unit_of(root))
        install(root)
        self.assertEqual(common.tree(root, *below), made)
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), "a", encoding="utf-8") as file:
            file.write("# mine\n")
        install(root)
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), encoding="utf-8") as file:
            self.assertIn("# mine", file.read())
        run(INSTALL, "--root", root, "--uninstall")
        left = common.tree(root, *below)
        self.assertIn("etc/llmproxy/config.yaml", left)
        self.assertNotIn("usr/local/bin/llmproxy", left)
        run(INSTALL, "--root", root, "--uninstall", "--purge")
        users = {"etc/passwd", "etc/shadow", "etc/group", "etc/gshadow", "etc/subuid", "etc/subgid"}
        changed = {path for path in common.tree(root, *below).items() ^ before.items()}
        changed = {path for path, _ in changed if path.rstrip("-") not in users}
        self.assertEqual(changed, {"usr/local/share/doc"} & changed)
        self.assertNotIn("llmproxy", inside(root, "getent", "passwd"))

    def test_a_broken_configuration_is_told(self):
        """Catches: a service that is started with a file that it cannot read."""
        root = common.bare_root(self)
        install(root)
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), "a", encoding="utf-8") as file:
            file.write("nonsense: [\n")
        said = run(INSTALL, "--root", root, "--binary", common.binary("llmproxy"), code=1)
        self.assertIn("was not started", said)

    def unit_of(self, root):
        with open(os.path.join(root, "etc/systemd/system/llmproxy.service"),
                  encoding="utf-8") as file:
            return file.read()


class DebianPackage(unittest.TestCase):
    def build(self):
        common.needs_root()
        if shutil.which("dpkg-deb") is None:
            self.skipTest("dpkg-deb is not installed: this is no Debian")
        out = common.folder(self)
        return run(DEB, "--fast", "--binary", common.binary("llmproxy"), "--out", out).strip()

    def test_install_run_remove_purge(self):
        """Catches: a package that cannot be installed bare, started, upgraded or taken away."""
        package = self.build()
        root = common.bare_root(self)
        name = os.path.basename(package)
        shutil.copy(package, os.path.join(root, name))
        before = common.tree(root, "usr", "etc", "lib/systemd")
        inside(root, "dpkg", "-i", f"/{name}")
        status = inside(root, "dpkg-query", "-W", "-f", "${db:Status-Abbrev}", "llmproxy")
        self.assertEqual(status.strip(), "ii")
        self.assertIn("llmproxy:", inside(root, "getent", "passwd"))
        self.assertEqual(inside(root, "dpkg", "--verify", "llmproxy").strip(), "")
        self.look_at_the_manual(root)
        self.assertTrue(os.path.lexists(os.path.join(
            root, "etc/systemd/system/multi-user.target.wants/llmproxy.service")))
        engine = common.engine(self)
        configure(root, f"http://{engine}")
        proxy, _ = start_as_the_unit_says(self, root, UNIT)
        status, _ = ask(common.listening(proxy), "/health")
        self.assertEqual(status, 200)
        self.assertEqual(proxy.stop(), 0, proxy.text())
        # An upgrade keeps what the administrator wrote, and asks nothing.
        inside(root, "dpkg", "--force-confold", "-i", f"/{name}")
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), encoding="utf-8") as file:
            self.assertIn(engine, file.read())
        inside(root, "dpkg", "-r", "llmproxy")
        self.assertTrue(os.path.exists(os.path.join(root, "etc/llmproxy/config.yaml")))
        self.assertFalse(os.path.exists(os.path.join(root, "usr/bin/llmproxy")))
        inside(root, "dpkg", "-P", "llmproxy")
        users = {"etc/passwd", "etc/shadow", "etc/group", "etc/gshadow", "etc/subuid", "etc/subgid"}
        after = common.tree(root, "usr", "etc", "lib/systemd")
        left = {path for path, _ in after.items() ^ before.items()}
        left = {path for path in left if path.rstrip("-") not in users}
        self.assertEqual(left, set())
        for gone in ["var/lib/llmproxy", "run/llmproxy", "etc/llmproxy"]:
            self.assertFalse(os.path.exists(os.path.join(root, gone)), gone)

    def look_at_the_manual(self, root):
        share = os.path.join(root, "usr/share")
        with gzip.open(os.path.join(share, "man/man1/llmproxy.1.gz"), "rt") as file:
            self.assertIn('"LLMPROXY SPOOL REPLAY"', file.read())
        for name in ["bash-completion/completions/llmproxy", "zsh/vendor-completions/_llmproxy",
                     "fish/vendor_completions.d/llmproxy.fish"]:
            with open(os.path.join(share, name), encoding="utf-8") as file:
                self.assertIn("replay", file.read(), name)
        # The shell itself offers what can follow.
        offered = inside(root, "bash", "-c",
                         ". /usr/share/bash-completion/completions/llmproxy; "
                         "COMP_WORDS=(llmproxy spool rep) COMP_CWORD=2; "
                         "_llmproxy llmproxy rep spool; echo ${COMPREPLY[@]}")
        self.assertEqual(offered.strip(), "replay")
