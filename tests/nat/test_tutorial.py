"""``docs/tutorial.md``, run as it stands: each block on its machine, one public and two behind NATs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nat.lab.lab import Lab
from tests.nat.lab.namespaces import Host

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def block(text: str) -> str:
    """The one block that holds ``text``."""
    [found] = [body for body in BLOCKS if text in body]
    return found


class Machine:
    """One of the three: its network, its home directory, and what runs there."""

    def __init__(self, host: Host, home: Path, sockets: str, stack: ExitStack) -> None:
        self.host, self.home, self._stack = host, home, stack
        self.home.mkdir()
        (self.home / "examples").symlink_to(ROOT / "examples")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "120",
            "OMP_NUM_THREADS": "1",
            "HIVEMIND_P2P_CONTROL__DIRECTORY": f"{sockets}/{home.name}",
        }

    def run(self, body: str, timeout: float = 120) -> str:
        """Run a block to its end; what it printed."""
        done = self.host.run(
            ["bash", "-ec", body], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
        assert done.stderr == ""
        return done.stdout

    def serve(self, body: str) -> tuple[subprocess.Popen[str], list[str]]:
        """Run a block that goes on until it is stopped, and what it printed up to the line that says how."""
        process = self.host.popen(
            ["bash", "-ec", f"exec {body}"], cwd=self.home, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        too_late = threading.Timer(90, process.kill)
        too_late.start()
        self._stack.enter_context(process)  # closes its pipe and waits
        self._stack.callback(process.kill)
        self._stack.callback(too_late.cancel)
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                too_late.cancel()
                return process, lines
        raise AssertionError(f"{body} ended with {process.wait()} after {lines}")


@pytest.fixture
def machines(lab: Lab, tmp_path: Path) -> Iterator[tuple[Machine, Machine, Machine]]:
    hosts = lab.public("public"), lab.site("lab", "port-restricted").host, lab.site("laptop", "restricted").host
    names = "public", "lab", "laptop"
    with tempfile.TemporaryDirectory() as sockets, ExitStack() as stack:
        public, inside, laptop = (
            Machine(host, tmp_path / name, sockets, stack) for host, name in zip(hosts, names, strict=True)
        )
        yield public, inside, laptop


def test_three_machines_train_one_model(machines: tuple[Machine, Machine, Machine]) -> None:
    public, lab, laptop = machines
    _, printed = public.serve(block("hivemind-p2p bootstrap"))
    peer = next(line for line in printed if line.startswith("/ip4/44."))
    assert re.sub(r"44\.[.0-9]+", "203.0.113.7", peer.partition("/p2p/")[0]) in block("export PEER=")
    for machine in (lab, laptop):
        machine.environment["PEER"] = peer
    server, printed = lab.serve(block("--checkpoint-dir"))
    assert any("digits.0.0" in line and "digits.3.3" in line for line in printed)
    lab_id = next(word for line in printed if line.startswith("Server") for word in line.split() if "12D3" in word)
    assert "a NAT with one port outside for all" in lab.run(block("doctor"))
    assert lab_id in laptop.run(block("dht get"))

    training = laptop.host.popen(
        ["bash", "-ec", block("train_digits")],
        cwd=laptop.home,
        env=laptop.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with training:
        said = [next(training.stdout)]
        while "2 peers, 2 directly" not in (seen := lab.run(block("hivemind-p2p peers"))):
            assert training.poll() is None, seen
        said += training.stdout
    accuracy = re.fullmatch(r"accuracy on 360 scans never seen: ([0-9.]+)%\n", said[-1])[1]
    assert float(accuracy) > 90

    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=30) == 0
    saved = lab.run(block("ls experts")).split()
    assert saved
    assert all(re.fullmatch(r"checkpoint_[0-9]{8}\.safetensors", name) for name in saved)
    server, _ = lab.serve(block("--checkpoint-dir"))
    public.environment["PEER"] = peer
    public.serve(block("--replicate"))
    server.kill()
    said = laptop.run(block("inference.py"))
    assert "digits.0.0 at " in said
    assert "digits.3.3 at " in said
    assert "nobody serves it" not in said


def test_every_block_is_run() -> None:
    run = [
        "bootstrap", "export PEER", "--checkpoint-dir", "doctor", "dht get", "train_digits", "hivemind-p2p peers",
        "ls experts", "--replicate", "inference.py",
    ]  # fmt: skip
    assert [next(text for text in run if text in body) for body in BLOCKS] == run
