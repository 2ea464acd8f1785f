"""The demo and the example, as a person starts them: processes of their own, found through the DHT, over sockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MINUTES = 60


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=10 * MINUTES)


@pytest.mark.parametrize("kill_one", [False, True])
def test_the_demo(kill_one: bool) -> None:
    done = run("scripts/demo.py", "--json", *["--kill-one"][: int(kill_one)])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["test_accuracy"] >= 0.95
    assert (result["servers"], result["servers_alive_at_the_end"]) == (2, 1 if kill_one else 2)
    assert result["samples_per_second"] > 0
    assert ("server 1 was killed; training goes on" in done.stderr) == kill_one
    assert "test accuracy" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_with_the_commands_that_it_tells(start_node) -> None:
    text = (ROOT / "examples" / "train_digits.py").read_text()
    _, *servers = re.findall(r"^    hivemind-p2p (.*)$", text, flags=re.MULTILINE)
    assert len(servers) == 2
    peer = start_node("bootstrap", "--host-maddrs", "/ip4/127.0.0.1/tcp/0").address
    for line in servers:
        options = [peer if word == "PEER" else word.strip('"') for word in line.split()]
        start_node(*options, "--host-maddrs", "/ip4/127.0.0.1/tcp/0")
    done = run("examples/train_digits.py", peer)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"accuracy on 360 scans never seen: ([0-9.]+)%", done.stdout)
    assert float(accuracy[1]) >= 95
