"""Noise transport messages: plaintext to bytes for the wire and back. Pure: no sockets, no clock, no Trio.

https://github.com/libp2p/specs/blob/master/noise/README.md: each message is a length of two bytes, big-endian, then at
most 65535 bytes: a ChaCha20-Poly1305 ciphertext with its tag of 16 bytes. The nonce is the count of messages in that
direction, so they cannot be left out, repeated or swapped: whoever fails to decrypt one must give the connection up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

Buffer = bytes | bytearray | memoryview

LENGTH_SIZE: Final = 2
TAG_SIZE: Final = 16
MAX_MESSAGE: Final = 65535
MAX_PLAINTEXT: Final = MAX_MESSAGE - TAG_SIZE
OVERHEAD: Final = LENGTH_SIZE + TAG_SIZE
_JOINED_BELOW: Final = 16 * 1024
"""Up to this size it is cheaper to copy buffers into one message than to encrypt one message more."""


class BadMessage(Exception):
    """A message that the other side did not send, or not at this place."""


class Sealer:
    """Encrypts one direction.

    Args:
        key: 32 bytes, from the handshake.
    """

    def __init__(self, key: bytes) -> None:
        self._encrypt_into = ChaCha20Poly1305(key).encrypt_into
        self._nonce = 0

    def seal(self, messages: Sequence[Buffer], target: memoryview) -> int:
        """Encrypt each message (as :func:`split` makes them) into ``target``; how much of it is full then.

        ``target`` must have :func:`sealed_size` bytes.
        """
        position, nonce, encrypt_into = 0, self._nonce, self._encrypt_into
        for message in messages:
            size = len(message) + TAG_SIZE
            target[position] = size >> 8
            target[position + 1] = size & 0xFF
            position += LENGTH_SIZE
            encrypt_into(b"\0\0\0\0" + nonce.to_bytes(8, "little"), message, None, target[position : position + size])
            position += size
            nonce += 1
        self._nonce = nonce
        return position


class Opener:
    """Decrypts one direction: :meth:`feed` it what came, then take whole messages until :meth:`next_size` is None.

    Args:
        key: 32 bytes, from the handshake.
    """

    def __init__(self, key: bytes) -> None:
        cipher = ChaCha20Poly1305(key)
        self._decrypt, self._decrypt_into = cipher.decrypt, cipher.decrypt_into
        self._nonce = 0
        self._data = memoryview(b"")
        self._position = 0

    def feed(self, data: memoryview) -> None:
        """Take in bytes: what :meth:`rest` left, then what came after it. ``data`` must not change until the next
        :meth:`rest`."""
        self._data, self._position = data, 0

    def next_size(self) -> int | None:
        """The plaintext size of the next message; None when not all of it came.

        Raises:
            BadMessage: it is shorter than its own tag.
        """
        position, data = self._position, self._data
        if len(data) - position < LENGTH_SIZE:
            return None
        size = data[position] << 8 | data[position + 1]
        if size < TAG_SIZE:
            raise BadMessage(f"a message of {size} bytes is shorter than its tag")
        return size - TAG_SIZE if len(data) - position - LENGTH_SIZE >= size else None

    def open(self, size: int) -> bytes:
        """Decrypt the next message, whose plaintext size is ``size``.

        Raises:
            BadMessage: its tag is wrong.
        """
        try:
            return self._decrypt(self._next_nonce(), self._next_message(size), None)
        except InvalidTag:
            raise BadMessage("a message is not what the peer sent") from None

    def open_into(self, target: memoryview) -> None:
        """Decrypt the next message, whose plaintext size is that of ``target``, into it.

        Raises:
            BadMessage: its tag is wrong. ``target`` may have changed.
        """
        try:
            self._decrypt_into(self._next_nonce(), self._next_message(len(target)), None, target)
        except InvalidTag:
            raise BadMessage("a message is not what the peer sent") from None

    def rest(self) -> bytes:
        """The beginning of a message that has not come whole: goes before the next bytes."""
        rest = bytes(self._data[self._position :])
        self._data, self._position = memoryview(b""), 0
        return rest

    def _next_nonce(self) -> bytes:
        nonce = self._nonce
        self._nonce += 1
        return b"\0\0\0\0" + nonce.to_bytes(8, "little")

    def _next_message(self, size: int) -> memoryview:
        begin = self._position + LENGTH_SIZE
        self._position = begin + size + TAG_SIZE
        return self._data[begin : self._position]


def split(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Cut what is to be sent into messages: small neighbours joined, large ones cut."""
    messages: list[Buffer] = []
    joined: bytearray | None = None
    for buffer in buffers:
        if joined is not None and len(joined) + len(buffer) <= _JOINED_BELOW:
            joined += buffer
        elif len(buffer) <= _JOINED_BELOW:
            joined = bytearray(buffer)
            messages.append(joined)
        else:
            joined = None
            messages += _cut(memoryview(buffer))
    return messages


def sealed_size(messages: Sequence[Buffer]) -> int:
    """The bytes that ``messages`` will take on the wire."""
    return sum(map(len, messages)) + OVERHEAD * len(messages)


def _cut(buffer: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(buffer), MAX_PLAINTEXT):
        yield buffer[begin : begin + MAX_PLAINTEXT]
