"""The chart: rendered by Helm's own code, checked against the schemas of Kubernetes."""

import json
import os
import re
import shutil
import subprocess
import unittest

import common
import sandbox
from common import ask, run

CHART = os.path.join(common.DEPLOY, "helm/llmproxy")
# The oldest that the chart is for and that there are schemas of, and the newest.
VERSIONS = ["1.29", "1.37"]
OWN = {"name": "own", "type": "builtin", "builtin": {"path": "./data/usage.db"}}
VALUES = {
    "defaults": {},
    "all": {
        "secrets": {"TEAM_A_KEY": "sk-a"},
        "existingSecret": "others",
        "env": [{"name": "ZONE", "value": "a"}],
        "config": {"usage": {"reporters": [OWN]},
                   "rate_limit": {"global": {"requests_per_second": 5}},
                   "api_keys": [{"key": "${TEAM_A_KEY}", "name": "a"}]},
        "data": {"existingClaim": "spool"},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "service": {"type": "NodePort", "nodePort": 30080, "externalTrafficPolicy": "Local",
                    "annotations": {"a": "b"}},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "llmproxy.json"},
        "podLabels": {"team": "llm"}, "podAnnotations": {"c": "d"},
        "imagePullSecrets": [{"name": "registry"}], "priorityClassName": "high",
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                                       "whenUnsatisfiable": "ScheduleAnyway"}],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
    "daemonset": {"kind": "DaemonSet", "hostNetwork": True, "nodeSelector": {"gpu": "true"},
                  "data": {"hostPath": "/var/lib/llmproxy"},
                  "serviceAccount": {"create": False, "name": "mine"},
                  "drain": {"delaySeconds": 0, "timeoutSeconds": 600}},
    "apart": {"config": {"metrics": {"listen": ":9100", "path": "/m"}},
              "service": {"type": "LoadBalancer"},
              "metrics": {"serviceMonitor": {"enabled": True}}},
    "one": {"replicas": 1, "drain": {"delaySeconds": 10, "timeoutSeconds": 20}},
}


def helm():
    try:
        import helm_python
    except (ImportError, OSError) as error:
        common.missing(f"Helm's library ({error})")
    return helm_python


def rendered(values):
    """Kind -> manifest, and the notes."""
    import yaml
    with helm().Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="demo", namespace="llm")
    found = {}
    for name, text in files.items():
        for manifest in [] if name.endswith(".txt") else yaml.safe_load_all(text):
            if manifest:
                kind = manifest["kind"]
                if kind == "Service" and manifest["metadata"]["name"].endswith("-metrics"):
                    kind = "Service of metrics"
                assert kind not in found, kind
                found[kind] = manifest
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    return found, notes


