"""Connections in memory: two ends, the streams on them, and how they come to know that the other end is gone."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, StreamReset
from hivemind_p2p.testing.stream import Mark, MemoryStream
from hivemind_p2p.testing.world import World
from hivemind_p2p.transport.api import Stream, StreamHandler, Traffic
from hivemind_p2p.transport.connection import run_handler
from hivemind_p2p.transport.registry import KeptConnection
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)


class MemoryConnection(KeptConnection):
    """One end of a connection; :meth:`pair` makes both. Each end's network runs its :meth:`serve`."""

    other: MemoryConnection

    def __init__(
        self,
        world: World,
        own_id: PeerID,
        peer_id: PeerID,
        remote_maddr: Multiaddr,
        *,
        outbound: bool,
        settings: TransportSettings,
    ) -> None:
        self.peer_id, self.remote_maddr, self.outbound = peer_id, remote_maddr, outbound
        self.opened_at = self.used_at = trio.current_time()
        self.world = world
        self.bytes_sent = 0
        self.streams: set[MemoryStream] = set()
        self._own_id = own_id
        self._settings = settings
        self._arriving: deque[tuple[float, MemoryStream]] = deque()
        self._last_arrival = 0.0
        self._goodbye_at = math.inf
        self._closed = False
        self._changed = trio.Event()

    @classmethod
    def pair(
        cls,
        world: World,
        dialer: tuple[PeerID, Multiaddr, TransportSettings],
        listener: tuple[PeerID, Multiaddr, TransportSettings],
    ) -> tuple[MemoryConnection, MemoryConnection]:
        """The two ends of a connection, the dialer's first; each peer with its address and settings."""
        (one, one_maddr, one_settings), (other, other_maddr, other_settings) = dialer, listener
        ours = cls(world, one, other, other_maddr, outbound=True, settings=one_settings)
        theirs = cls(world, other, one, one_maddr, outbound=False, settings=other_settings)
        ours.other, theirs.other = theirs, ours
        return ours, theirs

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.other.bytes_sent, self.bytes_sent)

    @property
    def idle(self) -> bool:
        return not self.streams

    @property
    def works(self) -> bool:
        """Whether bytes get through at the moment."""
        return self.world.reachable(self._own_id, self.peer_id)

    def lost(self) -> ConnectionLost:
        """The error for whoever used the connection when it went away."""
        return ConnectionLost(f"the connection to {self.peer_id} is gone; call again to connect anew")

    async def open_stream(self, protocol: str) -> Stream:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise self.lost()
        self.used_at = trio.current_time()
        ours, theirs = MemoryStream.pair(self, protocol)
        other = self.other
        other._last_arrival = max(other._last_arrival, trio.current_time() + self.world.travel_time())
        other._arriving.append((other._last_arrival, theirs))
        other._poke()
        try:
            with trio.fail_after(self._settings.negotiate_timeout):
                await ours.agree()
        except trio.TooSlowError:
            ours.throw_away()
            raise StreamReset(
                f"{self.peer_id} did not answer within {self._settings.negotiate_timeout:g} s, asked for {protocol!r}"
            ) from None
        except BaseException:
            ours.throw_away()
            raise
        return ours

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """:meth:`aclose`, which has nothing to wait for."""
        if not self._closed:
            told = [stream._last_arrival for stream in self.other.streams]
            self.other._goodbye_at = max(trio.current_time() + self.world.travel_time(), *told, 0.0)
            self.other._poke()
            self._end()

    async def serve(self, handlers: Mapping[str, StreamHandler]) -> None:
        """Serve the streams that the peer opens; returns when the connection is gone, with its handlers cancelled."""
        async with trio.open_nursery() as nursery:
            while not self._closed:
                if not self.works:
                    await self._outlast()
                elif self._goodbye_at <= trio.current_time():
                    self._end()
                elif self._arriving and self._arriving[0][0] <= trio.current_time():
                    self._accept(self._arriving.popleft()[1], handlers, nursery)
                else:
                    next_arrival = self._arriving[0][0] if self._arriving else math.inf
                    await self._change(min(next_arrival, self._goodbye_at))
            nursery.cancel_scope.cancel()

    def world_changed(self) -> None:
        """Who reaches whom is not what it was."""
        self._poke()
        for stream in list(self.streams):
            stream.poke()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.streams)} streams"
        return f"<Connection {'to' if self.outbound else 'from'} {self.peer_id!r} at {self.remote_maddr}, {state}>"

    def _accept(self, stream: MemoryStream, handlers: Mapping[str, StreamHandler], nursery: trio.Nursery) -> None:
        self.used_at = trio.current_time()
        handler = handlers.get(stream.protocol)
        if handler is None:
            stream.answer(Mark.REFUSED)
            stream.throw_away()
        else:
            stream.answer(Mark.ACCEPTED)
            nursery.start_soon(run_handler, handler, stream)

    async def _outlast(self) -> None:
        """Nothing gets through. If that lasts, keepalive finds the other end dead."""
        until = trio.current_time() + self._settings.keepalive_interval + self._settings.keepalive_timeout
        while not self.works and not self._closed:
            if trio.current_time() >= until:
                self._end()
            else:
                await self._change(until)

    def _end(self) -> None:
        self._closed = True
        for stream in list(self.streams):
            stream.poke()
        self._poke()

    async def _change(self, until: float) -> None:
        changed = self._changed
        with trio.CancelScope(deadline=until):
            await changed.wait()

    def _poke(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
