"""UNIFORM_8BIT: bins of one width.

hivemind's bins reach 3 standard deviations to both sides of the mean; what lies beyond goes into the outermost ones,
and is most of the error. Ours never reach further than the data does, and further than 3 deviations where a sample says
that the error (width squared / 12, plus what is clipped) gets less: 4 for a normal distribution, with 2/3 of the error.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from hivemind_p2p.compression.chunks import Scratch, chunks
from hivemind_p2p.compression.codebook import CODES, Bins, average

_REACHES: Final = (3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 1e9)  # in standard deviations; the last is all of the data
_SAMPLE: Final = 2**14


def uniform_bins(flat: torch.Tensor, low: float, high: float) -> Bins:
    """A ``codebook.Quantizer``."""
    low, high = _range(flat, low, high)
    scale = CODES / (high - low) if high > low else 0.0

    def bins_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        scaled = scratch.shifted(chunk, low).mul_(scale).clamp_(0, CODES - 1)
        return scratch(torch.int64, len(chunk)).copy_(scaled)  # rounds down

    return bins_of


def _range(flat: torch.Tensor, low: float, high: float) -> tuple[float, float]:
    """Where the first bin should begin and the last one end."""
    mean = average(flat)
    if high == low or not math.isfinite(mean):
        return low, high
    std = _deviation(flat, mean, high - low)
    generator = torch.Generator(device="cpu").manual_seed(
        0
    )  # the same bytes for the same tensor; users keep their seed
    sample = flat
    if len(flat) > _SAMPLE:
        sample = flat[torch.randint(len(flat), (_SAMPLE,), generator=generator, device="cpu")]
    sample = (sample.to(torch.float32) - mean) / std
    up, down = (high - mean) / std, (mean - low) / std
    reaches = [(min(reach, down), min(reach, up)) for reach in _REACHES]
    down, up = min(reaches, key=lambda reach: _squared_error(sample, *reach))
    return mean - down * std, mean + up * std


def _deviation(flat: torch.Tensor, mean: float, unit: float) -> float:
    """The standard deviation; in between, elements are measured in units so that their squares are not lost."""

    scratch, squares = Scratch(), 0.0
    for chunk in chunks(len(flat)):
        centered = scratch.shifted(flat[chunk], mean).mul_(1 / unit)
        squares += float(torch.dot(centered, centered))
    return math.sqrt(squares / len(flat)) * unit


def _squared_error(sample: torch.Tensor, down: float, up: float) -> float:
    """The mean squared error with bins that reach so far below and above the mean; all of it in standard deviations."""
    error = ((down + up) / CODES) ** 2 / 12
    for beyond in ((sample - up).clamp_min_(0), (-down - sample).clamp_min_(0)):
        count = int(torch.count_nonzero(beyond))
        if count:  # their average will stand for them; that of one is no average
            squares, total = float(torch.dot(beyond, beyond)), float(beyond.sum())
            error += (squares - total**2 / count if count > 1 else squares) / len(sample)
    return error
