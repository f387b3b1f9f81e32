"""docs/deployment.md: what it names is there, what it shows is valid."""

import os
import re
import unittest

import common
import test_helm
from common import run

with open(os.path.join(common.REPO, "docs/deployment.md"), encoding="utf-8") as page:
    TEXT = page.read()


class Deployment(unittest.TestCase):
    def test_files_are_there(self):
        """Catches: a file that was renamed."""
        named = set(re.findall(r"\b((?:deploy|scripts|tests)/[\w./-]*\w)", TEXT))
        self.assertGreater(len(named), 12)
        for path in named:
            self.assertTrue(os.path.exists(os.path.join(common.REPO, path)), path)

    def test_options_are_known(self):
        """Catches: an option of our own programs that they do not have."""
        said = run(os.path.join(common.REPO, "scripts/install"), "--help")
        for option in set(re.findall(r"`(--[a-z-]+)`", TEXT)):
            self.assertIn(option, said)
        said = run(common.binary("llmproxy"), "health", "--help")
        self.assertIn("--ready", said)

    def test_the_values_of_the_chart_are_valid(self):
        """Catches: values that the chart refuses, or a configuration that the proxy does."""
        test_helm.helm()
        import yaml
        blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
        self.assertEqual(len(blocks), 1)
        values = yaml.safe_load(blocks[0])
        found, _ = test_helm.rendered(values)
        config = os.path.join(common.folder(self), "config.yaml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(found["ConfigMap"]["data"]["config.yaml"])
        run(common.binary("llmproxy"), "check", config, env=values["secrets"])
        self.assertIn("ServiceMonitor", found)

    def test_the_times_are_the_units(self):
        """Catches: a figure of the text that is no longer that of the file."""
        unit = common.read("systemd", "llmproxy.service")
        stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M).group(1)
        self.assertIn(f"`TimeoutStopSec` ({stop} s)", TEXT)
        self.assertIn(f"Kubernetes {' and '.join(test_helm.VERSIONS)}", TEXT)
