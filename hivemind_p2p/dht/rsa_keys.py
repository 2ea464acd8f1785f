"""RSA as hivemind uses it for records and tokens: PSS with SHA-256, signatures in base64, public keys as OpenSSH's."""

from __future__ import annotations

import base64
import binascii
from functools import cache, lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_HASH: Final = hashes.SHA256()
_PADDING: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
_LARGEST_KEY: Final = 8192
"""Bits. Checking a signature takes the square of this."""


@cache
def process_key() -> rsa.RSAPrivateKey:
    """The key of this process, of 2048 bits, made when it is first asked for."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_bytes(key: rsa.RSAPrivateKey) -> bytes:
    """The public half: ``ssh-rsa AAAA...``."""
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def sign(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """A signature, in base64."""
    return base64.b64encode(key.sign(data, _PADDING, _HASH))


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` was made of ``data`` by the owner of ``public_key``; False for garbage of any kind."""
    try:
        _load(public_key).verify(base64.b64decode(signature), data, _PADDING, _HASH)
    except (ValueError, binascii.Error, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


@lru_cache(maxsize=256)
def _load(public_key: bytes) -> rsa.RSAPublicKey:
    if not public_key.startswith(b"ssh-rsa "):  # of other kinds some are garbage in ways of their own
        raise ValueError("not an RSA key")
    key = serialization.load_ssh_public_key(public_key)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size > _LARGEST_KEY:
        raise ValueError(f"not an RSA key of at most {_LARGEST_KEY} bits")
    return key
