"""Debian's nginx, HAProxy and Redis: found, or unpacked into the build folder without installing them."""

import glob
import os
import re
import shutil
import subprocess

from process import Failure

PEERS = ("nginx", "haproxy")
# Not a peer: what one of our reporters writes to. Debian has the server's program in the package of
# the tools too, under another name.
REDIS, REDIS_PACKAGE, REDIS_BESIDE = "redis-server", "redis-tools", "redis-check-rdb"


class Peers:
    """Where the peers' programs are, and their versions."""

    def __init__(self, folder):
        self.folder = folder
        self.root = os.path.join(folder, "root")
        if any(self.find(name) is None for name in (*PEERS, REDIS)):
            self.unpack()

    def find(self, name):
        """The program, the system's own if it has one."""
        path = os.environ["PATH"] + ":/usr/sbin"
        unpacked = [os.path.join(self.root, "usr", folder, name) for folder in ("sbin", "bin")]
        found = map(shutil.which, unpacked)
        return shutil.which(name, path=path) or next(filter(None, found), None)

    def unpack(self):
        """Packages that are installed start their services at once and at every boot; so they
        are only unpacked, with the libraries that are missing here."""
        print("unpacking nginx, haproxy and redis from Debian's packages ...", flush=True)
        debs = os.path.join(self.folder, "debs")
        os.makedirs(os.path.join(debs, "partial"), exist_ok=True)
        download = ["apt-get", "install", "-y", "-qq", "--download-only",
                    "--no-install-recommends", "-o", "Debug::NoLocking=1",
                    "-o", f"Dir::Cache::archives={debs}", *PEERS,
                    REDIS_PACKAGE]
        if subprocess.run(download, capture_output=True).returncode != 0:
            update = ["apt-get", "update", "-qq"]
            subprocess.run(update if os.getuid() == 0 else ["sudo", "-n", *update], check=True)
            subprocess.run(download, check=True, stdout=subprocess.DEVNULL)
        for deb in glob.glob(os.path.join(debs, "*.deb")):
            subprocess.run(["dpkg-deb", "-x", deb, self.root], check=True)
        if self.find(REDIS) is None and (beside := self.find(REDIS_BESIDE)):
            # The program does what its name says.
            os.makedirs(os.path.join(self.root, "usr/bin"), exist_ok=True)
            os.symlink(beside, os.path.join(self.root, "usr/bin", REDIS))
        for name in (*PEERS, REDIS):
            if self.find(name) is None:
                raise Failure(f"Debian's packages did not bring {name}")

    def environment(self):
        """Makes the unpacked libraries visible, after the system's own."""
        libraries = glob.glob(os.path.join(self.root, "usr/lib/*-linux-gnu*"))
        return {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}

    def versions(self):
        found = {}
        for name in PEERS:
            told = subprocess.run([self.find(name), "-v"], capture_output=True, text=True,
                                  env={**os.environ, **self.environment()})
            match = re.search(r"[0-9]+\.[0-9.]+[0-9]", told.stdout + told.stderr)
            found[name] = match.group() if match else "unknown"
        return found
