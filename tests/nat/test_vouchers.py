"""Vouchers of relays: ours, those that go-libp2p and js-libp2p gave, and wrong ones."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hivemind_p2p.nat import vouchers
from hivemind_p2p.nat.vouchers import seal, why_wrong
from hivemind_p2p.transport.identity import Identity, peer_id_of
from hivemind_p2p.wire.envelope_pb2 import Envelope, Voucher
from hivemind_p2p.wire.peer_id import PeerID

RELAY, PEER, OTHER = (Identity.generate() for _ in range(3))
EXPIRE = 1_800_000_000

# What a relay gave to one of our nodes in tests/nat/test_foreign_peers.py: relay, peer, end, voucher.
GIVEN = {
    "p2pd": (
        "12D3KooWKGPDf1St1NxEyAU2trHpuj7pKbhYuV4n7bJgTfsdgHon",
        "12D3KooWMSDqkXVLfMgs9L2VYpfRc8uPT3bE29Ta95UrSFQxXhsP",
        1795586016,
        "0a24080112208c637888ef3883da745df6786c624f676120a05b25f475c26014f4871fb4cff1120203021a560a260024"
        "080112208c637888ef3883da745df6786c624f676120a05b25f475c26014f4871fb4cff11226002408011220aca00ca6"
        "a185d3531b5dc62c4cd393b682d1918c9649612675488e364107768a18e0ef99d8062a4072e2122784693223031268d5"
        "c469c7478ff6c304dd9951adc565462a13967e74260e7ab23844f879775f8f265efc0d115f854a3be88d09ebf85614b9"
        "bde14808",
    ),
    "js": (
        "12D3KooWB4vmmdGuaL8zJouvegRyao7VuUQqhMbxQnpVLCjhZ8z3",
        "12D3KooWGvT8B8pfDpccijLZWHfde6ZeFmQ6N7nXz3NpUSGBJtTe",
        1795589623,
        "0a24080112201296aeffe795ee1abc8386a1936191090f2217da55bfdf94ab05cf2bb934eee8120203021a560a260024"
        "080112201296aeffe795ee1abc8386a1936191090f2217da55bfdf94ab05cf2bb934eee812260024080112206990e593"
        "274e532e153293c570f7a3eb1a87d67b7a1dd7422bb29d8a375aa09d18f78b9ad8062a407fe82d6d6fbc457738da0cab"
        "c80f825809f7a6c7c18aa6afac71aeed47943611441972465a6e09bf94d56bd0ce32e5072bf9d8ec99431498266f3c18"
        "1ac6740d",
    ),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_those_of_others_hold_and_are_as_we_would_have_made_them(kind: str):
    relay, peer, expire, raw = GIVEN[kind]
    sealed, relay_id, peer_id = bytes.fromhex(raw), PeerID.from_base58(relay), PeerID.from_base58(peer)
    assert why_wrong(sealed, relay_id, peer_id, expire) is None
    envelope = Envelope.FromString(sealed)
    assert envelope.SerializeToString(deterministic=True) == sealed
    ours = Voucher(relay=relay_id.to_bytes(), peer=peer_id.to_bytes(), expiration=expire)
    assert ours.SerializeToString(deterministic=True) == envelope.payload
    assert why_wrong(sealed, relay_id, peer_id, expire + 1) == "it ends 1 s before the reservation"


@pytest.mark.parametrize("relay", [RELAY, Identity(rsa.generate_private_key(public_exponent=65537, key_size=2048))])
def test_ours_hold(relay: Identity):
    assert why_wrong(seal(relay, PEER.peer_id, EXPIRE), relay.peer_id, PEER.peer_id, EXPIRE) is None


def damaged(**fields: bytes) -> bytes:
    envelope = Envelope.FromString(seal(RELAY, PEER.peer_id, EXPIRE))
    for name, value in fields.items():
        setattr(envelope, name, value)
    return envelope.SerializeToString()


def of(relay: Identity, payload: bytes) -> bytes:
    """An envelope that this relay signed, whatever is in it."""
    signature = relay.sign(vouchers._signed(payload))
    envelope = Envelope(
        public_key=relay.public_key_bytes, payload_type=b"\x03\x02", payload=payload, signature=signature
    )
    return envelope.SerializeToString()


@pytest.mark.parametrize(
    ("sealed", "why"),
    [
        (b"garbage", "no signed envelope"),
        (of(RELAY, b"garbage"), "no signed envelope"),
        (damaged(payload_type=b"\x03\x01"), "something else"),
        (damaged(public_key=OTHER.public_key_bytes), "somebody else"),
        (damaged(public_key=b""), "somebody else"),
        (damaged(signature=bytes(64)), "the signature is wrong"),
        (damaged(signature=b""), "the signature is wrong"),
        (damaged(signature=RELAY.sign(b"something else")), "the signature is wrong"),
        (seal(OTHER, PEER.peer_id, EXPIRE), "somebody else"),
        (seal(RELAY, OTHER.peer_id, EXPIRE), "for another peer"),
        (seal(RELAY, PEER.peer_id, EXPIRE - 60), "60 s before"),
        (of(RELAY, Voucher(relay=OTHER.peer_id.to_bytes(), peer=PEER.peer_id.to_bytes()).SerializeToString()), "relay"),
        (of(RELAY, b""), "another relay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_ones_are_found_out(sealed: bytes, why: str):
    assert why in str(why_wrong(sealed, RELAY.peer_id, PEER.peer_id, EXPIRE))


def test_signatures_of_keys_that_are_not_known_here_are_not_judged():
    secp256k1 = bytes.fromhex("08021221") + b"\x02" + bytes(32)
    payload = Voucher(relay=peer_id_of(secp256k1).to_bytes(), peer=PEER.peer_id.to_bytes(), expiration=EXPIRE)
    envelope = Envelope(
        public_key=secp256k1, payload_type=b"\x03\x02", payload=payload.SerializeToString(), signature=b"?"
    )
    assert why_wrong(envelope.SerializeToString(), peer_id_of(secp256k1), PEER.peer_id, EXPIRE) is None
