"""Every command in the documents is run, or it is said where it is run or why it is not.

A page is a session: its blocks of YAML are the configuration, one added to the other, its commands
run in their order, in a folder of their own, before a mock engine. Ports of the text become free
ones, and what a text cannot know (a number of a process, the id of a key) becomes what it is here.
"""

import hashlib
import json
import os
import re
import shutil
import unittest

import common
import pages
import test_configurations
from common import run

# Commands that other tests run, or that nothing can run here: what they begin with, and why.
ELSEWHERE = [
    (r"apt-get install |cargo build |install -m 755 ", "scripts/test builds all of it that way"),
    (r"cargo test |MONOIO_FORCE_LEGACY_DRIVER=1 cargo test ", "parts of scripts/test"),
    (r"scripts/(demo|test|check|fuzz|faults)\b", "scripts/test runs them, or they take hours"),
    (r"llmproxy upgrade ", "tests/e2e/upgrade.rs: the new process is nobody's child"),
    (r"llmproxy top ", "tests/e2e/top_command.rs: it wants a terminal"),
    (r"llmproxy (man|completions) ", "the unit tests of src/config/cli/manual.rs"),
    (r"sudo (scripts/install|dpkg |systemctl |install |llmproxy upgrade )|sudoedit "
     r"|llmproxy check /etc/",
     "tests/deploy: a bare Debian with systemd"),
    (r"docker |helm ", "tests/deploy: the steps of the image, the rendered chart"),
    (r"curl --unix-socket ", "tests/e2e/listeners.rs"),
    (r"curl .*\"model\": \"demo\"", "wants the engine of deploy/compose"),
]
# Their commands are run in a session.
SESSIONS = ["README.md", "docs/README.zh-CN.md", "docs/admin.md", "docs/billing.md",
            "docs/quick-start.md", "docs/scripts.md"]


def shell_commands(block):
    """The commands of a block, if it is one of shell."""
    if block.language in ("bash", "sh"):
        return pages.commands(block)
    if block.language:
        return []
    prompts = [line[2:] for line in block.text.split("\n") if line.startswith("$ ")]
    return prompts if prompts or block.fenced else pages.commands(block)


def elsewhere(command):
    return next((why for begin, why in ELSEWHERE if re.match(begin, command, re.S)), None)


