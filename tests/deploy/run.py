"""Tests of what is in deploy/: each starts it, or validates it by the tool that will read it.

    python3 tests/deploy/run.py [NAME...]

Wants built binaries (cargo build --workspace --bins), and what scripts/test installs. What a
machine lacks is told as `skipped: NAME: reason`, and is not counted as passed.
"""

import os
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


def own_mounts():
    """File systems that a test mounts are gone with this process, however it ends."""
    if os.geteuid() == 0 and "LLMPROXY_OWN_MOUNTS" not in os.environ:
        os.environ["LLMPROXY_OWN_MOUNTS"] = "1"
        unshare = ["unshare", "--mount", "--propagation", "private"]
        # Where that is not allowed no file system can be mounted either, and the tests say so.
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


class Result(unittest.TextTestResult):
    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"skipped: {test.id()}: {reason}", flush=True)


def main(folder=HERE):
    """Runs the tests of a folder, or those that the command line names."""
    own_mounts()
    sys.path.insert(0, folder)
    loader = unittest.defaultTestLoader
    names = sys.argv[1:]
    suite = loader.loadTestsFromNames(names) if names else loader.discover(folder, "test_*.py")
    result = unittest.TextTestRunner(resultclass=Result, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or not result.wasSuccessful() else 0)


if __name__ == "__main__":
    main()
