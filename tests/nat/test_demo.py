"""The README's demo with every machine but the bootstrap peer's behind a NAT of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.usefixtures("_labs_are_possible")
def test_training_behind_three_nats_goes_on_without_the_only_relay() -> None:
    command = [sys.executable, "scripts/demo.py", "--behind-nat", "--kill-relay", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["networks"] == ["behind a port-restricted NAT", "behind a cgnat NAT"]
    assert result["paths"] == ["direct", "direct"]
    assert result["test_accuracy"] >= 0.95
    assert "was killed; training goes on" in done.stderr
    assert "Traceback" not in done.stderr
