"""The Dockerfile, the seccomp profile, the Compose files."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import common
import sandbox
from common import ask, inside, read, run

PROFILE = read("docker", "seccomp.json")
IO_URING = {"io_uring_enter", "io_uring_register", "io_uring_setup"}


def dockerfile():
    with open(os.path.join(common.REPO, "Dockerfile"), encoding="utf-8") as file:
        return file.read()


def stage():
    """The last stage of the Dockerfile: (instruction, rest) of each line."""
    text = re.sub(r"^#.*\n", "", dockerfile(), flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    steps = [line.split(None, 1) for line in lines if line.strip()]
    last = max(n for n, (word, _) in enumerate(steps) if word == "FROM")
    return [(word, rest.strip()) for word, rest in steps[last:]]


class Image:
    """A tree in which the steps of the last stage were done."""

    def __init__(self, test):
        self.user, self.work, self.entry, self.cmd, self.health = 0, "/", [], [], []
        steps = stage()
        assert steps[0] == ("FROM", "debian:bookworm-slim"), steps[0]
        self.root = common.bare_root(test)
        for word, rest in steps[1:]:
            # An instruction that this test does not know has no method: it fails.
            getattr(self, f"do_{word.lower()}")(rest)

    def do_run(self, rest):
        inside(self.root, "sh", "-c", rest)

    def do_copy(self, rest):
        *flags, source, target = rest.split()
        if flags == ["--from=build"]:
            assert source == "/build/target/release/llmproxy", source
            source = common.binary("llmproxy")
        else:
            source = os.path.join(common.REPO, source)
        target = os.path.join(self.root, target.lstrip("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(source, target)

    def do_user(self, rest):
        self.user = int(rest)

    def do_workdir(self, rest):
        self.work = rest

    def do_healthcheck(self, rest):
        self.health = json.loads(rest[rest.index("CMD") + 3:])

    def do_entrypoint(self, rest):
        self.entry = json.loads(rest)

    def do_cmd(self, rest):
        self.cmd = json.loads(rest)

    def do_volume(self, rest):
        assert rest == self.work, "what is written goes to the volume"

    def do_expose(self, rest):
        assert rest == "8000"

    def do_stopsignal(self, rest):
        assert rest == "SIGTERM"


class Engine:
    """buildah, with a store of its own that ends with the test. It has no registry, so the bases
    are images of these names that are made here; and no namespaces, which few machines of tests
    may make: what it runs is in another root, as another user."""

    def __init__(self, test):
        buildah = common.tool("buildah")
        folder = tempfile.TemporaryDirectory(prefix="llmproxy-image-")
        test.addCleanup(folder.cleanup)
        self.folder = folder.name
        places = [f"--{name}={os.path.join(self.folder, name)}" for name in ("root", "runroot")]
        self.command = [buildah, *places, "--storage-driver=vfs"]
        os.environ["BUILDAH_ISOLATION"] = "chroot"

    def __call__(self, *args):
        return run(*self.command, *args)

    def image(self, name, base, files):
        """An image of this name: another one, and these files."""
        container = self("from", "--pull-never", base).strip().splitlines()[-1]
        for here, there in files:
            self("copy", container, here, there)
        self("commit", "--rm", container, f"docker.io/library/{name}")


class Dockerfile(unittest.TestCase):
    def test_its_steps_give_an_image_that_runs(self):
        """Catches: a file that is not there, a user without rights, a health check that lies."""
        common.needs_root()
        image = Image(self)
        engine = common.engine(self)
        config = os.path.join(image.root, "etc/llmproxy/config.yaml")
        os.makedirs(os.path.dirname(config))
        port = common.free_port()
        own = "{name: own, type: builtin, builtin: {path: ./data/usage.db}}"
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"server: {{listen: '127.0.0.1:{port}'}}\nusage: {{reporters: [{own}]}}\n"
                       f"backends: [{{url: 'http://{engine}'}}]\n")
        enter = sandbox.confined(image.root, image.user, image.work, 0, None)
        proxy = common.Process(self, image.entry + image.cmd, preexec_fn=enter, env={})
        address = common.listening(proxy)
        self.assertIn("ok", run(*image.health, preexec_fn=enter, env={}))
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        self.assertEqual(ask(address, "/v1/chat/completions", body)[0], 200)
        self.assertEqual(proxy.stop(), 0, proxy.text())
        run(*image.health, code=1, preexec_fn=enter, env={})

    def test_an_engine_for_images_builds_it(self):
        """Catches: what the steps by themselves do not show: a stage that is not found, a file that
        the context leaves out, a word that engines do not know, an entry that does not start."""
        common.needs_root()
        engine = Engine(self)
        engine.image("debian:bookworm-slim", "scratch", [(common.made_root(), "/")])
        # The compiler's stage has our build in place of an hour's work.
        cargo = os.path.join(engine.folder, "cargo")
        with open(cargo, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nset -e\ntest -f Cargo.lock && test -f src/main.rs\n"
                       "mkdir -p target/release\ncp /llmproxy target/release/\n")
        os.chmod(cargo, 0o755)
        channel = re.search(r"^FROM (rust:\S+)", dockerfile(), re.M).group(1)
        built = os.path.join(engine.folder, "llmproxy")
        run("strip", "-o", built, common.binary("llmproxy"))
        engine.image(channel, "debian:bookworm-slim",
                     [(cargo, "/usr/local/bin/cargo"), (built, "/llmproxy")])
        common.fetch(*engine.command, "bud", "--format", "docker", "--pull-never", "-t", "llmproxy",
                     common.REPO)
        made = json.loads(engine("inspect", "--type", "image", "llmproxy"))["Docker"]["config"]
        self.assertEqual((made["User"], made["StopSignal"]), ("10001", "SIGTERM"))
        self.assertEqual(made["Healthcheck"]["Test"][:2], ["CMD", "/usr/local/bin/llmproxy"])
        container = engine("from", "--pull-never", "llmproxy").strip().splitlines()[-1]
        said = engine("run", container, "--", *made["Entrypoint"], "--version")
        self.assertRegex(said, r"llmproxy \d+\.\d+")
        config = "/etc/llmproxy/config.yaml"
        here = os.path.join(engine.folder, "config.yaml")
        with open(here, "w", encoding="utf-8") as file:
            file.write("backends: [{url: 'http://engine:8000'}]\n")
        os.chmod(here, 0o644)
        engine("copy", container, here, config)
        said = engine("run", container, "--", *made["Entrypoint"], "check", config)
        self.assertIn("engine:8000", said)

    def test_the_context_has_what_the_build_reads(self):
        """Catches: a folder that .dockerignore leaves out and the workspace names."""
        with open(os.path.join(common.REPO, ".dockerignore"), encoding="utf-8") as file:
            kept = {line[1:].strip() for line in file if line.startswith("!")}
        with open(os.path.join(common.REPO, "Cargo.toml"), encoding="utf-8") as file:
            members = re.search(r"^members = (\[.*\])", file.read(), re.M).group(1)
        copied = [rest.split()[0] for word, rest in stage()
                  if word == "COPY" and not rest.startswith("--from")]
        needed = {"Cargo.toml", "Cargo.lock", "src", *json.loads(members), *copied}
        self.assertLessEqual(needed, kept)

    def test_its_compiler_is_ours(self):
        """Catches: an image that is built by another compiler than the tests'."""
        with open(os.path.join(common.REPO, "rust-toolchain.toml"), encoding="utf-8") as file:
            channel = re.search(r'channel = "([\d.]+)"', file.read()).group(1)
        image = re.search(r"^FROM rust:([\d.]+)-", dockerfile(), re.M).group(1)
        self.assertTrue(channel == image or channel.startswith(image + "."), (channel, image))


