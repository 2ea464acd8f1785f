"""The golden bytes in ``tests/wire/vectors.json`` are what the real hivemind writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.interop.process import FOLDER, PYTHON

VECTORS = Path(__file__).parents[1] / "wire/vectors.json"


def test_hivemind_makes_the_same_bytes():
    if not PYTHON.exists():
        pytest.skip("the original hivemind is not here; get it with scripts/setup --interop")
    written = subprocess.run(
        [PYTHON, FOLDER / "hivemind_vectors.py"],
        input=VECTORS.read_text(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(written.stdout) == json.loads(VECTORS.read_text())
