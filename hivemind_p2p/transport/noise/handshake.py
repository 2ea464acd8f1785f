"""From libp2p's Noise handshake to our channel.

libp2p does what proves who is who (the XX handshake and the identity keys signed in it). What it leaves are two keys
and, in the raw connection, the bytes that came behind the handshake; a :class:`~.channel.SecureChannel` goes on from
there.
"""

from __future__ import annotations

from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.noise.transport import PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession

from hivemind_p2p.transport.link import link_over
from hivemind_p2p.transport.noise.channel import Keys, SecureChannel
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.wire.peer_id import PeerID

__all__ = ["PROTOCOL_ID", "Noise"]


class Noise:
    """Secures connections in the name of a key pair. Raises whatever libp2p raises."""

    def __init__(self, key_pair: KeyPair) -> None:
        self._transport = NoiseTransport(key_pair, x25519_key_pair().private_key)

    async def outbound(self, raw: RawConnection, peer_id: PeerID) -> SecureChannel:
        """Secure a connection that we dialled, to ``peer_id`` and nobody else."""
        return _channel(raw, await self._transport.secure_outbound(raw, ID(peer_id.to_bytes())))

    async def inbound(self, raw: RawConnection) -> tuple[SecureChannel, PeerID]:
        """Secure a connection that we accepted; who proved to be at the other end."""
        session = await self._transport.secure_inbound(raw)
        return _channel(raw, session), PeerID(session.get_remote_peer().to_bytes())


def _channel(raw: RawConnection, session: object) -> SecureChannel:
    assert isinstance(session, SecureSession)
    assert isinstance(session.conn, NoiseTransportReadWriter)
    noise = session.conn.noise_state.noise_protocol
    sending, receiving = noise.cipher_state_encrypt, noise.cipher_state_decrypt
    assert sending.n == receiving.n == 0, "no transport message was sent yet"
    return SecureChannel(link_over(raw.stream), Keys(bytes(sending.k), bytes(receiving.k)), raw.take_rest())
