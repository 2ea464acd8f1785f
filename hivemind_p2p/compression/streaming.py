"""Large tensors in parts.

As in hivemind, a call whose tensors take up to 2 MiB is unary, and one with more is a stream of parts. A tensor's first
part carries everything but the rest of its bytes, and how many parts there are; the later ones carry only bytes.
hivemind joins what came, however little that is; ``TensorAssembler`` checks.

While one part is under way, the next is encoded and the one before is decoded, as far as the bytes on the wire allow:

================================  =======================================  ====================================
NONE                              parts are views of the tensor            parts become the tensor
FLOAT16, BLOCK_INT8               encoded part by part                     decoded part by part
UNIFORM, QUANTILE and BLOCKWISE   all first: what stands in front of the   decoded part by part
                                  elements (codebook, magnitudes) depends
                                  on all of them
MEANSTD_16BIT                     all first, as above                      all last: its means stand at the end
================================  =======================================  ====================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch

from hivemind_p2p.compression.codec import DecodesAhead, EncodesInPieces
from hivemind_p2p.compression.encoded import (
    CODECS,
    MAX_TENSOR_BYTES,
    AnyTensor,
    BegunTensor,
    Header,
    ReceivedTensor,
    compression_type,
    encode,
    encode_in_place,
)
from hivemind_p2p.compression.memory import copy_memory, octets_of
from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.expert_messages import Buffer, TensorMessage

MAX_MESSAGE_BYTES: Final = 4 * 2**20
"""hivemind's limit of a unary message. The parts in its streams are this many bytes of a tensor, and a little more."""

MAX_UNARY_BYTES: Final = MAX_MESSAGE_BYTES // 2
"""The most tensor bytes, uncompressed, of a unary call: its answer is expected to be of the same order."""

PART_BYTES: Final = 2**20
"""Our parts: large enough that a part costs little, small enough that both sides and the network work at once."""

_AHEAD: Final = 2**18
"""Bytes of which it is worth while to decode them before the rest is there."""


