"""Tensors to bytes and back, as hivemind 1.1 does it; torch only, no network.

``serialization`` has the two functions for whole tensors, ``streaming`` those for parts; ``encoded`` is what both are
made of, and checks. Below it there is one codec per :class:`CompressionType`: ``raw`` (NONE), ``half`` (FLOAT16,
MEANSTD_16BIT), ``codebook`` with ``uniform`` and ``quantile``, ``blockwise``, and our own ``block_int8``. ``measure``
tells what they cost.
"""

from hivemind_p2p.compression.encoded import CODECS, MAX_TENSOR_BYTES, ReceivedTensor, carries, compression_type
from hivemind_p2p.compression.measure import CodecErrors, ErrorMeter, fastest
from hivemind_p2p.compression.serialization import deserialize_tensor, message_of, serialize_tensor
from hivemind_p2p.compression.streaming import (
    MAX_MESSAGE_BYTES,
    MAX_UNARY_BYTES,
    PART_BYTES,
    TensorAssembler,
    fits_unary,
    in_parts,
    serialize_in_parts,
    split_for_streaming,
)
from hivemind_p2p.wire.compression_type import CompressionType, OwnCompression

__all__ = [
    "CODECS",
    "MAX_MESSAGE_BYTES",
    "MAX_TENSOR_BYTES",
    "MAX_UNARY_BYTES",
    "PART_BYTES",
    "CodecErrors",
    "CompressionType",
    "ErrorMeter",
    "OwnCompression",
    "ReceivedTensor",
    "TensorAssembler",
    "carries",
    "compression_type",
    "deserialize_tensor",
    "fastest",
    "fits_unary",
    "in_parts",
    "message_of",
    "serialize_in_parts",
    "serialize_tensor",
    "split_for_streaming",
]
