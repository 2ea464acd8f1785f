"""A ``Connection`` over any :class:`~.muxer.Muxer`: protocols agreed, handlers run, bounds kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import NodeClosed, StreamError, StreamReset
from hivemind_p2p.transport.api import CircuitLimit, Stream, StreamHandler, Traffic
from hivemind_p2p.transport.identify import IDENTIFY
from hivemind_p2p.transport.muxer import MuxedStream, Muxer
from hivemind_p2p.transport.negotiate import Answering, Asking
from hivemind_p2p.transport.negotiated import NegotiatedStream
from hivemind_p2p.transport.registry import KeptConnection
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_HANDLERS_PER_STREAM: Final = 2
"""The muxer bounds open streams; a handler may outlive its stream for a while, but not without bound."""

_LAST_SECONDS: Final = 5.0
"""Seconds before a relay cuts a circuit in which nothing new is begun on it."""
_PER_STREAM: Final = 512
_SHAKING_HANDS: Final = 4096
_FIRST_WORDS: Final = 2**16
_UNUSED: Final = 0.02
"""Seconds that a new stream waits for its first write, with which it would cost no packet of its own."""


class MuxedConnection(KeptConnection):
    """One connection of a ``Host``, which calls :meth:`serve` in a task of its nursery.

    Args:
        muxer: carries the streams.
        opened_at: the clock when the handshake was done.
        aside: we dialled from another port than the one that we listen on.
        local_ip: our IP address on it; None: it has none of its own.
        relay: whom it goes through; None when it is direct.
        limit: what that relay puts up with.
    """

    def __init__(
        self,
        muxer: Muxer,
        peer_id: PeerID,
        remote_maddr: Multiaddr | None,
        *,
        outbound: bool,
        opened_at: float,
        settings: TransportSettings,
        aside: bool = False,
        local_ip: str | None = None,
        relay: PeerID | None = None,
        limit: CircuitLimit | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.relay = relay
        self.limit = limit
        self.remote_maddr = remote_maddr
        self.outbound = outbound
        self.aside = aside
        self.local_ip = local_ip
        self.opened_at = opened_at
        self.used_at = opened_at
        self.identified = trio.Event()
        """Set when the peer has said who it is (``description``), or will not any more."""
        self.ended = trio.Event()
        """Set when the connection is gone."""
        self._muxer = muxer
        muxer.relayed = relay is not None
        self._settings = settings
        self._serving = 0
        self._promised = 0
        """Bytes that are to go over it, or went."""
        self._warned = False
        self._known = {IDENTIFY}
        """Protocols that the peer speaks; who does not speak this one says so as soon as it is asked."""
        self._unheard: set[NegotiatedStream] = set()
        self._opened = trio.Event()

    @property
    def closed(self) -> bool:
        return self._muxer.closed

    @property
    def idle(self) -> bool:
        return self._muxer.stream_count == 0 and not self._serving

    @property
    def traffic(self) -> Traffic:
        return self._muxer.traffic

    @property
    def room(self) -> float:
        """Bytes that may still go over it in each direction, before a relay cuts it."""
        if self.limit is None:
            return math.inf
        last = min(_LAST_SECONDS, self.limit.seconds / 10)
        if trio.current_time() - self.opened_at > self.limit.seconds - last:
            return 0.0
        return usable(self.limit) - max(*self.traffic, self._promised)

    async def open_stream(self, protocol: str, *, hopeful: bool = False, carries: int = 0) -> Stream:
        """Open a stream for a protocol: at once when the peer is known to speak it, else once it has agreed.

        Args:
            carries: bytes that are to go over it in one direction.
            hopeful: at once in any case. When the peer does not speak it, the first read says so.

        Raises:
            ProtocolNotSupported, StreamError
        """
        asking = Asking(protocol)
        self.used_at = trio.current_time()
        self._promised += carries + _PER_STREAM
        try:
            return await self._open(protocol, asking, hopeful=hopeful)
        except BaseException:
            self._promised -= carries  # none of it went, nor will
            raise

    async def _open(self, protocol: str, asking: Asking, *, hopeful: bool) -> Stream:
        inner = await self._muxer.open_stream()
        stream = NegotiatedStream(
            inner, protocol, unsent=asking.opening, asking=asking, known=self._known, unheard=self._unheard
        )
        stream.connection = self
        if hopeful or protocol in self._known:
            self._unheard.add(stream)
            self._opened.set()
            return stream
        try:
            with trio.fail_after(self._settings.negotiate_timeout):
                await stream.settle()
        except trio.TooSlowError:
            await stream.reset()
            raise StreamReset(
                f"{self.peer_id} did not answer within {self._settings.negotiate_timeout:g} s, asked for {protocol!r}"
            ) from None
        except BaseException:
            await stream.reset()
            raise
        return stream

    def peer_speaks(self, protocols: frozenset[str]) -> None:
        """The peer said what it serves."""
        self._known.clear()
        self._known.update(protocols)

    async def aclose(self) -> None:
        await self._muxer.aclose()

    async def survives(self, seconds: float, why_asked: str) -> bool:
        """Whether the peer is still there; if it says nothing within so many seconds, the connection is ended at once.

        Args:
            why_asked: what made us doubt it.
        """
        self.doubted = True
        try:
            alive = await self._muxer.answers(seconds)
        finally:
            self.doubted = False
        if not alive and not self.closed:
            self.give_up(f"{why_asked}, and the peer did not answer within {seconds:g} s")
        return alive

    def give_up(self, reason: str) -> None:
        """End it at once: it is known to be dead. Whoever waits for it is told why."""
        self._muxer.give_up(reason)

    async def serve(self, handlers: Mapping[str, StreamHandler]) -> None:
        """Run the connection and the handlers of the streams that the peer opens; returns when it has ended.

        Handlers are cancelled when the connection is gone: nobody waits for what they would say.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce_unused)
            await self._muxer.run(partial(self._take, handlers=handlers, nursery=nursery))
            nursery.cancel_scope.cancel()

    def _take(self, stream: MuxedStream, handlers: Mapping[str, StreamHandler], nursery: trio.Nursery) -> None:
        """Let a stream of the peer be served."""
        self.used_at = trio.current_time()
        if self._serving < _HANDLERS_PER_STREAM * self._settings.max_streams_in:
            self._serving += 1
            nursery.start_soon(self._serve_stream, stream, handlers)
            return
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s resets its streams faster than their %d handlers end; some are refused", self.peer_id, self._serving
            )
        stream.throw_away()

    async def _announce_unused(self) -> None:
        """Let the peer hear of streams that were opened and not used at once: it may be the one to speak first."""
        while True:
            await self._opened.wait()
            await trio.sleep(_UNUSED)
            self._opened = trio.Event()
            while self._unheard:
                self._unheard.pop().announce()

    async def _serve_stream(self, inner: MuxedStream, handlers: Mapping[str, StreamHandler]) -> None:
        try:
            await run_handler(partial(self._serve_protocol, inner, handlers), inner)
        finally:
            self._serving -= 1

    async def _serve_protocol(self, inner: MuxedStream, handlers: Mapping[str, StreamHandler], _: Stream) -> None:
        stream = await self._agree(inner, handlers)
        handler = handlers.get(stream.protocol)
        if handler is None:
            raise StreamReset(f"{stream.protocol!r} is not served any more")
        await handler(stream)
        stream.close()

    async def _agree(self, inner: MuxedStream, handlers: Mapping[str, StreamHandler]) -> NegotiatedStream:
        """Let the peer choose a protocol."""
        answering = Answering(handlers)
        if data := inner.receive_nowait(_FIRST_WORDS):
            _hear(answering, data, inner)
        if answering.protocol is None:
            with trio.move_on_after(self._settings.negotiate_timeout):
                while answering.protocol is None:
                    data = await inner.receive_some()
                    if not data:
                        raise StreamReset(f"{self.peer_id} opened a stream and ended it without saying what for")
                    _hear(answering, data, inner)
        if answering.protocol is None:
            raise StreamReset(f"{self.peer_id} opened a stream and did not say what for")
        stream = NegotiatedStream(inner, answering.protocol, unsent=answering.take_output(), early=answering.rest)
        stream.connection = self
        return stream

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._muxer.stream_count} streams"
        way = "" if self.relay is None else " limited" if self.limit is not None else " relayed"
        return f"<Connection{way} {'to' if self.outbound else 'from'} {self.peer_id!r} at {self.remote_maddr}, {state}>"


def usable(limit: CircuitLimit) -> float:
    """Bytes of ours that a circuit carries: some go to encryption, multiplexing and knowing each other."""
    return 0.98 * limit.size - _SHAKING_HANDS


def _hear(answering: Answering, data: bytes, inner: MuxedStream) -> None:
    """Take in what the peer said, and answer."""
    try:
        answering.receive(data)
    finally:  # a refusal goes out even when what follows it is no wish but what the peer had to say
        if not answering.rest:  # otherwise it does not wait for the answer, which can travel with our words
            inner.send_first(answering.take_output())


async def run_handler(handler: StreamHandler, stream: Stream) -> None:
    """Let a handler serve a stream, and end the stream for it: closed when it returns, reset when it raises."""
    try:
        await handler(stream)
    except (StreamError, NodeClosed) as error:
        logger.debug("stream %r ended early: %s", stream, error)
        await stream.reset()
    except Exception:  # the boundary of one request: a handler's bug costs its stream, not the node
        logger.exception("the handler of %r failed; the stream was reset", stream)
        await stream.reset()
    except BaseException:
        await stream.reset()
        raise
    else:
        stream.close()
