"""The dashboard of Grafana and the alert rules, against a Prometheus that scrapes a proxy."""

import json
import os
import re
import shutil
import unittest
import urllib.parse

import common
from common import ask, await_some, read, run

DASHBOARD = json.loads(read("grafana", "llmproxy.json"))
RULES = os.path.join(common.DEPLOY, "prometheus/llmproxy.rules.yml")
NAME = re.compile(r"\b((?:llmproxy|process|gen_ai)_[a-z0-9_]+)\b")
# Labels that look like names.
LABELS = {"gen_ai_token_type", "gen_ai_request_model", "gen_ai_operation_name"}
# What a proxy that is well has no series of.
ONLY_IN_TROUBLE = {
    "llmproxy_retries_total", "llmproxy_usage_odd_total", "llmproxy_affinity_total",
    "llmproxy_queue_wait_seconds_bucket", "llmproxy_journal_errors_total",
    "llmproxy_faults_total", "llmproxy_client_abort_total",
}
KEY = {"authorization": "Bearer sk-a"}


def expressions():
    """(title, expression, labels that its legend shows) of all panels."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            found.append((panel["title"], target["expr"], shown))
    for note in DASHBOARD["annotations"]["list"]:
        found.append((note["name"], note["expr"], set()))
    return found


def filled(expression):
    """As Grafana sends it."""
    for name, value in [("$job", ".*"), ("$instance", ".*"), ("$__rate_interval", "30s")]:
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


class Rules(unittest.TestCase):
    def test_promtool_takes_them(self):
        """Catches: a rule that Prometheus refuses, or that fires when it must not, or never."""
        promtool = common.tool("promtool")
        run(promtool, "check", "rules", RULES)
        run(promtool, "test", "rules", RULES.replace(".yml", ".test.yml"))

    def test_each_alert_is_tried(self):
        """Catches: a new alert that nobody saw firing."""
        alerts = set(re.findall(r"alert: (\w+)", read("prometheus", "llmproxy.rules.yml")))
        tests = read("prometheus", "llmproxy.rules.test.yml")
        fired = re.findall(r"alertname: (\w+)\n +exp_alerts:", tests)
        self.assertEqual(alerts, set(fired))


class Stage:
    """What the tests of a class share; it ends with them."""

    def __init__(self, of):
        self.addCleanup = of.addClassCleanup
        folder = common.folder(self)
        engines = [common.engine(self, "--tokens", "5", "--gap-ms", "2") for _ in range(2)]
        backends = ", ".join(f"{{url: 'http://{at}', name: e{n}}}" for n, at in enumerate(engines))
        own = f"{{name: own, type: builtin, builtin: {{path: '{folder}/usage.db'}}}}"
        config = f"""
server: {{listen: "127.0.0.1:0", workers: 1, cpu_affinity: "off"}}
backends: [{backends}]
routing: {{load_balance: prefix_affinity, queue: {{max_waiting: 10}}}}
health_check: {{interval: 1s}}
api_keys: [{{key: sk-a, name: a, rate_limit: {{requests_per_minute: 1000}}}}]
usage: {{spool: {{dir: "{folder}/spool"}}, reporters: [{own}]}}
metrics: {{models: [m]}}
"""
        path = os.path.join(folder, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        self.proxy = common.Process(self, [common.binary("llmproxy"), "--config", path])
        self.address = common.listening(self.proxy)
        self.prometheus = self.scraping(folder)

    def scraping(self, folder):
        """A Prometheus with our rules; gives its address."""
        shutil.copy(RULES, folder)
        address = f"127.0.0.1:{common.free_port()}"
        scrape = os.path.join(folder, "prometheus.yml")
        with open(scrape, "w", encoding="utf-8") as file:
            file.write("global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
                       "rule_files: [llmproxy.rules.yml]\n"
                       "scrape_configs: [{job_name: llmproxy, "
                       f"static_configs: [{{targets: ['{self.address}']}}]}}]\n")
        command = [common.tool("prometheus"), f"--config.file={scrape}",
                   f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}"]
        self.server = common.Process(self, command)

        def ready():
            try:
                return ask(address, "/-/ready")[0] == 200
            except OSError:
                return False
        await_some("Prometheus is ready", ready)
        return address

    def load(self):
        """Some chats, streamed and not, and one without a key."""
        for n in range(6):
            body = {"model": "m", "messages": [{"role": "user", "content": f"hi {n}"}]}
            if n % 2 == 0:
                body.update(stream=True, stream_options={"include_usage": True})
            status, text = ask(self.address, "/v1/chat/completions", body, KEY)
            assert status == 200, text
        body = {"model": "m", "messages": []}
        assert ask(self.address, "/v1/chat/completions", body)[0] == 401

    def query(self, expression):
        """The samples of an expression, now."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        status, text = ask(self.prometheus, path)
        assert status == 200, f"{expression}: {text}"
        return json.loads(text)["data"]["result"]


