"""Who is compared: how each is configured and started on the proxy's core."""

import os
import re
import signal
import time

from process import Failure, Process, free_address, get

HERE = os.path.dirname(os.path.abspath(__file__))
PEER_FILES = os.path.join(HERE, "..", "peers")

# The ways to meter: the reporter's keys. `webhook` has its defaults, a POST for each record; its
# receiver takes some hundred a second, so it is only for the row that says what a POST costs.
REPORTERS = {
    "file": 'type: file, file: {{path: "{own}.jsonl", max_size: "10GB"}}',
    "builtin": 'type: builtin, builtin: {{path: "{own}.db"}}',
    "redis": 'type: redis, redis: {{addr: "{redis}", counters: "count"}}',
    "batches": 'type: webhook, webhook: {{url: "{receiver}", batch: ndjson, batch_size: 500, '
               'concurrency: 1}}',
    "webhook": 'type: webhook, webhook: {{url: "{receiver}"}}',
    "webhook, one at a time": 'type: webhook, webhook: {{url: "{receiver}", concurrency: 1}}',
}
METERING = """usage:
  spool: {{dir: "{own}.spool"}}
  reporters:
    - {{name: bench, {reporter}}}"""
# What admits and limits: the keys that loadgen shows are in Redis and remembered, each has a quota,
# and every request is held to three limits, which are so wide that none is refused.
ADMISSION = """auth:
  pipeline:
    - type: redis
      redis: {{addr: "{redis}"}}
      cache: {{ttl: 1h, max_entries: 200000}}{script}
counters: {{dir: "{own}.counters", entries: 262144}}
rate_limit:
  global: {{requests_per_second: 5000000}}
  per_key: {{requests_per_minute: 5000000, tokens_per_minute: 900000000}}
  per_user: {{requests_per_second: 5000000, max_concurrent: 60000}}"""
# A script of the length that scripts have: it reads what it is given and answers with a table.
SCRIPT = """
if key.status ~= "active" then return {allow = false, http_code = 403} end
if request.ip == "10.0.0.1" then return {allow = false, message = "not from there"} end
return {allow = true, metadata = {tier = "gold"}}
"""
# The model that loadgen asks for, and one that an engine may serve under another name.
MODEL, SERVED = "m", "meta-llama/Llama-3.3-70B-Instruct"
# The field that names a request's session.
SESSION = "x-session-id"
# All records of a run are delivered within so many seconds of its end, or it measured nothing.
DELIVERY_SECONDS_MAX = 30


