"""From libp2p's Noise handshake to our channel. The protocol itself is agreed on beside it, at no extra round trip.

libp2p does what proves who is who (the XX handshake and the identity keys signed in it). What it leaves are two keys
and, in the raw connection, the bytes that came behind the handshake; a :class:`~.channel.SecureChannel` goes on from
there.

libp2p would read any RSA key that a stranger shows, private ones too, whose primes it then tests for seconds, in which
the node does nothing else. So a key longer than any public one that it would take is refused before.

Two peers that dial each other at one moment, from the ports that they listen on, get one TCP connection, of which both
are the client (a simultaneous open, which hole punching is made of). Each finds out by what it reads first: the first
message of an initiator has 32 bytes, that of a responder many more. Then the peer with the smaller id stays the
initiator, and ignores what came; the other one answers it.
"""

from __future__ import annotations

from typing import Final

from libp2p.crypto import serialization
from libp2p.crypto.keys import KeyPair, KeyType, PublicKey
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.noise.transport import PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession

from hivemind_p2p.transport import negotiate
from hivemind_p2p.transport.link import link_over
from hivemind_p2p.transport.noise.channel import Keys, SecureChannel
from hivemind_p2p.transport.raw import RawConnection
from hivemind_p2p.wire.peer_id import PeerID

__all__ = ["PROTOCOL_ID", "Noise"]
_FIRST_WORD: Final = 32
"""Bytes of an initiator's first message: its ephemeral key."""
_LONGEST_RSA_KEY: Final = 600
"""Bytes; a public key of 4096 bits, libp2p's largest, has 550."""


def _rsa_public_key(data: bytes) -> PublicKey:
    if len(data) > _LONGEST_RSA_KEY:
        raise ValueError(f"an RSA key of {len(data)} bytes is too large")
    return RSAPublicKey.from_bytes(data)


serialization.key_type_to_public_key_deserializer[KeyType.RSA.value] = _rsa_public_key


class Noise:
    """Secures connections in the name of a key pair. Raises whatever ``negotiate`` and libp2p raise."""

    def __init__(self, key_pair: KeyPair) -> None:
        self._transport = NoiseTransport(key_pair, x25519_key_pair().private_key)
        self._own_id = PeerID(ID.from_pubkey(key_pair.public_key).to_bytes())

    async def outbound(self, raw: RawConnection, peer_id: PeerID) -> tuple[SecureChannel, bool]:
        """Secure a connection that we dialled, to ``peer_id`` and nobody else; whether we stayed the initiator."""
        initiator = _Initiator(raw, gives_way=peer_id < self._own_id)
        try:
            return _channel(raw, await self._transport.secure_outbound(initiator, ID(peer_id.to_bytes()))), True
        except _BothInitiate:
            channel, other = await self._respond(raw)
        if other != peer_id:
            raise PeerIDMismatchesPubkey(f"remote_peer_id_from_pubkey={other}")
        return channel, False

    async def inbound(self, raw: RawConnection) -> tuple[SecureChannel, PeerID]:
        """Secure a connection that we accepted; who proved to be at the other end."""
        await negotiate.answer(raw, (PROTOCOL_ID,))
        return await self._respond(raw)

    async def _respond(self, raw: RawConnection) -> tuple[SecureChannel, PeerID]:
        session = await self._transport.secure_inbound(raw)
        return _channel(raw, session), PeerID(session.get_remote_peer().to_bytes())


class _BothInitiate(Exception):
    """The other side is an initiator too, and has the smaller id."""


class _Initiator(RawConnection):
    """A raw connection for the handshake of an initiator.

    It asks for the protocol in the same write as the first message, and finds out whether the other side is an
    initiator as well.
    """

    def __init__(self, raw: RawConnection, *, gives_way: bool) -> None:
        super().__init__(raw.stream, raw.remote, initiator=True)
        self._raw = raw
        self._gives_way = gives_way
        self._asking: negotiate.Asking | None = negotiate.Asking(PROTOCOL_ID)
        self._unsent = self._asking.opening

    async def write(self, data: bytes) -> None:
        unsent, self._unsent = self._unsent, b""
        await self._raw.write(unsent + data)

    async def read(self, n: int | None = None) -> bytes:
        asking, self._asking = self._asking, None
        if asking is None:
            return await self._raw.read(n)
        while not asking.receive(await self._raw.receive_some()):
            pass
        self._raw.unread(asking.rest)
        length = await self._raw.read(2)
        if int.from_bytes(length) == _FIRST_WORD:
            if self._gives_way:
                self._raw.unread(length)
                raise _BothInitiate
            await self._raw.read(_FIRST_WORD)
            return await self._raw.read(n)
        return length


def _channel(raw: RawConnection, session: object) -> SecureChannel:
    assert isinstance(session, SecureSession)
    assert isinstance(session.conn, NoiseTransportReadWriter)
    noise = session.conn.noise_state.noise_protocol
    sending, receiving = noise.cipher_state_encrypt, noise.cipher_state_decrypt
    assert sending.n == receiving.n == 0, "no transport message was sent yet"
    return SecureChannel(link_over(raw.stream), Keys(bytes(sending.k), bytes(receiving.k)), raw.take_rest())
