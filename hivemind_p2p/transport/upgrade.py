"""From bytes to streams: Noise, then Yamux, and nothing else; libp2p's own for now.

No plaintext, TLS, secio or mplex is offered or accepted. The remote peer id is the one that the handshake proved.
"""

from __future__ import annotations

from typing import Final

import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.crypto.serialization import deserialize_private_key
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.muxer import Muxer
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.stock_muxer import StockMuxer
from hivemind_p2p.wire.peer_id import PeerID

__all__ = ["Upgrader", "WrongPeer"]


class WrongPeer(TransportError):
    """Somebody else lives at the address. Ends as one reason in a ``DialError``."""


class _Secured:
    """A secured connection as a :class:`negotiate.Channel`."""

    def __init__(self, connection: ISecureConn) -> None:
        self.read_exactly: Final = connection.read
        self.send_all: Final = connection.write


class Upgrader:
    """Secures and multiplexes connections in the name of ``identity``."""

    def __init__(self, identity: Identity, settings: TransportSettings) -> None:
        self._settings = settings
        self._noise = NoiseTransport(libp2p_key_pair(identity), x25519_key_pair().private_key)

    async def outbound(self, raw: RawConnection, peer_id: PeerID) -> Muxer:
        """Secure a connection that we dialled. It is closed when this fails or is cancelled.

        Raises:
            WrongPeer: the other side proved to be somebody else.
            TransportError: the handshake failed.
        """
        try:
            await negotiate.ask(raw, NOISE)
            secured = await self._noise.secure_outbound(raw, ID(peer_id.to_bytes()))
            await negotiate.ask(_Secured(secured), YAMUX)
        except PeerIDMismatchesPubkey as error:
            await raw.close()
            other = str(error).rpartition("=")[2]
            raise WrongPeer(f"somebody else lives there: {other}") from None
        except Exception as error:  # garbage from a stranger comes up as anything in the libraries below: one request
            await raw.close()
            raise _failure(error) from error
        except BaseException:
            await trio.aclose_forcefully(raw.stream)
            raise
        return self._muxer(secured, peer_id)

    async def inbound(self, raw: RawConnection) -> Muxer:
        """Secure a connection that we accepted. It is closed when this fails or is cancelled.

        Raises:
            TransportError: the handshake failed.
        """
        try:
            await negotiate.answer(raw, (NOISE,))
            secured = await self._noise.secure_inbound(raw)
            peer_id = PeerID(secured.get_remote_peer().to_bytes())
            await negotiate.answer(_Secured(secured), (YAMUX,))
        except Exception as error:  # as above
            await raw.close()
            raise _failure(error) from error
        except BaseException:
            await trio.aclose_forcefully(raw.stream)
            raise
        return self._muxer(secured, peer_id)

    def _muxer(self, secured: ISecureConn, peer_id: PeerID) -> Muxer:
        return StockMuxer(
            Yamux(secured, ID(peer_id.to_bytes()), is_initiator=secured.is_initiator),
            peer_id,
            max_streams=self._settings.max_streams_out,
            write_timeout=self._settings.write_timeout,
        )


def libp2p_key_pair(identity: Identity) -> KeyPair:
    """The identity as libp2p holds it."""
    data = identity.to_bytes()
    if data[1] == 1:  # Ed25519: libp2p wants the 32-byte seed
        return ed25519_key_pair(data[4:36])
    private = deserialize_private_key(data)
    assert isinstance(private, RSAPrivateKey)
    return KeyPair(private, private.get_public_key())


def _failure(error: Exception) -> TransportError:
    if isinstance(error, TransportError):
        return error
    return TransportError(f"the handshake failed: {error or type(error).__name__}")