def fits_unary(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether a call with these tensors should be unary rather than a stream, however they are compressed."""
    # bfloat16 may travel as float32.
    return (
        sum(each.numel() * (4 if each.dtype == torch.bfloat16 else each.itemsize) for each in tensors)
        <= MAX_UNARY_BYTES
    )


def split_for_streaming(message: runtime_pb2.Tensor, part_size: int = PART_BYTES) -> Iterator[runtime_pb2.Tensor]:
    """Split a whole tensor's message into parts with at most ``part_size`` bytes of the tensor each.

    An empty tensor is one part. :func:`serialize_in_parts` does the same with two copies less.
    """
    buffer = message.buffer
    yield runtime_pb2.Tensor(
        buffer=buffer[:part_size],
        size=message.size,
        requires_grad=message.requires_grad,
        dtype=message.dtype,
        compression=message.compression,
        chunks=_count(len(buffer), part_size),
    )
    yield from _rest(buffer, part_size)


def serialize_in_parts(
    tensor: torch.Tensor, compression: int = 0, *, part_size: int = PART_BYTES
) -> Iterator[runtime_pb2.Tensor]:
    """``serialize_tensor`` and :func:`split_for_streaming` in one; encodes at once, makes each part when asked for it.

    Raises:
        CodecError: see ``serialize_tensor``.
    """
    return _parts(*encode(tensor, compression), part_size)


def in_parts(tensor: torch.Tensor, compression: int = 0, *, part_size: int = PART_BYTES) -> Iterator[TensorMessage]:
    """:func:`serialize_in_parts` without copies: the tensor must stay as it is until the last part was sent.

    FLOAT16 and BLOCK_INT8 are encoded part by part, while earlier ones are under way.

    Raises:
        CodecError: see ``serialize_tensor``.
    """
    codec = CODECS[compression_type(compression)]
    if isinstance(codec, EncodesInPieces) and tensor.device.type == "cpu" and tensor.dtype in codec.writes:
        header = Header(tuple(tensor.shape), tensor.dtype, compression_type(compression), tensor.requires_grad)
        _, length = header.lengths()
        if part_size < length < header.nbytes:
            pieces = codec.pieces(tensor.detach(), part_size)
            yield header.part(next(pieces), chunks=codec.count_pieces(tensor.numel(), part_size))
            for piece in pieces:
                yield TensorMessage(piece)
            return
    header, data = encode_in_place(tensor, compression)
    view = memoryview(data)
    yield header.part(view[:part_size], chunks=_count(len(view), part_size))
    for start in range(part_size, len(view), part_size):
        yield TensorMessage(view[start : start + part_size])


class TensorAssembler:
    """Takes the parts of a stream one at a time, and gives the tensors that they complete.

    Nothing grows beyond what was announced and allowed: an announcement alone costs no memory, only parts do.

    Args:
        max_bytes: the most bytes that all tensors together may take when decoded.
        max_tensors: the most tensors.
    """

    def __init__(self, *, max_bytes: int = MAX_TENSOR_BYTES, max_tensors: int = 1024) -> None:
        self._max_bytes = max_bytes
        self._max_tensors = max_tensors
        self._bytes_left = max_bytes
        self._started = 0
        self._open: _OpenTensor | None = None

    def add(self, part: AnyTensor) -> ReceivedTensor | None:
        """Take the next part; the tensor, if it is its last one. ``decode`` it where a few milliseconds do not matter.

        Raises:
            CodecError: the part does not follow the one before, or its tensor is malformed or above a limit. The stream
                cannot go on.
        """
        if self._open is None:
            self._open = self._start(part)
        elif part.dtype:
            raise CodecError(f"the next tensor began before this one was complete: {self._open.state}")
        complete = self._open.add(part.buffer)
        if complete is not None:
            self._open = None
        return complete

    @property
    def ahead(self) -> int:
        """How many bytes wait for :meth:`decode_ahead`; 0 as long as they are few."""
        return self._open.ahead if self._open is not None else 0

    def decode_ahead(self) -> None:
        """Decode what came of the tensor under way, so that less is left to do when its last part is there.

        Takes as long as decoding so many bytes does, and not at the same time as :meth:`add`.

        Raises:
            CodecError: the bytes contradict themselves.
        """
        if self._open is not None:
            self._open.decode_ahead()

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            CodecError: parts of the last tensor are missing.
        """
        if self._open is not None:
            raise CodecError(f"the stream ended before its last tensor was complete: {self._open.state}")

    def _start(self, part: AnyTensor) -> _OpenTensor:
        if not part.dtype:
            raise CodecError("a part came that belongs to no tensor: the one before was complete, or there was none")
        self._started += 1
        if self._started > self._max_tensors:
            raise CodecError(f"more than {self._max_tensors} tensors in one stream")
        header = Header.of(part, self._max_bytes)
        if header.nbytes > self._bytes_left:
            raise CodecError(f"the tensors of one stream are above the limit of {self._max_bytes} bytes together")
        self._bytes_left -= header.nbytes
        return _OpenTensor(header, part.chunks)

    def __repr__(self) -> str:
        state = f"in the middle of {self._open.state}" if self._open else "between tensors"
        return f"<TensorAssembler: {self._started} tensors begun, {state}>"


class _OpenTensor:
    def __init__(self, header: Header, chunks: int) -> None:
        _, self._most = header.lengths()
        if not 0 <= chunks <= max(1, self._most):
            raise CodecError(f"a {header} cannot come in {chunks} parts")
        self._header = header
        self._parts = max(1, chunks)  # a whole tensor may say 0
        self._came = 0
        self._length = 0
        # Uninitialized, so that the operating system gives the memory when it is written to: announcing costs none.
        self._data = torch.empty(self._most if self._parts > 1 else 0, dtype=torch.uint8, device="cpu")
        self._begun: BegunTensor | None = None

    @property
    def state(self) -> str:
        return f"a {self._header}, {self._came} of {self._parts} parts, {self._length} bytes"

    def add(self, buffer: Buffer) -> ReceivedTensor | None:
        self._came += 1
        if self._parts == 1:
            return ReceivedTensor(self._header, buffer)
        if not len(buffer):
            raise CodecError(f"a part without bytes: {self.state}")
        end = self._length + len(buffer)
        if end > self._most:
            raise CodecError(f"more bytes than the tensor has: {self.state}, and {len(buffer)} more")
        copy_memory(octets_of(buffer), self._data[self._length : end])
        self._length = end
        return ReceivedTensor(self._header, self._data[:end], self._begun) if self._came == self._parts else None

    @property
    def ahead(self) -> int:
        codec = CODECS[self._header.compression]
        waiting = self._length - (self._begun.seen if self._begun is not None else 0)
        return waiting if waiting >= _AHEAD and isinstance(codec, DecodesAhead) else 0

    def decode_ahead(self) -> None:
        codec = CODECS[self._header.compression]
        if isinstance(codec, DecodesAhead):
            if self._begun is None:
                self._begun = BegunTensor(self._header, codec)
            self._begun.go_on(self._data[: self._length])


def _parts(header: Header, data: bytes, part_size: int) -> Iterator[runtime_pb2.Tensor]:
    yield header.message(data[:part_size], chunks=_count(len(data), part_size))
    yield from _rest(data, part_size)


def _rest(data: bytes, part_size: int) -> Iterator[runtime_pb2.Tensor]:
    for start in range(part_size, len(data), part_size):
        yield runtime_pb2.Tensor(buffer=data[start : start + part_size])


def _count(length: int, part_size: int) -> int:
    return max(1, -(-length // part_size))
