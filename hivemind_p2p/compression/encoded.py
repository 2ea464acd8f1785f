"""A tensor as bytes, between a torch tensor and the messages that carry it.

How often a tensor's bytes are copied with NONE: not at all on their way out, and once on their way in, into the memory
that becomes the tensor (``part``, ``in_parts``). The other codecs compute from and into the same places. With
protobuf's own messages (``message``) it is three times more on each way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import torch

from hivemind_p2p.compression.block_int8 import BlockInt8Codec
from hivemind_p2p.compression.blockwise import BlockwiseCodec
from hivemind_p2p.compression.codebook import CodebookCodec
from hivemind_p2p.compression.codec import DTYPE_NAMES, DTYPES, Codec, DecodesAhead
from hivemind_p2p.compression.half import Float16, MeanStd16Bit
from hivemind_p2p.compression.memory import SectionReader, memory_of
from hivemind_p2p.compression.quantile import quantile_bins
from hivemind_p2p.compression.raw import Raw
from hivemind_p2p.compression.uniform import uniform_bins
from hivemind_p2p.errors import CodecError
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.compression_type import CompressionType, OwnCompression
from hivemind_p2p.wire.expert_messages import Buffer, TensorMessage

MAX_TENSOR_BYTES: Final = 2**30
"""What one tensor may take when decoded, unless the caller says otherwise."""

_MAX_DIMENSIONS: Final = 64
_SMALL: Final = 2**16
"""Bytes that are copied at once, with Python's lock held."""
AnyTensor: TypeAlias = runtime_pb2.Tensor | TensorMessage
"""As protobuf reads them, and as we do."""
Compression: TypeAlias = CompressionType | OwnCompression
CODECS: Final[dict[Compression, Codec]] = {
    CompressionType.NONE: Raw(),
    CompressionType.FLOAT16: Float16(),
    CompressionType.MEANSTD_16BIT: MeanStd16Bit(),
    CompressionType.QUANTILE_8BIT: CodebookCodec(quantile_bins),
    CompressionType.UNIFORM_8BIT: CodebookCodec(uniform_bins),
    CompressionType.BLOCKWISE_8BIT: BlockwiseCodec(),
    OwnCompression.BLOCK_INT8: BlockInt8Codec(),
}


@dataclass(frozen=True)
class Header:
    """What a message says of its tensor.

    Attributes:
        size: its shape.
        dtype: of the tensor, not of the bytes.
        compression: how the bytes are to be read.
        requires_grad: whether the decoded tensor is to require a gradient.
    """

    size: tuple[int, ...]
    dtype: torch.dtype
    compression: Compression = CompressionType.NONE
    requires_grad: bool = False

    @classmethod
    def of(cls, message: AnyTensor, max_bytes: int) -> Header:
        """Check what a peer sent, before anything is allocated.

        Raises:
            CodecError: an unknown dtype or compression, or they do not go together, or the tensor is too large.
        """
        size, dtype, compression = tuple(message.size), DTYPES.get(message.dtype), compression_type(message.compression)
        if dtype is None:
            raise CodecError(f"unknown dtype {message.dtype[:40]!r}; known are {', '.join(DTYPES)}")
        if dtype not in CODECS[compression].reads:
            raise CodecError(f"{compression.name} carries no {message.dtype}")
        if message.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
            raise CodecError(f"a tensor of {message.dtype} cannot require a gradient")
        if len(size) > _MAX_DIMENSIONS:
            raise CodecError(f"{len(size)} dimensions are more than {_MAX_DIMENSIONS}")
        # The strides of an empty tensor must fit into 64 bits, too.
        if math.prod(size) * dtype.itemsize > max_bytes or math.prod(length or 1 for length in size) >= 2**58:
            raise CodecError(
                f"a tensor of size {list(size)} and {message.dtype} is above the limit of {max_bytes} bytes"
            )
        return cls(size, dtype, compression, message.requires_grad)

    @property
    def nbytes(self) -> int:
        """What the tensor takes when decoded."""
        return math.prod(self.size) * self.dtype.itemsize

    def lengths(self) -> tuple[int, int]:
        """The fewest and the most bytes that it can be encoded to."""
        return CODECS[self.compression].lengths(self.size, self.dtype)

    def part(self, buffer: Buffer, chunks: int = 0) -> TensorMessage:
        """The same as :meth:`message`, whose buffer is not copied."""
        dtype, compression = DTYPE_NAMES[self.dtype], self.compression.value
        return TensorMessage(buffer, self.size, self.requires_grad, dtype, compression, chunks)

    def message(self, buffer: bytes, chunks: int = 0) -> runtime_pb2.Tensor:
        """The message that carries the whole tensor, or the first of ``chunks`` parts of it."""
        return runtime_pb2.Tensor(
            buffer=buffer,
            size=self.size,
            requires_grad=self.requires_grad,
            dtype=str(self.dtype).removeprefix("torch."),
            compression=cast(runtime_pb2.CompressionType, self.compression.value),
            chunks=chunks,
        )

    def __str__(self) -> str:
        return f"{self.compression.name} tensor of {list(self.size)} {str(self.dtype).removeprefix('torch.')}"