class Seccomp(unittest.TestCase):
    def start_under(self, calls, errors):
        engine = common.engine(self)
        folder = common.folder(self)
        config = os.path.join(folder, "config.yaml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"server: {{listen: '127.0.0.1:0', workers: 1, cpu_affinity: 'off'}}\n"
                       f"backends: [{{url: 'http://{engine}'}}]\n")
        rules = sandbox.allow_only(calls, errors)
        enter = sandbox.confined("/", os.getuid(), folder, 0, rules)
        common.needs_root()
        command = [common.binary("llmproxy"), "--config", config]
        proxy = common.Process(self, command, preexec_fn=enter)
        address = common.listening(proxy)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        self.assertEqual(ask(address, "/v1/chat/completions", body)[0], 200)
        found = common.driver(address)
        self.assertEqual(proxy.stop(), 0, proxy.text())
        return found

    def test_the_profile_lets_io_uring_run(self):
        """Catches: a profile under which the proxy falls back to epoll, or does not start."""
        calls, errors = sandbox.docker_calls(PROFILE)
        self.assertLessEqual(IO_URING, calls)
        # Docker's own profile, which this one is but for the three.
        self.assertEqual(self.start_under(calls - IO_URING, errors), "epoll")
        self.assertIn("io_uring", self.start_under(calls, errors))

    def test_the_profile_adds_nothing_else(self):
        """Catches: a profile that lets through what Docker's keeps away."""
        rules = json.loads(PROFILE)
        ours = [rule for rule in rules["syscalls"] if IO_URING & set(rule["names"])]
        self.assertEqual([set(rule["names"]) for rule in ours], [IO_URING])
        calls, _ = sandbox.docker_calls(PROFILE)
        for kept in ["bpf", "mount", "keyctl", "add_key", "userfaultfd", "setns",
                     "init_module", "kexec_load", "reboot"]:
            self.assertNotIn(kept, calls)
        self.assertEqual(rules["defaultAction"], "SCMP_ACT_ERRNO")


