"""A relay's word that it serves a peer, signed: reservation vouchers (libp2p specs/relay/circuit-v2.md), in signed
envelopes (specs/RFC/0002-signed-envelopes.md). Pure.

Nobody asks for them yet. But who makes a wrong one lies, or was lied to about whom it talks to.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from hivemind_p2p.transport.identity import Identity, peer_id_of, verify
from hivemind_p2p.wire.envelope_pb2 import Envelope, Voucher
from hivemind_p2p.wire.framing import varint
from hivemind_p2p.wire.peer_id import PeerID

_DOMAIN: Final = b"libp2p-relay-rsvp"
_TYPE: Final = b"\x03\x02"


def seal(relay: Identity, peer: PeerID, expire: int) -> bytes:
    """A voucher for a peer that has a reservation.

    Args:
        expire: when that ends, in Unix time.
    """
    voucher = Voucher(relay=relay.peer_id.to_bytes(), peer=peer.to_bytes(), expiration=expire)
    payload = voucher.SerializeToString(deterministic=True)
    envelope = Envelope(
        public_key=relay.public_key_bytes, payload_type=_TYPE, payload=payload, signature=relay.sign(_signed(payload))
    )
    return envelope.SerializeToString(deterministic=True)


def why_wrong(sealed: bytes, relay: PeerID, peer: PeerID, expire: int) -> str | None:
    """What is wrong with a voucher, in words; None when nothing is, as far as we can tell: of the signatures of relays,
    those of Ed25519 and RSA keys can be checked here.

    Args:
        relay: who gave it.
        peer: whom it must be for.
        expire: when the reservation ends, as the relay says beside it, in Unix time.
    """
    try:
        envelope = Envelope.FromString(sealed)
        voucher = Voucher.FromString(envelope.payload)
    except DecodeError:
        return "it is no signed envelope with a voucher"
    if envelope.payload_type != _TYPE:
        return "what is signed is something else"
    if peer_id_of(envelope.public_key) != relay:
        return "it is signed by somebody else"
    if verify(envelope.public_key, _signed(envelope.payload), envelope.signature) is False:
        return "the signature is wrong"
    if voucher.relay != relay.to_bytes():
        return "it is for another relay"
    if voucher.peer != peer.to_bytes():
        return "it is for another peer"
    if voucher.expiration < expire:
        return f"it ends {expire - voucher.expiration} s before the reservation"
    return None


def _signed(payload: bytes) -> bytes:
    parts = (_DOMAIN, _TYPE, payload)
    return b"".join(varint(len(part)) + part for part in parts)
