"""A ``Connection`` over any :class:`~.muxer.Muxer`: protocols agreed, handlers run, bounds kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import ConnectionLost, StreamError, StreamReset
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.api import CircuitLimit, Stream, StreamHandler
from hivemind_p2p.transport.muxer import Muxer
from hivemind_p2p.transport.registry import KeptConnection
from hivemind_p2p.wire.peer_id import PeerID

logger = logging.getLogger(__name__)
_HANDLERS_PER_STREAM: Final = 2
"""The muxer bounds open streams; a handler may outlive its stream for a while, but not without bound."""


class MuxedConnection(KeptConnection):
    """One connection of a ``Host``, which calls :meth:`serve` in a task of its nursery.

    Args:
        muxer: carries the streams.
        opened_at: the clock when the handshake was done.
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
        relay: PeerID | None = None,
        limit: CircuitLimit | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.relay = relay
        self.limit = limit
        self.remote_maddr = remote_maddr
        self.outbound = outbound
        self.opened_at = opened_at
        self.used_at = opened_at
        self.identified = trio.Event()
        """Set when the peer has said who it is (``description``), or will not any more."""
        self.ended = trio.Event()
        """Set when the connection is gone."""
        self._muxer = muxer
        self._settings = settings
        self._serving = 0

    @property
    def closed(self) -> bool:
        return self._muxer.closed

    @property
    def idle(self) -> bool:
        return self._muxer.stream_count == 0 and not self._serving

    async def open_stream(self, protocol: str) -> Stream:
        self.used_at = trio.current_time()
        stream = await self._muxer.open_stream()
        try:
            with trio.fail_after(self._settings.negotiate_timeout):
                await negotiate.ask(stream, protocol)
        except trio.TooSlowError:
            await stream.reset()
            raise StreamReset(
                f"{self.peer_id} did not answer within {self._settings.negotiate_timeout:g} s, asked for {protocol!r}"
            ) from None
        except BaseException:
            await stream.reset()
            raise
        stream.protocol = protocol
        stream.connection = self
        return stream

    async def aclose(self) -> None:
        await self._muxer.aclose()

    async def serve(self, handlers: Mapping[str, StreamHandler]) -> None:
        """Run the connection and the handlers of the streams that the peer opens; returns when it has ended.

        Handlers are cancelled when the connection is gone: nobody waits for what they would say.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._muxer.run)
            while True:
                try:
                    stream = await self._muxer.accept_stream()
                except ConnectionLost:
                    break
                self.used_at = trio.current_time()
                if self._serving >= _HANDLERS_PER_STREAM * self._settings.max_streams_in:
                    logger.warning(
                        "%s resets its streams faster than their %d handlers end; one was refused",
                        self.peer_id,
                        self._serving,
                    )
                    await stream.reset()
                else:
                    self._serving += 1
                    nursery.start_soon(self._serve_stream, stream, handlers)
            nursery.cancel_scope.cancel()

    async def _serve_stream(self, stream: Stream, handlers: Mapping[str, StreamHandler]) -> None:
        try:
            await run_handler(partial(self._handle, handlers), stream)
        finally:
            self._serving -= 1

    async def _handle(self, handlers: Mapping[str, StreamHandler], stream: Stream) -> None:
        try:
            with trio.fail_after(self._settings.negotiate_timeout):
                stream.protocol = await negotiate.answer(stream, handlers)
        except trio.TooSlowError:
            raise StreamReset(f"{self.peer_id} opened a stream and did not say what for") from None
        stream.connection = self
        handler = handlers.get(stream.protocol)
        if handler is None:
            raise StreamReset(f"{stream.protocol!r} is not served any more")
        await handler(stream)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._muxer.stream_count} streams"
        way = "" if self.relay is None else " limited" if self.limit is not None else " relayed"
        return f"<Connection{way} {'to' if self.outbound else 'from'} {self.peer_id!r} at {self.remote_maddr}, {state}>"


async def run_handler(handler: StreamHandler, stream: Stream) -> None:
    """Let a handler serve a stream, and end the stream for it: closed when it returns, reset when it raises."""
    try:
        await handler(stream)
    except StreamError as error:
        logger.debug("stream %r ended early: %s", stream, error)
        await stream.reset()
    except Exception:  # the boundary of one request: a handler's bug costs its stream, not the node
        logger.exception("the handler of %r failed; the stream was reset", stream)
        await stream.reset()
    except BaseException:
        await stream.reset()
        raise
    else:
        await stream.aclose()
