"""How the numbers of a tensor travel."""

from __future__ import annotations

from enum import IntEnum


class CompressionType(IntEnum):
    """The ways of hivemind 1.1; the numbers are those of ``runtime_pb2.CompressionType``.

    Bytes per element, for a tensor that is worth compressing, and what kinds of tensors can travel so:

    * ``NONE``: as many as the dtype has; all dtypes.
    * ``FLOAT16``: 2; float16, float32 and float64.
    * ``MEANSTD_16BIT``: 2, and 8 per row; the same. Rows are scaled first, so their magnitude does not matter.
    * ``QUANTILE_8BIT``: 1; all floating dtypes. One codebook of 256 values that follows the distribution.
    * ``UNIFORM_8BIT``: 1; the same. One codebook of 256 values that are evenly spaced. The fastest of the three.
    * ``BLOCKWISE_8BIT``: 1; the same. A scale for every 4096 elements.
    """

    NONE = 0
    MEANSTD_16BIT = 1
    FLOAT16 = 2
    QUANTILE_8BIT = 3
    UNIFORM_8BIT = 4
    BLOCKWISE_8BIT = 5


class OwnCompression(IntEnum):
    """Ways of our own, for peers that say that they know them; hivemind's fail on these numbers.

    * ``BLOCK_INT8``: 1.016 bytes per element; all floating dtypes. A scale for every 256 elements, no codebook: a
      single row shrinks, too. Less error than any of hivemind's 8-bit ways, and faster.
    """

    BLOCK_INT8 = 100
