"""Debian's nginx and HAProxy: found, or unpacked into the build folder without installing them."""

import glob
import os
import re
import shutil
import subprocess

from process import Failure

PEERS = ("nginx", "haproxy")


class Peers:
    """Where the peers' programs are, and their versions."""

    def __init__(self, folder):
        self.folder = folder
        self.root = os.path.join(folder, "root")
        if any(self.find(name) is None for name in PEERS):
            self.unpack()

    def find(self, name):
        """The program, the system's own if it has one."""
        path = os.environ["PATH"] + ":/usr/sbin"
        unpacked = os.path.join(self.root, "usr/sbin", name)
        return shutil.which(name, path=path) or shutil.which(unpacked)

    def unpack(self):
        """Packages that are installed start their services at once and at every boot; so they
        are only unpacked, with the libraries that are missing here."""
        print("unpacking nginx and haproxy from Debian's packages ...", flush=True)
        debs = os.path.join(self.folder, "debs")
        os.makedirs(os.path.join(debs, "partial"), exist_ok=True)
        download = ["apt-get", "install", "-y", "-qq", "--download-only",
                    "--no-install-recommends", "-o", "Debug::NoLocking=1",
                    "-o", f"Dir::Cache::archives={debs}", *PEERS]
        if subprocess.run(download, capture_output=True).returncode != 0:
            update = ["apt-get", "update", "-qq"]
            subprocess.run(update if os.getuid() == 0 else ["sudo", "-n", *update], check=True)
            subprocess.run(download, check=True, stdout=subprocess.DEVNULL)
        for deb in glob.glob(os.path.join(debs, "*.deb")):
            subprocess.run(["dpkg-deb", "-x", deb, self.root], check=True)
        for name in PEERS:
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
