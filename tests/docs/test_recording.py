"""The recording of the README, made anew."""

from recording import Recording  # noqa: F401
