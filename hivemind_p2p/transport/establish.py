"""From an address, or from bytes that came about somehow, to a secured connection that nobody uses yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import ITransport
from multiaddr import Multiaddr

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.addresses import circuit_of
from hivemind_p2p.transport.circuit import CircuitConnection
from hivemind_p2p.transport.connection import MuxedConnection
from hivemind_p2p.transport.dialer import WrongPeer
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.muxer import Muxer
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.tcp import TCPTransport
from hivemind_p2p.transport.upgrade import Upgrader
from hivemind_p2p.wire.peer_id import PeerID

CircuitDialer = Callable[[PeerID, Multiaddr], Awaitable[CircuitConnection]]
"""Has a relay connect us to a peer at a circuit address (without the last ``/p2p``); raises TransportError."""


class Establisher:
    """Makes the connections of one host.

    Args:
        transport: dials what is not a circuit.
    """

    def __init__(self, identity: Identity, settings: TransportSettings, transport: ITransport) -> None:
        self.dial_circuit: CircuitDialer | None = None
        """Dials circuit addresses; without it they cannot be dialled."""
        self._own_id = identity.peer_id
        self._settings = settings
        self._transport = transport
        self._upgrader = Upgrader(identity, settings)
        self._stranger: Upgrader | None = None

    async def dial(self, peer_id: PeerID, maddr: Multiaddr, *, aside: bool = False) -> MuxedConnection:
        """Connect to a peer at one address. Bound it with a cancel scope.

        Args:
            aside: leave from any free port instead of the one that we listen on.

        Raises:
            WrongPeer: somebody else lives there.
            TransportError: it did not work.
        """
        if circuit_of(maddr) is not None:
            if self.dial_circuit is None:
                raise TransportError("this host uses no relays")
            circuit = await self.dial_circuit(peer_id, maddr)
            return self._wrap(await self._upgrader.outbound(circuit, peer_id), circuit)
        raw = await self._dial_aside(maddr) if aside else await self._transport.dial(maddr)
        assert isinstance(raw, RawConnection)
        try:
            muxer = await self._upgrader.outbound(raw, peer_id)
        except WrongPeer:
            raise
        except TransportError:
            if aside or not isinstance(self._transport, TCPTransport):
                raise
            # Two peers that dial each other at one moment, from the ports that they listen on, make one connection of
            # which both are the client. Not all settle that as we do (noise.handshake). From another port it cannot
            # happen.
            raw = await self._dial_aside(maddr)
            muxer = await self._upgrader.outbound(raw, peer_id)
        return self._wrap(muxer, raw)

    async def dial_back(self, peer_id: PeerID, maddr: Multiaddr) -> None:
        """Find out whether a peer is reached at an address, on a fresh connection from a port that it never dialled.

        Raises:
            TransportError: it is not, and why.
        """
        await self._upgrader.authenticate(await self._dial_aside(maddr), peer_id)

    async def dial_as_stranger(self, peer_id: PeerID, maddr: Multiaddr) -> MuxedConnection:
        """Connect from a port that the peer never heard of, under a name that is used for nothing else.

        Raises:
            TransportError: it did not work.
        """
        if self._stranger is None:
            self._stranger = Upgrader(Identity.generate(), self._settings)
        raw = await self._dial_aside(maddr)
        return self._wrap(await self._stranger.outbound(raw, peer_id), raw)

    async def _dial_aside(self, maddr: Multiaddr) -> RawConnection:
        """Dial from any free port instead of the one that we listen on."""
        if isinstance(self._transport, TCPTransport):
            raw = await self._transport.dial(maddr, from_shared_port=False)
        else:
            raw = await self._transport.dial(maddr)
        assert isinstance(raw, RawConnection)
        return raw

    async def secure(self, raw: RawConnection, peer_id: PeerID | None, *, as_client: bool) -> MuxedConnection:
        """Secure a connection that came about in another way; it is closed when that fails.

        Args:
            peer_id: who must be at the other end; None: anybody but us. A client has to know.
            as_client: our role in the handshake.

        Raises:
            TransportError: the handshake failed or took too long, or somebody else is there.
        """
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                if as_client:
                    assert peer_id is not None
                    muxer = await self._upgrader.outbound(raw, peer_id)
                else:
                    muxer = await self._upgrader.inbound(raw)
        except trio.TooSlowError:
            raise TransportError(f"no handshake within {self._settings.handshake_timeout:g} s") from None
        connection = self._wrap(muxer, raw)
        if connection.peer_id == self._own_id or peer_id not in (None, connection.peer_id):
            await connection.aclose()
            raise WrongPeer(f"somebody else is there: {connection.peer_id}")
        return connection

    def _wrap(self, muxer: Muxer, raw: RawConnection) -> MuxedConnection:
        relayed = raw if isinstance(raw, CircuitConnection) else None
        return MuxedConnection(
            muxer,
            muxer.peer_id,
            raw.remote,
            outbound=muxer.initiator,
            opened_at=trio.current_time(),
            settings=self._settings,
            aside=raw.aside,
            local_ip=raw.local_ip,
            relay=relayed.relay if relayed else None,
            limit=relayed.limit if relayed else None,
        )

    def __repr__(self) -> str:
        return f"<Establisher for {self._own_id!r} over {', '.join(self._transport.protocols())}>"
