"""What a stranger may show as its key."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import trio
from Crypto.PublicKey import RSA
from Crypto.Util.asn1 import DerSequence
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyType, PublicKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError

from hivemind_p2p.errors import TransportError
from hivemind_p2p.transport.noise.handshake import Noise
from hivemind_p2p.transport.upgrade import libp2p_key_pair
from tests.transport.test_upgrade import SERVER, client, one_connection


class RSAKey(PublicKey):
    """Bytes that are said to be one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def to_bytes(self) -> bytes:
        return self._data

    def get_type(self) -> KeyType:
        return KeyType.RSA

    def verify(self, data: bytes, signature: bytes) -> bool:
        raise NotImplementedError


class Liar(Ed25519PrivateKey):
    """Shows another key than its own."""

    shown: PublicKey

    def get_public_key(self) -> PublicKey:
        return self.shown


def private_key() -> bytes:
    """A private RSA key with two Mersenne primes, which takes seconds to check."""
    p, q = 2**9689 - 1, 2**4423 - 1
    order = math.lcm(p - 1, q - 1)
    e = next(number for number in range(3, 1000, 2) if math.gcd(number, order) == 1)
    return DerSequence([0, p * q, e, pow(e, -1, order), p, q, 1, 1, 1]).encode()


async def test_a_private_key_of_a_stranger_is_not_checked_for_primes(monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(RSA, "import_key", never)
    private = Liar(libp2p_key_pair(SERVER).private_key.impl)
    private.shown = RSAKey(private_key())
    assert len(private.shown.to_bytes()) < 2**16, "fits into a handshake"
    noise = Noise(libp2p_key_pair(SERVER))
    noise._transport.libp2p_privkey = private

    async def show() -> None:
        with suppress(ConnectionClosedError, IncompleteReadError):
            await noise.inbound(theirs)

    async with one_connection() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(show)
        with trio.fail_after(10), pytest.raises(TransportError, match=r"an RSA key of \d+ bytes is too large"):
            await client().outbound(ours, SERVER.peer_id)


def test_the_largest_public_key_is_read():
    public = rsa.generate_private_key(65537, 4096).public_key()
    data = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert deserialize_public_key(RSAKey(data).serialize()).get_type() is KeyType.RSA
