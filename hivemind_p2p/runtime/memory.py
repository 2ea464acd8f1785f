"""Whose memory a tensor lies in, and moving it between main memory and the device.

Three promises are kept here. What a module is given it may keep in its graph: inputs are ordinary tensors, without the
restrictions of ``inference_mode``. What a caller is given is his: it shares no memory with his inputs, with the
module, or with later batches. And what is given to one caller does not keep more alive than the batch it came in.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch

Tensors = tuple[torch.Tensor, ...]
_M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


def gather(requests: Sequence[Tensors], *, pinned: bool = False) -> Tensors:
    """The tensors of several requests, one after another along the batch; those of a lone one as they are.

    Args:
        requests: flat tensors, of the same number and kinds in each.
        pinned: put what has to be copied into pinned memory, from which a GPU fetches it by itself.
    """
    if len(requests) == 1:
        return tuple(tensor.clone() if tensor.is_inference() else tensor for tensor in requests[0])
    with torch.no_grad():
        return tuple(_concatenate(column, pinned=pinned) for column in zip(*requests, strict=True))


def scatter(tensors: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """The inverse of :func:`gather`: everybody's rows, in the same memory."""
    if len(sizes) == 1:
        return [tensors]
    return list(zip(*(tensor.split_with_sizes(list(sizes)) for tensor in tensors), strict=True))


def own(tensors: Iterable[torch.Tensor], others: Tensors) -> Tensors:
    """The tensors, each in memory that is wholly its own, and free of ``inference_mode``.

    Args:
        tensors: what a module gave.
        others: tensors whose memory they must not share.
    """
    taken = {other.untyped_storage().data_ptr() for other in others}
    owned = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        if not whole or storage.data_ptr() in taken:
            mine = tensor.detach().clone(memory_format=torch.contiguous_format)
        elif tensor.is_inference():  # others could neither change it nor save it for a backward; the bytes are fine
            mine = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                storage, 0, tensor.shape, tensor.stride()
            )
        else:
            mine = tensor.detach()
        taken.add(storage.data_ptr())
        owned.append(mine)
    return tuple(owned)


def make_ordinary(module: torch.nn.Module) -> None:
    """Free what a module made under ``inference_mode`` and keeps, as a buffer or an attribute, from that mode: others
    could neither change it nor save it for a backward."""
    for part in module.modules():
        for kept in (part._buffers, vars(part)):
            for name, value in kept.items():
                if isinstance(value, torch.Tensor) and value.is_inference():
                    kept[name] = value.clone()


def to_device(tensors: Tensors, device: torch.device | None) -> Tensors:
    """Inputs, where the module is. From pinned memory this does not wait."""
    if device is None or device.type == "cpu":
        return tensors
    return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


def to_host(tensors: Tensors) -> Tensors:
    """Results, in main memory; from a GPU through pinned memory, all of them before one wait."""
    if all(tensor.is_cpu for tensor in tensors):
        return tensors
    if not all(tensor.is_cuda for tensor in tensors):
        return tuple(tensor.cpu() for tensor in tensors)
    arrived = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors)
    for target, tensor in zip(arrived, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    for device in {tensor.device for tensor in tensors}:
        torch.cuda.current_stream(device).synchronize()
    return arrived


def share_memory_among_threads() -> None:
    """Have the C library's heaps be two from now on, and not one for each thread, as far as there are fewer now.

    What one thread frees, others then use: of a server that learns, 50 of 620 MiB at most and 40 of 420 when it rests.
    Python's threads take turns and seldom meet there. Who says otherwise by ``MALLOC_ARENA_MAX`` is obeyed; nothing
    happens where the library is not glibc.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 2)


def give_back_memory() -> None:
    """Return to the system what the C library keeps of freed memory, for later: after large batches of an expert of 8
    million weights, 50 of 409 MiB. It takes some milliseconds. Nothing where the library is not glibc."""
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _c_function(name: str) -> Callable[..., int] | None:
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return function


def _concatenate(tensors: Tensors, *, pinned: bool) -> torch.Tensor:
    if not pinned:
        return torch.cat(tensors)
    rows = sum(tensor.shape[0] for tensor in tensors)
    target = torch.empty((rows, *tensors[0].shape[1:]), dtype=tensors[0].dtype, pin_memory=True)
    return torch.cat(tensors, out=target)
