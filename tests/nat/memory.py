"""Hosts in memory with everything that reaches them, under a virtual clock: relays without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import NATSettings, RelaySettings
from hivemind_p2p.errors import StreamError
from hivemind_p2p.nat import NAT
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.memory import MemoryWire
from tests.transport.hosts import ECHO, echo


class Peer:
    """A host and its ``NAT``, and a switch to turn both off."""

    def __init__(self, host: Host, nat: NAT, ip: str) -> None:
        self.host, self.nat, self.ip = host, nat, ip
        self.peer_id = host.peer_id
        self.scope = trio.CancelScope()
        self.gone = trio.Event()

    @property
    def maddrs(self) -> list[Multiaddr]:
        return list(self.host.visible_maddrs)

    @property
    def circuits(self) -> list[Multiaddr]:
        """The circuit addresses that it announces."""
        return [maddr for maddr in self.maddrs if "p2p-circuit" in str(maddr)]

    async def turn_off(self) -> None:
        self.scope.cancel()
        await self.gone.wait()


class Swarm:
    """Peers on one wire; ``hidden`` ones are reached by no dial."""

    def __init__(self, wire: MemoryWire, nursery: trio.Nursery) -> None:
        self.wire = wire
        self._nursery = nursery
        self._count = 0

    async def start(
        self,
        initial_peers: Iterable[Peer] = (),
        *,
        hidden: bool = False,
        nat: NATSettings | None = None,
        relay: RelaySettings | None = None,
        **options: Any,
    ) -> Peer:
        self._count += 1
        ip = f"44.0.0.{self._count}"
        if hidden:
            self.wire.silent.add(ip)
        known = [maddr for peer in initial_peers for maddr in peer.maddrs]
        return await self._nursery.start(self._run, ip, known, nat, relay, options)

    async def _run(self, ip, known, nat_settings, relay_settings, options, *, task_status):
        host = Host(
            options.pop("identity", None) or Identity.generate(),
            host_maddrs=[Multiaddr(f"/ip4/{ip}/tcp/4001")],
            transport=self.wire.transport(ip),
            **options,
        )
        nat = NAT(host, nat_settings, relay_settings, initial_peers=known)
        peer = Peer(host, nat, ip)
        with peer.scope:
            async with host, nat:
                host.set_stream_handler(ECHO, echo)
                await nat.prepare(30)
                task_status.started(peer)
                await trio.sleep_forever()
        peer.gone.set()


@asynccontextmanager
async def swarm(latency: float = 0.01) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield Swarm(MemoryWire(latency=latency), nursery)
        nursery.cancel_scope.cancel()


async def call(source: Peer, target: Peer, data: bytes = b"ping") -> Any:
    """Send bytes and get them back over a new stream; the connection that carried them."""
    async with await source.host.open_stream(target.peer_id, ECHO) as stream:
        failures: list[StreamError] = []

        async def send() -> None:
            try:
                await stream.send_all(data)
                await stream.send_eof()
            except StreamError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = bytearray()
            try:
                while len(received) < len(data) and (part := await stream.receive_some()):
                    received += part
            except StreamError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        assert received == data
        return stream.connection
