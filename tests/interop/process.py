"""Programs in the Python of ``.venv-interop``, where the real hivemind lives.

hivemind forks while its threads run. A lock that one of them holds at that moment stays locked in the child for ever:
now and then a process of hivemind's never gets ready. So it is given a time to do so, and other tries.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / ".venv-interop/bin/python"
FOLDER = Path(__file__).parent
READY_WITHIN = 90.0
TRIES = 4


@contextmanager
def hivemind_process(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the line that it wrote when it was ready; ends with the block, and all that it has forked too.

    What hivemind logs goes to stderr, which is the test run's own, and is shown with a failure.
    """
    if not PYTHON.exists():
        pytest.skip("the original hivemind is not here; get it with scripts/setup --interop")
    for _ in range(TRIES):
        process = subprocess.Popen(
            [PYTHON, FOLDER / program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        with process:
            ready = ""
            try:
                ready = _first_line(process)
                if ready:
                    yield process, ready
                    return
            finally:
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20 if ready else 0)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(f"{program} did not get ready in {TRIES} tries of {READY_WITHIN:g} s; its stderr may say why")


def _first_line(process: subprocess.Popen[str]) -> str:
    """Empty when it ended before it wrote one, or took too long and was killed."""
    too_late = threading.Timer(READY_WITHIN, os.killpg, [process.pid, signal.SIGKILL])
    too_late.start()
    try:
        return process.stdout.readline()
    finally:
        too_late.cancel()