def has_compose():
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return done.returncode == 0


class Compose(unittest.TestCase):
    def parsed(self, name):
        try:
            import compose_spec
            import yaml
        except ImportError as error:
            common.missing(error.name)
        text = read("compose", name)
        # The parser of compose_spec refuses what the specification does not know.
        compose_spec.PyCompose.from_yaml(text)
        return yaml.safe_load(text)

    def test_the_files_are_valid(self):
        """Catches: a key that Compose does not know."""
        file = self.parsed("compose.yaml")
        self.assertEqual(set(file["services"]), {"llmproxy", "engine", "prometheus", "grafana"})
        more = self.parsed("vllm.yaml")
        self.assertLessEqual(set(more["services"]), set(file["services"]))
        with self.assertRaises(Exception):
            import compose_spec
            compose_spec.PyCompose.from_yaml("services: {a: {image: b, portz: ['1:1']}}")

    def test_compose_takes_the_files(self):
        """Catches: what Compose itself refuses: a variable, a merge of both files."""
        if not has_compose():
            self.skipTest("docker compose is not installed; another parser reads its files")
        first, second = (os.path.join(common.DEPLOY, "compose", name)
                         for name in ["compose.yaml", "vllm.yaml"])
        run("docker", "compose", "-f", first, "config", "--quiet")
        run("docker", "compose", "-f", first, "-f", second, "config", "--quiet")

    def test_what_it_mounts_is_there(self):
        """Catches: a file that Docker makes a folder of, because it is not there."""
        file = self.parsed("compose.yaml")
        here = os.path.join(common.DEPLOY, "compose")
        for name, service in file["services"].items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue(os.path.exists(os.path.join(here, source)), f"{name}: {source}")
                else:
                    self.assertIn(source, file["volumes"], name)
        profile = next(o for o in file["services"]["llmproxy"]["security_opt"] if "seccomp" in o)
        self.assertTrue(os.path.exists(os.path.join(here, profile.split(":", 1)[1])))

    def test_the_names_that_they_call_each_other_by(self):
        """Catches: an address that nobody in the file has."""
        file = self.parsed("compose.yaml")
        import yaml
        config = yaml.safe_load(read("compose", "config.yaml"))
        engine = file["services"]["engine"]["command"]
        port = engine[engine.index("--port") + 1]
        self.assertEqual(config["backends"][0]["url"], f"http://engine:{port}")
        scraped = yaml.safe_load(read("compose", "prometheus.yml"))["scrape_configs"][0]
        self.assertEqual(scraped["static_configs"][0]["targets"], ["llmproxy:8000"])
        source = yaml.safe_load(read("compose", "grafana/datasources/prometheus.yaml"))
        self.assertEqual(source["datasources"][0]["url"], "http://prometheus:9090")
        run(common.binary("llmproxy"), "check", "--strict",
            os.path.join(common.DEPLOY, "compose/config.yaml"))

    def test_prometheus_takes_its_file(self):
        """Catches: a Prometheus that does not start."""
        promtool = common.tool("promtool")
        folder = common.folder(self)
        shutil.copy(os.path.join(common.DEPLOY, "compose/prometheus.yml"), folder)
        shutil.copy(os.path.join(common.DEPLOY, "prometheus/llmproxy.rules.yml"), folder)
        run(promtool, "check", "config", os.path.join(folder, "prometheus.yml"))
