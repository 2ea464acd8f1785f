"""What codecs cost: the error that they make, and their speed on this machine. Measured, not promised."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from hivemind_p2p.compression.encoded import ReceivedTensor, compression_type, encode
from hivemind_p2p.wire.compression_type import CompressionType, OwnCompression

SAMPLE: Final = 2**16
"""Elements of a tensor that are looked at."""
EVERY: Final = 8
_PIECES: Final = 16
WORTH: Final = 2.0
"""How many times sooner a tensor must be there for precision to be given up."""


@dataclass
class CodecErrors:
    """Of one codec, so far.

    Attributes:
        tensors: that were measured.
        mean: of their errors: the L2 norm of what was lost, relative to that of the tensor (about zero).
        largest: of them.
    """

    tensors: int = 0
    mean: float = 0.0
    largest: float = 0.0

    def add(self, error: float) -> None:
        """One more."""
        self.tensors += 1
        self.mean += (error - self.mean) / self.tensors
        self.largest = max(self.largest, error)


class ErrorMeter:
    """Measures tensors that are about to be sent, and keeps count. Used by several threads at once.

    Attributes:
        codecs: by name.
    """

    def __init__(self) -> None:
        self.codecs: dict[str, CodecErrors] = {}
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def measure(self, tensor: torch.Tensor, compression: int) -> float | None:
        """The error that a codec makes with this tensor; None: not measured, as most are not, because it takes a while.

        The first tensor of each codec is measured, and every :data:`EVERY`-th.
        """
        if not compression:
            return 0.0
        name = compression_type(compression).name
        with self._lock:
            seen = self._seen[name] = self._seen.get(name, 0) + 1
        if seen % EVERY != 1:
            return None
        error = relative_error(tensor, compression)
        with self._lock:
            self.codecs.setdefault(name, CodecErrors()).add(error)
        return error

    def __repr__(self) -> str:
        return f"<ErrorMeter: {', '.join(f'{name} {each.mean:.4f}' for name, each in self.codecs.items())}>"


def relative_error(tensor: torch.Tensor, compression: int) -> float:
    """The L2 norm of what a codec loses of a tensor, relative to that of the tensor; 0 for one of zeros.

    Of a tensor with more than :data:`SAMPLE` elements, some evenly spaced pieces are looked at.
    """
    flat = tensor.detach().reshape(-1)
    if len(flat) > SAMPLE:
        step = len(flat) // _PIECES
        flat = torch.cat([flat[at * step : at * step + SAMPLE // _PIECES] for at in range(_PIECES)])
    got = ReceivedTensor(*encode(flat, compression)).decode()
    norm = float(torch.linalg.vector_norm(flat.float()))
    return float(torch.linalg.vector_norm(got.detach().float() - flat.float())) / norm if norm else 0.0


@cache
def elements_per_second(compression: int) -> float:
    """How fast this machine encodes and decodes, one after the other, on one thread; measured once."""
    tensor = torch.linspace(-1, 1, SAMPLE, device="cpu")
    times = []
    for _ in range(3):
        began = time.perf_counter()
        ReceivedTensor(*encode(tensor, compression)).decode()
        times.append(time.perf_counter() - began)
    return SAMPLE / min(times)


def fastest(nbytes: int, itemsize: int, bytes_per_second: float, choices: tuple[int, ...]) -> int:
    """The compression with which a tensor of floats is there first; NONE unless that one is :data:`WORTH` times faster.

    What is saved on links about as fast as the codec is eaten up by what is not counted here: turns of threads, and
    both sides' cores, which have other work.

    Args:
        nbytes: of the tensor.
        itemsize: bytes of an element.
        bytes_per_second: that the link carries.
        choices: from which to choose, beside NONE.
    """
    elements = nbytes // itemsize

    def seconds(compression: int) -> float:
        size = _bytes_per_element(compression, itemsize) * elements
        return size / bytes_per_second + (elements / elements_per_second(compression) if compression else 0.0)

    first = min(choices, key=seconds)
    return first if seconds(first) * WORTH <= seconds(CompressionType.NONE) else CompressionType.NONE


def _bytes_per_element(compression: int, itemsize: int) -> float:
    if not compression:
        return itemsize
    return 2.0 if compression in (1, 2) else 1.016 if compression == OwnCompression.BLOCK_INT8 else 1.0