class Contestant:
    """A proxy under test, or what stands for one. `start` gives a running process and the address
    to send to; the process is None where there is none."""

    name = ""

    def start(self, stage):
        raise NotImplementedError

    def delivered(self, address):
        """Usage records that were delivered by now."""
        return 0

    def deliver(self, address, records):
        """Waits until so many usage records were delivered in all, and none waits."""

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

    def __init__(self, buffer="4k", tls=False):
        self.buffer = buffer
        self.tls = tls

    def start(self, stage):
        listen = free_address()
        secure = ""
        if self.tls:
            cert, key = stage.certificate()
            secure = f"ssl_certificate {cert}; ssl_certificate_key {key};"
        config = stage.config("nginx.conf", LISTEN=listen, SSL="ssl" if self.tls else "", TLS=secure, UPSTREAM=stage.engine(),
                              BUFFER=self.buffer, FILES=stage.files,
                              CONNECTIONS=stage.files * 17 // 16)
        command = [stage.peers.find("nginx"), "-p", stage.work, "-e", "stderr", "-c", config]
        process = Process(self.name, command, stage.proxy_cores, stage.work,
                          stage.peers.environment())
        process.answers(listen)
        return process, f"https://{listen}" if self.tls else listen


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
    """The product. With `alias`, the model that loadgen asks for is another name of what the
    engines serve, so that each request is found by its model and has a part of its body replaced.
    `strategy` is how one of several backends is chosen; with `sessions`, by the request's session
    before that. With `keys`, so many keys are known, and limits and quotas hold; with `script`, each
    request passes a script besides. With `tls`, its clients speak that."""

    def __init__(self, name="LLMProxy", metering="file", unix=False, backends=1, workers=1,
                 alias=False, strategy=None, sessions=False, keys=0, script=False, tls=False):
        self.name = name
        self.metering = metering
        self.unix = unix
        self.backends = backends
        self.workers = workers
        self.alias = alias
        self.strategy = strategy
        self.sessions = sessions
        self.keys = keys
        self.script = script
        self.tls = tls

    def start(self, stage):
        process, listen = self.launch(stage)
        process.answers(listen)
        process.until("finds no healthy engine", lambda: "is healthy" in process.output())
        if self.keys:
            # Each key is asked for once, and remembered.
            flags = ["--keys", str(self.keys), "--requests", str(self.keys)]
            if errors := stage.load(listen, flags, 60)["errors"]:
                process.fail(f"refused {errors} keys")
        return process, listen

    def launch(self, stage):
        """Starts it without waiting for anything."""
        listen = free_address()
        secure = ""
        if self.tls:
            cert, key = stage.certificate()
            secure = f', tls: {{enabled: true, cert_file: "{cert}", key_file: "{key}"}}'
        config = stage.config("llmproxy.yaml", LISTEN=listen, TLS=secure, WORKERS=self.workers,
                              BACKENDS="\n".join(self.engines(stage)), ROUTING=self.routing(),
                              METERING=self.usage(stage, listen),
                              ADMISSION=self.admission(stage, listen))
        cores = stage.proxy_cores if self.workers == 1 else stage.all_cores
        # Not asked to end: it would first deliver the records that it still has.
        process = Process("llmproxy", [stage.binary("llmproxy"), "--config", config], cores,
                          stage.work, end_with=signal.SIGKILL)
        return process, f"https://{listen}" if self.tls else listen

    def routing(self):
        """The part of the configuration that says which backend a request goes to, if any does."""
        keys = []
        if self.strategy:
            keys.append(f"load_balance: {self.strategy}")
        if self.sessions:
            keys.append(f"session_affinity: {{header: [{SESSION}]}}")
        if self.alias:
            keys.append(f"model_mapping: {{{MODEL}: {SERVED}}}")
        return f"routing: {{{', '.join(keys)}}}" if keys else ""

    def admission(self, stage, listen):
        """The part of the configuration with keys, quotas and limits, if there are any."""
        if not self.keys:
            return ""
        own = os.path.join(stage.work, "usage-" + listen.rsplit(":", 1)[1])
        script = ""
        if self.script:
            path = os.path.join(stage.work, "admit.lua")
            with open(path, "w") as file:
                file.write(SCRIPT)
            script = f'\n      script: {{path: "{path}"}}'
        return ADMISSION.format(own=own, redis=stage.redis_with_keys(self.keys), script=script)

    def usage(self, stage, listen):
        """The part of the configuration that meters, if any does."""
        if not self.metering:
            return ""
        # Each process has a journal of its own.
        own = os.path.join(stage.work, "usage-" + listen.rsplit(":", 1)[1])
        is_webhook = self.metering.startswith("webhook") or self.metering == "batches"
        receiver = f"http://{stage.receiver()}/v1/embeddings" if is_webhook else ""
        redis = stage.redis() if self.metering == "redis" else ""
        reporter = REPORTERS[self.metering].format(own=own, receiver=receiver, redis=redis)
        return METERING.format(own=own, reporter=reporter)

    def delivered(self, address):
        return metric(address, "llmproxy_reporter_delivered_total") if self.metering else 0

    def deliver(self, address, records):
        if not self.metering or self.metering.startswith("webhook"):
            return
        end = time.monotonic() + DELIVERY_SECONDS_MAX
        while (done := self.delivered(address)) < records or metric(
                address, "llmproxy_reporter_queue"):
            if time.monotonic() > end:
                raise Failure(f"{done} of {records} usage records were delivered")
            time.sleep(0.05)
        for name in ("llmproxy_usage_dropped_total", "llmproxy_reporter_dead_letters_total"):
            if lost := metric(address, name):
                raise Failure(f"{name} is {lost:g}: records were lost")

    def engines(self, stage):
        """Lines of `backends`. Many of them are one engine under many loopback addresses."""
        models = f", models: [{SERVED}]" if self.alias else ""
        if self.unix:
            yield f'  - {{name: engine, url: "{stage.engine_unix()}"{models}}}'
            return
        port = stage.engine().rsplit(":", 1)[1]
        for i in range(self.backends):
            host = f"127.0.{i // 250}.{i % 250 + 1}"
            yield f'  - {{name: engine-{i}, url: "http://{host}:{port}"{models}}}'


def metric(address, name):
    """The sum of a metric over its labels."""
    lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", get(address, "/metrics"), re.MULTILINE)
    return sum(map(float, lines))
