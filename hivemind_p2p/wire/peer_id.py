"""Peer ids: the multihash of a peer's public key (libp2p ``peer-ids`` specification)."""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Final

import base58

MAX_LENGTH: Final = 64
"""Bytes of a peer id."""
MAX_TEXT: Final = 128
"""Characters of its text; reading a long one takes the square of its length."""
_IDENTITY: Final = b"\x00"
_SHA2_256: Final = b"\x12\x20"


class PeerID:
    """Names a peer by its public key; immutable, hashable, ordered by its bytes.

    Args:
        raw: the multihash: ``00 len key`` for short keys (Ed25519), ``12 20 digest`` for long ones (RSA).

    Raises:
        ValueError: the bytes are not a multihash of either kind.
    """

    def __init__(self, raw: bytes) -> None:
        raw = bytes(raw)
        identity = raw[:1] == _IDENTITY and len(raw) >= 2 and len(raw) == 2 + raw[1]
        sha256 = raw[:2] == _SHA2_256 and len(raw) == 34
        if len(raw) > MAX_LENGTH or not (identity or sha256):
            raise ValueError(f"{raw[:40].hex()!r} is not a peer id: expected an identity or SHA-256 multihash")
        self._raw = raw
        self._hash = hash(raw)

    @classmethod
    def from_base58(cls, text: str) -> PeerID:
        """Read the usual text form, ``12D3Koo...`` or ``Qm...``; CIDv1 text (``bafz...``, ``k51...``) is read too.

        Raises:
            ValueError: the text is neither.
        """
        if len(text) > MAX_TEXT:
            raise ValueError(f"{text[:80]!r}... is not the text of a peer id: it has {len(text)} characters")
        try:
            if text[:1] == "b" and len(text) > 50:  # CIDv1 in base32, as some multiaddrs carry it
                cid = base64.b32decode(text[1:].upper() + "=" * (-(len(text) - 1) % 8))
                if cid[:2] == b"\x01\x72":
                    return cls(cid[2:])
            if text[:1] == "z" and len(text) > 50:  # CIDv1 in base58
                cid = base58.b58decode(text[1:])
                if cid[:2] == b"\x01\x72":
                    return cls(cid[2:])
            return cls(base58.b58decode(text))
        except ValueError as error:
            raise ValueError(f"{text[:80]!r} is not the text of a peer id: {error}") from None

    @cached_property
    def base58(self) -> str:
        """The usual text form."""
        return base58.b58encode(self._raw).decode()

    def to_base58(self) -> str:
        """The usual text form (hivemind's name for :attr:`base58`)."""
        return self.base58

    def to_bytes(self) -> bytes:
        """The multihash itself, as it travels in messages."""
        return self._raw

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return self.base58

    def __repr__(self) -> str:
        return f"<PeerID {self.base58[:4]}…{self.base58[-6:]}>"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, PeerID) and self._raw == other._raw)

    def __lt__(self, other: PeerID) -> bool:
        return self._raw < other._raw

    def __hash__(self) -> int:
        return self._hash
