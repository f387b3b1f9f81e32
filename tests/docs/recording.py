"""docs/img/demo.svg: what a terminal shows of the first minute, recorded from the real programs.

    python3 tests/docs/recording.py --write        (wants built binaries)

Two mock engines, the gateway, one streamed answer, and who used what. Lines appear in the picture
when they appeared in the terminal; pauses of a reader are added between the commands.
"""

import html
import os
import re
import subprocess
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "deploy"))

import common  # noqa: E402

PICTURE = os.path.join(common.REPO, "docs/img/demo.svg")
COLUMNS, PAUSE_S, TYPE_S = 104, 1.2, 0.4
BODY = '{"model": "llama-3-70b", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
COMMANDS = [
    ("llmproxy --config config.yaml &", None),
    (f"curl -N localhost:8000/v1/chat/completions -d '{BODY}'",
     ["curl", "-sN", "http://127.0.0.1:{port}/v1/chat/completions", "-H",
      "Content-Type: application/json", "-d", BODY]),
    ("llmproxy backends", ["{llmproxy}", "backends", "--config", "config.yaml"]),
    ("llmproxy usage --by model",
     ["{llmproxy}", "usage", "--config", "config.yaml", "--by", "model"]),
]
CONFIG = """\
server: {{listen: "127.0.0.1:{port}"}}
backends:
  - {{name: gpu-1, url: "http://{one}"}}
  - {{name: gpu-2, url: "http://{two}"}}
usage:
  spool: {{dir: ./spool}}
  reporters: [{{type: builtin, builtin: {{path: ./usage.db}}}}]
"""


def record(test):
    """Lines as (seconds, kind, text); kind is `typed` or `told`."""
    at, port = common.folder(test), common.free_port()
    one, two = (common.engine(test, "--ttft-ms", "300", "--gap-ms", "120", "--tokens", "8")
                for _ in range(2))
    with open(os.path.join(at, "config.yaml"), "w", encoding="utf-8") as file:
        file.write(CONFIG.format(port=port, one=one, two=two))
    proxy = common.Process(test, [common.binary("llmproxy"), "--config", "config.yaml"], cwd=at)
    common.listening(proxy)
    names = {"port": port, "llmproxy": common.binary("llmproxy")}
    lines, now = [], 0.5
    for shown, command in COMMANDS:
        lines.append((now, "typed", "$ " + shown))
        now += TYPE_S
        begin = time.monotonic()
        if command:
            # The curly braces of a body are its own.
            words = [re.sub(r"^\{llmproxy\}|\{port\}", lambda w: str(names[w[0].strip("{}")]), word)
                     for word in command]
            common.await_some(shown, lambda: not words[0].endswith("llmproxy")
                              or subprocess.run(words, cwd=at, capture_output=True,
                                                check=False).returncode == 0)
            begin = time.monotonic()
            child = subprocess.Popen(words, cwd=at, stdout=subprocess.PIPE, text=True)
            for line in child.stdout:
                if line.strip():
                    lines.append((now + time.monotonic() - begin, "told", line.rstrip("\n")))
            child.wait(common.SOON)
        now += time.monotonic() - begin + PAUSE_S
        lines.append((now, "told", ""))
    hide = {f"127.0.0.1:{port}": "localhost:8000", one: "gpu-1:8000", two: "gpu-2:8000"}
    return [(when, kind, plain(text, hide)) for when, kind, text in lines]


def plain(text, hide):
    for real, shown in hide.items():
        text = text.replace(real, shown)
    # What each event repeats.
    text = re.sub(r'"id":"[^"]*","object":"[^"]*","created":\d+,', "\u2026", text)
    return text if len(text) <= COLUMNS else text[:COLUMNS - 1] + "\u2026"


def drawn(lines):
    width, height = COLUMNS * 7.8 + 32, len(lines) * 18 + 32
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
             'role="img" aria-label="A terminal: the gateway starts, a streamed answer comes '
             'event by event, the backends and the usage are shown">',
             "<style>text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#c9d1d9;opacity:0;"
             "white-space:pre;animation:a 1ms forwards}.t{fill:#7ee787}"
             "@keyframes a{to{opacity:1}}"
             "@media(prefers-reduced-motion:reduce){text{animation:none;opacity:1}}</style>",
             f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#0d1117"/>']
    for row, (when, kind, text) in enumerate(lines):
        if text:
            mark = ' class="t"' if kind == "typed" else ""
            parts.append(f'<text{mark} x="16" y="{row * 18 + 28}" xml:space="preserve" '
                         f'style="animation-delay:{when:.2f}s">{html.escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class Recording(unittest.TestCase):
    def test_it_is_what_the_programs_do(self):
        """Catches: a picture of commands that are no longer what they were."""
        lines = record(self)
        with open(PICTURE, encoding="utf-8") as file:
            picture = file.read()
        for _, kind, text in lines:
            if kind == "typed":
                self.assertIn(html.escape(text), picture)
        events = [text for _, _, text in lines if text.startswith("data: {")]
        self.assertGreater(len(events), 8)
        self.assertTrue(any("llama-3-70b" in text and "data" not in text and "$" not in text
                            for _, _, text in lines), "the usage has the model")

    def write(self):
        """With `--write`."""
        with open(PICTURE, "w", encoding="utf-8") as file:
            file.write(drawn(record(self)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    suite = unittest.TestSuite([Recording("write")])
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())
