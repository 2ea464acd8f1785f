"""The README's blocks, run as they stand, each in the shell or the Python that it is for."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def block(text: str) -> str:
    """The one block that holds ``text``."""
    [found] = [body for _, body in BLOCKS if text in body]
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120", **more}


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., list[str]]]:
    """Run a block that goes on until it is stopped; what it printed up to the line that says how to stop it."""
    with ExitStack() as stack:

        def start(body: str, **more: str) -> list[str]:
            process = subprocess.Popen(
                ["bash", "-ec", f"exec {body}"],
                cwd=tmp_path,
                env=environment(**more),
                stdout=subprocess.PIPE,
                text=True,
            )
            too_late = threading.Timer(60, process.kill)
            too_late.start()
            stack.enter_context(process)  # closes its pipe and waits
            stack.callback(process.terminate)
            stack.callback(too_late.cancel)
            lines = []
            for line in process.stdout:
                lines.append(line.strip())
                if line.startswith("Ctrl-C"):
                    return lines
            raise AssertionError(f"{body} ended with {process.wait()} after {lines}")

        yield start


def test_a_swarm_of_your_own(serve, tmp_path):
    printed = serve(block("hivemind-p2p bootstrap --identity-path"))
    peer = next(line for line in printed if line.startswith("/ip"))
    assert (tmp_path / "bootstrap.key").exists()
    printed = serve(block("hivemind-p2p server --initial-peers $PEER --expert-uids"), PEER=peer)
    assert "ffn.0.0 ffn.0.1" in printed

    client = [sys.executable, "-c", block("import hivemind_p2p")]
    done = subprocess.run(
        client, cwd=tmp_path, env=environment(PEER=peer), capture_output=True, text=True, timeout=100, check=True
    )
    assert re.fullmatch(r"loss \d+\.\d{4}, gradient \d+\.\d{4}\n", done.stdout)
    assert done.stderr == ""

    ping = ["bash", "-ec", block("hivemind-p2p ping $PEER")]
    done = subprocess.run(
        ping, cwd=tmp_path, env=environment(PEER=peer), capture_output=True, text=True, timeout=100, check=True
    )
    peer_id = peer.rpartition("/")[2]
    assert f"{peer_id} answered in" in done.stdout
    assert f"{peer_id} was reached directly from the beginning" in done.stdout
    assert f"{peer_id} (process " in done.stdout

    doctor = ["bash", "-ec", block("hivemind-p2p doctor")]
    done = subprocess.run(
        doctor, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100, check=True
    )
    assert f"peer id       {peer_id}" in done.stdout


def test_every_block_is_run_somewhere():
    """Here, or by the tests of the demo; Docker needs its engine."""
    here = [
        "bootstrap --identity-path",
        "server --initial-peers",
        "import hivemind_p2p",
        "ping $PEER",
        "hivemind-p2p doctor",
    ]
    elsewhere = ["scripts/demo", "docker build"]
    assert [next((text for text in elsewhere + here if text in body), None) for _, body in BLOCKS] == [
        "scripts/demo",
        *here,
        "docker build",
    ]


def test_the_scripts_it_names_are_there():
    for line in block("scripts/demo").splitlines():
        assert os.access(ROOT / line.split()[0], os.X_OK)
