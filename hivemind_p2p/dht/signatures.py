"""Signed records: only the owner that a subkey names can write under it.

Keys travel as hashes, so it is the subkey that names an owner, anywhere in its text or bytes: a hundred peers can
keep an entry each under one key, and none can touch another's.

* ``RSASignatureValidator``: hivemind's format, byte for byte. Owner ``[owner:ssh-rsa AAAA...]``; ``[signature:...]``
  is appended to the value, over the msgpack of the record's four fields as a tuple.
* ``Ed25519SignatureValidator``: ours, with the identity that a node has anyway. Owner ``[peer:12D3Koo...]``, its peer
  id; the value becomes the tuple ``(value, signature)``.

Why the second differs in form: a hivemind peer must be able to live with it. One that checks signatures takes any
``[owner:...]`` for an RSA key, and fails at a whole message for one that is not. One that does not check cannot read a
value with bytes behind it, and fails at a whole dictionary for one such entry. A subkey without ``[owner:`` and a
value that is msgpack to the last byte are carried and shown by both, as any other.
"""

from __future__ import annotations

import re
from dataclasses import astuple, replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hivemind_p2p.dht import rsa_keys
from hivemind_p2p.dht.validation import DHTRecord, RecordValidatorBase, Signer
from hivemind_p2p.wire import msgpack
from hivemind_p2p.wire.peer_id import PeerID

_RSA_OWNER: Final = re.compile(rb"\[owner:(.+?)\]")
_RSA_SIGNATURE: Final = re.compile(rb"\[signature:(.+?)\]")


class RSASignatureValidator(RecordValidatorBase):
    """hivemind's signed records. One per node: a second one is ignored.

    Args:
        private_key: signs what we store under our own marker. Default: a key of this process, made when first needed.
    """

    def __init__(self, private_key: rsa.RSAPrivateKey | None = None) -> None:
        self._key = private_key if private_key is not None else rsa_keys.process_key()
        self._marker = b"[owner:" + rsa_keys.public_bytes(self._key) + b"]"

    @property
    def local_public_key(self) -> bytes:
        """The marker ``[owner:ssh-rsa AAAA...]``; put it into the subkeys that only we may write."""
        return self._marker

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record names no owner, or exactly one who signed it."""
        owners = _rsa_owners(record)
        if not owners:
            return True
        signatures = _RSA_SIGNATURE.findall(record.value)
        if len(owners) != 1 or len(signatures) != 1:
            return False
        return rsa_keys.verify(owners.pop(), _rsa_signed(record, self.strip_value(record)), signatures[0])

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value with our signature, if the record names us."""
        if self._marker not in record.key and self._marker not in record.subkey:
            return record.value
        signature = rsa_keys.sign(self._key, _rsa_signed(record, record.value))
        return record.value + b"[signature:" + signature + b"]"

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without signatures, if the record names an owner; otherwise what looks like one is the value's."""
        return _RSA_SIGNATURE.sub(b"", record.value) if _rsa_owners(record) else record.value

    @property
    def priority(self) -> int:
        """Outermost: what it leaves is msgpack."""
        return 10

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """A second one adds nothing."""
        return isinstance(other, RSASignatureValidator)

    def __repr__(self) -> str:
        return f"<RSASignatureValidator ...{self._marker[-13:-1].decode()}>"


_PEER_OWNER: Final = re.compile(rb"\[peer:([1-9A-HJ-NP-Za-km-z]+)\]")
_SIGNATURE_SIZE: Final = 64
_SIGNATURE_HEAD: Final = b"\xc4\x40"  # msgpack: 64 bytes follow
_DOMAIN: Final = b"hivemind-p2p record:"
"""What an identity signs must not pass for anything else that it signs, such as a handshake."""
_KEY_HEAD: Final = b"\x00\x24\x08\x01\x12\x20"  # peer-ids specification: a multihash that holds an Ed25519 key


