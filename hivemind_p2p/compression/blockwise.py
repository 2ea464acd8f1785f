"""BLOCKWISE_8BIT: every 4096 elements are divided by their greatest magnitude, then rounded to the "dynamic" map.

The map has 256 values from -1 to 1 whose distances grow with their magnitude (Dettmers, "8-bit approximations for
parallelism in deep learning", ICLR 2016; the values are those that hivemind sends, by way of bitsandbytes on a CPU).

The sections: the number of blocks (int64), the length of the map (int64), the blocks' greatest magnitudes (float32),
the map (float32), the indices (uint8). What cannot be divided (NaN, infinities, numbers beyond float32), or would not
get smaller, travels as it is.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Final

import torch

from hivemind_p2p.compression.chunks import CHUNK, Scratch, chunks
from hivemind_p2p.compression.codebook import CODES, check_indices, read_codes
from hivemind_p2p.compression.codec import FLOATING, DecodesAhead
from hivemind_p2p.compression.memory import SectionWriter
from hivemind_p2p.errors import CodecError

BLOCK: Final = 4096
_DROPPED_BITS: Final = 11  # of a float32; 12 bits of its mantissa remain, which is enough to find the nearest value
_KEYS: Final = 2 ** (32 - _DROPPED_BITS)


class BlockwiseCodec(DecodesAhead):
    """Finds the nearest value of the map with one look-up, by the upper bits of the float32."""

    writes = reads = FLOATING

    def encode(self, tensor: torch.Tensor) -> bytes | None:
        numel, (_, length) = tensor.numel(), self.lengths(tensor.shape, tensor.dtype)
        if length >= numel * tensor.dtype.itemsize:
            return None
        writer = SectionWriter(length)
        blocks = _blocks(numel)
        writer.put_int64(blocks)
        writer.put_int64(CODES)
        magnitudes = writer.take(torch.float32, blocks)
        writer.take(torch.float32, CODES).copy_(dynamic_map())
        indices = writer.take(torch.uint8, numel)
        scratch, nearest = Scratch(), _nearest()
        per_block = torch.split(magnitudes, CHUNK // BLOCK)
        for largest, (chunk, into) in zip(per_block, chunks(tensor.reshape(-1), indices), strict=True):
            rows = scratch(torch.float32, len(largest) * BLOCK).view(-1, BLOCK)
            scaled = rows.view(-1)[: len(chunk)].copy_(chunk)
            rows.view(-1)[len(chunk) :].zero_()  # the last block may be shorter
            torch.maximum(rows.amax(1), rows.amin(1).neg_(), out=largest)
            rows.div_(torch.where(largest > 0, largest, 1)[:, None])
            keys = scratch(torch.int32, len(chunk))
            torch.bitwise_right_shift(scaled.view(torch.int32), _DROPPED_BITS, out=keys).add_(_KEYS // 2)
            torch.index_select(nearest, 0, keys, out=into)
        return writer.finish() if bool(torch.isfinite(magnitudes).all()) else None

    def lengths(self, size: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
        numel = math.prod(size)
        least = 16 + 4 * _blocks(numel) + numel
        return least, least + 4 * CODES

    def total(self, octets: torch.Tensor, numel: int) -> int:
        return _head(octets, numel)[0] + numel

    def decode_some(self, octets: torch.Tensor, into: torch.Tensor, done: int) -> int:
        if len(octets) < 16:
            return done
        head, codes = _head(octets, len(into))
        end = min(len(octets) - head, len(into))
        if end < len(into):
            end -= end % BLOCK  # whole blocks, until the last one
        if end <= done:
            return done
        magnitudes = octets[16 : head - 4 * codes].view(torch.float32)[done // BLOCK : _blocks(end)]
        codebook, indices = octets[head - 4 * codes : head].view(torch.float32), octets[head + done : head + end]
        check_indices(indices, codes)
        scratch = Scratch()
        per_block = torch.split(magnitudes, CHUNK // BLOCK)
        for largest, (part, named) in zip(per_block, chunks(into[done:end], indices), strict=True):
            values = part if into.dtype == torch.float32 else scratch(torch.float32, len(part))
            torch.index_select(codebook, 0, scratch(torch.int64, len(named)).copy_(named), out=values)
            whole = len(values) // BLOCK
            values[: whole * BLOCK].view(-1, BLOCK).mul_(largest[:whole, None])
            if whole < len(largest):  # the last block may be shorter
                values[whole * BLOCK :].mul_(largest[whole])
            if values is not part:
                part.copy_(values)
        return end


def _head(octets: torch.Tensor, numel: int) -> tuple[int, int]:
    """The bytes before the indices, and the length of the map, as the header says."""
    blocks, codes = int(octets[:8].view(torch.int64)), read_codes(octets, 8)
    if blocks != _blocks(numel):
        raise CodecError(
            f"the sections are {blocks} blocks by their headers, and {numel} elements are {_blocks(numel)}"
        )
    return 16 + 4 * blocks + 4 * codes, codes


def _blocks(numel: int) -> int:
    return -(-numel // BLOCK)


@cache
def dynamic_map() -> torch.Tensor:
    """The map, ascending: 0, 1, and per decade below 1 the middles of equal steps, twice as many as one below."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32, device="cpu")
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*middles.tolist(), *(-middles).tolist()]
    values.remove(min(values))  # as bitsandbytes does on a CPU: a block's extreme is to be exact on both sides
    return torch.tensor(sorted([-1.0, *values]), dtype=torch.float32, device="cpu")


@cache
def _nearest() -> torch.Tensor:
    """The index (uint8) of the map's nearest value, for every key: a float32's upper bits; negative ones come first."""
    half, values = _KEYS // 2, dynamic_map()
    keys = torch.arange(half, dtype=torch.int32, device="cpu")
    centers = (keys << _DROPPED_BITS | 1 << (_DROPPED_BITS - 1)).view(torch.float32).nan_to_num_(nan=math.inf)
    ascending = torch.cat([-centers.flip(0), centers])
    ends = torch.searchsorted(ascending, (values[:-1] + values[1:]) / 2).tolist()
    ordered = torch.empty(_KEYS, dtype=torch.uint8, device="cpu")
    for index, (start, end) in enumerate(pairwise([0, *ends, _KEYS])):
        ordered[start:end] = index
    return torch.cat([ordered[:half].flip(0), ordered[half:]])
