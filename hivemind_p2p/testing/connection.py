"""Connections in memory: two ends, the streams on them, and how they come to know that the other end is gone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio
from multiaddr import Multiaddr

from hivemind_p2p.errors import ConnectionLost, StreamReset
from hivemind_p2p.testing.stream import MemoryStream
from hivemind_p2p.transport.api import Stream, StreamHandler, Traffic
from hivemind_p2p.transport.connection import run_handler
from hivemind_p2p.transport.registry import KeptConnection

if TYPE_CHECKING:
    from hivemind_p2p.testing.network import MemoryNetwork


class MemoryConnection(KeptConnection):
    """One end of a connection; :meth:`pair` makes both.

    Args:
        network: whose end it is.
        remote_maddr: of the other end.
    """

    other: MemoryConnection

    def __init__(
        self, network: MemoryNetwork, other: MemoryNetwork, remote_maddr: Multiaddr, *, outbound: bool
    ) -> None:
        self.peer_id, self.remote_maddr, self.outbound = other.peer_id, remote_maddr, outbound
        self.opened_at = self.used_at = trio.current_time()
        self.world = network.world
        self.bytes_sent = 0
        self.known: set[str] = set()
        """Protocols that the peer has agreed to speak."""
        self.streams: dict[MemoryStream, None] = {}
        self._network = network
        self._held: list[Callable[[], None]] = []
        self._cut_since: float | None = None
        self._closed = False

    @classmethod
    def pair(
        cls, dialer: MemoryNetwork, listener: MemoryNetwork, maddr: Multiaddr
    ) -> tuple[MemoryConnection, MemoryConnection]:
        """The two ends of a connection, the dialer's first."""
        ours = cls(dialer, listener, maddr, outbound=True)
        theirs = cls(listener, dialer, dialer.maddr, outbound=False)
        ours.other, theirs.other = theirs, ours
        for end in (ours, theirs):
            end.world_changed()  # it may be cut before it is used
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
        return self.world.reachable(self._network.peer_id, self.peer_id)

    def lost(self) -> ConnectionLost:
        """The error for whoever used the connection when it went away."""
        return ConnectionLost(f"the connection to {self.peer_id} is gone; call again to connect anew")

    async def open_stream(self, protocol: str) -> Stream:
        if self._closed:
            raise self.lost()
        self.used_at = trio.current_time()
        await trio.lowlevel.checkpoint_if_cancelled()  # before there is a stream that nobody would close
        ours, theirs = MemoryStream.pair(self, protocol)
        known, timeout = protocol in self.known, self._network.settings.negotiate_timeout
        ours.post(partial(self.other._accept, theirs, expected=not known))
        if known:  # as on a real connection, what is said next travels with the question
            return ours
        try:
            with trio.fail_after(timeout):
                await ours.agree()
        except trio.TooSlowError:
            ours.throw_away()
            raise StreamReset(f"{self.peer_id} did not answer within {timeout:g} s, asked for {protocol!r}") from None
        except BaseException:
            ours.throw_away()
            raise
        self.known.add(protocol)
        return ours

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """:meth:`aclose`, which has nothing to wait for."""
        if not self._closed:
            told = [stream.last_arrival for stream in self.other.streams]
            self.send(max(trio.current_time() + self.world.travel_time(), *told, 0.0), self.other._goodbye_came)
            self._end()

    def send(self, when: float, arrive: Callable[[], None]) -> None:
        """Have something arrive at the other end."""
        self.other._network.mail.post(when, self.other, arrive)

    def came(self, arrive: Callable[[], None]) -> None:
        """Something has arrived at this end, if things get through at the moment; otherwise it does when they do."""
        if self._closed:
            return
        if self._cut_since is not None:
            self._held.append(arrive)
        else:
            arrive()

    def world_changed(self) -> None:
        """Who reaches whom is not what it was."""
        if self._closed:
            return
        if self.works:
            self._cut_since = None
            held, self._held = self._held, []
            for arrive in held:
                arrive()
        elif self._cut_since is None:
            self._cut_since = trio.current_time()
            self._network.nursery.start_soon(self._outlast, self._cut_since)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.streams)} streams"
        return f"<Connection {'to' if self.outbound else 'from'} {self.peer_id!r} at {self.remote_maddr}, {state}>"

    def _accept(self, stream: MemoryStream, *, expected: bool) -> None:
        """The peer has opened a stream; ``expected``: and waits for our word on its protocol."""
        self.used_at = trio.current_time()
        handler = self._network.handlers.get(stream.protocol)
        if handler is None:
            stream.refuse()
        else:
            if expected:
                stream.accept()
            self._network.nursery.start_soon(self._serve, handler, stream)

    async def _serve(self, handler: StreamHandler, stream: MemoryStream) -> None:
        with trio.CancelScope() as stream.serving:
            if self._closed:
                stream.serving.cancel()
            await run_handler(handler, stream)

    async def _outlast(self, since: float) -> None:
        """Nothing gets through. If that lasts, keepalive finds the other end dead."""
        settings = self._network.settings
        await trio.sleep(settings.keepalive_interval + settings.keepalive_timeout)
        if self._cut_since == since:
            self._end()

    def _goodbye_came(self) -> None:
        self._network.nursery.start_soon(self._leave)

    async def _leave(self) -> None:
        """Whoever waits for what came just before reads it first."""
        self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._held.clear()
            self._network.connection_ended(self)
            for stream in list(self.streams):
                if stream.serving is not None:
                    stream.serving.cancel()
                stream.poke()
