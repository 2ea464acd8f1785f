"""The process of one node in a lab: enters its namespace, starts a ``Node``, and does what it is told."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import Settings
from hivemind_p2p.config_sources import load_settings
from hivemind_p2p.dht import get_dht_time
from hivemind_p2p.errors import HivemindError
from hivemind_p2p.nat import NAT, local_peers
from hivemind_p2p.nat.diagnosis import health_as_json
from hivemind_p2p.node import DEFAULT_HOST_MADDRS, Node
from hivemind_p2p.transport.api import Connection, Stream
from hivemind_p2p.transport.host import Host
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.wire.peer_id import PeerID
from tests.nat.lab.namespaces import enter

ECHO = "/test/echo/1.0.0"
SINK = "/test/sink/1.0.0"
_CHUNK = 1 << 20


def main(pipe: Pipe, ns: str, options: dict[str, Any]) -> None:
    enter(ns)
    if os.environ.get("LAB_LOG"):
        import logging

        logging.basicConfig(level=logging.WARNING, format=f"%(relativeCreated)d {ns} %(name)s: %(message)s")
        logging.getLogger("hivemind_p2p").setLevel(os.environ["LAB_LOG"])
    trio.run(_serve, pipe, options)


async def _serve(pipe: Pipe, options: dict[str, Any]) -> None:
    # Routers are asked for a port only where a test is about that.
    local_peers._LOOK_AROUND = options.pop("look_around", local_peers._LOOK_AROUND)
    settings = load_settings({"nat.port_mapping": False, **options.pop("settings", {})}, environ={})
    try:
        async with (Node if options.pop("dht", True) else _bare)(settings=settings, **options) as node:
            node.set_stream_handler(ECHO, _echo)
            node.set_stream_handler(SINK, _sink)
            maddrs = [str(maddr) for maddr in node.visible_maddrs]
            pipe.send((False, {"peer_id": node.peer_id.base58, "maddrs": maddrs}))
            commands = Commands(node)
            while True:
                try:
                    command, args = await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True)
                except EOFError:
                    return
                try:
                    pipe.send((False, await getattr(commands, command)(*args)))
                except (HivemindError, trio.TooSlowError) as error:
                    pipe.send((True, f"{command}{args}: {type(error).__name__}: {error}"))
    except HivemindError as error:
        pipe.send((True, f"{type(error).__name__}: {error}"))


@asynccontextmanager
async def _bare(
    settings: Settings,
    host_maddrs: Sequence[str] = DEFAULT_HOST_MADDRS,
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
) -> AsyncIterator[Any]:
    """A host and what reaches it, as in a ``Node``, without calls and DHT."""
    relays = [Multiaddr(maddr) for maddr in initial_peers]
    identity = Identity.generate()
    async with (
        Host(
            identity,
            host_maddrs=[Multiaddr(maddr) for maddr in host_maddrs],
            announce_maddrs=[Multiaddr(maddr) for maddr in announce_maddrs],
            settings=settings.transport,
        ) as host,
        NAT(host, settings.nat, settings.relay, initial_peers=relays) as nat,
    ):
        await nat.prepare(10)
        host.nat = nat
        yield host


class Commands:
    """What a test may ask of a node."""

    def __init__(self, node: Any) -> None:
        self.node = node

    async def connect(self, maddr: str) -> float:
        """Connect and call once; seconds that it took."""
        began = time.perf_counter()
        peer_id = await self.node.connect(Multiaddr(maddr))
        await self.call(peer_id.base58)
        return time.perf_counter() - began

    async def call(self, peer: str, size: int = 100) -> str:
        """Send bytes and get them back over a new stream; the path that it took."""
        data = os.urandom(size)
        with trio.fail_after(20):
            stream = await self.node.open_stream(PeerID.from_base58(peer), ECHO)
            async with stream:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, data)  # no end of it: a p2pd ends both directions when one has
                    assert await stream.read_exactly(size) == data
                return _path(stream.connection)

    async def until_direct(self, maddr: str, seconds: float) -> tuple[float, float | None]:
        """Connect; seconds until a first call was answered, and until the peer was connected directly (None: not)."""
        began = time.perf_counter()
        reached = await self.connect(maddr)
        peer_id = PeerID.from_base58(maddr.rpartition("/")[2])
        with trio.move_on_after(seconds):
            while True:
                if any(each.relay is None for each in self.node.connections(peer_id)):
                    return reached, time.perf_counter() - began
                await trio.sleep(0.005)
        return reached, None

    async def paths(self, peer: str) -> list[str]:
        """How we are connected to a peer, the connection in use first."""
        return [_path(each) for each in self.node.connections(PeerID.from_base58(peer))]

    async def limit(self, peer: str) -> tuple[float, float] | None:
        """What the relay puts up with on the connection to a peer: seconds and bytes."""
        [connection] = self.node.connections(PeerID.from_base58(peer))
        return None if connection.limit is None else (connection.limit.seconds, connection.limit.size)

    async def until_it_speaks(self, peer: str, protocol: str, seconds: float) -> None:
        """Wait until a peer that is connected, or will be, says that it serves a protocol."""
        with trio.fail_after(seconds):
            while True:
                said = [each.description for each in self.node.connections(PeerID.from_base58(peer))]
                if any(each is not None and protocol in each.protocols for each in said):
                    return
                await trio.sleep(0.02)

    async def visible(self) -> list[str]:
        return [str(maddr) for maddr in self.node.visible_maddrs]

    async def relays(self) -> list[str]:
        return [relay.base58 for relay in self.node.nat.relays]

    async def listening(self) -> list[str]:
        return [str(maddr) for maddr in self.node.listen_maddrs]

    async def serves(self) -> bool:
        """Whether the node is a relay."""
        return bool(self.node.nat.service.serving)

    async def until_reachability_is_known(self, seconds: float) -> list[str]:
        """Wait until a peer has tried to dial us back; where we are reached."""
        with trio.fail_after(seconds):
            while True:
                if self.node.nat.autonat.reachability.maddrs(trio.current_time()):
                    return [str(maddr) for maddr in self.node.nat.reachable_maddrs]
                await trio.sleep(0.02)

    async def until_tried(self, maddr: str, seconds: float) -> list[tuple[str, bool, int]]:
        """Wait until a peer has tried an address of ours; who, whether it got in, by which version of AutoNAT."""
        with trio.fail_after(seconds):
            while True:
                evidence = self.node.nat.autonat.reachability.evidence(Multiaddr(maddr), trio.current_time())
                if evidence:
                    return [(each.observer.base58, each.reached, each.version) for each in evidence]
                await trio.sleep(0.02)

    async def until_moved(self, seconds: float) -> int:
        """Wait until the node has noticed that its network changed; how often it did."""
        with trio.fail_after(seconds):
            while True:
                if changes := self.node.nat.roaming.changes:
                    return int(changes)
                await trio.sleep(0.02)

    async def health(self, peers: int = 1) -> dict[str, Any]:
        """What ``hivemind-p2p doctor`` says, once so many peers have said where they see us, a peer has tried to dial
        back, and as many relays serve us, if we need any."""
        nat = self.node.nat
        with trio.fail_after(50):
            await nat.autonat.tried.wait()
            while True:
                seen = len(nat.observed.observations(trio.current_time()))
                if seen >= peers and len(nat.relays) >= min(peers, nat.keeper.wanted):
                    break
                await trio.sleep(0.02)
        return health_as_json(*await self.node.diagnose())

    async def until_connected(self, peer: str, seconds: float) -> str:
        """Wait until we are connected to a peer; how."""
        with trio.fail_after(seconds):
            while True:
                if connections := self.node.connections(PeerID.from_base58(peer)):
                    return _path(connections[0])
                await trio.sleep(0.02)

    async def put(self, key: str, value: str) -> bool:
        """Store in the DHT, with others."""
        return bool(await self.node.dht.store(key, value, get_dht_time() + 300, exclude_self=True))

    async def get(self, key: str) -> str | None:
        """Look up in the DHT."""
        found = await self.node.dht.get(key, latest=True)
        return found.value if found is not None else None

    async def until_mapped(self, seconds: float) -> tuple[str, list[str]]:
        """Wait until a router forwards our port and a peer got in there; what is said of it, and where that is."""
        nat = self.node.nat
        with trio.fail_after(seconds):
            while True:
                if nat.mapping.held is not None and nat.mapping.held.maddr in nat.reachable_maddrs:
                    return nat.mapping.state, [str(maddr) for maddr in nat.reachable_maddrs]
                await trio.sleep(0.02)

    async def until_router_answered(self, seconds: float) -> str:
        """Wait until it is known what becomes of asking the router for a port; what is said of it."""
        with trio.fail_after(seconds):
            while True:
                if self.node.nat.mapping.state:
                    return str(self.node.nat.mapping.state)
                await trio.sleep(0.02)

    async def sources(self, peer: str) -> list[str]:
        """Where the direct connections that a peer dialled come from."""
        found = self.node.connections(PeerID.from_base58(peer))
        connections = [each for each in found if each.relay is None and not each.outbound]
        return [str(each.remote_maddr) for each in connections]

    async def call_until(self, peer: str, path: str, seconds: float) -> float:
        """Call again and again until a call takes a path that begins like this; seconds that it took."""
        began = time.perf_counter()
        last: object = "nothing tried"
        with trio.move_on_after(seconds):
            while True:
                try:
                    with trio.fail_after(3):
                        last = await self.call(peer)
                    if str(last).startswith(path):
                        return time.perf_counter() - began
                except (HivemindError, trio.TooSlowError, ExceptionGroup) as error:
                    last = error
                await trio.sleep(0.1)
        raise HivemindError(f"no call was {path} within {seconds:g} s: {last}")

    async def close(self, peer: str) -> None:
        """Close all connections to a peer, as one does that ends well."""
        for connection in self.node.connections(PeerID.from_base58(peer)):
            await connection.aclose()

    async def hold(self, peer: str) -> str:
        """Begin a call that is never answered to its end; how it failed."""
        stream = await self.node.open_stream(PeerID.from_base58(peer), ECHO)
        try:
            await stream.send_all(b"?")
            await stream.read_exactly(2)
        except HivemindError as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError("nobody sent a second byte")

    async def forward(self, uid: str, seconds: float) -> str:
        """Have an expert of 8 inputs compute, again and again until it does; the path to it."""
        import torch

        from hivemind_p2p.client.calls import call_expert, fetch_schema
        from hivemind_p2p.client.lookup import find_experts

        last: object = "nobody serves it"
        inputs = torch.ones(1, 8)
        with trio.move_on_after(seconds):
            while True:
                try:
                    [expert] = await find_experts(self.node.dht, [uid], latest=True)
                    if expert is not None:
                        schema = await fetch_schema(self.node.rpc, expert, 3)
                        answer = await call_expert(self.node.rpc, expert, "forward", schema, [inputs], 3)
                        assert torch.equal(answer.tensors[0], inputs)
                        return _path(self.node.connections(expert.peer_id)[0])
                except HivemindError as error:
                    last = error
                await trio.sleep(0.1)
        raise HivemindError(f"{uid} did not compute within {seconds:g} s: {last}")

    async def send(self, peer: str, size: int, patience: float = math.inf) -> tuple[float, str]:
        """Send bytes to the peer's sink; seconds until it had them all, and the path.

        Args:
            patience: seconds for finding a path that carries so much.
        """
        chunk = memoryview(os.urandom(min(size, _CHUNK)))
        with trio.fail_after(patience):
            stream = await self.node.open_stream(PeerID.from_base58(peer), SINK, carries=size)
        async with stream:
            began = time.perf_counter()
            for start in range(0, size, _CHUNK):
                await stream.send_all(chunk[: size - start])
            await stream.send_eof()
            assert int(await stream.read_exactly(16)) == size
            return time.perf_counter() - began, _path(stream.connection)


async def _echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _sink(stream: Stream) -> None:
    size = 0
    while data := await stream.receive_some():
        size += len(data)
    await stream.send_all(b"%016d" % size)


def _path(connection: Connection | None) -> str:
    if connection is None:
        return "unknown"
    return "direct" if connection.relay is None else f"relayed by {connection.relay.base58}"