class Queries(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        common.tool("prometheus")
        cls.stage = Stage(cls)
        # Rates need what grew between two scrapes.
        seen = "min_over_time(llmproxy_requests_total{status='200',stream='true'}[1h])"
        cls.stage.load()
        await_some("the first scrape", lambda: cls.stage.query(seen))
        cls.stage.load()
        grown = "sum(increase(llmproxy_reporter_delivered_total[1m])) > 0"
        await_some("the second one", lambda: cls.stage.query(grown))

    def test_every_name_is_on_the_page(self):
        """Catches: a panel or a rule of a metric that was renamed, or never was."""
        status, page = ask(self.stage.address, "/metrics")
        self.assertEqual(status, 200)
        families = set(re.findall(r"^# TYPE (\S+)", page, re.M))
        rules = read("prometheus", "llmproxy.rules.yml")
        texts = [expression for _, expression, _ in expressions()]
        texts += re.findall(r"^ +expr: ((?:.|\n)*?)\n +(?:for|labels):", rules, re.M)
        texts += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]
                  if variable["type"] == "query"]
        names = {name for text in texts for name in NAME.findall(text)}
        self.assertGreater(len(names), 40)
        # The stage speaks plain HTTP; certificates.rs and acme.rs of tests/e2e have these.
        names -= {"llmproxy_tls_certificate_expiry_seconds", "llmproxy_acme_failed_in_row"}
        unknown = {name for name in names - LABELS if re.sub("_(bucket|sum|count)$", "", name)
                   not in families and name not in families}
        self.assertEqual(unknown, set())

    def test_every_query_runs(self):
        """Catches: a query that Prometheus refuses, that finds nothing, or lacks a label."""
        for title, expression, shown in expressions():
            with self.subTest(panel=title, expression=expression):
                result = self.stage.query(filled(expression))
                if not result and set(NAME.findall(expression)) & ONLY_IN_TROUBLE:
                    continue
                if title == "Reloads":
                    continue
                self.assertTrue(result, "nothing is found")
                for sample in result:
                    self.assertLessEqual(shown, set(sample["metric"]))

    def test_the_figures_are_right(self):
        """Catches: a query that runs and shows something else than its title says."""
        panels = {title: expression for title, expression, _ in expressions()}
        self.assertEqual(self.value(panels["Backends up"]), 1.0)
        self.assertEqual(self.value(panels["Errors (5xx)"]), 0.0)
        self.assertGreater(self.value(panels["First token, median"]), 0.0)
        self.assertGreater(self.value(panels["Tokens per second"]), 0.0)
        refused = self.stage.query("sum by (reason) (llmproxy_rejected_total) > 0")
        self.assertEqual([r["metric"]["reason"] for r in refused], ["missing_api_key"])

    def value(self, expression):
        return float(self.stage.query(filled(expression))[0]["value"][1])

    def test_the_rules_run(self):
        """Catches: a rule that fails where it meets real series."""
        def rules():
            status, text = ask(self.stage.prometheus, "/api/v1/rules")
            self.assertEqual(status, 200)
            return json.loads(text)["data"]["groups"][0]["rules"]
        # "unknown" until it ran; "err" stays.
        await_some("all rules ran", lambda: all(r["health"] == "ok" for r in rules()))
        self.assertEqual(len(rules()), read("prometheus", "llmproxy.rules.yml").count("- alert:"))


class Dashboard(unittest.TestCase):
    def test_what_grafana_needs(self):
        """Catches: panels that share a number or a place, or that know no data source."""
        panels = DASHBOARD["panels"]
        numbers = [panel["id"] for panel in panels]
        self.assertEqual(len(numbers), len(set(numbers)))
        taken = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                     for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            taken |= cells
            if panel["type"] != "row":
                self.assertEqual(panel["datasource"]["uid"], "${datasource}", panel["title"])
        self.assertEqual(DASHBOARD["uid"], "llmproxy")
