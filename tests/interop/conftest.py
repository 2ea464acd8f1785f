"""The real hivemind 1.1.12 with its p2pd, and js-libp2p, in processes of their own, for all tests of this folder.

``scripts/setup --interop``, which ``scripts/test`` calls, installs them in ``.venv-interop`` and ``js/node_modules``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from multiaddr import Multiaddr

from hivemind_p2p.rpc import RPC
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identify import PING
from hivemind_p2p.transport.identity import Identity
from tests.interop.foreign import ForeignPeer
from tests.interop.js_libp2p import js_peer
from tests.interop.process import hivemind_process


class HivemindPeer(ForeignPeer):
    """The process; what it can be asked to do are the methods of ``Peer`` in ``hivemind_peer.py``."""


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


@pytest.fixture(scope="session")
def js() -> Iterator[ForeignPeer]:
    """A peer of js-libp2p on loopback for all tests."""
    with js_peer(listen=["/ip4/127.0.0.1/tcp/0"]) as peer:
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
