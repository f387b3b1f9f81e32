"""Who is compared: how each is configured and started on the proxy's core."""

import os
import signal

from process import Process, free_address

HERE = os.path.dirname(os.path.abspath(__file__))
PEER_FILES = os.path.join(HERE, "..", "peers")

METERING = """usage:
  spool: {{dir: "{spool}"}}
  reporters:
    - {{name: bench, type: webhook, webhook: {{url: "http://{receiver}/v1/embeddings"{how}}}}}"""


class Contestant:
    """A proxy under test, or what stands for one. `start` gives a running process and the address
    to send to; the process is None where there is none."""

    name = ""

    def start(self, stage):
        raise NotImplementedError

    def __str__(self):
        return self.name


class Direct(Contestant):
    """No proxy: what the load generator and the engine take for themselves."""

    name = "direct"

    def start(self, stage):
        return None, stage.engine()


class Floor(Contestant):
    """The bare relay of bench/floor."""

    name = "floor"

    def start(self, stage):
        command = [stage.binary("floor"), "127.0.0.1:0", stage.engine()]
        process = Process(self.name, command, stage.proxy_cores, stage.work)
        return process, process.announced()


class Nginx(Contestant):
    name = "nginx"

    def __init__(self, buffer="4k"):
        self.buffer = buffer

    def start(self, stage):
        listen = free_address()
        config = stage.config("nginx.conf", LISTEN=listen, UPSTREAM=stage.engine(),
                              BUFFER=self.buffer, FILES=stage.files,
                              CONNECTIONS=stage.files * 17 // 16)
        command = [stage.peers.find("nginx"), "-p", stage.work, "-e", "stderr", "-c", config]
        process = Process(self.name, command, stage.proxy_cores, stage.work,
                          stage.peers.environment())
        process.answers(listen)
        return process, listen


class HAProxy(Contestant):
    name = "HAProxy"

    def __init__(self, buffer=16384):
        self.buffer = buffer

    def start(self, stage):
        listen = free_address()
        # It wants two descriptors for each connection and some for itself.
        connections = (stage.files - 60) // 2
        config = stage.config("haproxy.cfg", LISTEN=listen, UPSTREAM=stage.engine(),
                              BUFFER=self.buffer, CONNECTIONS=connections)
        command = [stage.peers.find("haproxy"), "-db", "-f", config]
        process = Process(self.name, command, stage.proxy_cores, stage.work,
                          stage.peers.environment())
        process.answers(listen)
        return process, listen


class LLMProxy(Contestant):
    """The product."""

    def __init__(self, name="LLMProxy", metering=True, unix=False, backends=1, workers=1,
                 webhook=""):
        self.name = name
        self.metering = metering
        self.webhook = webhook
        self.unix = unix
        self.backends = backends
        self.workers = workers

    def start(self, stage):
        process, listen = self.launch(stage)
        process.answers(listen)
        process.until("finds no healthy engine", lambda: "is healthy" in process.output())
        return process, listen

    def launch(self, stage):
        """Starts it without waiting for anything."""
        listen = free_address()
        # The journal is on, as it is for everyone; each process has its own.
        spool = os.path.join(stage.work, "spool-" + listen.rsplit(":", 1)[1])
        metering = METERING.format(receiver=stage.receiver(), spool=spool, how=self.webhook)
        metering = metering if self.metering else ""
        config = stage.config("llmproxy.yaml", LISTEN=listen, WORKERS=self.workers,
                              BACKENDS="\n".join(self.engines(stage)), METERING=metering)
        cores = stage.proxy_cores if self.workers == 1 else stage.all_cores
        # Not asked to end: it would first deliver the records that it still has.
        process = Process("llmproxy", [stage.binary("llmproxy"), "--config", config], cores,
                          stage.work, end_with=signal.SIGKILL)
        return process, listen

    def engines(self, stage):
        """Lines of `backends`. Many of them are one engine under many loopback addresses."""
        if self.unix:
            yield f'  - {{name: engine, url: "{stage.engine_unix()}"}}'
            return
        port = stage.engine().rsplit(":", 1)[1]
        for i in range(self.backends):
            host = f"127.0.{i // 250}.{i % 250 + 1}"
            yield f'  - {{name: engine-{i}, url: "http://{host}:{port}"}}'
