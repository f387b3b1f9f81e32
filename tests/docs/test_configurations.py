"""Every block of YAML in the documents is a configuration, or says what else it is."""

import os
import re
import subprocess
import unittest

import common
import pages
from common import run

# What blocks name and a check reads: made in a folder that takes the place of /etc/llmproxy.
CERTIFICATES = ["tls", "clients-ca", "engines-ca", "redis-ca", "a.example", "wildcard.b.example"]


def folder_of_files(test):
    """Certificates, a script and a list of backends, as the documents name them."""
    at = common.folder(test)
    for name in CERTIFICATES:
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "30", "-subj", f"/CN={name}", "-addext",
            f"subjectAltName=DNS:llm.example.com,DNS:{name}", "-keyout", f"{at}/{name}.key",
            "-out", f"{at}/{name}.crt")
    with open(os.path.join(at, "auth.lua"), "w", encoding="utf-8") as file:
        file.write("return {allow = true}\n")
    with open(os.path.join(at, "backends.yaml"), "w", encoding="utf-8") as file:
        file.write("[{url: 'http://127.0.0.1:1'}]\n")
    return at


def whole(block):
    """The configuration that a block is a part of."""
    text = block.text
    below = re.fullmatch(r"below: ([\w.]+)(\[\])?", block.note)
    if below:
        parts = below.group(1).split(".")
        head = "".join("  " * depth + part + ":\n" for depth, part in enumerate(parts))
        if parts[-1] == "tls" or below.group(1) == "discovery":
            head += "  " * len(parts) + "enabled: true\n"
        if parts[0] == "discovery":
            head = head.replace("discovery:\n", "discovery:\n  enabled: true\n", 1)
        indent = "  " * len(parts)
        text = head + "".join(indent + line + "\n" for line in text.splitlines())
    if not re.search(r"^backends:", text, re.M):
        text += "\nbackends: [{url: 'http://127.0.0.1:1'}]\n"
    return text


def is_ours(block):
    return not block.note.startswith("not a configuration")


def variables(text):
    """A value for each `${NAME}`: long, as tokens have to be."""
    names = re.findall(r"\$\{(\w+)\}", text)
    return {**os.environ, **{name: "0123456789abcdef0123456789abcdef" for name in names}}


class Configurations(unittest.TestCase):
    def test_blocks_are_valid(self):
        """Catches: a block with a key that is unknown, a value that is refused, a start that fails."""
        files = folder_of_files(self)
        checked = 0
        for name, text in pages.all_pages().items():
            for block in pages.blocks(name, text):
                if block.language != "yaml" or not is_ours(block):
                    continue
                checked += 1
                with self.subTest(str(block)):
                    self.check(files, block)
        self.assertGreater(checked, 30)

    def test_configurations_in_other_files_are_valid(self):
        """Catches: the same within a ConfigMap."""
        files = folder_of_files(self)
        checked = 0
        for name, text in pages.all_pages().items():
            for block in pages.blocks(name, text):
                found = re.search(r"^  config\.yaml: \|\n((?:    .*\n)+)", block.text, re.M)
                if found:
                    checked += 1
                    inner = re.sub(r"^    ", "", found.group(1), flags=re.M)
                    self.check(files, pages.Block(name, block.line, "yaml", "", inner))
        self.assertGreater(checked, 0)

    def check(self, files, block):
        config = os.path.join(files, "config.yaml")
        text = whole(block).replace("/etc/llmproxy/", files + "/")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        done = subprocess.run(
            [common.binary("llmproxy"), "check", config], env=variables(text), cwd=files,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
        told = f"{text}\n{done.stdout}"
        self.assertEqual(done.returncode, 0, told)
        # A migrated file may say what is old in it.
        if not block.note.startswith("a file of the Go version"):
            self.assertNotIn("unknown key", done.stdout, told)
            self.assertNotIn("not supported", done.stdout, told)

    def test_links_lead_somewhere(self):
        """Catches: a page or a heading that was renamed."""
        headings = {}
        for name, text in pages.all_pages().items():
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            headings[os.path.normpath(name)] = {anchor(title) for title in titles}
        links = 0
        for name, text in pages.all_pages().items():
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if re.match(r"https?:", target):
                    continue
                links += 1
                path, _, part = target.partition("#")
                at = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
                with self.subTest(f"{name}: {target}"):
                    self.assertTrue(os.path.exists(os.path.join(pages.REPO, at)), "no such file")
                    if part:
                        self.assertIn(part, headings[os.path.normpath(at)])
        self.assertGreater(links, 100)


def anchor(title):
    """As GitHub makes it of a heading."""
    title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
