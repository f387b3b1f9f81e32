"""The documents, taken apart: their blocks of text, and the commands in these."""

import glob
import os
import re

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def all_pages():
    """Name -> text of each document."""
    names = ["README.md", *glob.glob("docs/*.md", root_dir=REPO)]
    found = {}
    for name in sorted(names):
        with open(os.path.join(REPO, name), encoding="utf-8") as file:
            found[name] = file.read()
    return found


class Block:
    """One block of a page.

    language: as the fence says; `` of one that is indented.
    note: what the comment says that stands right before it (`<!-- below: auth.pipeline -->`).
    """

    def __init__(self, page, line, language, note, text, fenced=True):
        self.page, self.line, self.language = page, line, language
        self.note, self.text, self.fenced = note, text, fenced

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page, text):
    """All blocks of a page, in their order."""
    found, note, lines = [], "", text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at]
        said = re.fullmatch(r"<!-- (.*) -->", line)
        if said:
            note = said.group(1)
        elif fence := re.fullmatch(r"( *)```(\w*)", line):
            end = at + 1
            while lines[end].strip() != "```":
                end += 1
            inside = [row[len(fence.group(1)):] for row in lines[at + 1:end]]
            found.append(Block(page, at + 1, fence.group(2), note, "\n".join(inside) + "\n"))
            at, note = end, ""
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            inside = "\n".join(row[4:] for row in lines[at:end]).rstrip() + "\n"
            found.append(Block(page, at + 1, "", note, inside, False))
            at, note = end - 1, ""
        elif line.strip():
            note = ""
        at += 1
    return found


def commands(block):
    """The commands of a block of shell: lines that go on (`\\`, an open quote) are one."""
    found, command = [], ""
    for line in block.text.split("\n"):
        if not command and (not line.strip() or line.lstrip().startswith("#")):
            continue
        command += line
        if line.endswith("\\") or _is_open(command):
            command += "\n"
            continue
        found.append(command)
        command = ""
    return found


def _is_open(text):
    quote = ""
    escaped = False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char == "#" and (at == 0 or text[at - 1].isspace()):
            return False
        elif char in "'\"":
            quote = char
    return bool(quote)
