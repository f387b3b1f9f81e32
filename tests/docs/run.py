"""Tests of the documents: what they show is valid, and every command in them is run.

    python3 tests/docs/run.py [NAME...]

Wants built binaries (cargo build --workspace --bins), and what scripts/test installs. What cannot
be tried here is told as `skipped: NAME: reason`, and is not counted as passed.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# What starts programs and waits for them is that of the deployments.
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "deploy"))

import run as runner  # noqa: E402

if __name__ == "__main__":
    runner.main(HERE)