class Ed25519SignatureValidator(RecordValidatorBase):
    """Records signed with the identity of a node. One per node: a second one is ignored.

    Args:
        identity: signs what we store under our own marker; a node gives its own to one that was made without.
        peer_id: its peer id, which must hold an Ed25519 key.
    """

    def __init__(self, identity: Signer | None = None, peer_id: PeerID | None = None) -> None:
        self._identity, self._peer_id = identity, peer_id

    def bind(self, identity: Signer, peer_id: PeerID) -> None:
        """Sign with the identity of a node, unless we were given one."""
        if self._identity is None:
            self._identity, self._peer_id = identity, peer_id

    @staticmethod
    def marker(peer_id: PeerID) -> str:
        """``[peer:12D3Koo...]``: put it into the subkeys that only this peer may write."""
        return f"[peer:{peer_id.base58}]"

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record names no owner, or exactly one who signed it."""
        owners = set(_PEER_OWNER.findall(record.subkey))
        if not owners:
            return True
        parted = _part(record.value)
        if len(owners) != 1 or parted is None:
            return False
        value, signature = parted
        try:
            raw = PeerID.from_base58(owners.pop().decode()).to_bytes()
            if not raw.startswith(_KEY_HEAD):
                return False
            key = Ed25519PublicKey.from_public_bytes(raw[len(_KEY_HEAD) :])
            key.verify(signature, _ed25519_signed(record, value))
        except (ValueError, InvalidSignature):
            return False
        return True

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value with our signature, if the record names us."""
        if self._identity is None or self._peer_id is None:
            return record.value
        if self.marker(self._peer_id).encode() not in record.subkey:
            return record.value
        signature = self._identity.sign(_ed25519_signed(record, record.value))
        if len(signature) != _SIGNATURE_SIZE:
            return record.value  # an RSA identity: our own validate() will refuse the record
        return _tuple_head(1 + len(record.value) + 66) + record.value + _SIGNATURE_HEAD + signature

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value itself."""
        parted = _part(record.value) if _PEER_OWNER.search(record.subkey) else None
        return record.value if parted is None else parted[0]

    @property
    def priority(self) -> int:
        """Inside of hivemind's, whose signature is behind the msgpack."""
        return 9

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """A second one adds nothing."""
        return isinstance(other, Ed25519SignatureValidator)

    def __repr__(self) -> str:
        return f"<Ed25519SignatureValidator {self._peer_id!r}>"


def _rsa_owners(record: DHTRecord) -> set[bytes]:
    return {*_RSA_OWNER.findall(record.key), *_RSA_OWNER.findall(record.subkey)}


def _rsa_signed(record: DHTRecord, value: bytes) -> bytes:
    """What hivemind's signature is made of."""
    return msgpack.dumps(astuple(replace(record, value=value)))


def _ed25519_signed(record: DHTRecord, value: bytes) -> bytes:
    return _DOMAIN + msgpack.dumps(astuple(replace(record, value=value)))


def _tuple_head(size: int) -> bytes:
    """The head of msgpack's extension 0x40 of ``size`` bytes, and of the list of two inside."""
    if size < 2**8:
        head = b"\xc7" + size.to_bytes(1, "big")
    elif size < 2**16:
        head = b"\xc8" + size.to_bytes(2, "big")
    else:
        head = b"\xc9" + size.to_bytes(4, "big")
    return head + b"\x40\x92"


def _part(signed: bytes) -> tuple[bytes, bytes] | None:
    """The bytes of ``value`` and ``signature`` of the tuple ``(value, signature)``; None if it is not one."""
    tail = len(_SIGNATURE_HEAD) + _SIGNATURE_SIZE
    for length_size, first in ((1, 0xC7), (2, 0xC8), (4, 0xC9)):
        head = length_size + 3
        if signed[:1] == bytes([first]) and len(signed) > head + tail:
            value, signature = signed[head:-tail], signed[-_SIGNATURE_SIZE:]
            if signed == _tuple_head(len(signed) - head + 1) + value + _SIGNATURE_HEAD + signature:
                return value, signature
    return None
