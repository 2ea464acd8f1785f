"""Whole tensors to messages and back."""

from __future__ import annotations

import torch

from hivemind_p2p.compression.encoded import (
    MAX_TENSOR_BYTES,
    AnyTensor,
    Header,
    ReceivedTensor,
    encode,
    encode_in_place,
)
from hivemind_p2p.wire import runtime_pb2
from hivemind_p2p.wire.compression_type import CompressionType
from hivemind_p2p.wire.expert_messages import TensorMessage


def serialize_tensor(tensor: torch.Tensor, compression: int = CompressionType.NONE) -> runtime_pb2.Tensor:
    """A tensor as a message.

    Any device, strides and shape will do; the tensor is not modified. What a codec would not make smaller, or could
    not give back (NaN and infinities in 8 bits), travels uncompressed: the message tells its reader.

    Args:
        tensor: of a dtype that the codec carries, see :class:`CompressionType`.
        compression: a :class:`CompressionType`, or its number.

    Raises:
        CodecError: the codec does not carry such tensors, or there is no such codec.
    """
    header, data = encode(tensor, compression)
    return header.message(data)


def message_of(tensor: torch.Tensor, compression: int = CompressionType.NONE) -> TensorMessage:
    """:func:`serialize_tensor` without copies: the tensor must stay as it is until the message was sent."""
    header, data = encode_in_place(tensor, compression)
    return header.part(data)


def deserialize_tensor(message: AnyTensor, *, max_bytes: int = MAX_TENSOR_BYTES) -> torch.Tensor:
    """The tensor of a message: a leaf on the CPU, contiguous, writable, requiring a gradient if the message says so.

    Args:
        message: may have been sent by anybody.
        max_bytes: the most that the tensor may take when decoded. Without a limit, 8 times the message.

    Raises:
        CodecError: the bytes are not the tensor that the message says they are, or it is above the limit.
    """
    return ReceivedTensor(Header.of(message, max_bytes), message.buffer).decode()
