"""Whether there is a NaN or an infinity among numbers, in one pass over them and without a copy where there is none."""

from __future__ import annotations

import cmath
from collections.abc import Iterable

import torch

_HALF = (torch.float16, torch.bfloat16)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all numbers are finite, exactly. What is not made of floats is."""
    floats = [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    # A sum is finite only if everything in it is. Where it is not, large numbers may have done it together.
    sums = [tensor.sum(dtype=torch.float32 if tensor.dtype in _HALF else None) for tensor in floats]
    if all(each.is_cpu for each in sums):  # to look at these costs no wait, and less than more of torch's functions
        if all(cmath.isfinite(each.item()) for each in sums):
            return True
    elif _all(each.isfinite() for each in sums):
        return True
    return _all(tensor.isfinite().all() for tensor in floats)


def norms_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the norm of each is finite, which is asked of gradients and weights: optimizers square them."""
    norms = []
    for tensor in tensors:
        values = tensor.coalesce().values() if tensor.is_sparse else tensor
        norms.append(torch.linalg.vector_norm(values, dtype=torch.float32 if values.dtype in _HALF else None))
    return _all(norm.isfinite() for norm in norms)


def _all(answers: Iterable[torch.Tensor]) -> bool:
    """Of scalars, with one wait for the device and not one for each."""
    found = list(answers)
    return not found or bool(torch.stack([each.to(found[0].device) for each in found]).all())