class Helm(unittest.TestCase):
    def test_lint(self):
        """Catches: what `helm lint` complains about."""
        found = helm().lint(CHART)
        self.assertEqual(found["errors"], [])
        # 1 is advice.
        self.assertEqual([m for m in found["messages"] if m["severity"] > 1], [])

    def test_manifests_are_what_kubernetes_takes(self):
        """Catches: a field at the wrong place or of the wrong type, which the server refuses."""
        helm()
        import kubernetes_validate
        for name, values in VALUES.items():
            found, _ = rendered(values)
            for kind, manifest in found.items():
                if kind == "ServiceMonitor":
                    continue
                for version in VERSIONS:
                    with self.subTest(values=name, kind=kind, version=version):
                        kubernetes_validate.validate(manifest, version, strict=True)
        broken, _ = rendered({})
        broken["Service"]["spec"]["portz"] = []
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken["Service"], VERSIONS[0], strict=True)

    def test_monitors_are_what_the_operator_takes(self):
        """Catches: a ServiceMonitor that the API server refuses."""
        node, place = common.tool("node"), os.path.join(common.TOOLS, "deploy-node")
        if not os.path.exists(os.path.join(place, "node_modules")):
            common.missing("the schema of the Prometheus operator")
        # Node looks for packages beside the script.
        shutil.copy(os.path.join(os.path.dirname(__file__), "service_monitor.mjs"), place)
        command = [node, os.path.join(place, "service_monitor.mjs")]
        monitor = rendered(VALUES["all"])[0]["ServiceMonitor"]
        self.judge(command, monitor, 0)
        monitor["spec"]["endpoints"][0]["port"] = 80
        self.judge(command, monitor, 1)

    def judge(self, command, manifest, code):
        done = subprocess.run(command, input=json.dumps([manifest]), text=True, timeout=60,
                              capture_output=True, check=False)
        self.assertEqual(done.returncode, code, done.stderr)

    def test_which_manifests_there_are(self):
        """Catches: a switch that does nothing."""
        always = {"ConfigMap", "Service"}
        kinds = {name: set(rendered(values)[0]) for name, values in VALUES.items()}
        account, budget = {"ServiceAccount"}, {"PodDisruptionBudget"}
        self.assertEqual(kinds["defaults"], always | account | budget | {"Deployment"})
        self.assertEqual(kinds["all"], kinds["defaults"] | {"Secret", "ServiceMonitor"})
        self.assertEqual(kinds["daemonset"], always | budget | {"DaemonSet"})
        self.assertEqual(kinds["one"], always | account | {"Deployment"})
        self.assertEqual(kinds["apart"], kinds["defaults"] | {"ServiceMonitor",
                                                              "Service of metrics"})

    def test_names_meet(self):
        """Catches: a service without pods, a monitor without a service, a mount without volume."""
        for name, values in VALUES.items():
            found, _ = rendered(values)
            workload = found.get("Deployment") or found["DaemonSet"]
            pod = workload["spec"]["template"]
            container = pod["spec"]["containers"][0]
            with self.subTest(values=name):
                labels = pod["metadata"]["labels"].items()
                selectors = [workload["spec"]["selector"]["matchLabels"],
                             found["Service"]["spec"]["selector"]]
                if "PodDisruptionBudget" in found:
                    budget = found["PodDisruptionBudget"]["spec"]
                    selectors.append(budget["selector"]["matchLabels"])
                for selector in selectors:
                    self.assertLessEqual(selector.items(), labels)
                ports = {port["name"] for port in container["ports"]}
                service = found["Service"]["spec"]["ports"]
                self.assertLessEqual({port["targetPort"] for port in service}, ports)
                probes = [container[f"{kind}Probe"]
                          for kind in ("startup", "liveness", "readiness")]
                self.assertEqual([probe["httpGet"]["path"] for probe in probes],
                                 ["/health", "/health", "/ready"])
                self.assertLessEqual({probe["httpGet"]["port"] for probe in probes}, ports)
                if "ServiceMonitor" in found:
                    monitor = found["ServiceMonitor"]["spec"]
                    scraped = found.get("Service of metrics", found["Service"])
                    self.assertLessEqual(monitor["selector"]["matchLabels"].items(),
                                         scraped["metadata"]["labels"].items())
                    self.assertLessEqual(scraped["spec"]["selector"].items(), labels)
                    offered = {port["name"]: port["targetPort"]
                               for port in scraped["spec"]["ports"]}
                    for end in monitor["endpoints"]:
                        self.assertIn(offered[end["port"]], ports)
                volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
                mounts = {mount["name"] for mount in container["volumeMounts"]}
                self.assertEqual(mounts, set(volumes))
                self.assertEqual(volumes["rings"]["emptyDir"]["medium"], "Memory")
                self.assertEqual(volumes["config"]["configMap"]["name"],
                                 found["ConfigMap"]["metadata"]["name"])
                sources = {list(source.values())[0]["name"] for source in
                           container.get("envFrom", [])}
                ours = {found["Secret"]["metadata"]["name"]} if "Secret" in found else set()
                self.assertEqual(sources, ours | ({"others"} if name == "all" else set()))
                account = pod["spec"]["serviceAccountName"]
                made = found.get("ServiceAccount", {"metadata": {"name": "mine"}})
                self.assertEqual(account, made["metadata"]["name"])

    def test_metrics_apart_are_scraped_where_they_are(self):
        """Catches: a monitor of a port where there are no metrics, and metrics that everybody
        reaches though they have a listener of their own."""
        found, _ = rendered(VALUES["apart"])
        end = found["ServiceMonitor"]["spec"]["endpoints"][0]
        self.assertEqual((end["port"], end["path"]), ("metrics", "/m"))
        self.assertEqual([port["name"] for port in found["Service"]["spec"]["ports"]], ["http"])
        service = found["Service of metrics"]["spec"]
        self.assertEqual((service["type"], service["ports"][0]["port"]), ("ClusterIP", 9100))
        container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        self.assertIn({"name": "metrics", "containerPort": 9100, "protocol": "TCP"},
                      container["ports"])
        monitor = rendered(VALUES["all"])[0]["ServiceMonitor"]
        self.assertEqual(monitor["spec"]["endpoints"][0]["port"], "http")
        for config in [{"enabled": False}, {"listen": "127.0.0.1:9100"}, {"listen": "[::1]:91"}]:
            values = {**VALUES["apart"], "config": {"metrics": config}}
            with self.subTest(config=config), self.assertRaises(helm().HelmError):
                rendered(values)

    def test_the_drain_fits_into_the_grace_period(self):
        """Catches: streams that the kubelet cuts."""
        import yaml
        for values in VALUES.values():
            found, _ = rendered(values)
            workload = found.get("Deployment") or found["DaemonSet"]
            grace = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            config = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["server"]
            seconds = [int(re.fullmatch(r"(\d+)s", config[key]).group(1))
                       for key in ("shutdown_delay", "drain_timeout")]
            self.assertGreaterEqual(grace, sum(seconds) + 5)

    def test_wrong_values_are_refused(self):
        """Catches: a misspelt value that changes nothing."""
        for values in [{"kind": "StatefulSet"}, {"replica": 3}, {"drain": {"delay": 3}},
                       {"secrets": {"A": 1}}, {"data": {"hostPath": "relative"}}]:
            with self.subTest(values=values), self.assertRaises(helm().HelmError):
                rendered(values)

    def test_notes_tell_what_is_lost(self):
        """Catches: records that end with a pod, and limits that each pod counts, in silence."""
        usage = {"config": {"usage": {"reporters": [OWN]}}}
        self.assertIn("set data.existingClaim", rendered(usage)[1])
        self.assertNotIn("set data.existingClaim", rendered(VALUES["all"])[1])
        self.assertIn("2 times as much", rendered(VALUES["all"])[1])
        self.assertNotIn("times as much", rendered({})[1])
        shared = {"config": {"rate_limit": {"storage": "redis"}}}
        self.assertNotIn("times as much", rendered(shared)[1])

    def test_the_pod_starts_in_a_bare_tree(self):
        """Catches: a configuration, a user or a folder of the chart that the proxy cannot use."""
        found, _ = rendered(VALUES["all"])
        pod = found["Deployment"]["spec"]["template"]["spec"]
        container, user = pod["containers"][0], pod["securityContext"]["runAsUser"]
        root = common.bare_root(self)
        engine = common.engine(self)
        # The image has no more than the binary, for this: test_image does its steps.
        run("install", common.binary("llmproxy"), os.path.join(root, "usr/local/bin/llmproxy"))
        for mount in container["volumeMounts"]:
            path = os.path.join(root, mount["mountPath"].lstrip("/"))
            os.makedirs(path, exist_ok=True)
            run("mount", "-t", "tmpfs", "-o", "mode=2777", "tmpfs", path)
            self.addCleanup(run, "umount", path, code=None)
            os.chown(path, 0, pod["securityContext"]["fsGroup"])
        text = found["ConfigMap"]["data"]["config.yaml"]
        changed = text.replace("listen: :8000", "listen: 127.0.0.1:0")
        changed = changed.replace("http://vllm:8000", f"http://{engine}")
        self.assertTrue(engine in changed and "127.0.0.1:0" in changed, text)
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), "w", encoding="utf-8") as file:
            file.write(changed)
        enter = sandbox.confined(root, user, "/var/lib/llmproxy", 0, None)
        command = ["/usr/local/bin/llmproxy"] + container["args"]
        proxy = common.Process(self, command, preexec_fn=enter, env={"TEAM_A_KEY": "sk-a"})
        address = common.listening(proxy)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        self.assertEqual(ask(address, "/v1/chat/completions", body)[0], 401)
        key = {"authorization": "Bearer sk-a"}
        self.assertEqual(ask(address, "/v1/chat/completions", body, key)[0], 200)
        self.assertTrue(os.listdir(os.path.join(root, "run/llmproxy")), proxy.text())
        self.assertTrue(os.listdir(os.path.join(root, "var/lib/llmproxy/spool")), proxy.text())
        self.assertNotIn('"level":"ERROR"', proxy.text())
        proxy.child.terminate()
        proxy.child.terminate()
        self.assertEqual(proxy.child.wait(common.SOON), 0, proxy.text())
