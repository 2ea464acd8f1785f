"""Tensors to bytes and back, as hivemind 1.1 does it; torch only, no network.

``serialization`` has the two functions for whole tensors, ``streaming`` those for parts; ``encoded`` is what both are
made of, and checks. Below it there is one codec per :class:`CompressionType`: ``raw`` (NONE), ``half`` (FLOAT16,
MEANSTD_16BIT), ``codebook`` with ``uniform`` and ``quantile``, and ``blockwise``.
"""

from hivemind_p2p.compression.encoded import MAX_TENSOR_BYTES, ReceivedTensor
from hivemind_p2p.compression.serialization import deserialize_tensor, serialize_tensor
from hivemind_p2p.compression.streaming import (
    MAX_MESSAGE_BYTES,
    MAX_UNARY_BYTES,
    PART_BYTES,
    TensorAssembler,
    fits_unary,
    serialize_in_parts,
    split_for_streaming,
)
from hivemind_p2p.wire.compression_type import CompressionType

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_TENSOR_BYTES",
    "MAX_UNARY_BYTES",
    "PART_BYTES",
    "CompressionType",
    "ReceivedTensor",
    "TensorAssembler",
    "deserialize_tensor",
    "fits_unary",
    "serialize_in_parts",
    "serialize_tensor",
    "split_for_streaming",
]
