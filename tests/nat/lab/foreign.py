"""Peers of other implementations in a lab: hivemind's p2pd, which is go-libp2p."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from multiaddr import Multiaddr

from benchmarks import p2pd
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.wire.peer_id import PeerID
from tests.nat.lab.namespaces import Host
from tests.nat.lab.peer_process import ECHO

_PORT = 4001


class GoPeer:
    """A p2pd on a host of a lab. It serves the echo of the other peers."""

    def __init__(self, daemon: p2pd.P2PD, peer_id: PeerID, host: Host) -> None:
        self._daemon = daemon
        self.peer_id = peer_id.base58
        self.maddr = f"/ip4/{host.ip}/tcp/{_PORT}/p2p/{peer_id}"

    async def connect(self, maddr: str) -> None:
        """Connect to the peer at an address."""
        bare, peer_id = split_peer(Multiaddr(maddr))
        assert peer_id is not None
        await self._daemon.connect(peer_id, bare)

    async def echo(self, peer: str, size: int) -> bool:
        """Whether a peer says back what we say to it."""
        said, heard = os.urandom(size), bytearray()
        stream = await self._daemon.open_stream(PeerID.from_base58(peer), ECHO)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, said)
            while len(heard) < size and (data := await stream.receive_some()):
                heard += data
        return heard == said

    async def circuit(self, seconds: float) -> str:
        """Wait until it has an address at a relay; that."""
        with trio.fail_after(seconds):
            while True:
                for maddr in map(str, await self._daemon.maddrs()):
                    if "/p2p-circuit" in maddr:
                        return f"{maddr.partition('/p2p-circuit')[0]}/p2p-circuit/p2p/{self.peer_id}"
                await trio.sleep(0.05)

    def __repr__(self) -> str:
        return f"<GoPeer at {self.maddr}>"


@asynccontextmanager
async def go_peer(host: Host, *options: str) -> AsyncIterator[GoPeer]:
    """Start one, with options of p2pd; killed at the end."""
    if p2pd.binary() is None:
        pytest.skip("the original hivemind is not here; get it with scripts/setup --interop")
    listen = f"-hostAddrs=/ip4/0.0.0.0/tcp/{_PORT}"
    async with p2pd.running(listen, *options, inside=host.argv([])) as daemon, trio.open_nursery() as nursery:
        peer_id, _ = await daemon.identify()
        await daemon.serve(ECHO, _echo, nursery)
        yield GoPeer(daemon, peer_id, host)
        nursery.cancel_scope.cancel()


async def _echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the daemon closes its end when the stream is reset
