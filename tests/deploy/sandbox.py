"""Runs a program as a systemd unit, or a container's seccomp profile, would have it run."""

import ctypes
import errno
import functools
import json
import os
import re
import resource
import subprocess

import common


def seccomp():
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        common.missing(f"pyseccomp ({error})")
    return pyseccomp


def allow_only(names, errors=()):
    """A filter under which all other system calls fail: with EPERM, some with another error."""
    lib = seccomp()
    made = lib.SyscallFilter(lib.ERRNO(errno.EPERM))
    rules = [(name, lib.ALLOW) for name in names]
    rules += [(name, lib.ERRNO(error)) for name, error in dict(errors).items()]
    for name, action in rules:
        try:
            made.add_rule(action, name)
        except (ValueError, OSError):
            pass  # A call of another architecture, or newer than the library.
    return made


class Unit:
    """The settings of a unit file, in the order of their lines."""

    def __init__(self, text):
        pairs = re.findall(r"^([A-Za-z]+)=(.*)$", text, re.M)
        self.settings = {}
        for name, value in pairs:
            self.settings.setdefault(name, []).append(value.strip())

    def one(self, name):
        return self.settings[name][-1]

    def calls(self):
        """The names of the system calls that it allows."""
        allowed = set()
        for line in self.settings["SystemCallFilter"]:
            names = set()
            for word in line.lstrip("~").split():
                names |= group(word) if word.startswith("@") else {word}
            allowed = allowed - names if line.startswith("~") else allowed | names
        return allowed


@functools.lru_cache(maxsize=None)
def group(name):
    """All calls of a group of systemd."""
    text = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True,
                          capture_output=True, text=True).stdout
    names = set()
    for word in (line.strip() for line in text.splitlines()[1:]):
        if word.startswith("@"):
            names |= group(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return frozenset(names)


def docker_calls(profile):
    """What a profile of Docker's form allows without capabilities, and which error others give."""
    names, errors = set(), {}
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    for rule in json.loads(profile)["syscalls"]:
        terms = rule.get("includes", {})
        is_ours = arch in terms.get("arches", [arch]) and not terms.get("caps")
        # Rules about arguments (socket families, personality, clone's flags) are not held here.
        if is_ours and rule["action"] == "SCMP_ACT_ALLOW":
            names |= set(rule["names"])
        if is_ours and "errnoRet" in rule:
            errors.update((name, rule["errnoRet"]) for name in rule["names"])
    return names, errors


def confined(root, user, work, files, rules):
    """What a child does before it becomes the program. `rules` is a filter, loaded last."""
    # By the names of the tree, looked up before it is entered.
    with open(os.path.join(root, "etc/passwd"), encoding="utf-8") as passwd:
        entries = {line.split(":")[0]: line.split(":") for line in passwd}
    uid, gid = (int(entries[user][n]) for n in (2, 3)) if user in entries else (user, user)
    libc = ctypes.CDLL(None, use_errno=True)

    def enter():
        if files:
            # A container's own limit may be below, and cannot be raised there.
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            most = files if most == resource.RLIM_INFINITY else min(files, most)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        os.chroot(root)
        os.chdir(work)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.umask(0o077)
        if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
            raise OSError("no_new_privs")
        if rules is not None:
            rules.load()

    return enter


def own(path, root, user, mode):
    """Makes a folder of a tree, as RuntimeDirectory= and its like do."""
    full = os.path.join(root, path.lstrip("/"))
    os.makedirs(full, exist_ok=True)
    with open(os.path.join(root, "etc/passwd"), encoding="utf-8") as passwd:
        entry = next(line.split(":") for line in passwd if line.startswith(f"{user}:"))
    os.chown(full, int(entry[2]), int(entry[3]))
    os.chmod(full, mode)
