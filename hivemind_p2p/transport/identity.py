"""Who we are: a private key, the peer id that follows from it, and the file that keeps it.

The file holds libp2p's protobuf-marshalled private key (``peer-ids`` specification, "Keys"), so an identity made by
``p2p-keygen`` or by hivemind's daemon can be moved over: Ed25519 and RSA are read, Ed25519 is made. libp2p itself is
not imported here.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from hivemind_p2p.errors import IdentityError
from hivemind_p2p.wire.peer_id import PeerID

_RSA: Final = 0
_ED25519: Final = 1
_KEY_KINDS: Final = {_RSA: "RSA", _ED25519: "Ed25519", 2: "Secp256k1", 3: "ECDSA"}
_LARGEST_RSA: Final = 8192
"""Bits. Checking a signature takes the square of this."""
_LARGEST_FILE: Final = 16 * 1024
_LONGEST_INLINED_KEY: Final = 42  # peer-ids specification: longer public keys are hashed into the peer id

_PrivateKey = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class Identity:
    """A key pair and its peer id; immutable.

    Args:
        key: an Ed25519 or RSA private key of the ``cryptography`` package.
    """

    def __init__(self, key: _PrivateKey) -> None:
        self._key = key
        self.public_key_bytes: Final = _marshal_public(key)
        """The protobuf-marshalled public key, as handshakes and signatures carry it."""
        self.peer_id: Final = peer_id_of(self.public_key_bytes)

    @classmethod
    def generate(cls) -> Self:
        """A new Ed25519 identity that lives in memory only."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a protobuf-marshalled private key.

        Raises:
            ValueError: the bytes are not one, or of a kind other than Ed25519 and RSA.
        """
        return cls(_unmarshal_private(data))

    @classmethod
    def load_or_create(cls, path: str | Path | None) -> Self:
        """Read the identity in the file at ``path``, or make one and keep it there.

        The file is made with mode 0600, whole or not at all; of two processes that make it at once, both end with
        the same identity. An existing file is never written to. Missing parent folders are made with mode 0700.

        Args:
            path: the file, or None for a new identity that is not kept.

        Raises:
            IdentityError: the file cannot be read, written or understood, or others may read it.
        """
        if path is None:
            return cls.generate()
        file = Path(path).expanduser()
        try:
            data = _read_private_file(file)
        except FileNotFoundError:
            identity = cls.generate()
            _write_new_file(file, identity.to_bytes())
            try:
                data = _read_private_file(file)  # not ours where another process was faster
            except FileNotFoundError:
                raise IdentityError(
                    f"the identity file {file} vanished while it was made; "
                    "see which other program works in that folder, then start again"
                ) from None
        try:
            return cls.from_bytes(data)
        except ValueError as error:
            raise IdentityError(
                f"the identity file {file} cannot be used: {error}; restore it from a copy, "
                "or move it away to start with a new identity (and a new peer id)"
            ) from None

    def to_bytes(self) -> bytes:
        """The protobuf-marshalled private key: what the file holds. Keep it secret."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return _marshal(_ED25519, self._key.private_bytes_raw() + self._key.public_key().public_bytes_raw())
        return _marshal(
            _RSA,
            self._key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            ),
        )

    def sign(self, data: bytes) -> bytes:
        """Sign ``data``: 64 bytes of Ed25519, or RSA PKCS #1 v1.5 with SHA-256, as libp2p does."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def __repr__(self) -> str:
        return f"<Identity {self.peer_id.base58}>"


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool | None:
    """Whether ``data`` was signed with a key, as :meth:`Identity.sign` does; None: keys of its kind are not known here.

    Args:
        public_key: protobuf-marshalled; garbage is a key that signed nothing.
    """
    try:
        kind, key = _unmarshal(public_key)
        if kind == _ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
        elif kind == _RSA:
            loaded = serialization.load_der_public_key(key)
            if not isinstance(loaded, rsa.RSAPublicKey) or loaded.key_size > _LARGEST_RSA:
                return False
            loaded.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            return None if kind in _KEY_KINDS else False
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def peer_id_of(public_key: bytes) -> PeerID:
    """The id of the peer whose protobuf-marshalled public key this is."""
    if len(public_key) <= _LONGEST_INLINED_KEY:
        return PeerID(bytes([0, len(public_key)]) + public_key)
    return PeerID(b"\x12\x20" + hashlib.sha256(public_key).digest())


def _marshal_public(key: _PrivateKey) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return _marshal(_ED25519, key.public_key().public_bytes_raw())
    return _marshal(
        _RSA,
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _marshal(kind: int, data: bytes) -> bytes:
    """``message { required KeyType Type = 1; required bytes Data = 2; }``, in the one order that libp2p allows."""
    length = len(data)
    varint = bytearray()
    while length >= 0x80:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return bytes([0x08, kind, 0x12]) + bytes(varint) + data


def _unmarshal(data: bytes) -> tuple[int, bytes]:
    """The kind and the bytes of a marshalled key. Raises ValueError: it is none."""
    if len(data) < 4 or data[0] != 0x08 or data[2] != 0x12:
        raise ValueError(f"its {len(data)} bytes are not a libp2p key")
    kind, length, shift, position = data[1], 0, 0, 3
    while True:
        if position >= len(data) or shift > 21:
            raise ValueError("the libp2p key in it is cut short")
        length |= (data[position] & 0x7F) << shift
        shift += 7
        position += 1
        if data[position - 1] < 0x80:
            break
    key = data[position:]
    if len(key) != length:
        raise ValueError(f"the libp2p key in it should have {length} bytes, not {len(key)}")
    return kind, key


def _unmarshal_private(data: bytes) -> _PrivateKey:
    kind, key = _unmarshal(data)
    if kind == _ED25519:
        return _unmarshal_ed25519(key)
    if kind == _RSA:
        loaded = serialization.load_der_private_key(key, password=None)
        if not isinstance(loaded, rsa.RSAPrivateKey):
            raise ValueError("the key in it says RSA and is not")
        return loaded
    raise ValueError(f"keys of kind {_KEY_KINDS.get(kind, kind)} are not supported, only Ed25519 and RSA")


def _unmarshal_ed25519(key: bytes) -> ed25519.Ed25519PrivateKey:
    if len(key) not in (64, 96):  # 96: an old form that repeats the public key
        raise ValueError(f"an Ed25519 private key has 64 bytes, not {len(key)}")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(key[:32])
    public = private.public_key().public_bytes_raw()
    if any(key[start : start + 32] != public for start in range(32, len(key), 32)):
        raise ValueError("its public half does not belong to its private half")
    return private


def _read_private_file(file: Path) -> bytes:
    """The file's bytes. Raises FileNotFoundError where there is none, IdentityError for all else."""
    try:
        with file.open("rb") as handle:
            status = os.fstat(handle.fileno())
            if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise IdentityError(
                    f"the identity file {file} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}), who "
                    f"could pose as this peer; run: chmod 600 {file}"
                )
            data = handle.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise IdentityError(f"the identity path {file} is a folder; name a file in it: {file / 'key'}") from None
    except OSError as error:
        raise IdentityError(
            f"the identity file {file} cannot be read: {error.strerror}; see who owns it, or name another path"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise IdentityError(f"the identity file {file} is too large to be one; name the file that holds the key")
    return data


def _write_new_file(file: Path, data: bytes) -> None:
    """Make the file with its content at once, unless it is there by now."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # O_EXCL, mode 0600
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            try:
                os.link(temporary, file)
            except FileExistsError:
                return
            except OSError:  # a file system without hard links
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                    handle.write(data)
        finally:
            os.unlink(temporary)
    except FileExistsError:
        return
    except OSError as error:
        raise IdentityError(
            f"the identity file {file} cannot be made: {error.strerror}; make the folder writable, or name another path"
        ) from None
