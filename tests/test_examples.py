"""Every example runs as its docstring says; the notebook cell by cell, in a running event loop as in Jupyter."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPBACK = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0")
IN_A_LOOP = """
import asyncio, json, sys

async def main():
    names = {"__name__": "__main__"}
    for cell in json.load(open(sys.argv[1]))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)

asyncio.run(main())
"""


def run(*command: str) -> str:
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(example: str) -> list[list[str]]:
    """Those of ``hivemind-p2p`` that its docstring tells."""
    text = (EXAMPLES / example).read_text()
    return [shlex.split(line) for line in re.findall(r"^    hivemind-p2p (.*)$", text, flags=re.MULTILINE)]


def test_characters_are_learned_and_the_loss_is_drawn(start_node, tmp_path) -> None:
    bootstrap, *servers = commands("train_chars.py")
    peer = start_node(*bootstrap, *LOOPBACK).address
    for line in servers:
        start_node(*[peer if word == "PEER" else word for word in line], *LOOPBACK)
    plot = tmp_path / "loss.png"
    said = run("examples/train_chars.py", peer, "--steps", "21", "--batch-size", "6", "--plot", str(plot))
    losses = [float(loss) for loss in re.findall(r"step [0-9]+: loss ([0-9.]+)", said)]
    assert len(losses) == 3
    assert losses[-1] < min(3.9, losses[0] - 0.5), "guessing gives 4.6"
    assert re.search(r"loss on text never seen: [23]\.", said)
    assert "\nThe " in said
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_expert_of_ones_own_is_hosted_and_asked(start_node) -> None:
    [line] = commands("custom_expert.py")
    peer = start_node(*line, *LOOPBACK)
    said = run("examples/inference.py", peer.address, "gated.0", "gated.7")
    assert re.search(r"gated\.0 at \w+: 2 inputs, output \(32, 64\)", said)
    assert "gated.7: nobody serves it" in said
    assert "answered=21" in said


@pytest.mark.parametrize("notebook", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_notebooks_run_and_are_kept_without_outputs(notebook: str) -> None:
    path = EXAMPLES / notebook
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    said = run("-c", IN_A_LOOP, str(path))
    first, last = map(float, re.search(r"loss ([0-9.]+) -> ([0-9.]+)", said).groups())
    assert last < first / 2
    assert "ClientStats(calls=" in said
