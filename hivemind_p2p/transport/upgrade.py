"""From bytes to streams: Noise, then Yamux, and nothing else.

The client waits for one round trip: it asks for Noise and begins the handshake in one write, and once the server has
proved who it is, asks for Yamux and speaks it at once. Whoever does not speak these is no peer anyway.

No plaintext, TLS, secio or mplex is offered or accepted. The remote peer id is the one that the handshake proved.
"""

from __future__ import annotations

from typing import Final

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.crypto.serialization import deserialize_private_key
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from hivemind_p2p.config import TransportSettings
from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.dialer import WrongPeer
from hivemind_p2p.transport.identity import Identity
from hivemind_p2p.transport.muxer import Muxer
from hivemind_p2p.transport.noise.handshake import Noise
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.transport.yamux.muxer import YamuxMuxer
from hivemind_p2p.wire.peer_id import PeerID

YAMUX: Final = "/yamux/1.0.0"


class Upgrader:
    """Secures and multiplexes connections in the name of ``identity``."""

    def __init__(self, identity: Identity, settings: TransportSettings) -> None:
        self._settings = settings
        self._noise = Noise(libp2p_key_pair(identity))

    async def outbound(self, raw: RawConnection, peer_id: PeerID) -> Muxer:
        """Secure a connection that we dialled. It is closed when this fails or is cancelled.

        Raises:
            WrongPeer: the other side proved to be somebody else.
            TransportError: the handshake failed.
        """
        try:
            channel, initiator = await self._noise.outbound(raw, peer_id)
            if initiator:
                await channel.ask(YAMUX)
            else:  # both dialled, see noise.handshake
                await negotiate.answer(channel, (YAMUX,))
        except PeerIDMismatchesPubkey as error:
            await raw.close()
            other = str(error).rpartition("=")[2]
            raise WrongPeer(f"somebody else lives there: {other}") from None
        except Exception as error:  # garbage from a stranger comes up as anything in the libraries below: one request
            await raw.close()
            raise _failure(error) from error
        except BaseException:
            await raw.close()
            raise
        return YamuxMuxer(channel, peer_id, initiator=initiator, settings=self._settings)

    async def authenticate(self, raw: RawConnection, peer_id: PeerID) -> None:
        """Find out whether a peer lives at the other end of a connection that we dialled, and close it.

        Raises:
            WrongPeer, TransportError: as :meth:`outbound`.
        """
        try:
            await self._noise.outbound(raw, peer_id)
        except PeerIDMismatchesPubkey:
            raise WrongPeer("somebody else lives there") from None
        except Exception as error:  # as in outbound
            raise _failure(error) from error
        finally:
            await trio.aclose_forcefully(raw.stream)

    async def inbound(self, raw: RawConnection) -> Muxer:
        """Secure a connection that we accepted. It is closed when this fails or is cancelled.

        Raises:
            TransportError: the handshake failed.
        """
        try:
            channel, peer_id = await self._noise.inbound(raw)
            await negotiate.answer(channel, (YAMUX,))
        except Exception as error:  # as above
            await raw.close()
            raise _failure(error) from error
        except BaseException:
            await raw.close()
            raise
        return YamuxMuxer(channel, peer_id, initiator=False, settings=self._settings)


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
    return TransportError(f"the handshake failed: {str(error) or type(error).__name__}")