def encode(tensor: torch.Tensor, compression: int) -> tuple[Header, bytes]:
    """A tensor as the bytes that travel; see ``serialize_tensor``."""
    chosen, plain = compression_type(compression), tensor.detach()
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values() or tensor.is_meta:
        raise CodecError(f"a {tensor.layout} tensor of {tensor.dtype} on {tensor.device} has no bytes to send")
    if tensor.dtype not in CODECS[chosen].writes:
        writes = ", ".join(sorted(str(dtype) for dtype in CODECS[chosen].writes))
        raise CodecError(f"{chosen.name} carries no {tensor.dtype}, only {writes}; send it with NONE")
    if max(tensor.shape, default=0) >= 2**32:
        raise CodecError(f"no dimension can be longer than {2**32 - 1}; this tensor is {list(tensor.shape)}")
    with torch.inference_mode(mode=False):  # codecs write to what they make
        plain = plain.to("cpu").resolve_conj().resolve_neg()
        data = CODECS[chosen].encode(plain)
        if data is None:
            chosen = CompressionType.NONE
            data = CODECS[chosen].encode(plain)
    assert data is not None
    return Header(tuple(tensor.shape), tensor.dtype, chosen, tensor.requires_grad), data


def encode_in_place(tensor: torch.Tensor, compression: int) -> tuple[Header, Buffer]:
    """:func:`encode`, but what travels as it is stays where it is: neither it may be changed while it is sent."""
    plain = tensor.detach()
    if (
        compression_type(compression) is CompressionType.NONE
        and plain.is_contiguous()
        and plain.device.type == "cpu"
        and plain.layout == torch.strided
        and plain.dtype in DTYPE_NAMES
        and plain.dtype != torch.bfloat16
        and not (plain.is_conj() or plain.is_neg())
        and max(plain.shape, default=0) < 2**32
    ):
        return Header(tuple(plain.shape), plain.dtype, CompressionType.NONE, tensor.requires_grad), memory_of(plain)
    return encode(tensor, compression)


class BegunTensor:
    """A tensor that is decoded while its bytes come.

    Args:
        header: what it is.
        codec: its codec.
    """

    def __init__(self, header: Header, codec: DecodesAhead) -> None:
        self._header, self._codec = header, codec
        with torch.inference_mode(mode=False):
            self._tensor = torch.empty(header.size, dtype=header.dtype, device="cpu")
        self._done = 0
        self.seen = 0
        """Bytes at the time of the last :meth:`go_on`."""

    def go_on(self, octets: torch.Tensor) -> None:
        """Decode what can be decoded of the bytes (uint8) that came so far; raises CodecError."""
        with torch.inference_mode(mode=False):
            self._done = self._codec.decode_some(octets, self._tensor.view(-1), self._done)
        self.seen = len(octets)

    def finish(self, octets: torch.Tensor) -> torch.Tensor:
        """The tensor, with all bytes; raises CodecError."""
        with torch.inference_mode(mode=False):
            self._codec.decode_rest(octets, self._tensor.view(-1), self._done)
        return self._tensor.requires_grad_(self._header.requires_grad)


@dataclass(frozen=True, repr=False)
class ReceivedTensor:
    """All bytes of a tensor, not decoded yet: that takes a while for a large one.

    Attributes:
        header: what it is.
        data: its bytes; as a uint8 tensor they are nobody else's, and may become the decoded tensor's memory.
        begun: what was decoded of it while it came.

    Raises:
        CodecError: there are fewer or more bytes than such a tensor can have.
    """

    header: Header
    data: Buffer | torch.Tensor
    begun: BegunTensor | None = None

    def __post_init__(self) -> None:
        least, most = self.header.lengths()
        if not least <= self.length <= most:
            expected = str(least) if least == most else f"{least} to {most}"
            raise CodecError(f"a {self.header} is {expected} bytes, and {self.length} came")

    @property
    def length(self) -> int:
        """Bytes that came."""
        return len(self.data)

    def decode(self) -> torch.Tensor:
        """The tensor: a leaf on the CPU, contiguous, writable, with memory of its own. Call it once.

        Raises:
            CodecError: the bytes contradict themselves.
        """
        header = self.header
        if self.begun is not None and isinstance(self.data, torch.Tensor):
            return self.begun.finish(self.data)
        if self._is_plain and not isinstance(self.data, torch.Tensor) and not torch.is_inference_mode_enabled():
            tensor = torch.empty(header.size, dtype=header.dtype, device="cpu")
            memory_of(tensor)[:] = self.data
            return tensor.requires_grad_(header.requires_grad)
        with torch.inference_mode(mode=False):
            sections = SectionReader(self.data)
            tensor = CODECS[header.compression].decode(sections, header.size, header.dtype, self.length)
        return tensor.requires_grad_(header.requires_grad)

    @property
    def _is_plain(self) -> bool:
        """Whether it is a small copy and nothing else, which need not go through the machinery of codecs."""
        header = self.header
        return (
            header.compression is CompressionType.NONE
            and 0 < self.length <= _SMALL
            and header.dtype is not torch.bool
            and header.dtype is not torch.bfloat16
        )

    def __repr__(self) -> str:
        return f"<ReceivedTensor: {self.header}, {self.length} bytes>"


def carries(compression: int, dtype: torch.dtype) -> bool:
    """Whether tensors of a dtype can be sent so."""
    return dtype in CODECS[compression_type(compression)].writes


def compression_type(number: int) -> Compression:
    """The compression that a number names; raises CodecError where there is none."""
    for kind in CODECS:
        if kind == number:
            return kind
    known = ", ".join(f"{each.name} ({each.value})" for each in CODECS)
    raise CodecError(f"unknown compression {number!r}; known are {known}")
