"""UNIFORM_8BIT: bins of one width.

hivemind's bins reach 3 standard deviations to both sides of the mean; what lies beyond goes into the outermost ones,
and is most of the error. It sends the average of every bin.

Ours never reach further than the data does. A sample decides how: if the distribution is smooth and its tails short,
bins reach over all of it, and their middles are sent, so that nothing has to be averaged; that is most of the time.
Otherwise they reach as far as the error (width squared / 12, plus what is clipped) gets least, and averages are sent.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from hivemind_p2p.compression.chunks import CHUNK, Scale, Scratch
from hivemind_p2p.compression.codebook import CODES, Bins, Extent

_REACHES: Final = (3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 1e9)  # in standard deviations; the last is all of the data
_SAMPLE: Final = 2**14


def uniform_bins(flat: torch.Tensor, extent: Extent) -> Bins:
    """A ``codebook.Quantizer``."""
    low, high, codebook = extent.low, extent.high, None
    if low < high:
        sample = _sample(flat)
        if len(flat) > 4 * _SAMPLE and _middles_will_do(sample, low, high):
            codebook = low + (torch.arange(CODES, dtype=torch.float64, device="cpu") + 0.5) * ((high - low) / CODES)
        else:
            low, high = _range(flat, extent, sample)
    scale = Scale(low, CODES / (high - low) if high > low else 0.0)

    def bins_of(chunk: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        scaled = scale(chunk, scratch(torch.float32, len(chunk))).clamp_(0, CODES - 1)
        return scratch(torch.int32, len(chunk)).copy_(scaled)  # rounds down

    return Bins(bins_of, codebook)


def _sample(flat: torch.Tensor) -> torch.Tensor:
    """Some of the elements, in float32; of the same tensor the same, and users keep their random numbers."""
    if len(flat) > _SAMPLE:
        generator = torch.Generator(device="cpu").manual_seed(0)
        flat = flat.index_select(0, torch.randint(len(flat), (_SAMPLE,), generator=generator, device="cpu"))
    return flat.to(torch.float32)


def _middles_will_do(sample: torch.Tensor, low: float, high: float) -> bool:
    """Whether bins over all of the data err by no more than hivemind's, and their averages would tell nothing."""
    std, mean = (float(each) for each in torch.std_mean(sample))
    if std == 0:  # what differs is too little for float32
        return False
    normal = (sample - mean) / std
    if not ((high - low) / std / CODES) ** 2 / 12 <= _squared_error(normal, 3, 3):
        return False
    places = (sample - low) * (CODES / (high - low))
    bins = places.to(torch.int64).clamp_(0, CODES - 1)
    sums = torch.zeros(CODES, device="cpu", dtype=torch.float32).scatter_add_(0, bins, places - bins - 0.5)
    counts = torch.bincount(bins, minlength=CODES)
    # The average's distance from the middle has a variance of 1/12/count if elements are spread evenly over the bin.
    return float((sums.square() / counts.clamp_min(1)).sum()) * 12 < 1.5 * int(torch.count_nonzero(counts))


def _range(flat: torch.Tensor, extent: Extent, sample: torch.Tensor) -> tuple[float, float]:
    """Where the first bin should begin and the last one end."""
    mean, std = extent.mean, _deviation(flat, extent.mean, extent.high - extent.low)
    if std == 0:  # what differs is too little for float32
        return extent.low, extent.high
    farthest_down, farthest_up = (mean - extent.low) / std, (extent.high - mean) / std
    reaches = dict.fromkeys((min(reach, farthest_down), min(reach, farthest_up)) for reach in _REACHES)
    normal = (sample - mean) / std
    down, up = min(reaches, key=lambda reach: _squared_error(normal, *reach))
    return mean - down * std, mean + up * std


def _deviation(flat: torch.Tensor, mean: float, unit: float) -> float:
    """The standard deviation; in between, elements are measured in units so that their squares are not lost."""
    scratch, center = Scratch(), Scale(mean, 1 / unit)
    norms = [
        torch.linalg.vector_norm(center(chunk, scratch(torch.float32, len(chunk))))
        for chunk in torch.split(flat, CHUNK)
    ]
    squares = sum(float(norm) ** 2 for norm in norms)
    return math.sqrt(squares / len(flat)) * unit


def _squared_error(sample: torch.Tensor, down: float, up: float) -> float:
    """The mean squared error with bins that reach so far below and above the mean; all of it in standard deviations."""
    error = ((down + up) / CODES) ** 2 / 12
    for beyond in ((sample - up).clamp_min_(0), (-down - sample).clamp_min_(0)):
        count = int(torch.count_nonzero(beyond))
        if count:  # their average will stand for them; that of one is no average
            squares, total = float(torch.linalg.vector_norm(beyond)) ** 2, float(beyond.sum())
            error += (squares - total**2 / count if count > 1 else squares) / len(sample)
    return error
