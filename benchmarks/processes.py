"""Ending the processes of a benchmark: hivemind's fork others, which outlive a parent that is killed alone."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

import psutil


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that descend from it, and wait for it."""
    with suppress(psutil.NoSuchProcess):
        for descendant in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                descendant.kill()
    process.kill()
    process.wait()