class Session:
    """A page that is being followed."""

    def __init__(self, test):
        self.test, self.at = test, common.folder(test)
        self.engines = [common.engine(test)]
        self.ports = {}
        self.config, self.is_stale, self.gateway = {}, False, None
        self.words = {}
        bins = os.path.join(self.at, "bin")
        os.mkdir(bins)
        os.symlink(common.binary("llmproxy"), os.path.join(bins, "llmproxy"))
        # What is refused fails.
        with open(os.path.join(bins, "curl"), "w", encoding="utf-8") as shim:
            shim.write(f"#!/bin/sh\nexec {shutil.which('curl')} --fail-with-body \"$@\"\n")
        os.chmod(os.path.join(bins, "curl"), 0o755)
        os.symlink(os.path.join(common.REPO, "docs"), os.path.join(self.at, "docs"))
        self.env = {"PATH": f"{bins}:{os.environ['PATH']}", "HOME": self.at}
        self.env |= {key: value for key, value in test_configurations.variables("").items()
                     if key.startswith("LLMPROXY_") or key == "MONOIO_FORCE_LEGACY_DRIVER"}

    def port(self, number):
        return self.ports.setdefault(number, str(common.free_port()))

    def here(self, text):
        """The text, of this machine."""
        text = text.replace("--backend http://127.0.0.1:8001", 
                            f"--backend http://{self.engines[0]}")
        text = re.sub(r"127\.0\.0\.1:(8000|8001|9000)\b",
                      lambda found: "127.0.0.1:" + self.port(found.group(1)), text)
        for word, value in self.words.items():
            text = text.replace(word, value)
        return text

    def add(self, block):
        """A block of YAML is a part of config.yaml from now on."""
        import yaml
        names = re.findall(r"\$\{(\w+)\}", block.text)
        for name in names:
            self.env.setdefault(name, test_configurations.variables(f"${{{name}}}")[name])
        merge(self.config, yaml.safe_load(self.here(block.text)))
        server = self.config.setdefault("server", {})
        server["listen"] = "127.0.0.1:" + self.port("8000")
        server["pid_file"] = os.path.join(self.at, "llmproxy.pid")
        backends = self.config.setdefault("backends", [{}])
        while len(self.engines) < len(backends):
            self.engines.append(common.engine(self.test))
        for backend, engine in zip(backends, self.engines):
            backend["url"] = f"http://{engine}"
        if path := self.config.get("admin", {}).get("db_path"):
            self.config["admin"]["db_path"] = path.replace("/var/lib/llmproxy", self.at)
        for name in ["config.yaml", "OLD.yaml"]:
            with open(os.path.join(self.at, name), "w", encoding="utf-8") as file:
                yaml.safe_dump(self.config, file)
        self.is_stale = self.gateway is not None

    def start(self, command):
        """A gateway, which runs until another one is started."""
        if self.gateway:
            self.gateway.stop()
        self.gateway = common.Process(self.test, ["bash", "-c", "exec " + self.here(command)],
                                      cwd=self.at, env=self.env)
        common.listening(self.gateway)
        self.words["PID"] = str(self.gateway.child.pid)
        self.is_stale = False

    def do(self, command):
        plain = re.sub(r"\s+#.*$", "", command) if "'" not in command else command
        if re.match(r"llmproxy --(config|listen)", plain):
            return self.start(plain)
        asks = re.match(r"curl |llmproxy (keys|backends|explain|usage|reload)", plain)
        if self.is_stale or asks and self.config and not self.gateway:
            self.start("llmproxy --config config.yaml")
        if re.match(r"python3 docs/examples/receiver.py --listen", plain):
            receiver = common.Process(self.test, ["bash", "-c", "exec " + self.here(plain)],
                                      cwd=self.at, env=self.env)
            return receiver.find(r"^listening on (\S+)")
        if plain.startswith("llmproxy usage"):
            return self.usage(plain)
        told = self.run(plain)
        key = re.search(r"sk-llmproxy-\w{32}", told)
        # A key that is rotated keeps its id.
        if key and "rotate" not in plain:
            self.words["5f1c0a9be2d47781"] = hashlib.sha256(key[0].encode()).hexdigest()[:16]
        return told

    def usage(self, command):
        """Of a request, whose record is there a moment after it."""
        body = {"model": "llama-3-70b", "messages": [{"role": "user", "content": "a"}]}
        key = self.env.get("KEY") or self.env.get("TEAM_A_KEY")
        fields = {"authorization": f"Bearer {key}"} if key else {}
        gateway = "127.0.0.1:" + self.port("8000")
        status, said = common.ask(gateway, "/v1/chat/completions", body, fields)
        self.test.assertEqual(status, 200, said)
        told = ["bash", "-c", self.here(command)]

        def look():
            said = run(*told, cwd=self.at, env=self.env, code=None)
            return said if "llmproxy usage: " not in said and said.count("\n") > 1 else None
        return common.await_some(command, look)

    def run(self, command):
        """In a shell that leaves its variables to the next one."""
        kept = os.path.join(self.at, "variables")
        text = f"set -ea\n{self.here(command)}\nexport -p > {kept}\n"
        told = run("bash", "-c", text, cwd=self.at, env=self.env)
        with open(kept, encoding="utf-8") as file:
            for name, value in re.findall(r'^declare -x (\w+)="([^"]*)"$', file.read(), re.M):
                self.env[name] = value
        return told


def merge(whole, part):
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            merge(whole[key], value)
        else:
            whole[key] = value


