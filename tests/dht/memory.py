"""Peers in plain memory: the part of ``Network`` and ``RPC`` that the DHT uses, with latency and death."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import SimpleNamespace

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import DeadlineExceeded, DialError, HivemindError, ProtocolNotSupported, RemoteError
from hivemind_p2p.transport.addresses import split_peer
from hivemind_p2p.wire.peer_id import PeerID

LATENCY = 0.01


class MemoryPeer:
    """A network of one peer: it reaches those whose address it knows, and those who reached it."""

    def __init__(self, listening: dict[Multiaddr, MemoryRPC], number: int) -> None:
        self.listening = listening
        self.peer_id = PeerID(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))
        self.maddr = Multiaddr(f"/ip4/10.0.{number // 256}.{number % 256}/tcp/1")
        self.book: dict[PeerID, list[Multiaddr]] = {}
        self.connected: dict[PeerID, MemoryRPC] = {}
        self.dead = False
        self.resolver = None

    @property
    def visible_maddrs(self) -> list[Multiaddr]:
        return [self.maddr.encapsulate(Multiaddr(f"/p2p/{self.peer_id.base58}"))]

    def add_addresses(self, peer_id: PeerID, maddrs: Iterable[Multiaddr]) -> None:
        known = self.book.setdefault(peer_id, [])
        known += [maddr for maddr in maddrs if maddr not in known]

    def addresses(self, peer_id: PeerID) -> list[Multiaddr]:
        return list(self.book.get(peer_id, ()))

    def set_peer_resolver(self, resolver) -> None:
        self.resolver = resolver

    def set_stream_handler(self, protocol, handler) -> None:
        """Peers here speak calls only."""

    def connections(self, peer_id) -> list[MemoryRPC]:
        return [self.connected[peer_id]] if peer_id in self.connected else []

    async def open_stream(self, peer_id, protocol):
        raise ProtocolNotSupported(f"{peer_id} does not speak {protocol}")

    async def connect(self, maddr: Multiaddr) -> PeerID:
        bare, peer_id = split_peer(maddr)
        self.add_addresses(peer_id, [bare])
        await self.dial(peer_id, [bare])
        return peer_id

    async def dial(self, peer_id: PeerID, maddrs: list[Multiaddr]) -> MemoryRPC:
        for maddr in maddrs:
            await trio.sleep(LATENCY)
            other = self.listening.get(maddr)
            if other is None or other.network.peer_id != peer_id:
                continue
            if other.network.dead:
                await trio.sleep_forever()
            self.connected[peer_id] = other
            other.network.connected[self.peer_id] = self.listening[self.maddr]
            return other
        raise DialError(f"cannot reach {peer_id}: none of its addresses answers", peer_id=peer_id.base58)

    async def reach(self, peer_id: PeerID) -> MemoryRPC:
        if peer_id in self.connected:
            return self.connected[peer_id]
        try:
            return await self.dial(peer_id, self.addresses(peer_id))
        except DialError:
            if self.resolver is None:
                raise
            return await self.dial(peer_id, list(await self.resolver(peer_id)))


class MemoryRPC:
    """Calls between peers of one ``listening``; messages are serialized on the way. ``calls`` notes every call made."""

    def __init__(self, listening: dict[Multiaddr, MemoryRPC], calls: list, number: itertools.count) -> None:
        self.network = MemoryPeer(listening, next(number))
        self.calls = calls
        self.handlers = {}
        listening[self.network.maddr] = self

    def register(self, method, request_type, handler) -> None:
        self.handlers[method] = handler

    def unregister(self, method) -> None:
        del self.handlers[method]

    async def call(self, peer_id, method, request, response_type, *, timeout=None):
        self.calls.append((method.rpartition("_")[2], peer_id, request))
        with trio.move_on_after(timeout):
            other = await self.network.reach(peer_id)
            await trio.sleep(LATENCY)
            if other.network.dead:
                await trio.sleep_forever()
            if method not in other.handlers:
                raise ProtocolNotSupported(f"{peer_id} does not speak {method}")
            received = type(request).FromString(request.SerializeToString())
            context = SimpleNamespace(peer_id=self.network.peer_id, remote_maddr=None, method=method)
            try:
                response = await other.handlers[method](received, context)
            except HivemindError as error:
                raise RemoteError(str(error), remote_text=str(error)) from None
            await trio.sleep(LATENCY)
            return response_type.FromString(response.SerializeToString())
        raise DeadlineExceeded(f"no answer from {peer_id} within {timeout} s")
