"""The real hivemind 1.1.12 and its p2pd, in a process of its own, for all tests of this folder.

It lives in ``.venv-interop``, which ``scripts/setup --interop`` makes and ``scripts/test`` calls.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr

from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identify import PING
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.peer_id import PeerID
from tests.interop.process import hivemind_process


class HivemindPeer:
    """The process, and what it is asked to do (the methods of ``Peer`` in ``hivemind_peer.py``)."""

    def __init__(self, process: subprocess.Popen[str], line: str) -> None:
        self._process = process
        ready = json.loads(line)
        self.peer_id = PeerID.from_base58(ready["peer_id"])
        self.maddr = Multiaddr(ready["maddrs"][0])
        self._numbers = itertools.count()
        self._answers: dict[int, Future[Any]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    async def do(self, command: str, **arguments) -> Any:
        """Run a command there; its result. Raises RuntimeError with what went wrong there."""
        number, answer = next(self._numbers), Future()
        self._answers[number] = answer
        self._process.stdin.write(json.dumps({"id": number, "do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return await trio.to_thread.run_sync(answer.result, 60, abandon_on_cancel=True)

    def _read(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._answers.pop(answer["id"])
            if "error" in answer:
                future.set_exception(RuntimeError(answer["error"]))
            else:
                future.set_result(answer["result"])


@contextmanager
def hivemind_peer() -> Iterator[HivemindPeer]:
    """A process of its own; ends with the block."""
    with hivemind_process("hivemind_peer.py") as (process, ready):
        yield HivemindPeer(process, ready)


@pytest.fixture(scope="session")
def hivemind() -> Iterator[HivemindPeer]:
    """One peer for all tests; what a test changes there, it changes back."""
    with hivemind_peer() as peer:
        yield peer


@pytest.fixture(scope="session")
def hivemind_too() -> Iterator[HivemindPeer]:
    """Another one, which knows nothing of the first."""
    with hivemind_peer() as peer:
        yield peer


@pytest.fixture
async def rpc(hivemind: HivemindPeer) -> AsyncIterator[RPC]:
    """A peer of ours with real sockets, connected to hivemind's."""
    async with (
        Host(Identity.generate(), host_maddrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]) as host,
        RPC(host) as rpc,
    ):
        await host.connect(hivemind.maddr)
        # It knows of the connection a moment later than we do: once it answers on it, it does.
        async with await host.open_stream(hivemind.peer_id, PING) as stream:
            await stream.send_all(bytes(32))
            await stream.read_exactly(32)
        yield rpc