class Commands(unittest.TestCase):
    def test_each_command_is_run_somewhere(self):
        """Catches: a command that was written down and never tried."""
        reasons = {}
        for name, text in pages.all_pages().items():
            for block in pages.blocks(name, text):
                for command in shell_commands(block):
                    why = block.note if block.note.startswith("tried by hand") else None
                    why = why or elsewhere(command)
                    is_drawn = block.note.startswith("not a command")
                    with self.subTest(f"{block}: {command}"):
                        self.assertTrue(why or is_drawn or name in SESSIONS, "nobody runs it")
                    if why:
                        reasons[why] = reasons.get(why, 0) + 1
        for why, count in sorted(reasons.items()):
            print(f"skipped: {count} commands of the documents: {why}")

    def session(self, name, *before):
        """Follows a page from its beginning to its end."""
        session = Session(self)
        for prepare in before:
            prepare(session)
        done = 0
        for block in pages.blocks(name, pages.all_pages()[name]):
            if block.language == "yaml" and test_configurations.is_ours(block) and not block.note:
                session.add(block)
            if block.note.startswith(("tried by hand", "not a command")):
                continue
            for command in shell_commands(block):
                if not elsewhere(command):
                    session.do(command)
                    done += 1
            if block.language == "python":
                done += self.python(session, block)
        return session, done

    def python(self, session, block):
        python = os.path.join(common.TOOLS, "python/bin/python")
        if not os.access(python, os.X_OK):
            common.missing("the openai package")
        told = run(python, "-c", session.here(block.text), env=session.env)
        self.assertTrue(told.strip(), "it printed no token")
        return 1

    def test_the_readme(self):
        """Catches: a command of the README that does not do what it says."""
        self.assertGreater(self.session("README.md")[1], 10)

    def test_the_chinese_readme(self):
        """Catches: the same in the other language."""
        self.assertGreater(self.session("docs/README.zh-CN.md")[1], 5)

    def test_the_quick_start(self):
        """Catches: a step that does not work after the steps before it."""
        session, done = self.session("docs/quick-start.md")
        self.assertGreater(done, 9)
        # Whose key it was has asked once, and that is a record.
        told = common.await_some("her record", lambda: re.search(
            "ann.*", session.run("llmproxy usage --by user")))[0]
        self.assertIn("ann", told)

    def test_the_admin_page(self):
        """Catches: a call of the admin API, or of its command, that is not as it is written."""
        def token(session):
            session.words["TOKEN=..."] = "TOKEN=" + "0123456789abcdef" * 2
        self.assertGreater(self.session("docs/admin.md", token)[1], 14)

    def test_scripts(self):
        """Catches: a script or an answer that is not as it is shown."""
        def files(session):
            page = pages.all_pages()["docs/scripts.md"]
            script = re.search(r"script: \|\n(( {8}.*\n)+)", page).group(1)
            with open(os.path.join(session.at, "auth.lua"), "w", encoding="utf-8") as file:
                file.write(script)
            with open(os.path.join(session.at, "key.json"), "w", encoding="utf-8") as file:
                json.dump({"balance": 0}, file)
        session = Session(self)
        files(session)
        page = pages.all_pages()["docs/scripts.md"]
        command, answer = re.search(r"^\$ (.*)\n(\{.*\})$", page, re.M).groups()
        told = run("bash", "-c", command + " || test $? = 1", cwd=session.at, env=session.env)
        self.assertIn(answer, told)

    def test_the_receiver_counts_each_record_once(self):
        """Catches: a receiver that loses, doubles or believes what nobody signed."""
        session, _ = self.session("docs/billing.md")
        gateway = "127.0.0.1:" + session.port("8000")
        body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
        asked = 5
        for _ in range(asked):
            self.assertEqual(common.ask(gateway, "/v1/chat/completions", body)[0], 200)
        bill = ["python3", "docs/examples/receiver.py", "--db", "bills.db", "--bill"]
        found = common.await_some("all of them are on the bill", lambda: re.search(
            rf"^-\s+m\s+{asked} .*$", run(*bill, cwd=session.at), re.M))
        # Once more, with less in it; then with another's signature.
        receiver = "127.0.0.1:" + session.port("9000")
        once = {"request_id": "twice", "model": "m", "total_tokens": 7, "prompt_tokens": 7}
        for record in [once, {**once, "total_tokens": None, "prompt_tokens": None}]:
            data = json.dumps(record).encode()
            self.assertEqual(self.post(receiver, data, session.env["BILLING_SECRET"]), 200)
        self.assertEqual(self.post(receiver, json.dumps(once).encode(), "guessed"), 401)
        told = run(*bill, cwd=session.at)
        prompt = int(found[0].split()[3])
        self.assertRegex(told, rf"(?m)^-\s+m\s+{asked + 1}\s+{prompt + 7} ")

    def post(self, address, data, secret):
        import hmac
        import http.client
        host, port = address.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=common.SOON)
        signed = "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()
        connection.request("POST", "/usage", data, {"X-LLMProxy-Signature": signed})
        status = connection.getresponse().status
        connection.close()
        return status
