"""docs/configuration.md, made from config.yaml.example.

    python3 tests/docs/reference.py --write

The example names every key that the program reads, with its default: tests of the program hold it
to that. So this page cannot lack a key either.
"""

import os
import re
import sys

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLE = os.path.join(REPO, "config.yaml.example")
PAGE = os.path.join(REPO, "docs/configuration.md")

HEAD = """\
# Every key of the configuration

<!-- Made by `python3 tests/docs/reference.py --write` from config.yaml.example; do not edit. -->

The file itself, to copy from, is [config.yaml.example](../config.yaml.example). `llmproxy check FILE` says what is
wrong in yours and where, `llmproxy check --print FILE` all that it means.

A section that is present is on unless it says `enabled: false`. Those marked *asks for `enabled`* must say
`enabled: true` or `enabled: false`. Durations are `500ms`, `30s`, `1m30s`, `1h`, or seconds; sizes are bytes, or
`512KiB`, `32MiB`, `1GiB`. `${NAME}` and `${NAME:-default}` are replaced from the environment, except in scripts. What
is in the second column is the default; of keys that have none, such as addresses and paths, it is an example.

A list of sections (`backends`) has `[]` in the names of its keys.
"""

ASKS = {"server.cors", "server.tls", "logging.request", "admin", "discovery", "hooks.on_request"}
# A comment that begins so far to the right belongs to the line before it.
RIGHT = 24


def rows(text):
    """Path, value and comment of each key, in the order of the file."""
    found, stack, lead = [], [], []
    last = None
    for raw in text.split("\n"):
        line = raw.removeprefix("#~ ") if raw.startswith("#~ ") else raw
        if not line.strip():
            lead, last = [], None
            continue
        comment = re.fullmatch(r"( *)# ?(.*)", line)
        if comment:
            if last and len(comment.group(1)) >= RIGHT:
                last[2] = f"{last[2]} {comment.group(2)}".strip()
            else:
                lead.append(comment.group(2))
                last = None
            continue
        key = re.fullmatch(r"( *)(- )?(\"[^\"]+\"|[\w.-]+):(?: +(.*))?", line)
        if not key:
            # An item of a list, or a value on a line of its own.
            value, said = split(line.strip())
            if last and not value.startswith("- "):
                last[1] = f"{last[1]} {value}".strip()
                last[2] = f"{last[2]} {said}".strip()
            continue
        depth = len(key.group(1)) + len(key.group(2) or "")
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if key.group(2):
            # The list's own name gets its brackets with its first item.
            parent = stack[-1]
            parent[1] = parent[1].removesuffix("[]") + "[]"
        name = key.group(3)
        if stack and stack[-1][1] == "per_model":
            name = "*"
        stack.append([depth, name])
        value, said = split(key.group(4) or "")
        path = ".".join(part for _, part in stack)
        last = [path, value, " ".join([*lead, said]).strip()]
        lead = []
        found.append(last)
    first = {}
    for path, value, said in found:
        # Of several examples of one list the first that says something.
        had = first.get(path, ("", ""))
        first[path] = (had[0] or value, had[1] or said)
    return [(path, *both) for path, both in first.items()]


def split(text):
    """A value, and the comment behind it."""
    quote = ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (at == 0 or text[at - 1] == " "):
            return text[:at].strip(), text[at + 1:].strip()
    return text.strip(), ""


def cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def page(text):
    parts, section = [HEAD], None
    found = rows(text)
    for path, value, said in found:
        top = re.split(r"[.\[]", path)[0]
        if top != section:
            section = top
            parts.append(f"\n## {top}\n")
            notes = [said] if path == top and said else []
            if top in ASKS:
                notes.append("Asks for `enabled`.")
            if notes:
                parts.append("\n" + cell(" ".join(notes)) + "\n")
            parts.append("\n| key | default | |\n|---|---|---|\n")
        inner = any(other.startswith((path + ".", path + "[]")) for other, *_ in found)
        if path == top and inner:
            continue
        if path in ASKS:
            said = f"{said} Asks for `enabled`.".strip()
        value = "" if inner or not value else f"`{value}`"
        parts.append(f"| `{path}` | {cell(value)} | {cell(said)} |\n")
    return "".join(parts)


def made():
    with open(EXAMPLE, encoding="utf-8") as file:
        return page(file.read())


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    with open(PAGE, "w", encoding="utf-8") as out:
        out.write(made())
