"""Who is who: every new peer is asked (identify), whoever asks is answered, and peers are told what changed (push)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import trio
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import StreamError, TransportError
from hivemind_p2p.transport import identify
from hivemind_p2p.transport.addresses import believable
from hivemind_p2p.transport.api import Connection, PeerDescription, Stream
from hivemind_p2p.transport.connection import MuxedConnection

logger = logging.getLogger(__name__)


class Introductions:
    """The identify protocol of one host.

    Args:
        describe: our answer, to somebody whom we see at an address (None: not known).
        learned: takes what a peer said, each time.
    """

    def __init__(
        self,
        settings: TransportSettings,
        describe: Callable[[Multiaddr | None], bytes],
        learned: Callable[[Connection, PeerDescription], None],
    ) -> None:
        self._settings = settings
        self._describe = describe
        self._learned = learned

    async def ask(self, connection: MuxedConnection) -> None:
        """Ask a new peer who it is. Returns in any case; sets ``connection.identified``."""
        try:
            with trio.move_on_after(self._settings.negotiate_timeout):
                stream = await connection.open_stream(identify.IDENTIFY)
                try:
                    self._take(connection, await identify.read_description(stream))
                finally:
                    await stream.aclose()
        except TransportError as error:
            logger.debug("%s did not identify itself: %s", connection.peer_id, error)
        finally:
            connection.identified.set()

    async def answer(self, stream: Stream) -> None:
        """Serve identify."""
        try:
            await stream.send_all(self._describe(_remote_of(stream)))
        except StreamError as error:
            logger.debug("%s asked who we are and left: %s", stream.peer_id, error)

    async def take_push(self, stream: Stream) -> None:
        """Serve push: a peer tells by itself that something changed."""
        with trio.move_on_after(self._settings.negotiate_timeout):
            description = await identify.read_description(stream)
            if isinstance(stream.connection, MuxedConnection):
                self._take(stream.connection, description)

    async def push(self, connections: Iterable[MuxedConnection]) -> None:
        """Tell peers who we are now."""
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(self._push_to, connection)

    async def _push_to(self, connection: MuxedConnection) -> None:
        if connection.description is None or identify.PUSH not in connection.description.protocols:
            return
        try:
            with trio.move_on_after(self._settings.negotiate_timeout):
                async with await connection.open_stream(identify.PUSH) as stream:
                    await stream.send_all(self._describe(connection.remote_maddr))
        except TransportError as error:
            logger.debug("%s was not told what changed: %s", connection.peer_id, error)

    def _take(self, connection: MuxedConnection, said: PeerDescription) -> None:
        limit = self._settings.max_addresses_per_peer
        maddrs = believable(said.maddrs, told_by=connection.remote_maddr, limit=limit)
        # What a peer sees through a relay is the relay.
        observed = said.observed if connection.relay is None else None
        connection.description = replace(said, maddrs=tuple(maddrs), observed=observed)
        connection.peer_speaks(said.protocols)
        self._learned(connection, connection.description)


def _remote_of(stream: Stream) -> Multiaddr | None:
    return stream.connection.remote_maddr if stream.connection is not None else None
