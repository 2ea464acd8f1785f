"""What holds for every test: in CI (``CI=true``) nothing is skipped, except tests that need a GPU; nothing is timed.

And what tests of several folders share: nodes as processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _commands_keep_to_themselves() -> Iterator[None]:
    """Commands that tests run put their sockets among themselves (the path is short, as those of sockets must be), and
    ask nobody in this network for anything."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["HIVEMIND_P2P_CONTROL__DIRECTORY"] = f"{directory}/nodes"
        os.environ["HIVEMIND_P2P_NAT__PORT_MAPPING"] = "false"
        os.environ["HIVEMIND_P2P_NAT__MDNS"] = "false"
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    in_ci = os.environ.get("CI", "").lower() in {"1", "true"}
    if in_ci and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI skips nothing that is not marked gpu: {report.longrepr}"
    return report


@dataclass
class NodeProcess:
    """A ``hivemind-p2p`` process that said that it is ready, and what it said."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return self.ready["addresses"][0]

    def stop(self) -> tuple[int, str, str]:
        """Ask it to stop; its exit status and what else it wrote on stdout and stderr."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def _node_process(*arguments: str) -> Iterator[NodeProcess]:
    command = [sys.executable, "-m", "hivemind_p2p", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        too_late = threading.Timer(120, process.kill)
        too_late.start()
        try:
            line = process.stdout.readline()
            too_late.cancel()
            assert line, f"{arguments} ended with {process.wait()}: {process.stderr.read()}"
            yield NodeProcess(process, json.loads(line))
        finally:
            too_late.cancel()
            process.kill()


@pytest.fixture
def start_node() -> Iterator[Callable[..., NodeProcess]]:
    """``start_node("bootstrap", ...)``: the process, once it is ready; killed at the end of the test."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(_node_process(*arguments))
